"""The joint stack: visibility, caches, experts, scan and rematerialisation."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wamjax.errors import UserError
from wamjax.nn.layers import TimeEmbedding, angles, frequencies
from wamjax.nn.rope import rotate, rotation
from wamjax.nn.stack import Block, Expert, Stack, StackConfig, extended
from wamjax.nn.tokens import Group, TokenIds, TokenPlan

CONFIG = StackConfig(layers=3, heads=2, head_dim=4, experts=(Expert(8, 16), Expert(12, 20)))
GROUPS = (Group("context", 3), Group("video", 4), Group("action", 2, expert=1))
PLAN = TokenPlan.from_rule(GROUPS, lambda q, k: k.stream == "context" or (q.stream != "context"))
TIME_OF = {"context": 0, "video": 1, "action": 2}


@pytest.fixture(scope="module")
def example(randomise):
    random = np.random.default_rng(0)
    tokens = {0: random.standard_normal((2, 7, 8)), 1: random.standard_normal((2, 2, 12))}
    tokens = {e: jnp.asarray(x, jnp.float32) for e, x in tokens.items()}
    sigma = jnp.asarray(random.uniform(size=(2, 3)), jnp.float32).at[:, 0].set(0)
    ids = TokenIds.of(PLAN, 2, TIME_OF)

    def init(key):
        return Stack(CONFIG).init(key, tokens, sigma, ids, PLAN)["params"]

    params = randomise(jax.eval_shape(init, jax.random.key(0)))
    return params, tokens, sigma, ids


@functools.partial(jax.jit, static_argnames=("plan", "config"))
def run(params, tokens, sigma, ids, plan=PLAN, cache=None, config=CONFIG):
    return Stack(config).apply({"params": params}, tokens, sigma, ids, plan, cache)


def test_tokens_change_only_those_that_see_them(example):
    params, tokens, sigma, ids = example
    before, _ = run(*example)
    changed = {0: tokens[0].at[:, 5].add(1.0), 1: tokens[1]}
    after, _ = run(params, changed, sigma, ids)
    np.testing.assert_array_equal(before[0][:, :3], after[0][:, :3])
    assert np.all(np.abs(before[0][:, 3:] - after[0][:, 3:]).max(-1) > 1e-4)
    assert np.all(np.abs(before[1] - after[1]).max(-1) > 1e-4)


def test_a_noise_time_changes_only_its_tokens_and_who_sees_them(example):
    params, tokens, sigma, ids = example
    before, _ = run(*example)
    after, _ = run(params, tokens, sigma.at[:, 2].add(0.3), ids)
    np.testing.assert_array_equal(before[0][:, :3], after[0][:, :3])
    assert np.abs(before[1] - after[1]).max() > 1e-4


def test_a_cached_prefix_gives_the_same_tokens(example):
    params, tokens, sigma, ids = example
    whole, full_cache = run(*example)
    prefix = TokenPlan.from_rule(GROUPS[:1], lambda q, k: True)
    _, cache = run(params, {0: tokens[0][:, :3]}, sigma, TokenIds.of(prefix, 2, TIME_OF), prefix)
    rest, new = run(params, {0: tokens[0][:, 3:], 1: tokens[1]}, sigma, ids, cache=cache)
    np.testing.assert_allclose(rest[0], whole[0][:, 3:], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(rest[1], whole[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(extended(cache, new)["k"], full_cache["k"], rtol=1e-5, atol=1e-5)


def test_the_scan_equals_a_python_loop(example):
    params, tokens, sigma, ids = example
    scanned, _ = run(*example)
    rows = {}
    for expert in (0, 1):
        time = params[f"time_{expert}"]
        rows[expert] = TimeEmbedding(CONFIG.experts[expert].width).apply({"params": time}, sigma)
    x = tokens
    for layer in range(CONFIG.layers):
        one = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["blocks"])
        x, _ = Block(CONFIG).apply({"params": one}, x, rows, ids, PLAN, None)
    for expert in (0, 1):
        np.testing.assert_allclose(scanned[expert], x[expert], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def slope(example):
    """Gradients of a configuration's stack, compiled once for each."""

    def loss(params, config):
        out, _ = run(params, *example[1:], config=config)
        return sum(jnp.sum(x**2) for x in out.values())

    return jax.jit(jax.grad(loss), static_argnums=1)


KEPT = {
    (("attn_out", "mlp_hidden"), ()): set(),
    ((), ("block_in",)): {"3,2,7,8", "3,2,2,12"},
    (("attended",), ("block_in", "qkv")): {"3,2,7,8", "3,2,2,12", "3,2,9,2,4"},
}
"""Points kept on the device and on the host, and the arrays that the host then holds of all layers."""


@pytest.mark.parametrize(("remat", "offload"), list(KEPT))
def test_rematerialisation_changes_no_gradient_and_keeps_what_it_says_on_the_host(example, slope, remat, offload):
    config = dataclasses.replace(CONFIG, remat=remat, offload=offload)
    traced = slope.trace(example[0], config)
    held = re.findall(r"f32<host>\[(3,[\d,]+)\]", str(traced.jaxpr))
    assert set(held) == KEPT[remat, offload]
    plain, remade = slope(example[0], CONFIG), slope(example[0], config)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, remade)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"remat": ("blok_in",)}, "no 'blok_in': did you mean 'block_in'"),
        ({"remat": (), "offload": ("x",)}, "no 'x': use some of block_in, qkv"),
        ({"remat": ("qkv",), "offload": ("qkv",)}, "'qkv' is in remat and in offload"),
        ({"offload": ("qkv",)}, "set remat=()"),
    ],
)
def test_points_that_are_none_are_named(choice, message):
    with pytest.raises(UserError, match=re.escape(message)):
        dataclasses.replace(CONFIG, **choice)


def test_angles_are_those_of_double_precision():
    x = np.concatenate([np.arange(0, 1025, 7), np.random.default_rng(0).uniform(-64, 1000, 200)]).astype(np.float32)
    exact = x[:, None].astype(np.float64) * frequencies(128)
    computed = jax.jit(lambda x: angles(x, frequencies(128)))(x)
    np.testing.assert_allclose(np.cos(computed), np.cos(exact), rtol=0, atol=2e-6)
    np.testing.assert_allclose(np.sin(computed), np.sin(exact), rtol=0, atol=2e-6)


def test_a_rotation_keeps_lengths_and_depends_on_distance_alone():
    q, k = (jax.random.normal(jax.random.key(i), (1, 1, 2, 12)) for i in range(2))
    place = jnp.array([[[3.0, 1.5, -2.0]]])

    def product(shift):
        a, b = (rotate(x, rotation(p + shift, (2, 2, 2))) for x, p in ((q, place), (k, jnp.zeros_like(place))))
        np.testing.assert_allclose(jnp.linalg.norm(a), jnp.linalg.norm(q), rtol=1e-6)
        return jnp.sum(a * b, axis=-1)

    np.testing.assert_allclose(product(0.0), product(jnp.array([17.0, 900.0, 0.25])), rtol=0, atol=2e-5)
    assert np.abs(product(0.0) - jnp.sum(q * k, axis=-1)).max() > 1e-2
