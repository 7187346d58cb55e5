"""Meshes, the rule table, and eight simulated devices against one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import wamjax
from wamjax.cli.main import main
from wamjax.errors import UserError
from wamjax.networks.stream_transformer import PARTITIONS
from wamjax.policies.contract import SampleShapes
from wamjax.policies.small_wam import SmallWAM, SmallWAMConfig
from wamjax.sharding.mesh import MeshConfig, make_mesh, process_rows, shardings, to_devices

ROOT = Path(wamjax.__file__).parents[1]


def test_one_axis_takes_what_is_left():
    assert dict(make_mesh(MeshConfig()).shape)["data"] == len(jax.devices())


def test_the_size_that_is_left_is_told_for_any_number_of_devices():
    assert MeshConfig(replica=2, fsdp=4, context=2).over(64) == MeshConfig(2, 4, 4, 1, 2, 1)
    with pytest.raises(UserError, match="does not fit 60 devices"):
        MeshConfig(fsdp=8).over(60)


@pytest.mark.parametrize("sizes", [{"data": 3}, {"data": -1, "fsdp": -1}, {"data": 0}, {"tensor": 7}])
def test_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(UserError, match="mesh"):
        make_mesh(MeshConfig(**sizes), jax.devices()[:1])


def test_every_parameter_has_a_rule_and_ranks_match():
    """The table never names more axes than a leaf has, for the network of the demonstration."""
    policy = SmallWAM(SmallWAMConfig(), SampleShapes(2, 64, 64, 2, 8, 4, 4))
    params = jax.eval_shape(policy.init, jax.random.key(0))
    specs = {
        "/".join(p.key for p in path): s.spec
        for path, s in jax.tree_util.tree_leaves_with_path(shardings(params, PARTITIONS, make_mesh(MeshConfig())))
    }
    assert specs["stack/blocks/expert_0/qkv/kernel"] == jax.P(None, "fsdp", "tensor")
    assert specs["stack/blocks/expert_0/mlp_out/kernel"] == jax.P(None, "tensor", "fsdp")
    assert specs["position_video"] == jax.P(None, None)


def test_rows_of_a_process_and_batches_that_do_not_spread():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert process_rows(6, mesh) == tuple(range(6))
    batch = to_devices({"x": np.arange(6)}, mesh)
    np.testing.assert_array_equal(batch["x"], np.arange(6))


def arguments(dataset: Path, out: Path, **mesh: int) -> list[str]:
    """Of `wamjax train`."""
    changes = [f"mesh.{axis}={size}" for axis, size in mesh.items()]
    changes += [
        "policy.width=32",
        "policy.mlp=64",
        "policy.layers=2",
        "policy.codec.patch=8",
        "policy.codec.channels=16",
    ]
    changes += ["train.steps=6", "train.batch_size=16", "train.log_every=1"]
    changes += ["train.optimizer.learning_rate=1e-4"]  # a higher one magnifies rounding
    config = str(ROOT / "configs/metaworld_joint.py")
    options = ["--data", str(dataset), "--out", str(out), *(f"--set={change}" for change in changes)]
    return ["train", "--config", config, *options]


def losses(run: Path) -> np.ndarray:
    """Of every step of training."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return np.array([[r["loss"], r["loss/action"], r["loss/video"]] for r in records if "loss" in r])


def test_eight_devices_give_the_losses_of_one(dataset, tmp_path):
    one, eight = tmp_path / "one", tmp_path / "eight"
    command = [sys.executable, "-m", "wamjax.cli.main", *arguments(dataset, eight, data=2, fsdp=2, tensor=2)]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as running:
        assert main(arguments(dataset, one)) == 0
        assert running.wait(timeout=300) == 0
    assert len(losses(one)) == 6
    np.testing.assert_allclose(losses(eight), losses(one), rtol=0, atol=1e-5)
