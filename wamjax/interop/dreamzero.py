"""Key maps of DreamZero's network: the names of its own module, without the head's prefix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Sharding

from wamjax.interop import wan_dit
from wamjax.interop.keymap import TABLE, KeyMap, Layout, Source, complain, flatten
from wamjax.policies.contract import Policy
from wamjax.policies.dreamzero.network import NetworkConfig

CATEGORIES = Layout((0, 1, 2))
"""(k, in, out) there and here."""

CODECS = {
    **{f"{codec}/layer{i}": f"{codec}.layer{i}" for codec in ("state_encoder", "action_decoder") for i in (1, 2)},
    **{f"action_encoder/layer{i}": f"action_encoder.W{i}" for i in (1, 2, 3)},
}
"""Category linears: path here to name there."""


def lacking(policy: Policy, found: Mapping[str, Any]) -> set[str]:
    """Parameters of a policy's network that a checkpoint does not have.

    Raises:
        UserError: parameters that the network does not have, or of another shape.
    """
    expected = flatten(jax.eval_shape(policy.init, jax.random.key(0)))
    complain(
        "starting weights",
        unexpected=found.keys() - expected.keys(),
        misshapen=[
            f"{path} {found[path].shape}, not {expected[path].shape}"
            for path in found.keys() & expected.keys()
            if tuple(found[path].shape) != expected[path].shape
        ],
    )
    return expected.keys() - found.keys()


def drawn(policy: Policy, places: Mapping[str, Sharding], seed: int) -> dict[str, Any]:
    """Random parameters at some paths only, made where they belong; the others are not even drawn."""

    def init(key: jax.Array) -> dict[str, Any]:
        every = flatten(policy.init(key))
        return {path: every[path] for path in places}

    return jax.jit(init, out_shardings=dict(places))(jax.random.key(seed)) if places else {}


def keymap(config: NetworkConfig, layout: str = "original") -> KeyMap:
    """The key map of the network; of its transformer in the layout given."""
    rows = {f"dit/{path}": source for path, source in wan_dit.keymap(config.dit, layout).items()}
    for path, name in CODECS.items():
        rows[f"{path}/kernel"] = Source((f"{name}.W",), CATEGORIES)
        rows[f"{path}/bias"] = Source((f"{name}.b",), TABLE)
    return rows
