"""Bring published weights into wamjax: Wan transformers and autoencoders, UMT5, CLIP's vision tower, DreamZero.

SRC is a file of weights (.safetensors, its index, .pth), the folder of one component, or a whole downloaded model, in
Wan's original layout or in that of diffusers and transformers. DST becomes a folder with component.json and an Orbax
checkpoint; of a whole model it gets one such folder per component, and the tokenizer. Nothing is written unless every
tensor fits.

  wamjax import Wan2.2-TI2V-5B-Diffusers weights/ti2v-5b
  wamjax import Wan2.1_VAE.pth weights/vae
  wamjax import DreamZero-DROID weights/dreamzero-droid
  wamjax import my-adapters weights/mine --base DreamZero-AgiBot
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

HELP = "bring published weights into wamjax"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("source", metavar="SRC", help="file or folder of published weights")
    parser.add_argument("destination", metavar="DST", help="new folder")
    parser.add_argument(
        "--base", metavar="SRC", help="checkpoint, published or imported, that SRC has nothing but low-rank adapters of"
    )
    parser.add_argument("--component", metavar="NAME", help="only this one, e.g. transformer, vae, text_encoder")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    from wamjax.cli._transfer import copy_settings, transfer
    from wamjax.interop.checkpoint import import_component
    from wamjax.networks.umt5_tokenizer import PLACES

    source, destination = Path(args.source), Path(args.destination)
    base = None if args.base is None else Path(args.base)
    transfer(source, destination, args.component, "importing", import_component, base)
    for settings in (base, source):
        if settings is not None:
            copy_settings(settings if settings.is_dir() else settings.parent, destination)
    tokenizer = next((source / place for place in PLACES if (source / place).is_file()), None)
    if tokenizer is not None and args.component is None:
        (destination / "tokenizer").mkdir(exist_ok=True)
        shutil.copyfile(tokenizer, destination / "tokenizer" / "spiece.model")
