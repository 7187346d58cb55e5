"""Film what a policy imagines along a recorded episode: recorded future frames left, imagined ones right.

At every step of the episode the policy sees the frames of that step and imagines those a little later; the film
shows the last of them beside the frame that was recorded then.

  wamjax imagine --checkpoint runs/demo/joint --data runs/demo/data --episode 3 --out dream.mp4
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "film what a policy imagines beside what happened"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="run folder of `wamjax train`")
    parser.add_argument("--data", required=True, metavar="DIR", help="dataset folder")
    parser.add_argument("--split", default="validation", help="split of the dataset (default: validation)")
    parser.add_argument("--episode", type=int, default=0, metavar="N", help="episode of the split (default: 0)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the sampling noise (default: 0)")
    parser.add_argument("--out", required=True, metavar="FILE.mp4", help="film to write")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    from wamjax.cli import _experiment
    from wamjax.data.files import replacing
    from wamjax.data.pipeline import episode_clips
    from wamjax.data.store import EpisodeStore
    from wamjax.data.video import encode
    from wamjax.errors import UserError
    from wamjax.evaluation.open_loop import Predictor, side_by_side

    store = EpisodeStore(args.data, args.split)
    if not 0 <= args.episode < len(store):
        raise UserError(f"no episode {args.episode} in split {args.split}: it has 0 to {len(store) - 1}")
    loaded = _experiment.trained(args.checkpoint)
    if not loaded.policy.imagines:
        raise UserError(f"the variant '{loaded.experiment.name}' imagines no video: choose another checkpoint")
    predictor = Predictor(loaded.policy, loaded.params, loaded.frozen)
    clips = episode_clips(store, loaded.experiment.clip, args.episode, loaded.policy.tokenize)
    film = encode(side_by_side(predictor, clips, args.seed), store.fps)
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial:
        partial.write_bytes(film.data)
    print(f"{film.frames} frames, recorded left and imagined right: {out}")
