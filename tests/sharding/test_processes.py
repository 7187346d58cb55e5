"""Several real processes, on processors: the same training, whatever their number, and one end for all."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import wamjax
from wamjax.cli.main import main
from wamjax.errors import UserError
from wamjax.sharding import processes
from wamjax.sharding.mesh import MeshConfig, make_mesh
from wamjax.training.checkpoint import Checkpoints

ROOT = Path(wamjax.__file__).parents[1]
STEPS = 4
SMALL = (
    *("policy.width=16", "policy.mlp=32", "policy.layers=2", "policy.heads=2"),
    *("policy.codec.patch=8", "policy.codec.channels=12", f"train.steps={STEPS}", "train.batch_size=8"),
    *("train.log_every=1", "train.validate_every=3", "train.checkpoint_every=1", "train.keep=9"),
)


def arguments(dataset: Path, out: Path, *overrides: str) -> list[str]:
    options = [x for override in (*SMALL, *overrides) for x in ("--set", override)]
    config = str(ROOT / "configs/metaworld_joint.py")
    return ["train", "--config", config, "--data", str(dataset), "--out", str(out), *options]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(commands: list[list[str]], devices: int) -> list[subprocess.Popen]:
    """Starts Python with the arguments of each process."""
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compilation is most of the time
    environment = os.environ | quick | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    options = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen([sys.executable, *command], **options) for command in commands]


def ends(running: list[subprocess.Popen], seconds: float = 200) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each; kills those that still run after so many seconds and fails."""
    deadline = time.monotonic() + seconds
    try:
        texts = [process.communicate(timeout=max(1, deadline - time.monotonic())) for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, *text) for process, text in zip(running, texts, strict=True)]


def training(datasets: list[Path], out: Path, devices: int, *overrides: str) -> list[subprocess.Popen]:
    """Starts `wamjax train` in as many processes as there are (copies of the) dataset."""
    run = ("--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(len(datasets)))
    commands = [
        ["-m", "wamjax.cli.main", *arguments(dataset, out, *overrides), *run, "--process", str(number)]
        for number, dataset in enumerate(datasets)
    ]
    return start(commands, devices)


def records(run: Path) -> list[dict]:
    same = {"step", "loss", "loss/action", "loss/video", "grad_norm", "validation/loss"}
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name in same} for line in lines]


def cut(run: Path, copy: Path, step: int) -> Path:
    """The run as it would be had it been interrupted after the checkpoint of `step`."""
    shutil.copytree(run, copy)
    (copy / "summary.json").unlink()
    for checkpoint in (copy / "checkpoints").iterdir():
        if int(checkpoint.name) > step:
            shutil.rmtree(checkpoint)
    return copy


def assert_equal_runs(run: Path, reference: Path) -> None:
    ours, theirs = records(run), records(reference)
    assert [one.keys() for one in ours] == [one.keys() for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=0, atol=1e-5)
    found, wanted = (Checkpoints(folder).params(STEPS) for folder in (run, reference))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4), found, wanted)


SHORT = """
import sys
from wamjax.cli.main import report
from wamjax.sharding import processes
processes.start(sys.argv[1], 2, int(sys.argv[2]))
with processes.together(report):
    processes.meet("here")
"""


def test_a_run_that_ends_well_ends_so_in_every_process():
    """Whoever waits for failures in the background is gone before Python is, which would else abort most of them."""
    for _ in range(5):
        address = f"127.0.0.1:{free_port()}"
        ended = ends(start([["-c", SHORT, address, str(number)] for number in range(2)], devices=1), 60)
        assert [code for code, *_ in ended] == [0, 0], ended


@pytest.mark.parametrize("more", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["two", "two and four"])
def test_training_and_resuming_do_not_depend_on_the_number_of_processes(dataset, tmp_path, more):
    """One process; two of two devices; from step 2 on four of one; from step 3 on one again: all alike."""
    one, two, four, again = (tmp_path / name for name in ("one", "two", "four", "again"))
    running = training([dataset] * 2, two, 2, "mesh.data=2", "mesh.fsdp=2")
    assert main(arguments(dataset, one)) == 0
    ended = ends(running)
    assert [code for code, *_ in ended] == [0, 0], ended
    assert "trained joint" in ended[0][1]
    assert "trained joint" not in ended[1][1]
    assert_equal_runs(two, one)

    if more:
        cut(two, four, 2)
        ended = ends(training([dataset] * 4, four, 1, "mesh.fsdp=2", "mesh.tensor=2"))
        assert [code for code, *_ in ended] == [0] * 4, ended
        assert f"going on from {four}/checkpoints/2" in ended[0][1]
        assert_equal_runs(four, one)

    cut(four if more else two, again, 3)
    assert main(arguments(dataset, again)) == 0
    assert_equal_runs(again, one)


def test_a_mistake_in_one_process_ends_all(dataset, tmp_path):
    """The second of two machines has a damaged copy of the data, which only it can notice."""
    damaged = tmp_path / "damaged"
    shutil.copytree(dataset, damaged)
    shard = next(damaged.glob("train*.array_record"))
    content = bytearray(shard.read_bytes())
    content[2000:-2000] = bytes(len(content) - 4000)
    shard.write_bytes(content)
    (code, _, errors), (damaged_code, _, damaged_errors) = ends(training([dataset, damaged], tmp_path / "run", 1), 100)
    assert (code, damaged_code) == (2, 2)
    assert "wamjax: error: process 1 of 2 stopped: UserError: 20 damaged clips in a row" in errors
    assert "wamjax: error: 20 damaged clips in a row" in damaged_errors


@pytest.mark.slow
@pytest.mark.parametrize(("killed", "code"), [(1, processes.LOST), (0, -signal.SIGABRT)])
def test_a_killed_process_ends_the_others(dataset, tmp_path, killed, code):
    """The first ends by itself; without it, JAX ends the others."""
    out = tmp_path / "run"
    running = training([dataset] * 2, out, 1, "train.steps=100000")
    deadline = time.monotonic() + 100
    while not list(out.glob("checkpoints/[0-9]*")):
        assert time.monotonic() < deadline
        assert [process.poll() for process in running] == [None, None]
        time.sleep(0.1)
    running[killed].kill()
    ended = ends(running, 120)
    assert ended[1 - killed][0] == code, ended[1 - killed][2]


WORKER = """
import json, sys
import jax, numpy as np
from jax.sharding import Mesh
from wamjax.errors import UserError
from wamjax.sharding import processes
from wamjax.sharding.mesh import MeshConfig, make_mesh, place, process_rows, replicated, to_devices, batch_sharding
from wamjax.training.checkpoint import fingerprint

port, own = int(sys.argv[1]), int(sys.argv[2])
processes.start(f"127.0.0.1:{port}", 4, own)
batch = np.arange(32, dtype=np.float32).reshape(16, 2)
meshes = {
    "data": make_mesh(MeshConfig()),
    "fsdp and context": make_mesh(MeshConfig(replica=2, data=1, fsdp=2, context=2)),
    "tensor across two processes": make_mesh(MeshConfig(data=2, tensor=4)),
    "context across all": make_mesh(MeshConfig(data=1, context=8)),
}
order = np.array(jax.devices())[[0, 2, 4, 6, 1, 7, 3, 5]]  # a torus does not keep a machine's devices together
for name, sizes in {"scattered": {"data": 4, "fsdp": 2}, "overlapping": {"data": 4, "context": 2}}.items():
    shape = make_mesh(MeshConfig(**sizes)).devices.shape
    meshes[name] = Mesh(order.reshape(shape), meshes["data"].axis_names, axis_types=meshes["data"].axis_types)
rows = {}
for name, mesh in meshes.items():
    rows[name] = process_rows(16, mesh)
    spread = to_devices({"x": batch[list(rows[name])]}, mesh)["x"]
    assert spread.sharding == batch_sharding(mesh), name
    np.testing.assert_array_equal(processes.whole(spread), batch)
    placed = place({"x": batch}, {"x": batch_sharding(mesh)})
    assert fingerprint(placed) == fingerprint({"x": batch}) == fingerprint(place({"x": batch}, {"x": replicated(mesh)}))
processes.agree(seed=1, text="same")
try:
    processes.agree(seed=1, the_dataset=own == 3)
    message = ""
except UserError as error:
    message = str(error)
try:
    process_rows(4, meshes["data"])
except UserError as error:
    message += " / " + str(error)
processes.say("only the first speaks")
print(json.dumps({"rows": rows, "message": message}))
"""


def test_rows_agreement_and_fingerprints_in_four_processes():
    port = str(free_port())
    ended = ends(start([["-c", WORKER, port, str(number)] for number in range(4)], devices=2))
    assert [code for code, *_ in ended] == [0] * 4, ended
    assert ["only the first speaks" in output for _, output, _ in ended] == [True, False, False, False]
    found = [json.loads(output.splitlines()[-1]) for _, output, _ in ended]
    assert all("the processes disagree about the dataset (here" in each["message"] for each in found)
    assert all("train.batch_size 4 is not a multiple of the 8 ways" in each["message"] for each in found)
    rows = {name: [each["rows"][name] for each in found] for name in found[0]["rows"]}
    assert rows["data"] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert rows["fsdp and context"] == rows["data"]
    assert rows["tensor across two processes"] == [[*range(8)], [*range(8)], [*range(8, 16)], [*range(8, 16)]]
    assert rows["context across all"] == [[*range(16)]] * 4
    assert rows["scattered"] == [[0, 1, 8, 9], [2, 3, 12, 13], [4, 5, 14, 15], [6, 7, 10, 11]]
    assert rows["overlapping"] == [
        [*range(4), *range(8, 12)],
        [*range(4), *range(12, 16)],
        *[[*range(4, 8), *range(12, 16)], [*range(4, 12)]],
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--processes", "2"], "give all three"),
        (["--coordinator", "127.0.0.1:1", "--process", "0"], "give all three"),
        (["--coordinator", "127.0.0.1", "--processes", "2", "--process", "0"], "give HOST:PORT"),
        (["--coordinator", "127.0.0.1:1", "--processes", "2", "--process", "2"], "numbered 0 to 1"),
        (["--coordinator", "127.0.0.1:1", "--processes", "2", "--process", "x"], "invalid int value"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(tmp_path, capsys, options, message):
    assert main([*arguments(tmp_path, tmp_path / "run"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[001-002]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}


def test_clusters_are_detected_by_their_environment(monkeypatch):
    """Also the canary for the private name that tells."""
    for name in (*SLURM, "OMPI_MCA_orte_hnp_uri", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((a, k)))
    assert processes.detected() is None
    processes.start()
    assert calls == []
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert processes.detected() == "slurm"
    processes.start(processes=1)
    assert calls == []
    processes.start()
    processes.start("10.0.0.1:8476", 2, 1)
    assert calls == [
        ((None, None, None), {"cluster_detection_method": None}),
        (("10.0.0.1:8476", 2, 1), {"cluster_detection_method": "deactivate"}),
    ]


def test_a_cluster_that_cannot_be_joined_is_one_line(monkeypatch):
    def fails(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: nobody there\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", fails)
    with pytest.raises(UserError, match=r"10\.0\.0\.1:1, but it cannot join the others: DEADLINE_EXCEEDED: nobody"):
        processes.start("10.0.0.1:1", 2, 1)


def test_a_file_that_never_appears_is_named(tmp_path):
    (tmp_path / "there").touch()
    processes.see(tmp_path / "there", seconds=0)
    with pytest.raises(UserError, match=r"does not see .*missing.*that all machines share"):
        processes.see(tmp_path / "missing", seconds=0.1)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What JAX knows of a TPU v5p chip."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "TPU v5"
    core_on_chip: int = 0

    @property
    def process_index(self) -> int:
        return self.slice_index


def tpus(slices: int, edge: int = 2) -> list[Chip]:
    """Slices of `edge` x `edge` x 1 chips."""
    return [
        Chip(number * edge * edge + y * edge + x, number, (x, y, 0))
        for number in range(slices)
        for y in range(edge)
        for x in range(edge)
    ]


@pytest.mark.parametrize(
    ("slices", "sizes"),
    [(2, {"replica": 2, "fsdp": 2}), (2, {"replica": 4}), (3, {"replica": -1, "data": 1, "fsdp": 4})],
)
def test_only_replicas_cross_slices(slices, sizes):
    mesh = make_mesh(MeshConfig(**sizes), tpus(slices))
    replicas = mesh.shape["replica"]
    of_slices = np.vectorize(lambda device: device.slice_index)(mesh.devices).reshape(replicas, -1)
    expected = np.repeat(np.arange(slices), replicas // slices)[:, None]
    np.testing.assert_array_equal(of_slices, np.broadcast_to(expected, of_slices.shape))
    assert len({device.id for device in mesh.devices.flat}) == slices * 4


def test_replicas_that_do_not_fit_the_slices_are_refused():
    with pytest.raises(UserError, match=r"mesh.replica is 1, but the TPUs are 2 slices: set mesh.replica=2"):
        make_mesh(MeshConfig(fsdp=-1, data=1), tpus(2))
