"""Reads a run folder: variants, evaluations, references, stages, dataset; each of them may be missing.

Nothing is computed here that the run did not measure; a missing part becomes a sentence in `Run.notes`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wamjax.errors import UserError

# The order in which variants are met everywhere on the page; unknown ones follow in alphabetical order.
VARIANTS = ("joint", "representation_only", "inverse_dynamics", "action_only", "blind")
REFERENCES = ("random", "expert")
# The seed set never looked at while tuning; further evaluations of a variant have names of their own.
HEADLINE = "held_out_b"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One trained policy of the run; parts that do not exist (yet) are empty.

    Attributes:
      name: folder name (``joint``, ``blind``, ...).
      folder: where it lies.
      config: resolved configuration.
      metrics: one record per logged step, in order of steps.
      summary: totals of the finished training.
      evaluations: name of the evaluation -> its record.
      open_loop: action error, and quality of the imagined video.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    summary: dict[str, Any]
    evaluations: dict[str, dict[str, Any]]
    open_loop: dict[str, Any]

    @property
    def headline(self) -> str | None:
        """The evaluation quoted for this variant: `HEADLINE`, else its first without swapped images."""
        usual = [name for name, record in self.evaluations.items() if record.get("images") != "swap"]
        return HEADLINE if HEADLINE in usual else next(iter(usual), None)


@dataclasses.dataclass(frozen=True)
class Result:
    """One row of the success tables: an actor on one seed set.

    Attributes:
      key: its name in ``report.json``: the variant or reference, or ``<variant>_<evaluation>`` for others
        than the headline evaluation.
      variant: variant or reference.
      evaluation: name of the evaluation (empty for a reference).
      record: the evaluation as the runner wrote it.
      folder: the folder that the record's video paths are relative to.
    """

    key: str
    variant: str
    evaluation: str
    record: dict[str, Any]
    folder: Path

    @property
    def successes(self) -> int:
        return sum(task["successes"] for task in self.record["tasks"].values())

    @property
    def episodes(self) -> int:
        return sum(task["episodes"] for task in self.record["tasks"].values())


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder, as far as it exists.

    Attributes:
      folder: the run folder.
      variants: name -> variant, in page order.
      results: rows of the success tables: headline evaluations first, then further ones, then references.
      stages: stage -> wall seconds, summed over re-runs, in order of first appearance.
      dataset: the store's ``dataset.json``, or empty.
      notes: what is missing or could not be read, one sentence each.
    """

    folder: Path
    variants: dict[str, Variant]
    results: list[Result]
    stages: dict[str, float]
    dataset: dict[str, Any]
    notes: list[str]

    @property
    def tasks(self) -> list[str]:
        """Every task that anything was evaluated on, in order of first appearance."""
        return list(dict.fromkeys(task for result in self.results for task in result.record["tasks"]))

    @property
    def imagining(self) -> Variant | None:
        """The first variant whose imagined video was measured."""
        return next((v for v in self.variants.values() if v.open_loop.get("psnr")), None)

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the software that ran the evaluations; differing ones stand side by side."""
        found: dict[str, dict[str, None]] = {}
        for result in self.results:
            for name, version in result.record.get("versions", {}).items():
                found.setdefault(name, {})[str(version)] = None
        return {name: " and ".join(found[name]) for name in sorted(found)}


def read(folder: str | Path) -> Run:
    """Collects everything that `folder` holds.

    Raises:
      UserError: no such folder, nothing of a run in it, or a damaged file (named, with what to do).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"no run folder {folder}: give the folder of a run, such as runs/demo (launch/demo.sh makes one)"
        )
    notes: list[str] = []
    found = [_variant(path, notes) for path in sorted(folder.iterdir()) if _is_variant(path)]
    variants = {v.name: v for v in sorted(found, key=lambda v: _rank(v.name, VARIANTS))}
    results = [*_results(variants.values()), *_references(folder / "reference")]
    stages: dict[str, float] = {}
    for record in _json_lines(folder / "stages.jsonl", notes):
        stages[record["stage"]] = stages.get(record["stage"], 0.0) + float(record["wall_seconds"])
    dataset = _json(folder / "data" / "dataset.json")
    if not (variants or results or stages or dataset):
        raise UserError(f"{folder} holds nothing of a run: train or evaluate first, for example with launch/demo.sh")
    run = Run(folder, variants, results, stages, dataset, notes)
    notes.extend(_missing(run))
    return run


def facts(run: Run) -> dict[str, Any]:
    """The content of ``report.json``.

    Keys: ``tasks.<task>.<actor>.{successes,episodes}``, ``mean_success.<actor>`` (fraction, mean over tasks),
    ``psnr.{imagined,copy_last}.<camera>`` (dB, of the first variant that imagines), ``wall_seconds.<stage>``,
    ``train.<variant>.{steps,flops,mfu,final_loss}`` and ``versions``. An actor is a variant, ``random``,
    ``expert``, or ``<variant>_<evaluation>`` (``joint_swapped_images``). Parts that do not exist are empty.
    """
    psnr = run.imagining.open_loop["psnr"] if run.imagining else {}
    return _finite(
        {
            "tasks": {
                task: {
                    result.key: {key: result.record["tasks"][task][key] for key in ("successes", "episodes")}
                    for result in run.results
                    if task in result.record["tasks"]
                }
                for task in run.tasks
            },
            "mean_success": {result.key: mean_success(result) for result in run.results},
            "psnr": {kind: psnr[kind] for kind in ("imagined", "copy_last") if kind in psnr},
            "wall_seconds": run.stages,
            "train": {
                name: {key: variant.summary.get(key) for key in ("steps", "flops", "mfu", "final_loss")}
                for name, variant in run.variants.items()
                if variant.summary
            },
            "versions": run.versions,
        }
    )


def mean_success(result: Result) -> float | None:
    """Mean over tasks of the fraction of episodes that succeeded; None without episodes."""
    rates = [t["successes"] / t["episodes"] for t in result.record["tasks"].values() if t["episodes"]]
    return sum(rates) / len(rates) if rates else None


def _is_variant(path: Path) -> bool:
    """Whether a subfolder has any of the files that a training or its evaluation leaves."""
    return path.is_dir() and any(
        (path / name).exists() for name in ("config.json", "metrics.jsonl", "summary.json", "evaluation")
    )


def _variant(folder: Path, notes: list[str]) -> Variant:
    records = {r["step"]: r for r in _json_lines(folder / "metrics.jsonl", notes)}  # a resumed training repeats steps
    return Variant(
        name=folder.name,
        folder=folder,
        config=_json(folder / "config.json"),
        metrics=[records[step] for step in sorted(records)],
        summary=_json(folder / "summary.json"),
        evaluations={path.stem: _evaluation(path) for path in sorted((folder / "evaluation").glob("*.json"))},
        open_loop=_json(folder / "open_loop" / "open_loop.json"),
    )


def _results(variants: Iterable[Variant]) -> list[Result]:
    """Headline evaluations of all variants, then the further ones."""
    first: list[Result] = []
    further: list[Result] = []
    for variant in variants:
        for name, record in variant.evaluations.items():
            is_headline = name == variant.headline
            key = variant.name if is_headline else f"{variant.name}_{name}"
            result = Result(key, variant.name, name, record, variant.folder / "evaluation")
            (first if is_headline else further).append(result)
    return first + further


def _references(folder: Path) -> list[Result]:
    paths = sorted(folder.glob("*.json"), key=lambda path: _rank(path.stem, REFERENCES))
    return [Result(path.stem, path.stem, "", _evaluation(path), folder) for path in paths]


def _evaluation(path: Path) -> dict[str, Any]:
    record = _json(path)
    if not isinstance(record.get("tasks"), dict):
        raise UserError(f"{path} is not the record of an evaluation: move it away or evaluate again")
    return record


def _missing(run: Run) -> Iterable[str]:
    """Sentences about the parts that a complete run has and this one has not."""
    if not run.dataset:
        yield "The dataset is not there (or not finished), so its size is not shown."
    if not run.variants:
        yield "Nothing has been trained yet."
    for name, variant in run.variants.items():
        if not variant.summary:
            last = variant.metrics[-1]["step"] if variant.metrics else None
            yield f"Training of {name} has not finished" + (
                f" (last logged step: {last:,})." if last is not None else "."
            )
        elif not variant.evaluations:
            yield f"{name} is trained but has not been evaluated in closed loop yet."
    for name in REFERENCES:
        if run.variants and not any(result.key == name for result in run.results):
            yield f"The {name} reference has not been run."
    if run.variants and not run.imagining:
        yield "No imagined video has been measured yet."
    if not run.stages:
        yield "No stage has been timed yet."


def _rank(name: str, order: tuple[str, ...]) -> tuple[int, str]:
    return (order.index(name) if name in order else len(order), name)


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete it and run the step that wrote it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object: delete it and run the step that wrote it again")
    return value


def _json_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The records of a JSON-lines file. A line cut short by a killed process is left out, and said so."""
    if not path.is_file():
        return []
    records, broken = [], 0
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            broken += 1
    if broken:
        notes.append(f"{path.parent.name}/{path.name} has {broken} unreadable line{'s' * (broken > 1)}, left out.")
    return records


def _finite(value: Any) -> Any:
    """`value` with NaN and infinities, which JSON does not have, as None."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
