"""The canvas: which pixel goes where, and the pixels of the original transforms.

`canvas_original.npz` was written by torch 2.13.0 and torchvision 0.28.0 on a processor with AVX2, from what the
original composes: uint8 / 255 in single precision, `v2.CenterCrop` to int(0.95 h) x int(0.95 w), `v2.Resize`
(bilinear, antialias=True), times 255, `.to(uint8)`. `small` (3 views, 2 frames, 45 x 80: discs on a gradient, a flat
stripe, noise) is enlarged to 44 x 80, `big` (60 x 80) reduced to 22 x 40. `recoloured` (in 65535ths) are the
`adjust_*` functions on the first frames of `small`, in the two `orders`, by the two rows of `amounts`; `pixels` is
`interpolate(mode="bilinear", align_corners=False)` of view 0 to 20 x 40 after (x - 0.5) / 0.5.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wamjax.data.canvas import CanvasConfig, Placement, canvas, cells, compose, crop_size, pixels, recolour
from wamjax.data.embodiments import load
from wamjax.errors import UserError

WRIST_ON_TOP = (Placement(2, 0, 0, columns=2), Placement(0, 1, 0), Placement(1, 1, 1))


@pytest.fixture(scope="module")
def original() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).with_name("canvas_original.npz")) as file:
        return dict(file)


def numbered(views: int, h: int = 4, w: int = 6) -> np.ndarray:
    """Frames (1, views, 2, h, w, 3) in which every value is another one, as far as 256 go."""
    return (np.arange(views * 2 * h * w * 3) % 251).astype(np.uint8).reshape(1, views, 2, h, w, 3)


def test_droid_canvas_pixel_by_pixel() -> None:
    frames = numbered(3)
    found = np.asarray(compose(jnp.asarray(frames), load("droid").layout))
    assert found.shape == (1, 2, 8, 12, 3)
    for t in range(2):
        for y in range(8):
            for x in range(12):
                if y < 4:
                    expected = frames[0, 2, t, y, x // 2]
                else:
                    expected = frames[0, 0 if x < 6 else 1, t, y - 4, x % 6]
                np.testing.assert_array_equal(found[0, t, y, x], expected)


@pytest.mark.parametrize("name", ["agibot", "yam"])
def test_other_canvases_pixel_by_pixel(name: str) -> None:
    frames = numbered(3)
    found = np.asarray(compose(jnp.asarray(frames), load(name).layout))[0]
    np.testing.assert_array_equal(found[:, :4, :6], frames[0, 0])
    np.testing.assert_array_equal(found[:, 4:, :6], frames[0, 1])
    np.testing.assert_array_equal(found[:, :4, 6:], frames[0, 2])
    assert not found[:, 4:, 6:].any()


def test_one_view_is_its_own_canvas() -> None:
    frames = numbered(1)
    np.testing.assert_array_equal(compose(jnp.asarray(frames), (Placement(0, 0, 0),)), frames[:, 0])


def test_released_sizes() -> None:
    frames = jax.ShapeDtypeStruct((2, 3, 9, 180, 320, 3), jnp.uint8)
    shape = jax.eval_shape(lambda x: canvas(x, WRIST_ON_TOP), frames)
    assert (shape.shape, shape.dtype) == ((2, 9, 352, 640, 3), jnp.uint8)
    config = CanvasConfig(height=160)
    shape = jax.eval_shape(lambda x: pixels(canvas(x, WRIST_ON_TOP, config), (160, 320)), frames)
    assert (shape.shape, shape.dtype) == ((2, 9, 160, 320, 3), jnp.float32)
    assert (crop_size(180, 0.95), crop_size(320, 0.95), crop_size(480, 0.95)) == (171, 304, 456)


def test_enlarged_cells_are_the_original_pixels(original: dict[str, np.ndarray]) -> None:
    expected = original["small_cells"]
    config = CanvasConfig(*expected.shape[2:4])
    found = np.asarray(jax.jit(lambda x: cells(x, config))(original["small"][None]))[0]
    # Equal where this was written; a processor that does not multiply and add at once may lose a level here or there.
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3


def test_reduced_cells_are_the_original_pixels_but_for_a_level(original: dict[str, np.ndarray]) -> None:
    expected = original["big_cells"]
    config = CanvasConfig(*expected.shape[2:4])
    found = np.asarray(jax.jit(lambda x: cells(x, config))(original["big"][None]))[0]
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.02


def test_colours_are_the_original_ones(original: dict[str, np.ndarray]) -> None:
    images = original["small"][:, 0].astype(np.float32) / 255
    for case in range(2):
        found = jax.jit(recolour)(images, original["amounts"][case], original["orders"][case])
        np.testing.assert_allclose(found, original["recoloured"][case] / 65535, atol=2e-5, rtol=0)


def test_the_small_models_pixels(original: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(pixels(original["small"][0], (20, 40)), original["pixels"], atol=1e-6, rtol=0)
    whole = np.asarray(pixels(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)))
    np.testing.assert_allclose(whole[0, :, :, 0].ravel(), np.arange(256) / 127.5 - 1, atol=1e-6)
    assert (whole.min(), whole.max()) == (-1, 1)


def test_training_draws_once_per_sample() -> None:
    rng = np.random.default_rng(0)
    one = rng.integers(0, 256, (1, 1, 1, 40, 60, 3), dtype=np.uint8)
    frames = np.tile(one, (3, 2, 4, 1, 1, 1))
    config = CanvasConfig(38, 56)
    train = jax.jit(lambda x, key: cells(x, config, key))
    found = np.asarray(train(frames, jax.random.key(1)))
    # Contrast uses the mean of each frame; these are equal, so that all views and frames of a sample must be.
    np.testing.assert_array_equal(found, np.broadcast_to(found[:, :1, :1], found.shape))
    assert len({sample.tobytes() for sample in found}) == 3
    np.testing.assert_array_equal(found, train(frames, jax.random.key(1)))
    assert (found != np.asarray(train(frames, jax.random.key(2)))).any()


def test_training_without_colours_crops_inside_the_picture() -> None:
    y, x = np.mgrid[:40, :60]
    frames = np.stack([y, x, 0 * x], -1).astype(np.uint8)[None, None, None]
    config = CanvasConfig(38, 57, brightness=0, contrast=0, saturation=0, hue=0)
    train = jax.jit(lambda key: cells(jnp.asarray(frames), config, key))
    corners = {tuple(np.asarray(train(jax.random.key(i)))[0, 0, 0, 0, 0, :2].tolist()) for i in range(40)}
    # The crop is as large as a cell, so its corner is a pixel (but for a level lost to cutting off).
    assert {c[0] for c in corners} >= {0, 1}
    assert max(c[0] for c in corners) <= 2
    assert len({c[1] for c in corners}) >= 3
    assert max(c[1] for c in corners) <= 3


def test_grey_has_no_hue() -> None:
    grey = np.linspace(0, 1, 3 * 4, dtype=np.float32).reshape(1, 3, 4, 1).repeat(3, -1)
    found = recolour(grey, jnp.array([1.0, 1.0, 1.0, 0.3]), jnp.arange(4))
    np.testing.assert_allclose(found, grey, atol=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"height": 0}, {"width": -1}, {"crop": 0.0}, {"crop": 1.5}, {"hue": 0.6}, {"contrast": -0.1}]
)
def test_wrong_configurations(wrong: dict) -> None:
    with pytest.raises(UserError) as error:
        CanvasConfig(**wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layout", [(), WRIST_ON_TOP])
def test_too_few_views(layout: tuple) -> None:
    with pytest.raises(UserError, match="canvas"):
        compose(jnp.zeros((1, 2, 1, 4, 4, 3), jnp.uint8), layout)
