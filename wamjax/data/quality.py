"""What is wrong with recordings: a list of checks over one episode, and what they flag.

A check looks at an episode and yields flags; thresholds are one table. Own checks are functions of the same kind, named
as `package.module:function` or `file.py:function`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from wamjax.data import hooks
from wamjax.data.episode import ANNOTATIONS, BadEpisode, Episode
from wamjax.data.readers import Source
from wamjax.data.selection import idle, names, stretches
from wamjax.data.video import decode

STATE, GRIPPER = "observation/", "gripper_position"
VELOCITY = "action_dict/joint_velocity"
REPEATED, TOUCHED_UP = 0.4, 3.0  # share of a frozen camera's pictures that are the same; levels by which others differ
MOTION = 0.1  # of a change, that the step before or after it goes the same way where it is no jump


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Where a recording becomes suspicious.

    Attributes:
        cameras: that every episode must have.
        black: mean level of a picture, of 255, below which it is black. black_share: of pictures that may be.
        frozen_seconds: for how long a camera may show the very same picture while the robot moves.
        jump: a step's change, in units of the 95 % quantile of the episode's changes, beyond which it is a jump, unless
            the step before or after goes the same way by a tenth of it.
        still: a change of a state below which it does not move.
        idle_share: of steps at which nothing moves.
        shortest, longest: seconds.
        rate_error: share by which times may be off the frame rate.
        gripper: how far beyond [0, 1] a gripper may be.
        lag_seconds: by how much a state may follow the action that it is told to take.
    """

    cameras: tuple[str, ...] = ()
    black: float = 8.0
    black_share: float = 0.05
    frozen_seconds: float = 1.0
    jump: float = 20.0
    still: float = 1e-3
    idle_share: float = 0.5
    shortest: float = 1.0
    longest: float = 600.0
    rate_error: float = 0.1
    gripper: float = 0.05
    lag_seconds: float = 0.7


@dataclasses.dataclass(frozen=True)
class Flag:
    """Something wrong.

    Attributes:
        kind: name of the check. where: camera or field; "" for the episode. detail: in words.
    """

    kind: str
    where: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind} ({self.where}): {self.detail}" if self.where else f"{self.kind}: {self.detail}"


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found in an episode.

    Attributes:
        episode: its number. name: as files of ranges call it; "" where it has none. steps: its length; 0 where unread.
        flags: what is wrong.
    """

    episode: int
    name: str
    steps: int
    flags: tuple[Flag, ...]


Check = Callable[[Episode, Thresholds], Iterator[Flag]]


def examine(
    source: Source,
    checks: Sequence[Check],
    thresholds: Thresholds = Thresholds(),
    episodes: Sequence[int] | None = None,
) -> Iterator[Report]:
    """Looks at all episodes of a dataset, or those given, one after the other; what cannot be read is flagged, too."""
    seen: dict[bytes, int] = {}
    for number in range(len(source)) if episodes is None else episodes:
        try:
            episode = source[number]
        except BadEpisode as error:
            yield Report(number, "", 0, (Flag("damaged", "", str(error)),))
            continue
        flags = [flag for check in checks for flag in check(episode, thresholds)]
        first = seen.setdefault(_digest(episode), number)
        if first != number:
            flags.append(Flag("duplicate", "", f"the same steps as episode {first}"))
        name = next(iter(names(episode.metadata)), "")
        yield Report(number, name, len(episode), tuple(flags))


def named(check: str) -> Check:
    """A check of `CHECKS`, or a function of one's own, named as `hooks.function` reads it.

    Raises:
        UserError: there is none.
    """
    return CHECKS[check] if check in CHECKS else hooks.function(check, "check", tuple(CHECKS))


def pictures(episode: Episode, thresholds: Thresholds) -> Iterator[Flag]:
    """Cameras that are missing, black or frozen, and videos that cannot be decoded."""
    for camera in thresholds.cameras:
        if camera not in episode.videos:
            yield Flag("camera", camera, "missing")
    moving = _moving(episode, thresholds)
    for camera, video in episode.videos.items():
        try:
            levels, changes = _levels(decode(video))
        except BadEpisode as error:
            yield Flag("video", camera, str(error))
            continue
        if (share := float((levels < thresholds.black).mean())) > thresholds.black_share:
            yield Flag("black", camera, f"{share:.0%} of the pictures are black")
        longest = thresholds.frozen_seconds * _rate(episode)
        for first, stop in stretches(_frozen(changes, max(2, int(longest) + 1))):
            if moving[first:stop].mean() > 0.5:
                yield Flag("frozen", camera, f"the same picture from step {first} to {stop}, while the robot moves")
                break


def numbers(episode: Episode, thresholds: Thresholds) -> Iterator[Flag]:
    """Fields with NaN or infinity, numbers that jump, and those that are stuck while their neighbours move."""
    for name, values in _vectors(episode):
        if not (finite := np.isfinite(values)).all():
            step, index = np.argwhere(~finite)[0]
            yield Flag("not finite", name, f"number {index} at step {step}, {(~finite).sum()} in all")
            continue
        change = np.abs(np.diff(values, axis=0))
        if not len(change):
            continue
        usual, largest = np.quantile(change, 0.95, axis=0), change.max(0)
        jumps = (usual > 0) & (change > thresholds.jump * usual) & (_carried_on(values) < MOTION * change)
        for index in np.flatnonzero(jumps.any(0)).tolist():
            step = int((change * jumps)[:, index].argmax())
            yield Flag("jump", name, f"number {index} changes by {change[step, index]:.3g} after step {step}")
        stuck = np.flatnonzero(largest == 0).tolist()
        if name.startswith(STATE) and 0 < len(stuck) < values.shape[1]:
            yield Flag("stuck", name, f"numbers {', '.join(map(str, stuck))} never change")


def _carried_on(values: Float[np.ndarray, "t n"]) -> Float[np.ndarray, "t-1 n"]:
    """How far the step before or after each goes the same way: far in a motion, however sudden, but not in a jump."""
    changes = np.diff(values, axis=0)
    around = np.pad(changes, ((1, 1), (0, 0)))
    return np.maximum(around[:-2] * np.sign(changes), around[2:] * np.sign(changes))


def gripper(episode: Episode, thresholds: Thresholds) -> Iterator[Flag]:
    """Grippers beyond [0, 1]."""
    for name, values in _vectors(episode):
        low, high = (float(f(values)) for f in (np.nanmin, np.nanmax))
        if name.endswith(GRIPPER) and not -thresholds.gripper <= low <= high <= 1 + thresholds.gripper:
            yield Flag("gripper", name, f"from {low:.3g} to {high:.3g}")


def length(episode: Episode, thresholds: Thresholds) -> Iterator[Flag]:
    """Episodes that are too short or too long."""
    seconds = len(episode) / _rate(episode)
    if not thresholds.shortest <= seconds <= thresholds.longest:
        yield Flag("length", "", f"{seconds:.1f} seconds")


def idleness(episode: Episode, thresholds: Thresholds) -> Iterator[Flag]:
    """Episodes in which little moves: by openpi's rule where there are joint velocities, else by the states."""
    still = ~_moving(episode, thresholds)
    if VELOCITY in episode.steps:
        still = idle(episode.steps[VELOCITY].reshape(len(episode), -1))
    if (share := float(still.mean())) > thresholds.idle_share:
        yield Flag("idle", "", f"{share:.0%} of the steps")


def language(episode: Episode, thresholds: Thresholds) -> Iterator[Flag]:
    """Episodes without an instruction."""
    annotations: Any = episode.metadata.get(ANNOTATIONS, ())
    if not any(str(text).strip() for text in (*episode.language, *annotations)):
        yield Flag("language", "", "no instruction")


def timing(episode: Episode, thresholds: Thresholds) -> Iterator[Flag]:
    """Recorded times that go back, or at another rate than the episode says."""
    for name, values in _vectors(episode):
        if not name.rsplit("/", 1)[-1].startswith("timestamp") or values.shape[1] != 1 or len(values) < 2:
            continue
        passed = np.diff(values[:, 0])
        if (passed <= 0).any():
            yield Flag("time", name, f"does not go on after step {int((passed <= 0).argmax())}")
        elif abs(np.median(passed) * _rate(episode) - 1) > thresholds.rate_error:
            yield Flag("time", name, f"{1 / np.median(passed):.3g} steps per second, not {_rate(episode):g}")


def lag(episode: Episode, thresholds: Thresholds) -> Iterator[Flag]:
    """States that follow the action of the same name, an absolute target, late, or come before it."""
    states = {name.removeprefix(STATE): values for name, values in _vectors(episode) if name.startswith(STATE)}
    limit = round(thresholds.lag_seconds * _rate(episode))
    for name, action in _vectors(episode):
        state = states.get(name.rsplit("/", 1)[-1])
        if name.startswith(STATE) or state is None or state.shape != action.shape or len(state) <= 4 * limit:
            continue
        shift = _shift(action, state, 2 * limit)
        if not 0 <= shift <= limit:
            yield Flag("lag", name, f"the state follows by {shift / _rate(episode):.2f} seconds")


CHECKS: dict[str, Check] = {
    check.__name__: check for check in (pictures, numbers, gripper, length, idleness, language, timing, lag)
}
"""By name."""


def _vectors(episode: Episode) -> Iterator[tuple[str, Float[np.ndarray, "t n"]]]:
    """The fields that are floating-point numbers, flattened."""
    for name, values in episode.steps.items():
        if values.dtype.kind == "f":
            yield name, values.reshape(len(values), -1).astype(np.float64)


def _rate(episode: Episode) -> float:
    rate: Any = episode.metadata.get("fps")
    return float(rate)


def _moving(episode: Episode, thresholds: Thresholds) -> Bool[np.ndarray, " t"]:
    """Steps at which a state differs from that of the step before; everywhere, where there are no states."""
    states = [values for name, values in _vectors(episode) if name.startswith(STATE) and "timestamp" not in name]
    if not states:
        return np.ones(len(episode), bool)
    change = np.abs(np.diff(np.concatenate(states, axis=1), axis=0)).max(1, initial=0)
    return np.concatenate([[True], change > thresholds.still])


def _levels(frames: UInt8[np.ndarray, "t h w 3"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean level of every picture, and mean distance of every one from the one before (t,)."""
    changes = [np.inf, *(np.abs(b.astype(np.int16) - a).mean() for a, b in itertools.pairwise(frames))]
    return frames.mean((1, 2, 3)), np.array(changes)


def _frozen(changes: Float[np.ndarray, " t"], window: int) -> Bool[np.ndarray, " t"]:
    """Steps of windows in which nothing but the codec changes the picture.

    x264 repeats most pictures of a frozen camera bit by bit and touches up the others, at key frames above all; noise
    keeps a camera that works from ever repeating one.
    """
    frozen = np.zeros(len(changes), bool)
    if len(changes) >= window:
        parts = np.lib.stride_tricks.sliding_window_view(changes, window)
        for start in np.flatnonzero(((parts == 0).mean(1) > REPEATED) & (parts.max(1) < TOUCHED_UP)).tolist():
            frozen[start : start + window] = True
    return frozen


def _shift(action: np.ndarray, state: np.ndarray, most: int) -> int:
    """By how many steps the state is like the action best; 0 where it does not depend on it."""
    inner = slice(most, len(action) - most)
    errors = {
        shift: float(np.abs(np.roll(state, -shift, axis=0)[inner] - action[inner]).mean())
        for shift in range(-most, most + 1)
    }
    best = min(errors, key=lambda shift: (errors[shift], abs(shift)))
    return best if errors[best] < 0.9 * errors[0] else 0


def _digest(episode: Episode) -> bytes:
    """Of all steps, which two recordings never share."""
    parts = hashlib.sha1(usedforsecurity=False)
    for name, values in sorted(episode.steps.items()):
        parts.update(name.encode() + np.ascontiguousarray(values).tobytes())
    if not episode.steps:
        for video in episode.videos.values():
            parts.update(video.data)
    return parts.digest()
