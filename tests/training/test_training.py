"""The trainer: exact resume, kills, guards, and what it writes."""

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import wamjax
from tests.conftest import synthetic_episode
from wamjax import config as configuration
from wamjax.cli import _experiment
from wamjax.cli.main import main
from wamjax.data.store import finish, write_shard
from wamjax.errors import NonFiniteLoss, UserError
from wamjax.training import checkpoint
from wamjax.training.checkpoint import Checkpoints, naming_full_disk
from wamjax.training.lineage import Lineage
from wamjax.training.metrics import MetricWriter
from wamjax.training.optimizer import OPTIMIZERS, OptimizerConfig, make_optimizer, schedule

ROOT = Path(wamjax.__file__).parents[1]
SMALL = (
    *("policy.width=16", "policy.mlp=32", "policy.layers=2", "policy.heads=2"),
    *("policy.codec.patch=8", "policy.codec.channels=12"),
    *("train.batch_size=4", "train.log_every=1", "train.validate_every=4", "train.checkpoint_every=2"),
)


def arguments(dataset: Path, out: Path, *overrides: str) -> list[str]:
    options = [x for override in (*SMALL, *overrides) for x in ("--set", override)]
    config = str(ROOT / "configs/metaworld_joint.py")
    return ["train", "--config", config, "--data", str(dataset), "--out", str(out), *options]


def state_of(run: Path):
    """Everything a checkpoint holds, as arrays."""
    checkpoints = Checkpoints(run)
    step = checkpoints.latest
    tree = checkpoint._read(checkpoints.path(step) / "state"), checkpoint._read(checkpoints.path(step) / "frozen")
    return step, tree


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_identical(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("run") / "undisturbed"
    assert main(arguments(dataset, run, "train.steps=8")) == 0
    return run


def test_the_statistics_of_a_run_are_compared_with_those_of_a_dataset(undisturbed, dataset, tmp_path, capsys):
    assert main(["data", "check-stats", str(undisturbed), str(dataset)]) == 0
    assert "0 differences beyond 0.1 ranges, of 8 numbers in 3 fields" in capsys.readouterr().out
    turned = [synthetic_episode(seed) for seed in range(8)]
    for episode in turned:
        episode.steps["action"][:] = np.degrees(episode.steps["action"])
    write_shard(tmp_path / "other", "train", "square", turned)
    finish(tmp_path / "other")
    out = tmp_path / "differences.json"
    assert main(["data", "check-stats", str(undisturbed), str(tmp_path / "other"), "--json", str(out)]) == 1
    said = capsys.readouterr().out
    assert said.count("; degrees in the dataset, radians in the checkpoint") == 4
    assert said.count("of the dataset's values are cut off") == 4
    assert [one["index"] for one in json.loads(out.read_text())] == [0, 1, 2, 3]
    assert main(["data", "check-stats", str(dataset), str(tmp_path / "other")]) == 1
    assert main(["data", "check-stats", str(undisturbed), str(dataset), "--tolerance", "0"]) == 2


def test_a_run_leaves_what_later_stages_read(undisturbed):
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert set(summary) >= {"steps", "flops", "mfu", "final_loss", "parameters", "wall_seconds", "peak_source"}
    assert summary["steps"] == 8
    assert summary["flops"] > 0
    assert summary["mfu"] > 0
    steps = [record["step"] for record in records(undisturbed) if "loss" in record]
    assert steps == list(range(1, 9))
    assert [r["step"] for r in records(undisturbed) if "validation/loss" in r] == [4, 8]
    assert summary["final_loss"] == pytest.approx(
        np.mean([r["loss"] for r in records(undisturbed) if "loss" in r]), rel=1e-5
    )
    assert list((undisturbed / "tensorboard").iterdir())
    meta = Checkpoints(undisturbed).meta(8)
    assert meta["data"] == {"next_step": 8, "next_batch": 8}
    assert meta["config"] == json.loads((undisturbed / "config.json").read_text())
    assert set(meta["source"]) == {"data", "dataset", "frozen"}


def test_a_run_interrupted_by_an_error_goes_on_to_the_same_bits(dataset, undisturbed, tmp_path, monkeypatch):
    import wamjax.training.loop as loop

    original, calls = loop.to_devices, []

    def failing(batch, mesh):
        calls.append(1)
        if len(calls) == 6:
            raise RuntimeError("power cut")
        return original(batch, mesh)

    monkeypatch.setattr(loop, "to_devices", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        main(arguments(dataset, tmp_path / "run", "train.steps=8"))
    monkeypatch.undo()
    assert main(arguments(dataset, tmp_path / "run", "train.steps=8")) == 0
    assert_identical(state_of(tmp_path / "run"), state_of(undisturbed))
    for ours, theirs in zip(records(tmp_path / "run"), records(undisturbed), strict=True):
        same = {"step", "loss", "loss/action", "grad_norm", "validation/loss", "learning_rate"}
        assert {k: v for k, v in ours.items() if k in same} == {k: v for k, v in theirs.items() if k in same}


def test_a_finished_run_is_left_alone(dataset, undisturbed, capsys):
    before = state_of(undisturbed)
    assert main(arguments(dataset, undisturbed, "train.steps=8")) == 0
    assert "is finished" in capsys.readouterr().out
    assert_identical(state_of(undisturbed), before)


def test_a_run_of_an_earlier_version_has_the_defaults_of_what_came_since(dataset, undisturbed, tmp_path, capsys):
    run = shutil.copytree(undisturbed, tmp_path / "earlier")
    begun = json.loads((run / "config.json").read_text())
    del begun["data"]["frames"], begun["train"]["seed"]
    (run / "config.json").write_text(json.dumps(begun))
    assert main(arguments(dataset, run, "train.steps=8")) == 0
    assert "is finished" in capsys.readouterr().out
    (run / "config.json").write_text(json.dumps(begun))
    assert main(arguments(dataset, run, "train.steps=8", "train.seed=1")) == 2
    assert "train.seed=0" in capsys.readouterr().err


def test_another_configuration_is_refused_in_a_used_folder(dataset, undisturbed, capsys):
    assert main(arguments(dataset, undisturbed, "train.steps=8", "train.seed=1")) == 2
    assert "train.seed=0" in capsys.readouterr().err


def test_moments_may_be_kept_in_another_precision_from_some_start_on(dataset, undisturbed, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints/8")
    assert main(arguments(dataset, run, "train.steps=8", "train.optimizer.moments='bfloat16'")) == 0
    assert "arrays saved in float32 are read in bfloat16, as the configuration says" in capfd.readouterr().out
    moments = {str(leaf.dtype) for leaf in jax.tree.leaves(state_of(run)[1][0]["opt_state"])}
    assert "bfloat16" in moments
    assert [r["step"] for r in records(run) if "loss" in r] == list(range(1, 9))


def test_not_a_number_stops_the_run_and_names_the_last_good_checkpoint(dataset, tmp_path, capsys):
    run = tmp_path / "run"
    steps = ("train.steps=20", "train.optimizer.warmup_steps=1", "train.optimizer.learning_rate=1e30")
    assert main(arguments(dataset, run, *steps, "train.optimizer.clip_norm=1e30")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "not both finite" in error
    good = Checkpoints(run).latest
    assert ("there is no checkpoint yet" in error) if good is None else (str(run / "checkpoints" / str(good)) in error)
    if good is not None:
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(state_of(run)[1]) if x.dtype.kind == "f")


def test_nan_after_a_checkpoint_names_it(dataset, tmp_path, monkeypatch):
    original = Lineage.take

    def poisoned(self, step, metrics):
        if metrics is not None and step == 5:
            metrics = metrics | {"loss": np.float32("nan")}
        return original(self, step, metrics)

    monkeypatch.setattr(Lineage, "take", poisoned)
    run = tmp_path / "run"
    monkeypatch.setattr("wamjax.cli.main._complain", lambda message: (_ for _ in ()).throw(NonFiniteLoss(message)))
    with pytest.raises(NonFiniteLoss, match=f"last good checkpoint is .*{run.name}/checkpoints/4"):
        main(arguments(dataset, run, "train.steps=8"))


def test_the_checkpoint_of_another_policy_is_refused(dataset, undisturbed, tmp_path, monkeypatch):
    meta = Checkpoints(undisturbed).meta(8)
    wider = configuration.override(meta["config"], ["policy.width=32"])
    monkeypatch.setattr(Checkpoints, "meta", lambda self, step: meta | {"config": wider})
    with pytest.raises(UserError, match="checkpoint of another policy"):
        _experiment.trained(undisturbed)


def test_a_trained_run_loads_for_acting(undisturbed):
    loaded = _experiment.trained(undisturbed)
    assert loaded.step == 8
    assert loaded.policy.shapes.horizon == 8
    ema = state_of(undisturbed)[1][0]["ema"]
    assert_identical(loaded.params, ema)


def test_folders_without_a_run_are_named(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoints"):
        _experiment.trained(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no finished checkpoint yet"):
        _experiment.trained(tmp_path)


def test_a_full_disk_is_one_line_and_other_errors_stay():
    with pytest.raises(UserError, match="the disk is full while writing"), naming_full_disk(Path("runs/x")):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(UserError, match="free some space"), naming_full_disk(Path("runs/x")):
        raise ValueError("RESOURCE_EXHAUSTED: ... No space left on device")
    with pytest.raises(PermissionError), naming_full_disk(Path("runs/x")):
        raise PermissionError(errno.EACCES, "denied")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.stepz=3"], "did you mean 'train.steps'"),
        (["clip.cameras=('corner2','overhead')"], "no camera 'overhead'"),
        (["clip.action='velocity'"], "no step field 'velocity'"),
        (["policy.paradigm='jiont'"], "unknown paradigm 'jiont'"),
        (["mesh.data=3"], "does not fit"),
        (["train.steps=0"], "train.steps"),
        (["policy.codec.patch=5"], "do not divide into patches"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(dataset, tmp_path, capsys, overrides, message):
    assert main(arguments(dataset, tmp_path / "run", *overrides)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_dataset_is_named(tmp_path, capsys):
    assert main(arguments(tmp_path / "nowhere", tmp_path / "run")) == 2
    assert "wamjax data collect" in capsys.readouterr().err


def test_the_schedule_warms_up_stays_and_falls():
    rate = schedule(OptimizerConfig(learning_rate=2.0, warmup_steps=10, decay_fraction=0.5, final_fraction=0.1), 100)
    assert [float(rate(step)) for step in (0, 5, 10, 49)] == [0.0, 1.0, 2.0, 2.0]
    assert float(rate(75)) == pytest.approx(1.1)
    assert float(rate(100)) == pytest.approx(0.2)
    assert np.isfinite([float(schedule(OptimizerConfig(), 1)(step)) for step in (0, 1)]).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_kernels_decay(name):
    params = {
        "a": {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)},
        "blocks": {"kernel": np.ones((3, 2, 2), np.float32), "bias": np.ones((3, 2), np.float32)},
        "position": np.ones((2, 2), np.float32),
    }
    optimizer = make_optimizer(OptimizerConfig(name, warmup_steps=0, weight_decay=0.5), 10)
    still = jax.tree.map(np.zeros_like, params)
    updates, _ = optimizer.update(still, optimizer.init(params), params)
    changed = optax.apply_updates(params, updates)
    for layer in ("a", "blocks"):
        np.testing.assert_allclose(changed[layer]["kernel"], 1 - 0.5e-3, rtol=1e-6)
        np.testing.assert_array_equal(changed[layer]["bias"], 1)
    np.testing.assert_array_equal(changed["position"], 1)


def test_muon_orthogonalises_the_stacked_kernels_one_by_one():
    """All singular values of an update come out near that of AdamW-sized updates, 0.2 x rate x sqrt(longer side)."""
    random = np.random.default_rng(0)
    params = {"blocks": {"kernel": random.standard_normal((3, 8, 32)).astype(np.float32)}}
    grads = jax.tree.map(lambda x: np.asarray([1e-3, 1, 1e3], np.float32)[:, None, None] * x, params)
    config = OptimizerConfig("muon", learning_rate=1.0, warmup_steps=0, weight_decay=0.0)
    optimizer = make_optimizer(config, 10)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    scales = np.linalg.svd(updates["blocks"]["kernel"], compute_uv=False) / (0.2 * np.sqrt(32))
    assert (scales > 0.6).all()
    assert (scales < 1.3).all()


def test_unknown_optimizers_are_named():
    with pytest.raises(UserError, match="'lion': use one of adamw, muon"):
        OptimizerConfig("lion")


def test_events_are_on_the_disk_at_once_or_the_run_knows(tmp_path, monkeypatch):
    """Of many records none is left to a thread that nobody would miss."""
    writer = MetricWriter(tmp_path, steps=10, start_step=3)
    writer.write(4, {"accuracy": 0.5})
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"accuracy" in events.read_bytes()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr("tensorboardX.record_writer.RecordWriter.flush", lambda _: (_ for _ in ()).throw(full))
        with pytest.raises(OSError, match="No space left"):
            writer.write(5, {"accuracy": 0.5})
    writer.close()


def test_records_after_the_restored_step_are_dropped(tmp_path):
    lines = [json.dumps({"step": step}) for step in (1, 2, 3, 4)] + ['{"step": 5, "lo']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    writer = MetricWriter(tmp_path, steps=10, start_step=3)
    writer.write(4, {"validation/loss": 0.5})
    writer.close()
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3, 4]
    assert records(tmp_path)[-1]["validation/loss"] == 0.5


def test_training_learns(dataset, tmp_path):
    """Forty steps on the squares at least halve the action loss of the first ones."""
    run = tmp_path / "run"
    options = ("train.steps=60", "train.batch_size=16", "train.optimizer.warmup_steps=5", "policy.width=32")
    assert main(arguments(dataset, run, *options, "train.checkpoint_every=100")) == 0
    losses = [r["loss/action"] for r in records(run) if "loss/action" in r]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_experiments_of_the_repository_are_complete():
    """Every configuration builds its policy, and its parameters have the sizes they are said to have."""
    found = sorted((ROOT / "configs").glob("*.py"))
    assert len(found) >= 6
    for path in found:
        experiment = _experiment.load(path)
        again = configuration.build(_experiment.Experiment, configuration.to_dict(experiment))
        assert again == experiment
        assert dataclasses.is_dataclass(experiment.policy)
