"""The stopwatch, against a clock that the test moves."""

import jax
import jax.numpy as jnp
import numpy as np

from wamjax.evaluation.latency import Timing, random_like, timed


def test_warm_up_does_not_count_and_the_median_does():
    now, durations = [0.0], iter([100.0, 50.0, 3.0, 1.0, 2.0])

    def run():
        now[0] += next(durations)
        return jnp.zeros(3)

    timing = timed(run, repeats=3, warmup=2, clock=lambda: now[0])
    assert timing == Timing((3.0, 1.0, 2.0))
    assert (timing.median, timing.least) == (2.0, 1.0)


def test_the_clock_is_read_when_the_result_is_there(monkeypatch):
    events = []
    monkeypatch.setattr(jax, "block_until_ready", lambda x: events.append("waited"))
    timed(lambda: events.append("called"), repeats=1, warmup=1, clock=lambda: float(events.append("clock") or 0))
    assert events == ["called", "waited", "clock", "called", "waited", "clock"]


def test_random_weights_have_the_shapes_and_keep_a_signal():
    shapes = {"kernel": jax.ShapeDtypeStruct((400, 300), jnp.float32), "scale": jax.ShapeDtypeStruct((7,), jnp.float32)}
    made = random_like(shapes, 0, "bfloat16")
    assert {name: (x.shape, str(x.dtype)) for name, x in made.items()} == {
        "kernel": ((400, 300), "bfloat16"),
        "scale": ((7,), "bfloat16"),
    }
    np.testing.assert_allclose(np.std(np.asarray(made["kernel"], np.float32)), 400**-0.5, rtol=0.02)
    assert (made["scale"] == 1).all()
