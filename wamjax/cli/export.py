"""Hand weights back to PyTorch: the inverse of `wamjax import`, bit for bit.

SRC is a folder from `wamjax import`, or published weights to be re-written in the other layout. DST becomes a folder of
safetensors and config.json that diffusers and transformers open with from_pretrained, or files with the names that
Wan's own code gives its tensors.

  wamjax export weights/ti2v-5b/transformer hub/transformer --layout diffusers
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "hand weights back to PyTorch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("source", metavar="SRC", help="folder from `wamjax import`")
    parser.add_argument("destination", metavar="DST", help="new folder")
    parser.add_argument("--layout", default="diffusers", help="diffusers or original (default: diffusers)")
    parser.add_argument("--component", metavar="NAME", help="only this one, e.g. transformer, vae, text_encoder")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    from wamjax.cli._transfer import transfer
    from wamjax.interop.checkpoint import Progress, export, open_component
    from wamjax.interop.keymap import place

    place(args.layout)

    def write(source: Path, folder: Path, progress: Progress) -> None:
        export(open_component(source), folder, args.layout, progress)

    transfer(Path(args.source), Path(args.destination), args.component, "exporting", write)
