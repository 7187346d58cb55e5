"""One picture of several cameras: crop, resize and recolour every view, then lay them out on a canvas.

Source: DreamZero (arXiv 2602.15922), `groot/vla/data/transform/video.py` and
`model/dreamzero/transform/dreamzero_cotrain.py`; random choices follow torchvision's `RandomCrop` and `ColorJitter`.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from wamjax.errors import UserError
from wamjax.networks.images import resize_linear

# In a table, because a compiler turns a division by 255 into a multiplication that rounds differently, and the last
# step to whole levels cuts off: a level just below a whole number would be lost.
_LEVELS = np.arange(256, dtype=np.float32) / np.float32(255)
_GREY = (0.2989, 0.587, 0.114)


@dataclass(frozen=True)
class Placement:
    """Where a view goes: its upper left cell of the canvas, and how many cells its columns are repeated over."""

    view: int
    row: int
    column: int
    columns: int = 1


Layout = tuple[Placement, ...]


@dataclass(frozen=True)
class CanvasConfig:
    """How views become cells of the canvas.

    Attributes:
        height, width: of one cell, in pixels.
        crop: share of a view's height and width that is kept.
        brightness, contrast, saturation: largest relative change of each, in training.
        hue: largest turn of the hue, in turns, in training.
    """

    height: int = 176
    width: int = 320
    crop: float = 0.95
    brightness: float = 0.3
    contrast: float = 0.4
    saturation: float = 0.5
    hue: float = 0.08

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1 or not 0 < self.crop <= 1:
            raise UserError(
                f"canvas: height={self.height}, width={self.width}, crop={self.crop}: "
                "give a size of at least 1 and a crop in (0, 1]"
            )
        if min(self.brightness, self.contrast, self.saturation) < 0 or not 0 <= self.hue <= 0.5:
            raise UserError("canvas: brightness, contrast, saturation cannot be negative, hue must be in [0, 0.5]")


def canvas(
    frames: UInt8[Array, "b v t h w 3"],
    layout: Layout,
    config: CanvasConfig = CanvasConfig(),
    key: PRNGKeyArray | None = None,
) -> UInt8[Array, "b t y x 3"]:
    """The canvas of every frame: `cells`, then `compose`.

    Pixels equal those of the original where it enlarges (compiled, see `resize_linear`), and differ by at most one
    level of 255 elsewhere.
    """
    return compose(cells(frames, config, key), layout)


def cells(
    frames: UInt8[Array, "b v t h w 3"], config: CanvasConfig = CanvasConfig(), key: PRNGKeyArray | None = None
) -> UInt8[Array, "b v t y x 3"]:
    """Every view cropped, resized and, with a `key`, recoloured.

    Without a key the crop is central. With one, crop and colours are drawn once per sample: all of its views and
    frames have the same. Levels are cut off to whole numbers, not rounded, as in the original.
    """
    if key is None:
        return jax.vmap(lambda sample: _cells(sample, config, None))(frames)
    return jax.vmap(lambda sample, key: _cells(sample, config, key))(frames, jax.random.split(key, len(frames)))


def compose(cells: UInt8[Array, "b v t h w 3"], layout: Layout) -> UInt8[Array, "b t y x 3"]:
    """Views put in their cells; cells without a view are black.

    Raises:
        UserError: a placement of a view that there is not.
    """
    if not layout or max(placement.view for placement in layout) >= cells.shape[1]:
        raise UserError(f"canvas: {cells.shape[1]} views cannot fill the layout {layout}: give all cameras")
    b, _, t, h, w, c = cells.shape
    rows = 1 + max(placement.row for placement in layout)
    columns = max(placement.column + placement.columns for placement in layout)
    picture = jnp.zeros((b, t, rows * h, columns * w, c), cells.dtype)
    for place in layout:
        y, x = place.row * h, place.column * w
        view = jnp.repeat(cells[:, place.view], place.columns, axis=-2)
        picture = picture.at[:, :, y : y + h, x : x + place.columns * w].set(view)
    return picture


def pixels(canvas: UInt8[Array, "*b h w 3"], size: tuple[int, int] | None = None) -> Float[Array, "*b y x 3"]:
    """Levels 0 .. 255 as numbers in [-1, 1], then resized to `size` (height, width) where that is given.

    The resizing is that of DreamZero's 5B model: linear between the nearest pixels, without antialiasing.
    """
    values = (jnp.asarray(_LEVELS)[canvas] - 0.5) / 0.5
    if size is None or size == canvas.shape[-3:-1]:
        return values
    return resize_linear(values, *size, antialias=False)


def crop_size(size: int, share: float) -> int:
    """Pixels that a crop keeps of `size`."""
    return int(size * share)


def _cells(frames: UInt8[Array, "v t h w 3"], config: CanvasConfig, key: PRNGKeyArray | None) -> Array:
    """The cells of one sample."""
    h, w = frames.shape[2:4]
    height, width = crop_size(h, config.crop), crop_size(w, config.crop)
    if key is None:
        # Python rounds halves to even here as torchvision's centre crop does.
        top, left = jnp.asarray(round((h - height) / 2)), jnp.asarray(round((w - width) / 2))
    else:
        key, down, right = jax.random.split(key, 3)
        top = jax.random.randint(down, (), 0, h - height + 1)
        left = jax.random.randint(right, (), 0, w - width + 1)
    images = jnp.asarray(_LEVELS)[frames]
    images = jax.lax.dynamic_slice(images, (0, 0, top, left, 0), (*frames.shape[:2], height, width, 3))
    images = resize_linear(images, config.height, config.width, antialias=True)
    if key is not None:
        images = jitter(images, config, key)
    return (images * 255).astype(jnp.uint8)


def jitter(images: Float[Array, "*b h w 3"], config: CanvasConfig, key: PRNGKeyArray) -> Float[Array, "*b h w 3"]:
    """Brightness, contrast, saturation and hue of [0, 1] images changed in random order, the same for all images."""
    order, *keys = jax.random.split(key, 5)
    spread = jnp.array([config.brightness, config.contrast, config.saturation, config.hue])
    centre = jnp.array([1.0, 1.0, 1.0, 0.0])
    low = jnp.array([0.0, 0.0, 0.0, -1.0])
    draws = jnp.stack([jax.random.uniform(part) for part in keys])
    least = jnp.maximum(centre - spread, low)
    amounts = least + draws * (centre + spread - least)
    return recolour(images, amounts, jax.random.permutation(order, 4))


def recolour(images: Float[Array, "*b h w 3"], amounts: Float[Array, " 4"], order: Array) -> Float[Array, "*b h w 3"]:
    """[0, 1] images after brightness (0), contrast (1), saturation (2) and hue (3), applied in `order`.

    `amounts` are the factors of the first three and the turn of the hue, in turns.
    """
    changes = (
        lambda x: _blend(x, jnp.zeros_like(x[..., :1]), amounts[0]),
        lambda x: _blend(x, _grey(x).mean((-3, -2, -1), keepdims=True), amounts[1]),
        lambda x: _blend(x, _grey(x), amounts[2]),
        lambda x: _turn(x, amounts[3]),
    )
    for step in range(len(changes)):
        images = jax.lax.switch(order[step], changes, images)
    return images


def _blend(images: Array, other: Array, share: Array) -> Array:
    return (images * share + other * (1 - share)).clip(0, 1)


def _grey(images: Array) -> Array:
    """Luminance, with a last axis of one."""
    red, green, blue = (images[..., c : c + 1] * weight for c, weight in enumerate(_GREY))
    return red + green + blue


def _turn(images: Array, turns: Array) -> Array:
    """Images of another hue; grey stays grey."""
    red, green, _ = jnp.moveaxis(images, -1, 0)
    value, low = images.max(-1), images.min(-1)
    chroma = value - low
    flat = chroma == 0
    saturation = chroma / jnp.where(flat, 1, value)
    away = (value[..., None] - images) / jnp.where(flat, 1, chroma)[..., None]
    sector = jnp.where(
        value == red,
        away[..., 2] - away[..., 1],
        jnp.where(value == green, 2 + away[..., 0] - away[..., 2], 4 + away[..., 1] - away[..., 0]),
    )
    place = jnp.mod(jnp.mod(sector / 6 + 1, 1) + turns, 1) * 6
    # Channel c is the value, less the chroma where the hue is far from it (red at 0, green at 2, blue at 4 sixths).
    far = jnp.mod(jnp.array([5.0, 3.0, 1.0]) + place[..., None], 6)
    far = jnp.minimum(far, 4 - far).clip(0, 1)
    return (value[..., None] * (1 - saturation[..., None] * far)).clip(0, 1)
