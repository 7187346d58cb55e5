"""Key maps of DreamZero's network: the names of its own module, without the head's prefix."""

from __future__ import annotations

from wamjax.interop import wan_dit
from wamjax.interop.keymap import TABLE, KeyMap, Layout, Source
from wamjax.policies.dreamzero.network import NetworkConfig

CATEGORIES = Layout((0, 1, 2))
"""(k, in, out) there and here."""

CODECS = {
    **{f"{codec}/layer{i}": f"{codec}.layer{i}" for codec in ("state_encoder", "action_decoder") for i in (1, 2)},
    **{f"action_encoder/layer{i}": f"action_encoder.W{i}" for i in (1, 2, 3)},
}
"""Category linears: path here to name there."""


def keymap(config: NetworkConfig, layout: str = "original") -> KeyMap:
    """The key map of the network; of its transformer in the layout given."""
    rows = {f"dit/{path}": source for path, source in wan_dit.keymap(config.dit, layout).items()}
    for path, name in CODECS.items():
        rows[f"{path}/kernel"] = Source((f"{name}.W",), CATEGORIES)
        rows[f"{path}/bias"] = Source((f"{name}.b",), TABLE)
    return rows
