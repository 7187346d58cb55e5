"""A sequence over eight simulated devices gives what one device gives: attention, losses and gradients."""

import itertools
import os
import subprocess
import sys

import pytest

ATTENTION = """
import sys
import jax, jax.numpy as jnp, numpy as np
from wamjax.nn.attention import attend, attention
from wamjax.nn.tokens import Group, TokenIds, TokenPlan
from wamjax.policies.dreamzero.network import NetworkConfig, training_plan
from wamjax.networks.wan.dit import WanDiTConfig
from wamjax.sharding.mesh import MeshConfig, make_mesh

config = NetworkConfig(WanDiTConfig(32, 64, 4, 1), block_actions=3)
causal = TokenPlan.from_rule([Group("text", 5), Group("video", 8, causal=True)], lambda q, k: k.stream <= q.stream)
full = TokenPlan.from_rule([Group("video", 24)], lambda q, k: True)
plans = {"teacher": training_plan(6, 3, config), "long": training_plan(40, 3, config), "causal": causal, "full": full}
random = np.random.default_rng(0)
for name in sys.argv[1].split(","):
    plan = plans[name]
    q, k, v = (random.standard_normal((2, plan.length, 4, 8)).astype(np.float32) for _ in range(3))
    segments = np.zeros((2, plan.length), np.int32)
    segments[1, plan.length // 2 : plan.length // 2 + 3] = -1
    for segment in (None, jnp.asarray(segments)):
        def loss(q, k, v, run):
            out = run(q, k, v, plan, TokenIds(segment, jnp.zeros((2, plan.length), int)))
            return jnp.sum(jnp.sin(out) * jnp.arange(plan.length)[:, None, None] / plan.length), out
        alone = lambda q, k, v, plan, ids: attend(q, k, v, plan, ids.segment)
        (_, expected), slopes = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v, alone)
        for sizes in eval(sys.argv[2]):
            mesh = make_mesh(MeshConfig(**sizes))
            with jax.set_mesh(mesh):
                run = jax.jit(jax.value_and_grad(lambda q, k, v: loss(q, k, v, attention), (0, 1, 2), has_aux=True))
                (_, found), gradients = run(q, k, v)
            for one, other in zip((found, *gradients), (expected, *slopes), strict=True):
                np.testing.assert_allclose(one, other, rtol=0, atol=2e-5, err_msg=f"{name} {sizes}")
    print(name, "equal")
"""


def on_eight_devices(script: str, *arguments: str) -> str:
    """What a script prints in a process with eight simulated devices."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


GRADIENTS = """
import sys
import jax, jax.numpy as jnp, numpy as np
from tests.policies.dreamzero import tiny
from wamjax.networks.wan.dit import PARTITIONS
from wamjax.sharding.mesh import MeshConfig, OnMesh, make_mesh, shardings, to_devices
from wamjax.training.step import encode_and_draw, gradients

policy, params, frozen = tiny.built("small")
batch = tiny.batch(policy, b=8)
blocks = policy.config.blocks
batch["chunks"] = np.arange(8) % blocks + 1
batch["action_mask"][3:5] = False

def step(params, frozen, batch, portions=1):
    encoded, draws = encode_and_draw(policy, frozen, None, batch, jax.random.key(1), portions)
    return gradients(policy, params, frozen, encoded, draws, portions)

expected = jax.jit(step)(params, frozen, batch)
scale = {name: float(jnp.abs(x).max()) for name, x in expected[1].items()}
for sizes, portions in eval(sys.argv[1]):
    mesh = make_mesh(MeshConfig(**sizes))
    placed = jax.device_put(params, shardings(params, PARTITIONS, mesh))
    run = OnMesh(mesh, jax.jit(step, static_argnums=3))
    found, worst = run(placed, frozen, to_devices(batch, mesh), portions), 0.0
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        error = float(jnp.abs(one - other).max() / jnp.maximum(jnp.abs(other).max(), 1e-3))
        assert error < 1e-5, (sizes, jax.tree_util.keystr(path), error)
        worst = max(worst, error)
    print(sizes, portions, f"equal to {worst:.1e}", flush=True)
    jax.clear_caches()  # programs of eight devices are large
"""

PLANS = ("teacher", "long", "causal", "full")
SEQUENCES = (
    {"context": 4},
    {"ring": 4},
    {"ring": 2, "context": 2},
    {"context": 2, "tensor": 2},
    {"ring": 8, "data": 1},
)


@pytest.mark.parametrize(
    ("plans", "meshes"),
    [(("teacher", "causal"), SEQUENCES[2:3]), pytest.param(PLANS, SEQUENCES, marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_attention_over_devices_equals_one(plans, meshes):
    assert on_eight_devices(ATTENTION, ",".join(plans), repr(meshes)).count("equal") == len(plans)


AXES = ("data", "fsdp", "context", "ring", "tensor")
DIVIDES_HEADS = ("context", "tensor")  # of which there are 4


def meshes() -> list[dict[str, int]]:
    """Of eight devices: every axis by itself, and all mixes of two and of three; replicas are what is left."""
    alone = [{axis: 4 if axis in DIVIDES_HEADS else 8} for axis in AXES]
    mixed = [dict.fromkeys(axes, 2) for several in (2, 3) for axes in itertools.combinations(AXES, several)]
    return [{"replica": 8, "data": 1}, *({"data": 1, "replica": -1} | sizes for sizes in alone + mixed)]


EVERY = tuple((sizes, 1) for sizes in meshes())
IN_PORTIONS = (({"data": 1, "fsdp": 2, "context": 2, "tensor": 2}, 2),)
A_RING = (({"data": 2, "ring": 2, "context": 2}, 4),)
"""Sizes of a mesh, and in how many portions the batch is read."""


@pytest.mark.parametrize(
    "meshes",
    [
        pytest.param(IN_PORTIONS, id="in portions"),
        pytest.param(A_RING, id="a ring", marks=pytest.mark.slow),
        pytest.param(EVERY, id="every mesh", marks=pytest.mark.slow),
    ],
)
def test_loss_and_gradients_over_devices_equal_those_of_one(meshes):
    """DreamZero's, whose clean and noisy copies see each other by rule; with blocks and actions that samples lack."""
    said = on_eight_devices(GRADIENTS, repr(meshes))
    assert said.count("equal") == len(meshes)
    print(said)
