"""Encoded films as LingBot-VA reads latents, and back: files of its own beside a LeRobot v2 dataset.

    latents/chunk-000/<camera>/episode_000000_<first>_<end>.pth    latents of a film, features of its prompt
    empty_emb.pt                                                   features of the empty prompt
    meta/episodes.jsonl                                            gains `action_config`: the films and their prompts

Source of the layout: `wan_va/dataset/lerobot_latent_dataset.py` of Robbyant/lingbot-va.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from wamjax.data.files import replacing
from wamjax.data.films import FilmConfig
from wamjax.data.latents import Encoded
from wamjax.data.opened import open_dataset
from wamjax.data.store import EpisodeStore
from wamjax.errors import UserError
from wamjax.interop.files import read_torch
from wamjax.interop.torch_files import write_torch

CHUNK = 1000  # episodes per folder
VIDEO, TEXT = "video", "text"
"""Names of latents (t, h, w, c) and features (l, e) in an encoded film."""


def export_latents(cache: Encoded, folder: Path, camera: str = "", split: str = "train") -> int:
    """Writes every film of a cache, in bfloat16; returns their number. Files that are there are written again.

    Args:
        cache: of films of one camera.
        folder: the LeRobot v2 dataset beside which they go; its episodes are those of the split, in their order.
        camera: the dataset's name for the camera; "": `observation.images.` and our name.

    Raises:
        UserError: a cache of other samples, or the disk is full.
    """
    film, size = _film(cache)
    store = open_dataset(cache.dataset, split)
    offsets, key = film.offsets(store.fps), camera or f"observation.images.{film.camera}"
    configs: dict[int, list[dict[str, Any]]] = {}
    count = 0
    for record in cache.samples(split):
        number, ids = record.episode, (record.step + offsets).tolist()
        first, end = ids[0], ids[-1] + 1
        file = folder / f"latents/chunk-{number // CHUNK:03d}/{key}/episode_{number:06d}_{first}_{end}.pth"
        file.parent.mkdir(parents=True, exist_ok=True)
        text = cache.texts[record.prompts[0]]
        numbers = {"frame_ids": ids, "start_frame": first, "end_frame": end, "fps": film.fps, "ori_fps": store.fps}
        write_torch(file, _content(record.leaves[VIDEO], record.text[TEXT], text, size) | numbers)
        config = {"start_frame": first, "end_frame": end, "action_text": text}
        configs.setdefault(number, []).append(config)
        count += 1
    write_torch(folder / "empty_emb.pt", _half(cache.empty[TEXT]))
    _note(folder / "meta/episodes.jsonl", configs, store)
    return count


def read_latents(file: Path) -> dict[str, Any]:
    """What such a file holds, its latents as (t, h, w, c).

    Raises:
        UserError: it is damaged, or no file of latents.
    """
    content = read_torch(file)
    try:
        sizes = [int(content[f"latent_num_{name}"]) for name in ("frames", "height", "width")]
        content["latent"] = np.asarray(content["latent"]).reshape(*sizes, -1)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} holds no latents as LingBot-VA has them ({error!r})") from error
    return content


def _content(latents: np.ndarray, features: np.ndarray, text: str, size: tuple[int, int, int]) -> dict[str, Any]:
    """What a file says of latents (t, h, w, c) of a film of `size`, frames, height and width."""
    names = ("frames", "height", "width")
    return {
        "latent": _half(latents.reshape(-1, latents.shape[-1])),
        **{f"latent_num_{name}": int(n) for name, n in zip(names, latents.shape[:3], strict=True)},
        **{f"video_num_{name}": n for name, n in zip(names, size, strict=True)},
        "text_emb": _half(features),
        "text": text,
    }


def _film(cache: Encoded) -> tuple[FilmConfig, tuple[int, int, int]]:
    """What the samples of a cache are: frames of one camera, and their number, height and width."""
    said: Mapping[str, Any] = cache.made_of["sample"]
    try:
        frames, height, width = (int(said[f"policy.recipe.{name}"]) for name in ("frames", "height", "width"))
        return FilmConfig(said["policy.camera"], frames, said["policy.recipe.fps"]), (frames, height, width)
    except KeyError as error:
        raise UserError(f"{cache.folder} holds no films of one camera: encode those of a video model") from error


def _note(path: Path, configs: Mapping[int, list[dict[str, Any]]], store: EpisodeStore) -> None:
    """Adds the films to the dataset's list of episodes, or makes one."""
    if path.exists():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    else:
        lines = [{"episode_index": i, "length": length} for i, length in enumerate(store.lengths.tolist())]
    known = {line["episode_index"] for line in lines}
    if other := sorted(configs.keys() - known):
        raise UserError(f"{path} has no episode {other[0]}: export the same dataset there first")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        told = [line | {"action_config": configs.get(line["episode_index"], [])} for line in lines]
        partial.write_text("".join(json.dumps(line) + "\n" for line in told))


def _half(array: np.ndarray) -> np.ndarray:
    return array.astype(ml_dtypes.bfloat16)
