"""Parameters in parts: every layout, meshes, and several processes that read a file once between them."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.interop.test_checkpoint import PUBLISHED, opened, published, put, write_pth
from tests.interop.test_dreamzero import published as dreamzero
from tests.interop.test_dreamzero import write
from tests.sharding.test_processes import ends, free_port, records, start
from wamjax.interop import checkpoint


def assert_parts_are_those_of_the_whole(component: checkpoint.Component) -> None:
    random = np.random.default_rng(0)
    for path, leaf in component.leaves.items():
        layer = leaf.layers - 1
        whole = leaf.read(layer)
        corners = [sorted(random.choice(size + 1, 2, replace=False)) for size in whole.shape]
        index = tuple(slice(int(start), int(stop)) for start, stop in corners)
        found = leaf.part(layer, index)
        assert found.dtype == whole.dtype
        np.testing.assert_array_equal(found.astype(np.float32), whole[index].astype(np.float32), path)
        assert leaf.along < max(1, whole.ndim)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_part_is_what_lies_there(name, tmp_path):
    assert_parts_are_those_of_the_whole(opened(put(tmp_path / "source", name)))


def test_parts_of_imported_folders_and_of_pth_files(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "CHUNK", 1000)
    write_pth(tmp_path / "Wan2.1_VAE.pth", published("vae21_original"))
    assert_parts_are_those_of_the_whole(opened(tmp_path / "Wan2.1_VAE.pth"))
    checkpoint.import_component(opened(put(tmp_path / "source", "dit")), tmp_path / "ours")
    assert_parts_are_those_of_the_whole(opened(tmp_path / "ours"))


SPREAD = """
import json, sys
import jax, numpy as np
from wamjax import interop
from wamjax.interop import placing
from wamjax.interop.keymap import flatten
from wamjax.sharding import processes
from wamjax.sharding.mesh import MeshConfig, make_mesh

source, sizes, port, own, count = sys.argv[1], json.loads(sys.argv[2]), *sys.argv[3:6]
if int(count) > 1:
    processes.start(f"127.0.0.1:{port}", int(count), int(own))
placing.SMALL, placing.PIECE = 2**10, 2**13  # everything but vectors is exchanged, the largest leaves layer by layer
pieces, read, packed = [], [], placing.packed
placing.packed = lambda array: read.append(array.nbytes) or packed(array)
reader = placing._read
placing._read = lambda leaf, first, layers, *rest: pieces.append(layers) or reader(leaf, first, layers, *rest)
spread = flatten(interop.load(source, dtype=np.float32, sharding=make_mesh(MeshConfig(**sizes))).params)
bytes_read, placing.PIECE = sum(read), 2**28
for path, leaf in flatten(interop.load(source, dtype=np.float32).params).items():
    for part in spread[path].addressable_shards:
        np.testing.assert_array_equal(part.data, np.asarray(leaf)[part.index], path)
total = sum(leaf.nbytes // 2 for leaf in spread.values())  # stored in bfloat16
print(json.dumps({
    "share": bytes_read / total,
    "pieces": len(pieces) / len(spread),
    "spread": [*spread["blocks/expert_0/ffn_in/kernel"].sharding.spec],
}))
"""


def spread(source: Path, processes: int, **sizes: int) -> list[dict]:
    """What each process says that has loaded a network onto a mesh."""
    port, devices = str(free_port()), 8 // processes
    commands = [["-c", SPREAD, str(source), json.dumps(sizes), port, str(i), str(processes)] for i in range(processes)]
    ended = ends(start(commands, devices))
    assert [code for code, *_ in ended] == [0] * processes, ended
    return [json.loads(output.splitlines()[-1]) for _, output, _ in ended]


def test_two_processes_read_a_file_once_between_them(tmp_path):
    """Copies along `data`, so that reading what one holds would be the whole file for each."""
    found = spread(put(tmp_path / "source", "dit"), 2, data=2, fsdp=4)
    for each in found:
        assert 0.5 < each["share"] < 0.56  # vectors are read by all
        assert each["pieces"] > 1.1
        assert each["spread"] == [None, "fsdp", "tensor"]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 8}])
@pytest.mark.parametrize("processes", [1, 4])
def test_meshes_and_processes(tmp_path, sizes, processes):
    found = spread(put(tmp_path / "source", "dit"), processes, **{"data": 1} | sizes)
    assert sum(each["share"] for each in found) < 1 + 0.06 * processes


TRAIN = """
import sys
import numpy as np
from tests.cli.test_dreamzero_verbs import PRETRAINED, SMALL
from wamjax.cli.main import main
from wamjax.policies.frozen import UMT5Text

UMT5Text.tokenize = lambda self, text: np.arange(1, 9)
data, out, weights, *cluster = sys.argv[1:]
settings = [*SMALL, *PRETRAINED, f"weights={weights}"]
settings += ["train.batch_size=4", "train.steps=2", "mesh.data=1", "mesh.fsdp=-1"]
options = [x for setting in settings for x in ("--set", setting)]
sys.exit(main(["train", "--config", "configs/dreamzero_small.py", "--data", data, "--out", out, *options, *cluster]))
"""


@pytest.mark.slow
def test_two_processes_train_on_published_weights_as_one_does(dataset, tmp_path):
    """Every network of the model comes from files, onto four devices of two processes."""
    source = write(tmp_path / "published", dreamzero())
    cluster = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2"]
    command = ["-c", TRAIN, str(dataset)]
    one = start([[*command, str(tmp_path / "one"), str(source)]], devices=1)
    two = start(
        [[*command, str(tmp_path / "two"), str(source), *cluster, "--process", str(i)] for i in (0, 1)], devices=2
    )
    ended = ends(one, 500) + ends(two, 500)
    assert [code for code, *_ in ended] == [0] * 3, ended
    found, wanted = (records(tmp_path / name) for name in ("two", "one"))
    assert len(wanted) > 1
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)
