"""GEAR datasets: there and back, the statistics of the original's converter, and damage in one line."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from wamjax.cli.main import main
from wamjax.data import convert
from wamjax.data.chunks import ChunkConfig, chunk_batches
from wamjax.data.embodiments import Embodiment, Field, load
from wamjax.data.episode import BadEpisode, Episode
from wamjax.data.gear import GearSource, checkpoint_statistics, open_dataset
from wamjax.data.gear_export import checkpoint_metadata, export_dataset
from wamjax.data.normalise import dataset_statistics, normalisation
from wamjax.data.selection import Selection, kept
from wamjax.data.store import EpisodeStore, finish, write_shard
from wamjax.errors import UserError

ROBOT = replace(
    load("droid"),
    name="small",
    tag="small",
    cameras=("corner2", "gripperPOV"),
    layout=load("yam").layout[:2],
    state=(Field("observation/cartesian_position", 3), Field("observation/gripper_position", 1)),
    action=(Field("action", 4), Field("action_dict/cartesian_position", 3, relative=True)),
    fps=20,
    video_stride=1,
    frames_per_chunk=4,
    annotations=("task",),
)
ALTERNATIVES = replace(ROBOT, annotations=("first", "second", "third"))


def with_target(episode: Episode) -> Episode:
    target = episode.steps["observation/cartesian_position"] + 0.25 * episode.steps["action"][:, :3]
    steps = {**episode.steps, "action_dict/cartesian_position": target}
    return replace(episode, steps={name: steps[name] for name in steps if name != "success"})


@pytest.fixture(scope="module")
def ours(make_store: Callable[..., Path], make_episode: Callable[..., Episode]) -> EpisodeStore:
    """Four episodes; in the second, the task changes."""
    episodes = []
    for index, length in enumerate((9, 12, 6, 7)):
        episode = with_target(make_episode(index, length))
        annotation = np.repeat([0, 1], [length // 2, length - length // 2]).astype(np.int32)
        texts: list = ["grasp", "lift"] if index == 1 else [f"task {index}"] * 2
        episodes.append(
            replace(
                episode,
                steps={**episode.steps, "annotation": annotation if index == 1 else 0 * annotation},
                metadata={**episode.metadata, "annotations": texts},
                language=(),
            )
        )
    return EpisodeStore(make_store(episodes))


@pytest.fixture
def gear(ours: EpisodeStore, tmp_path: Path) -> Path:
    export_dataset(ours, tmp_path / "gear", ROBOT)
    return tmp_path / "gear"


def texts(episode: Episode) -> list[str]:
    names: list = episode.metadata["annotations"]  # type: ignore[assignment]
    return [names[i] for i in episode.steps["annotation"]]


def test_episodes_come_back(ours: EpisodeStore, gear: Path) -> None:
    dataset = open_dataset(gear)
    found = list(dataset.episodes(ROBOT))
    assert len(found) == len(ours)
    for index, episode in enumerate(found):
        for field in (*ROBOT.state, *ROBOT.action):
            np.testing.assert_array_equal(episode.steps[field.name], ours[index].steps[field.name], strict=True)
        assert episode.videos == {camera: ours[index].videos[camera] for camera in ROBOT.cameras}
        assert texts(episode) == texts(ours[index])
        assert episode.metadata["fps"] == 20
    assert [len(e) for e in dataset.episodes(ROBOT, [3, 1])] == [7, 12]


def test_metadata_is_what_the_original_reads(ours: EpisodeStore, gear: Path) -> None:
    modality = json.loads((gear / "meta/modality.json").read_text())
    assert modality["action"]["cartesian_position"] == {
        "original_key": "action",
        "start": 4,
        "end": 7,
        "rotation_type": None,
        "absolute": True,
        "dtype": "float32",
        "range": None,
    }
    assert modality["video"] == {c: {"original_key": f"observation.images.{c}"} for c in ROBOT.cameras}
    assert modality["annotation"] == {"task": {"original_key": "annotation.task"}}
    assert json.loads((gear / "meta/embodiment.json").read_text())["embodiment_tag"] == "small"
    lines = [json.loads(line) for line in (gear / "meta/episodes.jsonl").read_text().splitlines()]
    assert lines[1] == {"episode_index": 1, "tasks": ["grasp", "lift"], "length": 12}
    tables = [pyarrow.parquet.read_table(path) for path in sorted(gear.glob("data/*/*.parquet"))]
    actions = np.concatenate([np.array(table["action"].to_pylist()) for table in tables])
    stats = json.loads((gear / "meta/stats.json").read_text())["action"]
    expected = {"mean": actions.mean(0), "std": actions.std(0), "min": actions.min(0), "max": actions.max(0)}
    expected |= {name: np.quantile(actions, q, axis=0) for name, q in (("q01", 0.01), ("q99", 0.99))}
    assert stats.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(stats[name], values, rtol=1e-9, atol=1e-12)


def test_statistics_come_back(ours: EpisodeStore, gear: Path) -> None:
    found, expected = open_dataset(gear).statistics(ROBOT), dataset_statistics(ours, ROBOT)
    assert found == expected
    assert found["action"]["cartesian_position"] != found["state"]["cartesian_position"]
    metadata = json.loads(json.dumps(checkpoint_metadata(ours, ROBOT)))
    folder = gear / "experiment_cfg"
    folder.mkdir()
    (folder / "metadata.json").write_text(json.dumps(metadata))
    for path in (gear, folder / "metadata.json"):
        assert normalisation(ROBOT, checkpoint_statistics(path, ROBOT)) == normalisation(ROBOT, expected)
    assert metadata["small"]["modalities"]["video"]["corner2"] == {"resolution": [32, 32], "channels": 3, "fps": 20.0}


def test_import_gives_the_same_training_batches(ours: EpisodeStore, gear: Path, tmp_path: Path) -> None:
    assert convert.to_store(GearSource(open_dataset(gear), ROBOT), tmp_path / "back", name="gear") == 4
    assert (
        main(["data", "import-gear", str(gear), str(tmp_path / "back"), "--embodiment", str(own_file(tmp_path))]) == 0
    )

    def first(store: EpisodeStore) -> dict[str, np.ndarray]:
        config = ChunkConfig.of(ROBOT, max_chunks=2)
        options = {"batch_size": 8, "seed": 0, "tokenize": lambda text: np.array([len(text)]), "threads": 1}
        return next(chunk_batches(store, ROBOT, config, **options))

    a, b = first(ours), first(EpisodeStore(tmp_path / "back"))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], strict=True)


def own_file(folder: Path) -> Path:
    """The robot of these tests as a file of one's own."""
    path = folder / "small_robot.py"
    path.write_text(
        "from wamjax.data.canvas import Placement\n"
        "from wamjax.data.embodiments import Embodiment, Field\n"
        f"EMBODIMENT = {ROBOT!r}\n"
    )
    return path


def test_verbs(ours: EpisodeStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    robot = ["--embodiment", str(own_file(tmp_path))]
    assert main(["data", "export-gear", str(ours.folder), str(tmp_path / "gear"), *robot]) == 0
    assert main(["data", "import-gear", str(tmp_path / "gear"), str(tmp_path / "back"), *robot]) == 0
    assert main(["data", "convert", str(tmp_path / "gear"), str(tmp_path / "too"), "--format", "gear", *robot]) == 0
    assert capsys.readouterr().out.count("4 episodes") == 3
    assert EpisodeStore(tmp_path / "too").fields == EpisodeStore(tmp_path / "back").fields
    assert main(["data", "import-gear", str(tmp_path), str(tmp_path / "x"), "--embodiment", "droid"]) == 2
    assert "info.json is missing" in capsys.readouterr().err
    assert main(["data", "export-gear", str(ours.folder), str(tmp_path / "x"), "--embodiment", "drod"]) == 2
    assert "choose agibot, droid" in capsys.readouterr().err


def test_several_annotations_are_alternatives(
    make_store: Callable[..., Path], make_episode: Callable[..., Episode], tmp_path: Path
) -> None:
    languages = [("open it", "open the door"), ("only one",), (), ("a", "b", "c", "left out")]
    episodes = [with_target(make_episode(i, 6, language=language)) for i, language in enumerate(languages)]
    export_dataset(EpisodeStore(make_store(episodes)), tmp_path / "gear", ALTERNATIVES)
    found = list(open_dataset(tmp_path / "gear").episodes(ALTERNATIVES))
    assert [e.language for e in found] == [language[:3] for language in languages]
    assert all("annotation" not in e.steps for e in found)


def test_texts_in_the_table_and_lists_of_any_length(gear: Path) -> None:
    path = sorted(gear.glob("data/*/*.parquet"))[0]
    table = pyarrow.parquet.read_table(path)
    place = table.column_names.index("annotation.task")
    table = table.set_column(place, "annotation.task", [["put the lid on"] * 9])
    place = table.column_names.index("action")
    lists = pyarrow.array(table["action"].to_pylist(), pyarrow.list_(pyarrow.float64()))
    pyarrow.parquet.write_table(table.set_column(place, "action", lists), path)
    episode = next(open_dataset(gear).episodes(ROBOT))
    assert texts(episode) == ["put the lid on"] * 9
    assert episode.steps["action"].dtype == np.float64


def edit(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


WRONG_METADATA: list[tuple[str, Callable[[Path], object], str]] = [
    ("info.json", Path.unlink, "is missing"),
    ("modality.json", Path.unlink, "is missing"),
    ("tasks.jsonl", Path.unlink, "is missing"),
    ("info.json", lambda p: p.write_text("{"), "cannot be read"),
    ("info.json", lambda p: p.write_bytes(b"\xff\xff"), "cannot be read"),
    ("info.json", lambda p: p.write_text("[]"), "damaged"),
    ("info.json", lambda p: edit(p, lambda c: c.pop("fps")), "damaged"),
    ("info.json", lambda p: edit(p, lambda c: c.update(fps=0)), "fps=0"),
    ("info.json", lambda p: edit(p, lambda c: c.update(data_path="{x}")), "no usable data_path"),
    ("info.json", lambda p: edit(p, lambda c: c.update(video_path=None)), "no usable video_path"),
    ("info.json", lambda p: edit(p, lambda c: c.update(chunks_size=0)), "no usable data_path"),
    ("episodes.jsonl", lambda p: p.write_text(""), "lists no episodes"),
    ("episodes.jsonl", lambda p: p.write_text('{"episode_index": 0}'), "damaged"),
    ("episodes.jsonl", lambda p: p.write_text('{"episode_index": 0,\n"length": 3}'), "cannot be read"),
    ("tasks.jsonl", lambda p: p.write_text("3"), "damaged"),
    ("modality.json", lambda p: p.write_text("3"), "damaged"),
    (
        "modality.json",
        lambda p: edit(p, lambda c: c["state"].pop("gripper_position")),
        "has no state 'gripper_position'",
    ),
    ("modality.json", lambda p: edit(p, lambda c: c["action"]["action"].update(end=3)), "not 4 numbers"),
    ("modality.json", lambda p: edit(p, lambda c: c["action"]["action"].update(start="0")), "not 4 numbers"),
    ("modality.json", lambda p: edit(p, lambda c: c["video"].pop("corner2")), "no video 'corner2'"),
]


@pytest.mark.parametrize(("name", "damage", "message"), WRONG_METADATA)
def test_wrong_metadata(name: str, damage: Callable[[Path], object], message: str, gear: Path) -> None:
    damage(gear / "meta" / name)
    with pytest.raises(UserError, match=message) as error:
        list(open_dataset(gear).episodes(ROBOT))
    assert not isinstance(error.value, BadEpisode)
    assert "\n" not in str(error.value)


def test_wrong_statistics(gear: Path) -> None:
    edit(gear / "meta/stats.json", lambda c: c.pop("action"))
    with pytest.raises(UserError, match="lacks 'action'"):
        open_dataset(gear).statistics(ROBOT)
    (gear / "meta/stats.json").unlink()
    with pytest.raises(UserError, match=r"stats\.json is missing"):
        open_dataset(gear).statistics(ROBOT)
    (gear / "m.json").write_text('{"other": {}}')
    with pytest.raises(UserError, match="no statistics of 'small' but other"):
        checkpoint_statistics(gear / "m.json", ROBOT)


def rewrite(path: Path, change: Callable[[pyarrow.Table], pyarrow.Table]) -> None:
    pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(path)), path)


PARQUET, VIDEO = (
    "data/chunk-000/episode_000001.parquet",
    "videos/chunk-000/observation.images.corner2/episode_000001.mp4",
)
DAMAGED_FILES: list[tuple[str, Callable[[Path], object]]] = [
    (PARQUET, Path.unlink),
    (PARQUET, lambda p: p.write_bytes(p.read_bytes()[:-30])),
    (PARQUET, lambda p: p.write_bytes(b"")),
    (PARQUET, lambda p: rewrite(p, lambda t: t.slice(1))),
    (PARQUET, lambda p: rewrite(p, lambda t: t.drop_columns(["action"]))),
    (PARQUET, lambda p: rewrite(p, lambda t: t.set_column(0, "observation.state", [[[1.0] * 4] * 11 + [None]]))),
    (PARQUET, lambda p: rewrite(p, lambda t: t.set_column(0, "observation.state", [[[1.0] * 4] * 11 + [[1.0]]]))),
    (PARQUET, lambda p: rewrite(p, lambda t: t.set_column(0, "observation.state", [[[1.0] * 3] * 12]))),
    (PARQUET, lambda p: rewrite(p, lambda t: t.set_column(0, "observation.state", [["text"] * 12]))),
    (PARQUET, lambda p: rewrite(p, lambda t: t.set_column(5, "annotation.task", [[99] * 12]))),
    (VIDEO, Path.unlink),
    (VIDEO, lambda p: p.write_bytes(b"no video")),
    (VIDEO, lambda p: p.write_bytes(p.with_name("episode_000002.mp4").read_bytes())),
]


@pytest.mark.parametrize(("file", "damage"), DAMAGED_FILES)
def test_damaged_episodes_are_left_out(
    file: str, damage: Callable[[Path], object], gear: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(gear / file)
    with caplog.at_level(logging.WARNING):
        assert convert.to_store(GearSource(open_dataset(gear), ROBOT), tmp_path / "back") == 3
    message = next(r.getMessage() for r in caplog.records if "left out" in r.getMessage())
    assert message.startswith("episode 1 is left out: ")
    assert "\n" not in message


def test_discarded_episodes_and_step_filters(gear: Path, tmp_path: Path) -> None:
    edit(gear / "meta/info.json", lambda c: c.update(discarded_episode_indices=[0, 2]))
    line = {"episode_index": 1, "step_indices": [3, 0, 1, 4, 5]}
    (gear / "meta/step_filter.jsonl").write_text(json.dumps(line) + "\n")
    dataset = open_dataset(gear)
    assert list(dataset.lengths) == [1, 3]
    convert.to_store(GearSource(dataset, ROBOT), tmp_path / "back")
    back = EpisodeStore(tmp_path / "back")
    assert [back.metadata(i).get("dropped_steps") for i in range(2)] == [[[0, 2], [3, 6]], None]
    left = kept(back, Selection())
    assert [left.locate(n)[1] for n in left.within(0)] == [2, *range(6, 12)]
    assert len(kept(back, Selection(dropped=False))) == back.lengths.sum()


def test_video_only(make_episode: Callable[..., Episode], gear: Path, tmp_path: Path) -> None:
    edit(gear / "meta/modality.json", lambda c: c.update(state={}, action={}))
    episode = next(open_dataset(gear).episodes(ROBOT))
    assert list(episode.steps) == ["annotation"]
    write_shard(tmp_path / "out", "train", "a", [episode])
    finish(tmp_path / "out")


def test_export_needs_the_robots_fields(ours: EpisodeStore, tmp_path: Path) -> None:
    robot: Embodiment = replace(ROBOT, cameras=("corner2", "wrist"))
    with pytest.raises(UserError, match="no camera 'wrist'"):
        export_dataset(ours, tmp_path / "x", robot)
    with pytest.raises(UserError, match="no step field 'observation/joint_position'"):
        export_dataset(ours, tmp_path / "x", load("droid"))
