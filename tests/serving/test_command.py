"""`wamjax serve` as a user runs it: a real process, a run folder, signals; and the public client against it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_server import HORIZON, Client, infer

import wamjax
from wamjax.cli import main as cli

ROOT = Path(wamjax.__file__).parents[1]
CLIENT_PYTHON = os.environ.get("WAMJAX_OPENPI_CLIENT_PYTHON")


@contextlib.contextmanager
def command(log: Path, *arguments: object) -> Iterator[tuple[subprocess.Popen, int]]:
    """A server process that logs to a file, and its port."""
    line = [sys.executable, "-m", "wamjax.cli.main", "serve", "--port", "0", *map(str, arguments)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with log.open("w") as errors:
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=environment)
    killer = threading.Timer(120, process.kill)
    killer.start()
    try:
        for text in process.stdout:
            if found := re.search(r"serving tiny \(\w+\) on ws://127.0.0.1:(\d+)", text):
                yield process, int(found[1])
                break
        else:
            pytest.fail(log.read_text())
    finally:
        killer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()


def resident_kib(process: subprocess.Popen) -> int:
    """Memory of a process in RAM."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1])


def actions_of(client: Client, session: str, seeds: range) -> list[np.ndarray]:
    return [client.send(infer(seed, session))["actions"] for seed in seeds]


def test_a_run_is_served_until_the_signal_with_its_video_and_one_report_per_request(run_folder, tmp_path):
    films, log = tmp_path / "films", tmp_path / "log"
    with command(log, "--run", run_folder, "--save-videos", films) as (process, port):
        with Client(port) as one, Client(port) as other:
            alone = actions_of(one, "a", range(4))
            assert alone[0].shape == (HORIZON, 8)
            assert not np.array_equal(alone[0], alone[1])
            one.send({"endpoint": "reset"})
            interleaved = []
            for seed in range(4):  # the same episode beside another one
                interleaved.append(one.send(infer(seed, "a"))["actions"])
                other.send(infer(100 + seed, "b", first=0))
            np.testing.assert_array_equal(interleaved, alone)
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert rest == "stopped\n"
    assert "Traceback" not in log.read_text()
    assert log.read_text().count("request 4 (ms): decode") == 3
    assert sorted(path.name for path in films.iterdir()) == ["a_0000.mp4", "a_0001.mp4", "b_0000.mp4"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process from /proc")
@pytest.mark.slow
def test_memory_is_flat_over_a_thousand_requests(run_folder, tmp_path):
    with command(tmp_path / "log", "--run", run_folder) as (process, port), Client(port) as client:
        requests = [infer(seed, str(seed % 20)) for seed in range(20)]  # more sessions than are kept

        def drive(count: int) -> int:
            for number in range(count):
                assert client.send(requests[number % 20])["actions"].shape == (HORIZON, 8)
            return resident_kib(process)

        settled, after = drive(200), drive(1000)
        assert after - settled < 4 * 1024, f"grew from {settled} to {after} KiB"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--camera", "nose=wrist_image_left"], "NAME one of exterior_image_1_left"),
        (["--camera", "wrist_image_left"], "give NAME=CLIENT"),
        (["--camera", "wrist_image_left=exterior_image_1_left"], "two cameras cannot have one name"),
        (["--camera", "wrist_image_left=hand"], "RoboArena has no camera 'hand'"),
        (["--action-space", "cartesian_position"], "has 7"),
        (["--max-sessions", "0"], "room for one session"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_compiled(run_folder, arguments, reason, capsys):
    assert cli.main(["serve", "--run", str(run_folder), *arguments]) == 2
    output = capsys.readouterr()
    assert reason in output.err
    assert len(output.err.splitlines()) == 1
    assert "compiling" not in output.out


def test_a_missing_websockets_is_one_line():
    code = "import sys; sys.modules['websockets'] = sys.modules['websockets.asyncio.server'] = None\n"
    code += "from wamjax.cli.main import main; sys.exit(main(['serve', '--run', 'nowhere']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "wamjax: error: the policy server needs websockets: pip install 'websockets>=15'\n"


PUBLIC_CLIENT = f"""
import sys
import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

port = int(sys.argv[1])
client = WebsocketClientPolicy("127.0.0.1", port, api_key="secret")
hello = client.get_server_metadata()
assert hello["action_horizon"] == {HORIZON}, hello
request = {{key: np.full((*size, 3), 7, np.uint8) for key, size in hello["cameras"].items()}}
request |= {{key: np.zeros(size) for key, size in hello["state"].items()}} | {{"prompt": "go"}}
broker = ActionChunkBroker(client, {HORIZON})
steps = [broker.infer(request)["actions"] for _ in range(3 * {HORIZON})]
assert all(step.shape == (8,) and step.dtype == np.float32 for step in steps)
reply = client.infer(request)
assert reply["actions"].shape == ({HORIZON}, 8) and reply["server_timing"]["infer_ms"] > 0
other = WebsocketClientPolicy("127.0.0.1", port, api_key="secret")
try:
    client.infer({{"prompt": "go"}})
except RuntimeError as error:
    assert "is missing" in str(error) and "Traceback" not in str(error), error
else:
    raise AssertionError("a malformed request was answered")
assert np.array_equal(other.infer(request)["actions"][0], steps[0])
print("done")
"""


@pytest.mark.skipif(
    not CLIENT_PYTHON,
    reason="WAMJAX_OPENPI_CLIENT_PYTHON names no Python with openpi-client, which needs numpy < 2 and so its own",
)
def test_the_public_openpi_client_completes_an_episode(run_folder, tmp_path):
    arguments = ("--run", run_folder, "--protocol", "openpi", "--api-key", "secret")
    with command(tmp_path / "log", *arguments) as (_, port):
        line = [CLIENT_PYTHON, "-c", PUBLIC_CLIENT, str(port)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
