"""Serve a policy to robots and simulators: a websocket server in the dialects of the field's clients.

  roboarena   RoboArena's evaluators; actions come as {"actions": (N, 8)}
  dreamzero   clients of DreamZero's server: the same, but the actions come bare
  openpi      openpi's clients; the reply also says how long each stage took

The server compiles first and listens then; the line "serving ..." tells the address. GET /healthz answers "OK". Every
session_id has a memory of its own, so several robots can use one server; a client that sends none has one session per
connection. Ctrl-C or SIGTERM answers what has been asked, and stops. docs/serving.md tells the rest.

  wamjax serve --run runs/demo/joint --protocol openpi --port 8000
  wamjax serve --checkpoint weights/dreamzero-droid --prompts prompts.json --protocol dreamzero
  wamjax serve --run runs/droid --camera front=exterior_image_1_left --camera hand=wrist_image_left
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wamjax.policies.contract import Params
    from wamjax.serving.agent import Agent

HELP = "serve a policy over a websocket"
KEY_VARIABLE = "WAMJAX_API_KEY"
SPACES = ("joint_position", "joint_velocity", "cartesian_position", "cartesian_velocity")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    what = parser.add_argument_group("what is served")
    source = what.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", dest="run_folder", metavar="DIR", help="run folder of `wamjax train`")
    source.add_argument("--checkpoint", metavar="DIR", help="DreamZero checkpoint, published or from `wamjax import`")
    what.add_argument("--embodiment", default="droid", metavar="NAME", help="robot of the checkpoint (default: droid)")
    what.add_argument("--prompts", metavar="FILE", help="JSON file of the prompts that the checkpoint was trained with")
    what.add_argument("--tokenizer", metavar="DIR", help="folder of spiece.model (default: the checkpoint's)")
    what.add_argument(
        "--compute", choices=("float32", "bfloat16"), default="bfloat16", help="of the checkpoint (default: bfloat16)"
    )
    what.add_argument("--weights", choices=("int8", "fp8"), help="round the blocks' weights to 8 bits; says the error")
    what.add_argument(
        "--camera",
        action="append",
        default=[],
        metavar="NAME=CLIENT",
        help="a camera of the policy and what clients call it, if not the same (repeatable)",
    )
    what.add_argument(
        "--action-space", choices=SPACES, default=SPACES[0], help="what the actions are (default: joint_position)"
    )
    what.add_argument("--seed", type=int, default=0, metavar="N", help="of the sampling noise (default: 0)")
    what.add_argument("--same-noise", action="store_true", help="every request draws the same noise, as in DreamZero")
    how = parser.add_argument_group("to whom")
    how.add_argument(
        "--protocol",
        choices=("roboarena", "dreamzero", "openpi"),
        default="roboarena",
        help="what clients speak (default: roboarena)",
    )
    how.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for every network (default: 127.0.0.1)"
    )
    how.add_argument("--port", type=int, default=8000, metavar="N", help="0 takes a free one (default: 8000)")
    how.add_argument(
        "--api-key",
        default=os.environ.get(KEY_VARIABLE),
        metavar="KEY",
        help=f"refuse clients without the header `Authorization: Api-Key KEY`; better given as ${KEY_VARIABLE}",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-sessions",
        type=int,
        default=8,
        metavar="N",
        help="memories kept at a time; the one unused for longest makes room (default: 8)",
    )
    limits.add_argument(
        "--idle-minutes", type=float, default=30, metavar="X", help="unused sessions end after so long (default: 30)"
    )
    limits.add_argument(
        "--max-message-mb", type=float, default=64, metavar="X", help="larger requests are refused (default: 64)"
    )
    parser.add_argument(
        "--save-videos", type=Path, metavar="DIR", help="write what the policy imagines, one film per episode"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    import asyncio
    import logging

    from wamjax.serving.protocols import DIALECTS
    from wamjax.serving.server import PolicyServer, ServerConfig, serve_until_signalled

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("wamjax.serving").setLevel(logging.INFO)
    config = ServerConfig(
        host=args.host,
        port=args.port,
        api_key=args.api_key or None,
        max_sessions=args.max_sessions,
        idle_seconds=args.idle_minutes * 60,
        max_message_mb=args.max_message_mb,
        videos=args.save_videos,
    )
    served = agent(args)
    server = PolicyServer(served, DIALECTS[args.protocol], config)
    print(f"compiling {served.description.name}", flush=True)

    def ready(port: int) -> None:
        print(f"serving {served.description.name} ({args.protocol}) on ws://{args.host}:{port}", flush=True)

    asyncio.run(serve_until_signalled(server, ready))
    print("stopped", flush=True)


def agent(args: argparse.Namespace) -> Agent:
    """What the options ask to serve. Another source of policies is another function like `_of_run`."""
    return _of_run(args) if args.checkpoint is None else _of_checkpoint(args)


def _of_checkpoint(args: argparse.Namespace) -> Agent:
    """A DreamZero checkpoint, as its own server offers it."""
    from wamjax.cli._released import Wanted, released
    from wamjax.serving.policy_agent import Interface, PolicyAgent
    from wamjax.serving.protocols import PREFIX

    wanted = Wanted(args.embodiment, prompts=args.prompts, tokenizer=args.tokenizer, compute=args.compute)
    policy, params, frozen = released(Path(args.checkpoint), wanted)
    robot = policy.embodiment
    interface = Interface(
        name=f"{Path(args.checkpoint).name} ({robot.name})",
        cameras=_renamed(robot.cameras, args.camera),
        resolution=(policy.height, policy.width),
        state={field.name.removeprefix(PREFIX): field.size for field in robot.state},
        action_space=args.action_space,
        seed=args.seed,
        fresh_noise=not args.same_noise,
        video_fps=robot.fps / robot.video_stride,
    )
    return PolicyAgent(policy, _rounded(params, args.weights), frozen, interface)


def _of_run(args: argparse.Namespace) -> Agent:
    """The policy of a run folder, with the cameras and state fields that it was trained on."""
    from wamjax.cli import _experiment
    from wamjax.errors import UserError
    from wamjax.serving.policy_agent import Interface, PolicyAgent

    loaded = _experiment.trained(args.run_folder)
    if args.save_videos and not loaded.policy.imagines:
        raise UserError(f"the variant '{loaded.experiment.name}' imagines no video: leave --save-videos out")
    system, shapes = _experiment.system(loaded.experiment), loaded.policy.shapes
    cameras, _ = system.sees(loaded.experiment)
    interface = Interface(
        name=loaded.experiment.name,
        cameras=_renamed(cameras, args.camera),
        resolution=(shapes.height, shapes.width),
        state=system.sizes(loaded.experiment, shapes.state),
        action_space=args.action_space,
        seed=args.seed,
        fresh_noise=not args.same_noise,
    )
    return PolicyAgent(loaded.policy, _rounded(loaded.params, args.weights), loaded.frozen, interface)


def _rounded(params: Params, kind: str | None) -> Params:
    """Parameters in the numbers asked for; says what the rounding costs."""
    if kind is None:
        return params
    from wamjax.interop.quantise import quantise, report

    rounded = quantise(params, kind)
    errors = report(params, rounded)
    worst = max(errors, key=errors.__getitem__)
    print(f"{len(errors)} kernels in {kind}: relative error up to {errors[worst]:.2%} ({worst})", flush=True)
    return rounded


def _renamed(cameras: tuple[str, ...], changes: list[str]) -> tuple[str, ...]:
    """The cameras under their clients' names."""
    from wamjax.errors import UserError

    names = dict(change.partition("=")[::2] for change in changes)
    for name, client in names.items():
        if name not in cameras or not client:
            raise UserError(f"--camera {name}={client}: give NAME=CLIENT, with NAME one of {', '.join(cameras)}")
    renamed = tuple(names.get(camera, camera) for camera in cameras)
    if len(set(renamed)) < len(renamed):
        raise UserError(f"two cameras cannot have one name: {', '.join(renamed)}")
    return renamed
