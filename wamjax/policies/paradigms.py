"""The field's paradigms as data: who sees whom, what is denoised in which order.

Context streams (instruction, state, current frames) see only the context, so that they can be cached. What a
paradigm decides is everything about the two noisy streams, "video" and "action".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from wamjax.errors import UserError

Phases = tuple[tuple[str, ...], ...]
"""Streams denoised together, phase after phase; a finished phase is committed clean before the next begins."""


@dataclasses.dataclass(frozen=True)
class Paradigm:
    """One way to turn a video model into a policy.

    Attributes:
        sees: per denoised stream, the other denoised streams it sees (besides the context and itself).
        coupled: whether all streams of a training sample share one noise time.
        clean_video: share of training samples whose video is given clean (and not scored), so that actions learn to
            read finished video.
        act: phases that lead to an action.
        imagine: phases that lead to video; none where the paradigm has no video.
    """

    sees: Mapping[str, tuple[str, ...]]
    coupled: bool
    act: Phases
    imagine: Phases
    clean_video: float = 0.0


PARADIGMS: Mapping[str, Paradigm] = {
    # Video and action are one sample, denoised together (DreamZero, UWM's joint mode).
    "joint": Paradigm(
        sees={"video": ("action",), "action": ("video",)},
        coupled=True,
        act=(("video", "action"),),
        imagine=(("video", "action"),),
    ),
    # Video is a training signal: actions never see it, so acting does not generate it (Fast-WAM).
    "representation_only": Paradigm(
        sees={"video": ("action",), "action": ()},
        coupled=False,
        act=(("action",),),
        imagine=(("action",), ("video",)),
    ),
    # Video first, then the actions that explain it (UniPi, LingBot-VA).
    "inverse_dynamics": Paradigm(
        sees={"video": (), "action": ("video",)},
        coupled=False,
        act=(("video",), ("action",)),
        imagine=(("video",),),
        clean_video=0.5,
    ),
    # No video at all: the ablation.
    "action_only": Paradigm(sees={"action": ()}, coupled=False, act=(("action",),), imagine=()),
}


def paradigm(name: str) -> Paradigm:
    """The paradigm called `name`; a UserError lists the names there are."""
    if name not in PARADIGMS:
        raise UserError(f"unknown paradigm '{name}': use one of {', '.join(PARADIGMS)}")
    return PARADIGMS[name]
