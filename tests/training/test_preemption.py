"""A notice to one of several processes: all save the same step, and end to be started again."""

import signal
import time

from tests.sharding.test_processes import ends, free_port, start
from tests.training.test_guard import CONFIG, Line, batch, dataclasses, jnp, make_mesh
from wamjax.cli.main import report
from wamjax.sharding import processes
from wamjax.sharding.mesh import MeshConfig
from wamjax.training.checkpoint import Checkpoints
from wamjax.training.loop import train
from wamjax.training.samples import lineage

STEPS = 1_000_000


def main(port: str, own: str, run: str) -> int:
    """One of two processes, which would train for hours."""
    from pathlib import Path

    def batches(first, rows):
        number = first
        while True:
            yield {name: values[list(rows)] for name, values in batch(number).items()}
            number += 1

    processes.start(f"127.0.0.1:{port}", 2, int(own))
    config = dataclasses.replace(CONFIG, steps=STEPS, checkpoint_every=STEPS, validate_every=STEPS)
    options = {"mesh": make_mesh(MeshConfig()), "rules": (), "validation": None, "run": Path(run), "meta": {}}
    with processes.together(report):
        ended = train(Line(), {"shift": jnp.zeros(1)}, config, batches=batches, **options)
    return 0 if ended else processes.LOST


def test_a_notice_to_one_process_stops_all_at_the_same_step(tmp_path):
    code = "import sys; from tests.training.test_preemption import main; sys.exit(main(*sys.argv[1:]))"
    port = str(free_port())
    running = start([["-c", code, port, str(own), str(tmp_path)] for own in range(2)], devices=1)
    deadline = time.monotonic() + 100
    while not (tmp_path / "metrics.jsonl").exists() or (tmp_path / "metrics.jsonl").stat().st_size < 1000:
        assert time.monotonic() < deadline
        assert [process.poll() for process in running] == [None, None]
        time.sleep(0.05)
    running[1].send_signal(signal.SIGTERM)
    ended = ends(running, 100)
    assert [code for code, *_ in ended] == [processes.LOST] * 2, ended
    step = Checkpoints(tmp_path).latest
    assert 0 < step < STEPS
    assert lineage(tmp_path) == [(number, tuple(range(4 * number, 4 * number + 4))) for number in range(step)]
