"""What a step takes at least: counted on made-up programs, and for the encoders against published counts."""

import dataclasses

import jax
import pytest

from tests.planning.test_program_text import KERNEL
from wamjax.cli import _experiment
from wamjax.compute.executed import executed_on_chips, pairs_ratio, saved
from wamjax.compute.flops import of_passes
from wamjax.nn.splash import executed_pairs
from wamjax.planning.encoding import encoding
from wamjax.planning.plan import NOTHING, Program
from wamjax.planning.program_text import kernels
from wamjax.planning.roofline import moved, terms
from wamjax.planning.topology import Topology

POD = Topology.parse("v5p:2x2x1")


@pytest.fixture(scope="module")
def wan():
    experiment = _experiment.load("configs/wan_14b_720p.py")
    return _experiment.sketch(experiment, "720x1280")


def program(text: str) -> Program:
    return dataclasses.replace(NOTHING, text=text, memory={"arguments": 3 * 10**9, "temporaries": 2 * 10**9})


def test_recomputation_and_padding_are_executed_beside_the_mathematics(wan):
    passes = wan.policy.passes("train")
    forward = of_passes([dataclasses.replace(one, trained=False) for one in passes])
    runs = executed_on_chips(passes, samples=2)
    assert pairs_ratio(passes, 1) == executed_pairs(wan.policy.plan) / 75_600**2
    assert runs == pytest.approx(2 * 4 * (forward.matmul + pairs_ratio(passes, 1) * forward.attention), rel=1e-9)


def test_attention_is_counted_by_the_kernels_that_a_program_runs(wan):
    """Once forwards, once more for the backward pass, and 7 products backwards where 4 are the mathematics."""
    passes = wan.policy.passes("train")
    shapes, phases = {"queries": 75_776, "keys": 75_776}, ("fwd", "fwd", "dq", "dkv")
    layers = "".join(KERNEL.format(phase=phase, number=i, **shapes) for i, phase in enumerate(phases)) * 40
    calls = kernels("ENTRY %main (a: f32[]) -> f32[] {\n" + layers + "}\n")
    runs = executed_on_chips(passes, 1, 8, calls, chips=8)
    forward = of_passes([dataclasses.replace(one, trained=False) for one in passes])
    attention = pairs_ratio(passes, 8) * forward.attention * (2 + 2 + 3 + 4) / 2
    assert runs == pytest.approx(4 * forward.matmul + attention, rel=1e-6)


def test_what_is_kept_for_the_backward_pass_is_not_done_again(wan):
    (one,) = wan.policy.passes("train")
    assert saved(one) == 0
    config = dataclasses.replace(wan.policy.config.network, remat=("block_in", "mlp_hidden"))
    policy = dataclasses.replace(wan.policy, config=dataclasses.replace(wan.policy.config, network=config))
    assert saved(policy.passes("train")[0]) == 40 * 75_600 * 5120 * 13_824


def test_every_resource_has_its_time():
    text = """ENTRY %main (a: f32[]) -> f32[] {
  %g = f32[1000000]{0} all-gather(%x), replica_groups={{0,1,2,3}}, metadata={op_name="jit(step)/jvp(f)/dot_general"}
  %r = f32[1000000]{0} all-reduce(%x), replica_groups={{0,1,2,3}}, metadata={op_name="jit(step)/jvp(f)/dot_general"}
  %send.1 = (bf16[1000,1000]{1,0}, u32[], token[]) send(%b, %t), frontend_attributes={_handler="xla_megascale_runtime"}
}
"""
    sent = moved(program(text), slices=2)
    assert sent.collectives == {"all-gather": 4_000_000, "all-reduce": 4_000_000}
    assert sent.forward == 4_000_000
    assert sent.inside == 3 * 4_000_000 * 3 / 4
    assert sent.across == 2_000_000
    found = terms(POD, 4 * 459e12, sent, program(text))
    chip = POD.chip
    assert found == pytest.approx(
        {"compute": 1.0, "hbm": 1e10 / chip.bandwidth, "ici": 9e6 / chip.links, "dcn": 2e6 / chip.network}
    )


def test_the_encoders_work_is_the_published_one(wan):
    """compute.md: 381.67 TF for Wan's autoencoder on 81 frames of 720x1280, 4.845 TF for UMT5 on 512 tokens."""
    job = encoding(wan.encode, wan.frozen, wan.batch, samples=1000, topology=POD)
    assert job.flops_per_sample == pytest.approx(381.67e12 + 4.845e12, rel=2e-3)
    assert job.bytes_per_sample == 2 * (21 * 90 * 160 * 16 + 512 * 4096)
    assert job.seconds_best == pytest.approx(1000 * job.flops_per_sample / (4 * 459e12))
    assert job.chip_hours == pytest.approx(4 * job.seconds / 3600)
    assert jax.tree.leaves(wan.frozen)


def test_small_policies_that_fit_their_codecs_are_sketched_too():
    sketch = _experiment.sketch(_experiment.load("configs/dreamzero_small.py"), "64x64")
    found = jax.eval_shape(sketch.encode, sketch.frozen, sketch.batch)
    assert found["video"].shape == (1, 7, 4, 8, 48)
