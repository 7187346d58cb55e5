"""Video U-Nets of UniPi's kind (arXiv 2204.03458, and AVDC's open relative): convolutions in space and then in time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Literal

from wamjax.compute.description import Cost, Work
from wamjax.compute.flops import Flops


@dataclasses.dataclass(frozen=True)
class Layer:
    """A part of the network.

    Attributes:
        parameters: of it. products: multiply-adds per pixel of a frame at its resolution.
        down: how often pixels have been halved there. attended: width of attention among a frame's pixels, or 0.
        once: products that run once a clip, whatever its size.
    """

    parameters: int
    products: int = 0
    down: int = 0
    attended: int = 0
    once: int = 0


@dataclasses.dataclass(frozen=True)
class VideoUNet:
    """The network.

    Attributes:
        width: of the finest resolution. multipliers: of it, from fine to coarse. blocks: residual ones of a level.
        attention: halvings after which frames attend to themselves. inputs, outputs: channels.
        embedding: width of the noise level's; 0 for four times the width. text: width of text features.
        latents, depth: of the resampler of text features, which makes one vector of them; 0 for none.
    """

    width: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    inputs: int = 6
    outputs: int = 3
    embedding: int = 0
    text: int = 512
    latents: int = 64
    depth: int = 2
    kind: Literal["video_unet"] = "video_unet"

    @property
    def parameters(self) -> int:
        """All of it."""
        return sum(layer.parameters for layer in self.layers)

    def cost(self, work: Work) -> Cost:
        """Of a clip in pixels of the network's finest resolution."""
        frames, height, width = work.clip
        products, attended = 0, 0
        for layer in self.layers:
            pixels = (height >> layer.down) * (width >> layer.down)
            products += frames * pixels * layer.products + layer.once
            attended += 4 * frames * pixels**2 * layer.attended
        return Cost(Flops(2 * products, attended, attended) * work.rows, self.parameters)

    @functools.cached_property
    def layers(self) -> tuple[Layer, ...]:
        """In order."""
        return tuple(self._layers())

    @property
    def _level(self) -> int:
        return self.embedding or 4 * self.width

    def _layers(self) -> Iterator[Layer]:
        yield _linear(self.width, self._level)
        yield _linear(self._level, self._level)
        yield from self._text()
        yield _conv(self.inputs, self.width, 0)
        skips, channels = [self.width], self.width
        for down, multiplier in enumerate(self.multipliers):
            for _ in range(self.blocks):
                yield from self._block(channels, channels := self.width * multiplier, down)
                skips.append(channels)
            if down + 1 < len(self.multipliers):
                yield _conv(channels, channels, down + 1)
                skips.append(channels)
        yield from self._residual(channels, channels, down)
        yield _attention(channels, down)
        yield from self._residual(channels, channels, down)
        for down in reversed(range(len(self.multipliers))):
            for _ in range(self.blocks + 1):
                yield from self._block(channels + skips.pop(), channels := self.width * self.multipliers[down], down)
            if down:
                yield _conv(channels, channels, down - 1)
        yield Layer(2 * channels)
        yield _conv(channels, self.outputs, 0)

    def _block(self, inputs: int, outputs: int, down: int) -> Iterator[Layer]:
        yield from self._residual(inputs, outputs, down)
        if down in self.attention:
            yield _attention(outputs, down)

    def _residual(self, inputs: int, outputs: int, down: int) -> Iterator[Layer]:
        yield Layer(2 * inputs + 2 * outputs)
        yield _conv(inputs, outputs, down)
        yield _linear(self._level, outputs)
        yield _conv(outputs, outputs, down)
        if inputs != outputs:
            yield Layer((inputs + 1) * outputs, inputs * outputs, down)

    def _text(self) -> Iterator[Layer]:
        """AVDC's resampler: latents attend to features (normalised queries and keys), a mean of them is read."""
        d, queries = self.text, self.latents
        if not queries:
            return
        # Latents and positions; four more latents out of the mean feature, behind a norm.
        yield Layer(queries * d + 512 * d + d + (d + 1) * 4 * d)
        for _ in range(self.depth):
            attention = 2 * 2 * d + d * d + d * 2 * d + 2 * 64 + d * d + 2 * d
            yield Layer(attention + d + 2 * d * 4 * d + 4 * d)
        yield _linear(d, self._level)


def _linear(inputs: int, outputs: int) -> Layer:
    return Layer((inputs + 1) * outputs, once=inputs * outputs)


def _conv(inputs: int, outputs: int, down: int) -> Layer:
    """3x3 in space, then 3 in time."""
    products = 9 * inputs * outputs + 3 * outputs**2
    return Layer(products + 2 * outputs, products, down)


def _attention(width: int, down: int) -> Layer:
    return Layer(2 * width + 4 * width**2 + 4 * width, 4 * width**2, down, width)
