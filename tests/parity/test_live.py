"""The fixtures against diffusers and transformers as installed here: `pip install -e '.[torch]'` to run this."""

import numpy as np
import pytest

from tests.parity.recipe import FOLDER, WAN_DITS

reason = "diffusers, transformers and torch are optional: pip install -e '.[torch]' compares with them"
for package in ("torch", "diffusers", "transformers"):
    pytest.importorskip(package, reason=reason)

from tests.parity import regenerate  # noqa: E402

MAKERS = {
    **{f"wan_dit_{name}": lambda seed, name=name: regenerate.wan_dit(name, seed) for name in WAN_DITS},
    **{f"{name}_vae": lambda seed, name=name: regenerate.wan_vae(name, seed) for name in regenerate.WAN_VAES},
    "umt5": regenerate.umt5,
    "clip": regenerate.clip,
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("seed", [0, 1])
def test_published_code_still_gives_the_fixtures(name, seed):
    frozen, live = np.load(FOLDER / f"{name}_{seed}.npz"), MAKERS[name](seed)
    assert set(frozen) == set(live)
    assert str(frozen["shapes"]) == str(live["shapes"])
    for key in set(live) - {"shapes"}:
        np.testing.assert_allclose(frozen[key], live[key], rtol=0, atol=1e-5)
