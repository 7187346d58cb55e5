"""Camera clips go through store, batch and canvas; docs/droid_sample.png shows real ones."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.oracles.droid_sample import batch_of, canvases
from wamjax.data.canvas import CanvasConfig
from wamjax.data.embodiments import load
from wamjax.data.video import decode, encode


def test_clips_become_canvases(tmp_path: Path, make_scene: Callable[..., np.ndarray]) -> None:
    decoded = {}
    for seed, camera in enumerate(load("droid").cameras):
        video = encode(make_scene(60, seed=seed), 15)
        (tmp_path / f"{camera}.mp4").write_bytes(video.data)
        decoded[camera] = decode(video)
    batch = batch_of(tmp_path, tmp_path / "store", 2)
    assert batch["frames"].shape == (2, 3, 17, 32, 32, 3)
    assert not batch["action_mask"].any()
    for view, camera in enumerate(load("droid").cameras):
        start = int(np.flatnonzero((decoded[camera] == batch["frames"][0, view, 0]).all((1, 2, 3)))[0])
        count = 8 * int(batch["chunks"][0]) + 1
        np.testing.assert_array_equal(batch["frames"][0, view, :count], decoded[camera][start : start + 3 * count : 3])
    shown = canvases(batch, CanvasConfig(height=32, width=32, crop=1.0))
    assert shown.shape == (2, 17, 64, 64, 3)
    np.testing.assert_array_equal(shown[:, :, 32:, :32], batch["frames"][:, 0])
