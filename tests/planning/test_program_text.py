"""Reading compiled programs: on simulated devices, and lines as the TPU's compiler writes them."""

from tests.sharding.test_spread import on_eight_devices
from wamjax.planning.program_text import collectives, float32_products, kernels

LINES = """HloModule jit_step

%body.1 (p: (s32[], bf16[8,8])) -> (s32[], bf16[8,8]) {
  %g = bf16[64,8]{1,0:T(8,128)} all-gather(%x), dimensions={0}, metadata={op_name="jit(step)/run/while/body/q"}
  %s = (f32[8,8]{1,0}, f32[64,8]{1,0}) all-gather-start(%y), dimensions={0}
  %d = f32[64,8]{1,0} all-gather-done(%s)
  %f = bf16[8,8]{1,0} fusion(%g), kind=kOutput, calls=%inner.1
}

%inner.1 (p: bf16[8]) -> bf16[8] {
  ROOT %r = bf16[16]{0} all-to-all(%p), dimensions={0}
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
  ROOT %all = f32[12]{0} all-reduce(%p), to_apply=%sum
}
"""


def test_collectives_count_as_often_as_their_loop_runs():
    found = [(one.kind, one.times, one.bytes) for one in collectives(LINES)]
    assert found == [
        ("all-gather", 40, 40 * 64 * 8 * 2),
        ("all-gather", 40, 40 * 64 * 8 * 4),
        ("all-to-all", 40, 40 * 16 * 2),
        ("all-reduce", 1, 48),
    ]


def test_products_in_float32_and_kernels_are_found():
    assert float32_products(LINES) == {"jit(step)/time_in/dot_general": 1}
    assert kernels(LINES) == 1


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
