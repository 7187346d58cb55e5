"""Key maps of Wan's video autoencoders: the original files and diffusers' AutoencoderKLWan."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from wamjax.interop.keymap import CONV, CONV_2D, SCALE_2D, SCALE_3D, VECTOR, KeyMap, Layout, Source, place
from wamjax.networks.wan.vae import Stage, WanVAEConfig


@dataclasses.dataclass(frozen=True)
class Names:
    """The words of one published layout.

    Attributes:
        places: per half, where residual blocks and where resamplings lie: formats of the stage's number, the block's
            number in its stage (a resampling counts as the block after the last), and the number in the whole half.
        middle: the parts of the middle: block, attention, block.
        inside: the parts of a residual block, in order of use, and its shortcut.
        ends: first convolution, last norm and last convolution of a half.
        quant, post_quant: the two 1x1 convolutions at the latents.
    """

    places: Mapping[str, tuple[str, str]]
    middle: tuple[str, str, str]
    inside: tuple[str, str, str, str, str]
    ends: tuple[str, str, str]
    quant: str
    post_quant: str


ORIGINAL_21 = Names(
    places={"encoder": ("downsamples.{flat}",) * 2, "decoder": ("upsamples.{flat}",) * 2},
    middle=("middle.0", "middle.1", "middle.2"),
    inside=("residual.0", "residual.2", "residual.3", "residual.6", "shortcut"),
    ends=("conv1", "head.0", "head.2"),
    quant="conv1",
    post_quant="conv2",
)
ORIGINAL_22 = dataclasses.replace(
    ORIGINAL_21,
    places={
        "encoder": ("downsamples.{stage}.downsamples.{block}",) * 2,
        "decoder": ("upsamples.{stage}.upsamples.{block}",) * 2,
    },
)
DIFFUSERS_21 = Names(
    places={
        "encoder": ("down_blocks.{flat}",) * 2,
        "decoder": ("up_blocks.{stage}.resnets.{block}", "up_blocks.{stage}.upsamplers.0"),
    },
    middle=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    inside=("norm1", "conv1", "norm2", "conv2", "conv_shortcut"),
    ends=("conv_in", "norm_out", "conv_out"),
    quant="quant_conv",
    post_quant="post_quant_conv",
)
DIFFUSERS_22 = dataclasses.replace(
    DIFFUSERS_21,
    places={
        "encoder": ("down_blocks.{stage}.resnets.{block}", "down_blocks.{stage}.downsampler"),
        "decoder": ("up_blocks.{stage}.resnets.{block}", "up_blocks.{stage}.upsampler"),
    },
)
NAMES = {False: (ORIGINAL_21, DIFFUSERS_21), True: (ORIGINAL_22, DIFFUSERS_22)}
"""By whether the autoencoder has shortcuts around its stages (2.2), and by layout."""

Rows = Iterator[tuple[str, Source]]


def keymap(config: WanVAEConfig, layout: str) -> KeyMap:
    """The key map of an autoencoder in the layout "original" or "diffusers"."""
    names = NAMES[config.shortcuts][place(layout)]
    encoder = _half("encoder", config.encoder_stages, config.width, config.blocks, names)
    decoder = _half("decoder", config.decoder_stages, config.decoder_stages[0].features, config.blocks + 1, names)
    return {
        **dict(encoder),
        **dict(decoder),
        **dict(_conv("quant", names.quant)),
        **dict(_conv("post_quant", names.post_quant)),
    }


def _half(half: str, stages: tuple[Stage, ...], width: int, blocks: int, names: Names) -> Rows:
    block_place, resample_place = (f"{half}.{place}" for place in names.places[half])
    yield from _conv(f"{half}/conv_in", f"{half}.{names.ends[0]}")
    for i, stage in enumerate(stages):
        for j in range(blocks):
            place = block_place.format(stage=i, block=j, flat=i * (blocks + 1) + j)
            yield from _residual(f"{half}/stage_{i}_block_{j}", place, names, shortcut=width != stage.features)
            width = stage.features
        place = resample_place.format(stage=i, block=blocks, flat=i * (blocks + 1) + blocks)
        if stage.resample:
            yield from _conv(f"{half}/stage_{i}_resample/conv", f"{place}.resample.1", CONV_2D)
        if "time" in stage.resample:
            yield from _conv(f"{half}/stage_{i}_resample/time_conv", f"{place}.time_conv")
        width = stage.resampled
    first, attention, last = (f"{half}.{place}" for place in names.middle)
    yield from _residual(f"{half}/middle/block_0", first, names)
    yield f"{half}/middle/attention/norm/scale", Source((f"{attention}.norm.gamma",), SCALE_2D)
    yield from _conv(f"{half}/middle/attention/qkv", f"{attention}.to_qkv", CONV_2D)
    yield from _conv(f"{half}/middle/attention/out", f"{attention}.proj", CONV_2D)
    yield from _residual(f"{half}/middle/block_1", last, names)
    yield f"{half}/norm_out/scale", Source((f"{half}.{names.ends[1]}.gamma",), SCALE_3D)
    yield from _conv(f"{half}/conv_out", f"{half}.{names.ends[2]}")


def _residual(path: str, place: str, names: Names, shortcut: bool = False) -> Rows:
    norm_0, conv_0, norm_1, conv_1, shortcut_name = (f"{place}.{part}" for part in names.inside)
    yield f"{path}/norm_0/scale", Source((f"{norm_0}.gamma",), SCALE_3D)
    yield from _conv(f"{path}/conv_0", conv_0)
    yield f"{path}/norm_1/scale", Source((f"{norm_1}.gamma",), SCALE_3D)
    yield from _conv(f"{path}/conv_1", conv_1)
    if shortcut:
        yield from _conv(f"{path}/shortcut", shortcut_name)


def _conv(path: str, place: str, layout: Layout = CONV) -> Rows:
    yield f"{path}/kernel", Source((f"{place}.weight",), layout)
    yield f"{path}/bias", Source((f"{place}.bias",), VECTOR)
