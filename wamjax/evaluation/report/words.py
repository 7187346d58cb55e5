"""Names and numbers as the page writes them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from wamjax.evaluation.report.gather import Result, mean_success

LABELS = {
    "representation_only": "Representation-only",
    "inverse_dynamics": "Inverse dynamics",
    "action_only": "Action-only",
}
MEASURES = {"psnr": "PSNR, which forgives blur,", "ssim": "SSIM, which compares structure,"}
# What an actor is, in one line; actors without an entry stand alone.
MEANINGS = {
    "joint": "imagines video and actions together",
    "representation_only": "trained with video, acts without imagining it",
    "inverse_dynamics": "imagines the video first, then reads the actions from it",
    "action_only": "no video loss: the ablation",
    "blind": "control: the same training with the images zeroed",
    "random": "uniform random actions",
    "expert": "the scripted policy that recorded the data",
}


def name(result: Result) -> str:
    """Display name of a row: the actor, and the evaluation where it is not the actor's headline one."""
    further = result.key != result.variant
    return label(result.variant) + (f", {result.evaluation.replace('_', ' ')}" if further else "")


def meaning(result: Result) -> str:
    """One line on what the row is."""
    if result.record.get("images") == "swap":
        return "control: sees the images of another episode of the same task"
    return MEANINGS.get(result.variant, "") if result.key == result.variant else ""


def css(result: Result) -> str:
    """Class that colours a row."""
    return "v-swap" if result.record.get("images") == "swap" else variant_css(result.variant)


def variant_css(variant: str) -> str:
    """Class that colours a variant or reference; unknown ones share one."""
    return f"v-{variant}" if variant in MEANINGS else "v-other"


def label(variant: str) -> str:
    """Display name of a variant or reference."""
    return LABELS.get(variant, variant.replace("_", " ").capitalize())


def of(result: Result) -> str:
    """``97 of 100``."""
    return f"{result.successes} of {result.episodes}"


def duration(seconds: float) -> str:
    """``0.43 s``, ``42 s``, ``20.3 min`` or ``1 h 12 min``."""
    if seconds < 59.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    if seconds < 99.95 * 60:
        return f"{seconds / 60:.1f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"


def si(value: float | None, unit: str) -> str:
    """Three digits and an SI prefix (``1.64 M``, ``95.2 GFLOP/s``); a dash when the number is not known."""
    if value is None or not math.isfinite(value):
        return "–"
    value = float(f"{value:.3g}")
    power = min(max(int(math.log10(value) // 3), 0), 8) if value > 0 else 0
    return f"{value / 1000**power:.3g} {'kMGTPEZY'[power - 1] if power else ''}{unit}".strip()


def percent(value: float | None, digits: int = 0) -> str:
    """A fraction in per cent; a dash when it is not known."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f} %"


def number(value: Any, digits: int = 3) -> str:
    """A number, or a dictionary of numbers, with `digits` significant digits; a dash when it is not known."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {number(item, digits)}" for key, item in value.items())
    return f"{value:.{digits}g}" if isinstance(value, int | float) else "–"


def against_copying(measure: str, values: Mapping[str, Mapping[str, float | None]]) -> str:
    """Whether imagined frames are nearer to what happened than a copy of the last frame, camera by camera."""
    imagined, copied = values["imagined"], values.get("copy_last", {})
    margins = {camera: _known(value) - _known(copied.get(camera)) for camera, value in imagined.items()}
    nearer = [camera for camera, margin in margins.items() if margin > 0]  # an unknown margin is no better
    others = [camera for camera in margins if camera not in nearer]
    than = "to what happened than a copy of the last frame is"
    if not others:
        verdict = f"its frames are nearer {than}, on {'both cameras' if len(nearer) == 2 else 'every camera'}"
    elif nearer:
        verdict = f"its frames are nearer {than} on {', '.join(nearer)}, but not on {', '.join(others)}"
    else:
        verdict = f"its frames are no nearer {than}"
    return f"By {MEASURES[measure]} {verdict}."


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def pretty(value: Any) -> str:
    """Indented JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False)


FILTERS = {
    "against_copying": against_copying,
    "css": css,
    "duration": duration,
    "label": label,
    "mean": mean_success,
    "meaning": meaning,
    "name": name,
    "number": number,
    "percent": percent,
    "pretty": pretty,
    "si": si,
    "variant_css": variant_css,
}
