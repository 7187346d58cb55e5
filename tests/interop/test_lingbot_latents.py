"""Encoded films as LingBot-VA's files: what is in them, there and back, and as PyTorch itself writes them."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from wamjax.data.encode import Encoder, Job, begin, encode_prompts, encode_samples, finish
from wamjax.data.episode import Episode
from wamjax.data.films import FilmConfig, FilmReader
from wamjax.data.latents import Encoded, Leaf
from wamjax.data.store import EpisodeStore, write_shard
from wamjax.data.store import finish as finish_store
from wamjax.data.video import encode
from wamjax.errors import UserError
from wamjax.interop.files import read_torch
from wamjax.interop.lingbot_latents import export_latents, read_latents
from wamjax.interop.torch_files import write_torch

FILM = FilmConfig("wrist", 5, 10.0)
SAMPLE = {"policy.camera": "wrist", "policy.recipe.fps": 10.0} | {
    f"policy.recipe.{name}": size for name, size in (("frames", 5), ("height", 16), ("width", 24))
}


def tokenize(text: str) -> np.ndarray:
    return np.array([len(text), 1.0], np.float32)


def make(folder: Path, sample: dict) -> Encoded:
    """An encoding of two episodes, whose latents are means of pixels."""
    random = np.random.default_rng(0)
    for number in range(2):
        frames = random.integers(0, 255, (13 + number, 16, 24, 3), dtype=np.uint8)
        episode = Episode({}, {"wrist": encode(frames, 20.0)}, (f"do {number * 'more'}",), {"fps": 20.0})
        write_shard(folder / "data", "train", f"{number}", [episode])
    finish_store(folder / "data")

    def samples(batch):
        pixels = batch["frames"][:, 0, ::4].astype(np.float32)
        return {"video": pixels.reshape(1, 2, 2, 8, 3, 8, 3).mean((3, 5)).astype(ml_dtypes.bfloat16)}

    def prompts(tokens):
        return {"text": np.repeat(tokens[:, :, None], 3, axis=2).astype(ml_dtypes.bfloat16)}

    leaves = {"video": Leaf((2, 2, 3, 3), "float32", "bfloat16"), "text": Leaf((2, 3), "float32", "bfloat16", True)}
    encoder = Encoder(samples, prompts, leaves, 1, "none")
    reader = FilmReader(EpisodeStore(folder / "data"), FILM, tokenize, 1 << 20)
    made_of = {"stride": 2, "sample": sample}
    job = Job(folder / "encoded", {"train": reader}, 2, 8, made_of, str(folder / "data"))
    begin(job)
    encode_samples(job, encoder)
    encode_prompts(job, encoder)
    finish(job, encoder)
    return Encoded(folder / "encoded")


def test_every_film_is_a_file(tmp_path: Path) -> None:
    cache, out = make(tmp_path, SAMPLE), tmp_path / "out"
    assert export_latents(cache, out) == 6
    files = sorted((out / "latents/chunk-000/observation.images.wrist").iterdir())
    assert [file.name for file in files[:3]] == [f"episode_000000_{i}_{i + 9}.pth" for i in (0, 2, 4)]
    samples = list(cache.samples("train"))
    for file, sample in zip(files, samples, strict=True):
        found = read_latents(file)
        np.testing.assert_array_equal(found.pop("latent"), sample.leaves["video"], strict=True)
        np.testing.assert_array_equal(found.pop("text_emb"), sample.text["text"], strict=True)
        first = sample.step
        assert found == {
            **{"latent_num_frames": 2, "latent_num_height": 2, "latent_num_width": 3},
            **{"video_num_frames": 5, "video_num_height": 16, "video_num_width": 24},
            **{"text": f"do {sample.episode * 'more'}", "frame_ids": list(range(first, first + 9, 2))},
            **{"start_frame": first, "end_frame": first + 9, "fps": 10.0, "ori_fps": 20.0},
        }
    np.testing.assert_array_equal(read_torch(out / "empty_emb.pt"), [[0, 0, 0], [1, 1, 1]])
    lines = [json.loads(line) for line in (out / "meta/episodes.jsonl").read_text().splitlines()]
    assert [len(line["action_config"]) for line in lines] == [3, 3]
    assert lines[1]["action_config"][0] == {"start_frame": 0, "end_frame": 9, "action_text": "do more"}
    before = {file: file.read_bytes() for file in files}
    (out / "meta/episodes.jsonl").write_text('{"episode_index": 0, "tasks": ["a"]}\n{"episode_index": 1}\n')
    export_latents(cache, out)
    assert before == {file: file.read_bytes() for file in files}
    assert json.loads((out / "meta/episodes.jsonl").read_text().splitlines()[0])["tasks"] == ["a"]


def test_other_samples_and_other_episodes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no films of one camera"):
        export_latents(make(tmp_path / "a", {}), tmp_path / "a/out")
    cache = make(tmp_path / "b", SAMPLE)
    (tmp_path / "out/meta").mkdir(parents=True)
    (tmp_path / "out/meta/episodes.jsonl").write_text('{"episode_index": 0}\n')
    with pytest.raises(UserError, match="has no episode 1"):
        export_latents(cache, tmp_path / "out")
    write_torch(tmp_path / "other.pth", {"latent": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match="holds no latents"):
        read_latents(tmp_path / "other.pth")


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32, np.int64, np.bool_])
def test_files_of_tensors_come_back(dtype, tmp_path: Path) -> None:
    content = {"x": (np.arange(12).reshape(3, 4) % 5).astype(dtype), "y": np.array(3).astype(dtype), "n": [1, "a", 2.5]}
    write_torch(tmp_path / "x.pth", content)
    found = read_torch(tmp_path / "x.pth")
    assert found["n"] == content["n"]
    for name in "xy":
        np.testing.assert_array_equal(found[name], content[name], strict=True)


def test_pytorch_reads_what_is_written_and_the_reverse(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[torch]'")
    export_latents(make(tmp_path, SAMPLE), tmp_path / "out")
    for file in [*tmp_path.rglob("*.pth"), *tmp_path.rglob("*.pt")]:
        ours, theirs = read_torch(file), torch.load(file, weights_only=True)
        pairs = [(ours[name], theirs[name]) for name in ours] if isinstance(ours, dict) else [(ours, theirs)]
        for one, other in pairs:
            if isinstance(one, np.ndarray):
                assert other.dtype == torch.bfloat16
                np.testing.assert_array_equal(one.view(np.int16), other.view(torch.int16).numpy(), strict=True)
            else:
                assert one == other
        torch.save(theirs, tmp_path / "again.pth")
        again = read_torch(tmp_path / "again.pth")
        for name in ours if isinstance(ours, dict) else ():
            np.testing.assert_array_equal(again[name], ours[name])
