"""DreamZero's configuration: networks, robot, training noise and sampling."""

from __future__ import annotations

import dataclasses
from typing import Literal

from wamjax.data.canvas import CanvasConfig
from wamjax.data.prompts import Prompts
from wamjax.flow.samplers import ChosenSteps, Reuse, SimilarSteps
from wamjax.flow.schedules import wan_nodes
from wamjax.flow.solvers import Solver, unipc
from wamjax.networks.clip import CLIPVisionConfig
from wamjax.policies.dreamzero.network import NetworkConfig, StateSees
from wamjax.policies.frozen import PatchFrames, UMT5Text, WanFrames, WordsText

COMPUTED_STEPS = {
    5: (0, 1, 2, 7, 12),
    6: (0, 1, 5, 10, 14, 15),
    7: (0, 1, 2, 6, 10, 14, 15),
    8: (0, 1, 2, 6, 10, 13, 14, 15),
}
"""Of 16 steps, those that run the network when so many may (the released static schedules)."""


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How an action chunk is sampled.

    Attributes:
        steps, shift: of UniPC, for frames and actions.
        guidance: scale of the guidance of frames; actions follow the prompt alone. 1 leaves out the negative prompt's
            half of the work.
        reuse: "none" runs the network at every step; "static" at `computed` of 16 (see `COMPUTED_STEPS`); "dynamic"
            while its velocities turn.
        final_noise: noise that frames keep at the end (decoupled inference; released default 0.8 where it is on).
        video: "denoise", or "noise": frames stay pure noise, which is all that a model trained decoupled needs to act.
        state_sees: "all" (released code) or "itself" (as in training).
        window: "restart" from the newest frame when the window of frames is full (released code), or "slide".
    """

    steps: int = 16
    shift: float = 5.0
    guidance: float = 5.0
    reuse: Literal["none", "static", "dynamic"] = "static"
    computed: int = 8
    final_noise: float = 0.0
    video: Literal["denoise", "noise"] = "denoise"
    state_sees: StateSees = "all"
    window: Literal["restart", "slide"] = "restart"

    def __post_init__(self) -> None:
        static = self.reuse == "static"
        if static and (self.steps != 16 or self.computed not in COMPUTED_STEPS):
            raise ValueError(
                f"the static schedule has 16 steps and computes {', '.join(map(str, COMPUTED_STEPS))} of them, "
                f"not {self.computed} of {self.steps}: choose reuse 'none' or 'dynamic'"
            )
        if self.reuse == "dynamic" and self.video == "noise":
            raise ValueError("reuse 'dynamic' follows the frames' velocities, which video 'noise' has none of")
        if self.steps < 1 or not 0 <= self.final_noise < 1:
            raise ValueError(f"steps={self.steps}, final_noise={self.final_noise}: at least 1, and in [0, 1)")

    @property
    def rule(self) -> Reuse | None:
        """Which steps reuse velocities."""
        if self.reuse == "static":
            return ChosenSteps(COMPUTED_STEPS[self.computed])
        return SimilarSteps() if self.reuse == "dynamic" else None

    @property
    def solvers(self) -> dict[str, Solver]:
        """Of both streams."""
        sigma = wan_nodes(self.steps, self.shift)
        video = sigma * (sigma[0] - self.final_noise) / sigma[0] + self.final_noise
        solvers = {"video": unipc(video), "action": unipc(sigma)}
        return solvers if self.video == "denoise" else {"action": solvers["action"]}


@dataclasses.dataclass(frozen=True)
class DreamZeroConfig:
    """The policy.

    Attributes:
        network: the trained network.
        embodiment: the robot (`wamjax.data.embodiments`).
        prompts: texts around an instruction; None takes the robot's own.
        canvas: how views become one picture. resized: height and width that it is resized to (5B), or None.
        frames, text, image: the frozen encoders.
        blocks: of a training clip, at most; a session knows the frames of one block less, and denoises the last.
        alpha: noisy frames in training: the share of noise is Beta(alpha, 1); 1 is even.
        coupled: whether actions share their block's noise level; else every action has its own (DreamZero-Flash).
        sampling: how to act.
        compute: type of matrix products and caches; "bfloat16" also drops Wan's islands of float32, as released code.
    """

    network: NetworkConfig
    embodiment: str = "droid"
    prompts: Prompts | None = None
    canvas: CanvasConfig = CanvasConfig()
    resized: tuple[int, int] | None = None
    frames: WanFrames | PatchFrames = WanFrames()
    text: UMT5Text | WordsText = UMT5Text()
    image: CLIPVisionConfig | None = CLIPVisionConfig()
    blocks: int = 4
    alpha: float = 1.0
    coupled: bool = True
    sampling: SamplingConfig = SamplingConfig()
    compute: Literal["float32", "bfloat16"] = "float32"
    kind: Literal["dreamzero"] = "dreamzero"
