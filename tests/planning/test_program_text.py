"""Reading compiled programs: on simulated devices, and lines as the TPU's compiler writes them."""

from tests.sharding.test_spread import on_eight_devices
from wamjax.planning.program_text import between_slices, collectives, float32_products, kernels

LINES = """HloModule jit_step

%body.1 (p: (s32[], bf16[8,8])) -> (s32[], bf16[8,8]) {
  %g = bf16[64,8]{1,0:T(8,128)} all-gather(%x), dimensions={0}, metadata={op_name="jit(step)/run/while/body/q"}
  %s = (f32[8,8]{1,0}, f32[64,8]{1,0}) all-gather-start(%y), dimensions={0}
  %d = f32[64,8]{1,0} all-gather-done(%s)
  %f = bf16[8,8]{1,0} fusion(%g), kind=kOutput, calls=%inner.1
  %r = bf16[64,1] fusion(%z), kind=kCustom, calls=%all-reduce-scatter.2, metadata={op_name="jit(step)/transpose(w)"}
  %send.1 = (bf16[4,8]{1,0}, u32[], token[]) send(%b, %t), frontend_attributes={_handler="xla_megascale_runtime"}
}

%inner.1 (p: bf16[8]) -> bf16[8] {
  ROOT %r = bf16[16]{0} all-to-all(%p), dimensions={0}, replica_groups=[4,2]<=[2,4]T(1,0)
}

%all-reduce-scatter.2 (p: bf16[64,8]) -> bf16[64,1] {
  %all = bf16[64,8]{1,0} all-reduce(%p), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%sum
  ROOT %s = bf16[64,1]{1,0} dynamic-slice(%all, %i), dynamic_slice_sizes={64,1}
}

%cond.1 (p: (s32[], bf16[8,8])) -> pred[] {
  %c = s32[]{:T(128)} constant(40)
  ROOT %lt = pred[] compare(%i, %c), direction=LT
}

ENTRY %main.1 (a: bf16[8,8]) -> bf16[8,8] {
  %w = (s32[], bf16[8,8]{1,0}) while(%t), condition=%cond.1, body=%body.1, metadata={op_name="jit(step)/run/while"}
  %p = f32[27,5120]{1,0} convolution(%a, %b), dim_labels=bf_io->bf, metadata={op_name="jit(step)/time_in/dot_general"}
  %q = bf16[27,5120]{1,0} convolution(%a, %b), dim_labels=bf_io->bf, metadata={op_name="jit(step)/q/dot_general"}
  %k = bf16[8] custom-call(%q), custom_call_target="tpu_custom_call"
  %two = (f32[12]{0}, bf16[2,2]{1,0}) all-reduce(%p), to_apply=%sum, replica_groups=mesh['a'=2,'b'=4] {'b'}
  ROOT %m = f32[6]{0} reduce-scatter(%p), replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}
}
"""
KERNEL = (
    '  %splash_mha_{phase}_segmented.{number} = (f32[8,128]) custom-call(%a), custom_call_target="tpu_custom_call", '
    "operand_layout_constraints={{s8[1,18,9]{{2,1,0}}, bf16[5,{queries},128]{{2,1,0}}, bf16[5,{keys},128]{{2,1,0}}}}\n"
)


def test_collectives_count_as_often_as_their_loop_runs_and_with_all_their_arrays():
    found = [(one.kind, one.times, one.bytes, one.group) for one in collectives(LINES)]
    assert found == [
        ("all-gather", 40, 40 * 64 * 8 * 2, ()),
        ("all-gather", 40, 40 * 64 * 8 * 4, ()),
        ("all-to-all", 40, 40 * 16 * 2, (0, 4)),
        ("reduce-scatter", 40, 40 * 64 * 8 * 2, tuple(range(8))),  # an all-reduce of which only a slice is wanted
        ("all-reduce", 1, 12 * 4 + 4 * 2, (0, 1, 2, 3)),
        ("reduce-scatter", 1, 2 * 6 * 4, (0, 1)),
    ]
    scattered = collectives(LINES)[3]
    assert scattered.name == "jit(step)/transpose(w)"
    assert scattered.traffic == scattered.bytes * 7 / 8
    assert collectives(LINES)[4].traffic == 2 * 56 * 3 / 4
    assert between_slices(LINES) == 40 * 4 * 8 * 2


def test_products_in_float32_are_found():
    assert float32_products(LINES) == {"jit(step)/time_in/dot_general": 1}


def test_kernels_count_the_products_that_they_make():
    shapes = {"queries": 1024, "keys": 512}
    phases = ("fwd", "dq", "dkv")
    text = "".join(KERNEL.format(phase=phase, number=i, **shapes) for i, phase in enumerate(phases))
    found = kernels("ENTRY %main (a: f32[]) -> f32[] {\n" + text + "}\n")
    assert [one.products for one in found] == [2, 3, 4]
    assert found[0].operations == 2 * 2 * 5 * 1024 * 512 * 128
    fused = kernels("ENTRY %main (a: f32[]) -> f32[] {\n" + KERNEL.format(phase="dkv", number=1, **shapes) + "}\n")
    assert [one.products for one in fused] == [5]  # scores once, and all three gradients


SCRIPT = """
import jax, jax.numpy as jnp
from wamjax.planning.program_text import collectives
mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
place = lambda *spec: jax.NamedSharding(mesh, jax.P(*spec))
def f(x, weights):
    def layer(x, w):
        w = jax.lax.with_sharding_constraint(w, place())
        return jnp.tanh(x @ w), None
    return jax.lax.scan(layer, x, weights)[0].sum()
x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=place("x"))
w = jax.ShapeDtypeStruct((5, 16, 16), jnp.float32, sharding=place(None, "x"))
found = collectives(jax.jit(f).lower(x, w).compile().as_text())
print(sum(one.bytes for one in found if one.kind == "all-gather"))
"""


def test_a_real_program_gathers_every_layer_once():
    assert int(on_eight_devices(SCRIPT)) == 5 * 16 * 16 * 4
