"""What GPUs are given of a plan: cuDNN's attention per span. Lowered for them, never run on one."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from wamjax.networks.wan.dit import WanDiTConfig
from wamjax.nn import attention as door
from wamjax.nn.attention import attention, attention_to_all
from wamjax.nn.tokens import TokenIds, visible
from wamjax.policies.dreamzero.network import NetworkConfig, training_plan

PLAN = training_plan(130, 2, NetworkConfig(WanDiTConfig(32, 64, 4, 1), block_actions=3))
SPANS = len(list(PLAN.spans(PLAN.length)))


@pytest.fixture
def gpu(monkeypatch):
    """As on a machine with an NVIDIA GPU and cuDNN 9.13."""
    monkeypatch.setattr(door, "platform", lambda: "gpu")
    monkeypatch.setattr(door, "get_backend", lambda: SimpleNamespace(platform_version="PJRT C API\ncuda 13000"))
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91300)


def calls(dtype, head: int, absent: bool = False, tokens: int = 0) -> tuple[int, int]:
    """cuDNN's forward and backward kernels in a program for GPUs."""
    x = jax.ShapeDtypeStruct((2, tokens or PLAN.length, 2, head), dtype)
    segment = jnp.zeros((2, PLAN.length), int).at[1, 140:160].set(-1) if absent else None

    def loss(q, k):
        if tokens:
            return jnp.sum(attention_to_all(q, k, k).astype(jnp.float32))
        return jnp.sum(attention(q, k, k, PLAN, TokenIds(segment, jnp.zeros((2, PLAN.length), int))))

    text = jax.jit(jax.grad(loss, (0, 1))).trace(x, x).lower(lowering_platforms=("cuda",)).as_text()
    found = re.findall(r"@__cudnn\$fmha\w*", text)
    backward = sum("Backward" in name for name in found)
    return len(found) - backward, backward


def test_every_span_is_a_kernel_of_cudnn(gpu):
    assert calls(jnp.bfloat16, 128) == (SPANS, SPANS)
    assert calls(jnp.float16, 64) == (SPANS, SPANS)
    assert calls(jnp.bfloat16, 128, tokens=5000) == (1, 1)  # no blocks: no scores are kept


@pytest.mark.parametrize(("dtype", "head"), [(jnp.float32, 128), (jnp.bfloat16, 132), (jnp.bfloat16, 256)])
def test_what_cudnn_does_not_take_goes_without(gpu, dtype, head):
    assert calls(dtype, head) == (0, 0)


def test_other_gpus_go_without(gpu, monkeypatch):
    monkeypatch.setattr(door, "get_backend", lambda: SimpleNamespace(platform_version="PJRT C API\nrocm 60000"))
    assert calls(jnp.bfloat16, 128) == (0, 0)


@pytest.mark.parametrize("absent", [False, True])
def test_its_parts_give_the_result_of_the_whole(gpu, monkeypatch, absent):
    """XLA's attention in the place of cuDNN's: the spans, their masks, and odd lengths."""
    asked, real = [], jax.nn.dot_product_attention

    def instead(q, k, v, *, implementation, **options):
        assert implementation == "cudnn"
        assert q.shape[1] % 2 == k.shape[1] % 2 == 0
        asked.append(options["key_value_seq_lengths"])
        return real(q, k, v, **options)

    monkeypatch.setitem(door.KERNELS, "gpu", lambda q: True)
    random = np.random.default_rng(0)
    q, k, v = (jnp.asarray(random.standard_normal((2, PLAN.length, 2, 8)), jnp.float32) for _ in range(3))
    segment = jnp.zeros((2, PLAN.length), int).at[1, 140:160].set(-1) if absent else None
    mask = visible(PLAN, segment, PLAN.length)
    expected = jax.jit(real)(q, k, v, mask=mask[:, None]) * mask.any(-1)[:, :, None, None]
    monkeypatch.setattr(jax.nn, "dot_product_attention", instead)
    ids = TokenIds(segment, jnp.zeros((2, PLAN.length), int))
    found = jax.jit(lambda q, k, v: attention(q, k, v, PLAN, ids))(q, k, v)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    assert len(asked) == SPANS
    assert any(lengths is not None for lengths in asked) != absent  # odd ones are masked anyway
    if absent:
        np.testing.assert_array_equal(found[1, 140:160], 0)
