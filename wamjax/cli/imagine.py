"""Film what a policy imagines along a recorded episode, or make a video from a prompt with a Wan model.

With --data: at every step of an episode the policy sees the frames of that step and imagines those a little later;
the film shows the last of them at the right of the frame that was recorded then.
With --prompt: --checkpoint is the folder of a whole Wan model, as published or from `wamjax import`. What is not said
(steps, size, guidance, ...) is as its makers recommend.

  wamjax imagine --checkpoint runs/demo/joint --data runs/demo/data --episode 3 --out dream.mp4
  wamjax imagine --checkpoint weights/ti2v-5b --prompt "a robot arm opens a drawer" --image desk.png --out video.mp4
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

HELP = "film what a policy imagines, or make a video from a prompt"
RECIPE: dict[str, tuple[type, str]] = {
    "steps": (int, "denoising steps"),
    "shift": (float, "of the noise times towards noise"),
    "solver": (str, "unipc, dpmpp or euler"),
    "guidance": (float, "scale of the guidance by the prompt"),
    "low_guidance": (float, "the same of the low-noise network (A14B)"),
    "frames": (int, "4 n + 1"),
    "fps": (float, "frames per second"),
    "height": (int, "pixels; with --image, height times width is the area and the image has the aspect"),
    "width": (int, "pixels"),
}
"""Keys of `wamjax.networks.wan.generation.Recipe` that can be changed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="run folder, or folder of a Wan model")
    parser.add_argument("--out", required=True, metavar="FILE.mp4", help="film to write")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the sampling noise (default: 0)")
    episode = parser.add_argument_group("along an episode")
    episode.add_argument("--data", metavar="DIR", help="dataset folder")
    episode.add_argument("--split", default="validation", help="split of the dataset (default: validation)")
    episode.add_argument("--episode", type=int, default=0, metavar="N", help="episode of the split (default: 0)")
    prompt = parser.add_argument_group("from a prompt")
    prompt.add_argument("--prompt", metavar="TEXT", help="what the video shall show")
    prompt.add_argument("--negative-prompt", default="", metavar="TEXT", help="what it shall not (default: nothing)")
    prompt.add_argument("--image", metavar="FILE", help="first frame of the video")
    prompt.add_argument("--tokenizer", metavar="FILE", help="spiece.model, if the model's folder has none")
    prompt.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the weights (default: as stored)")
    for key, (kind, text) in RECIPE.items():
        metavar = {int: "N", float: "X", str: "NAME"}[kind]
        prompt.add_argument(f"--{key.replace('_', '-')}", type=kind, metavar=metavar, help=text)


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    from wamjax.data.files import replacing
    from wamjax.data.video import encode
    from wamjax.errors import UserError

    if (args.data is None) == (args.prompt is None):
        raise UserError("say what to imagine: either --data with a policy, or --prompt with a Wan model")
    frames, fps, what = along_an_episode(args) if args.prompt is None else from_a_prompt(args)
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial:
        partial.write_bytes(encode(frames, fps, everywhere=args.prompt is not None).data)
    print(f"{len(frames)} frames, {what}: {out}")


def along_an_episode(args: argparse.Namespace) -> tuple[np.ndarray, float, str]:
    """Recorded and imagined frames side by side, their rate, and what they are."""
    from wamjax.cli import _experiment
    from wamjax.data.opened import open_dataset
    from wamjax.errors import UserError

    store = open_dataset(args.data, args.split)
    if not 0 <= args.episode < len(store):
        raise UserError(f"no episode {args.episode} in split {args.split}: it has 0 to {len(store) - 1}")
    loaded = _experiment.trained(args.checkpoint)
    if not loaded.policy.imagines:
        raise UserError(f"the variant '{loaded.experiment.name}' imagines no video: choose another checkpoint")
    film, fps = _experiment.system(loaded.experiment).film(loaded, store, args.episode, args.seed)
    return film, fps, "recorded left and imagined right"


def from_a_prompt(args: argparse.Namespace) -> tuple[np.ndarray, float, str]:
    """Frames of a Wan model, their rate, and what they are."""
    from rich.progress import Progress

    from wamjax.cli._generate import generate

    changes = {key: getattr(args, key) for key in RECIPE if getattr(args, key) is not None}
    with Progress() as bars:

        def say(stage: str, steps: int) -> Callable[[], None]:
            bar = bars.add_task(stage, total=steps)
            return lambda: bars.advance(bar)

        frames, recipe = generate(args, changes, say)
    what = f"{recipe.height}x{recipe.width} at {recipe.fps:g} fps, {recipe.steps} steps of {recipe.solver}"
    return frames, recipe.fps, what
