"""Write encoded films as LingBot-VA's trainer reads latents, beside a LeRobot v2 dataset.

    wamjax data encode --config wan.py --data runs/droid --stride 32 --out runs/latents
    wamjax data export-gear runs/droid lerobot/droid --embodiment droid
    wamjax data export-latents runs/latents lerobot/droid

Every encoded film becomes a file latents/chunk-000/<camera>/episode_000000_<first>_<end>.pth (bfloat16, written without
PyTorch), and an entry of its episode's `action_config` in meta/episodes.jsonl. The latents must be of the autoencoder
that the trainer expects: Wan2.2's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "write encoded films as LingBot-VA reads them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares its options."""
    parser.add_argument("encoded", metavar="ENCODED", help="folder of `wamjax data encode`, of a video model's films")
    parser.add_argument("out", metavar="OUT", help="dataset folder of LeRobot v2, with the same episodes, or a new one")
    parser.add_argument("--camera", default="", metavar="KEY", help="the camera there (observation.images.<its name>)")
    parser.add_argument("--split", default="train", help="of the dataset (train)")


def run(args: argparse.Namespace) -> None:
    """Runs it."""
    from wamjax.data.latents import Encoded
    from wamjax.interop.lingbot_latents import export_latents

    count = export_latents(Encoded(args.encoded), Path(args.out), args.camera, args.split)
    print(f"latents     {args.out}: {count} films")
