"""Hand weights back to PyTorch: the inverse of `wamjax import`, bit for bit.

SRC is a folder from `wamjax import`, or published weights to be re-written in the other layout. DST becomes a folder of
safetensors and config.json that diffusers and transformers open with from_pretrained, or files with the names that
Wan's own code gives its tensors.

A whole DreamZero checkpoint, or a run of `wamjax train` with a DreamZero policy (adapters merged), becomes one
checkpoint with the names and the experiment_cfg that its own code loads. A run with a Wan becomes a folder per
component, which `wamjax imagine --prompt` reads too.

  wamjax export weights/ti2v-5b/transformer hub/transformer --layout diffusers
  wamjax export runs/my-robot hub/my-robot
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wamjax.interop.checkpoint import Component

HELP = "hand weights back to PyTorch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("source", metavar="SRC", help="folder from `wamjax import`, or a run")
    parser.add_argument("destination", metavar="DST", help="new folder")
    parser.add_argument("--layout", default="diffusers", help="diffusers or original (default: diffusers)")
    parser.add_argument("--component", metavar="NAME", help="only this one, e.g. transformer, vae, text_encoder")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    from wamjax.cli._transfer import copy_settings, transfer
    from wamjax.interop.checkpoint import Progress, export, export_bundle
    from wamjax.interop.components import BUNDLES
    from wamjax.interop.keymap import place

    place(args.layout)
    source, destination = Path(args.source), Path(args.destination)
    parts = None if args.component else bundled(source)
    if parts is None:

        def write(component: Component, folder: Path, progress: Progress) -> None:
            export(component, folder, args.layout, progress)

        transfer(source, destination, args.component, "exporting", write)
        return
    if parts["transformer"].kind not in BUNDLES:
        for name, part in parts.items():
            export(part, destination / name, args.layout)
    else:
        export_bundle(parts, destination)
        if (source / "checkpoints").is_dir():
            from wamjax.cli._released import write_settings

            write_settings(source, destination)
        else:
            copy_settings(source if source.is_dir() else source.parent, destination)
    print(f"{', '.join(parts)}: {sum(part.bytes for part in parts.values()) / 1e9:.3f} GB in {destination}")


def bundled(source: Path) -> dict[str, Component] | None:
    """The components of a run, or of a checkpoint that is published as one; None for others."""
    from wamjax.cli._released import parts_of_run
    from wamjax.interop.checkpoint import components, open_component
    from wamjax.interop.components import BUNDLES

    if (source / "checkpoints").is_dir():
        return parts_of_run(source)
    places = components(source)
    if "transformer" not in places or open_component(places["transformer"]).kind not in BUNDLES:
        return None
    return {name: open_component(where) for name, where in places.items()}
