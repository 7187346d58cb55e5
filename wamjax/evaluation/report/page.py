"""Draws the page of a run: one HTML file that holds its style, charts and videos and loads nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from wamjax.evaluation.report import charts, videos
from wamjax.evaluation.report.gather import Result, Run
from wamjax.evaluation.report.words import FILTERS, css, duration, label, name, of, variant_css

CURVES = (("loss/action", "Action loss"), ("loss/video", "Video loss"), ("learning_rate", "Learning rate"))
ROLLOUTS_PER_TASK = 3
FURTHER_FAILURES = 1


def render(run: Run) -> str:
    """The whole page as HTML. Text of the run is escaped; a missing or damaged video becomes a note."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    notes = list(run.notes)
    parts = {
        "run": run,
        "lead": next(iter(run.variants.values()), None),
        "title": str(run.variants[next(iter(run.variants))].config.get("name", "")) if run.variants else "",
        "training_episodes": run.dataset.get("splits", {}).get("train", {}).get("episodes"),
        "cards": cards(run),
        "seeds": sorted({str(r.record["seed_set"]) for r in run.results if "seed_set" in r.record}),
        "success_charts": success_charts(run),
        "reading": reading(run),
        "curves": learning_curves(run),
        "imagination": imagination(run, notes),
        "rollouts": rollouts(run, notes),
        "stage_chart": stage_chart(run),
        "latencies": [r for r in run.results if r.record.get("latency_ms")],
        "differences": differences(run),
        "dataset": dataset(run),
        "notes": notes,
    }
    return environment.get_template("template.html").render(parts)


def cards(run: Run) -> dict[str, list[Result]]:
    """Headline numbers: the policies on their headline evaluation, and what they are compared with."""
    results = [result for result in run.results if result.episodes]
    policies = [r for r in results if r.key in run.variants and r.key != "blind"]
    return {"policies": policies, "beside": [r for r in results if r not in policies]}


def success_charts(run: Run) -> list[tuple[str, Markup]]:
    """One bar chart per task: success of every actor with its interval."""
    found = []
    for task in run.tasks:
        rows = []
        for result in run.results:
            count = result.record["tasks"].get(task)
            if count and count["episodes"]:
                text = f"{count['successes']}/{count['episodes']}"
                interval = tuple(count["interval"]) if count.get("interval") else None
                rows.append(
                    charts.Bar(name(result), count["successes"] / count["episodes"], text, css(result), interval)
                )
        found.append((task, charts.bars(rows, maximum=1.0, title=f"Success on {task}")))
    return found


def reading(run: Run) -> list[str]:
    """Sentences on what the success numbers carry, from the numbers of this run alone."""
    results = {result.key: result for result in run.results if result.episodes}
    lead = next((r for r in run.results if r.variant in run.variants and r.variant != "blind" and r.episodes), None)
    if lead is None:
        return []
    said = [
        "Objects stand where no training episode had them, but in the same small ranges: this measures "
        "interpolation, not generalisation to new scenes.",
        "The intervals (Wilson, 95 %) count episodes only. Every variant was trained once, so the spread "
        "between trainings is not in them.",
    ]
    if limit := _find(lead.record, "max_env_steps") or _find(run.variants[lead.variant].config, "max_env_steps"):
        said.append(f"An episode that has not succeeded after {limit} simulation steps counts as a failure.")
    if blind := results.get("blind"):
        points = 100 * (lead.successes / lead.episodes - blind.successes / blind.episodes)
        said.append(
            f"The blind control, trained with its images zeroed, reaches {of(blind)}; {name(lead)} reaches "
            f"{of(lead)}: {abs(points):.0f} points {'more' if points >= 0 else 'fewer'}. Only what lies "
            "above the blind control says anything about seeing."
        )
    else:
        said.append(
            "The blind control (images zeroed) has not been run. Tasks like these can often be solved "
            "without seeing, so these numbers alone say little about vision."
        )
    if swapped := next((r for r in run.results if r.record.get("images") == "swap"), None):
        said.append(
            f"Shown the images of another episode of the same task, {label(swapped.variant)} reaches "
            f"{of(swapped)}. Such images also contradict the pose of the arm, so the difference overstates "
            "what seeing the objects contributes."
        )
    return [*said, _ablation(lead, results.get("action_only"))]


def _ablation(lead: Result, ablation: Result | None) -> str:
    """What the comparison with the training without video loss shows, and that it is no claim."""
    if ablation is None or ablation is lead:
        return "No benefit of the video loss is claimed; the ablation without it (action_only) has not been run."
    low, high = lead.record.get("interval") or (0, 1)
    other_low, other_high = ablation.record.get("interval") or (0, 1)
    apart = low > other_high or other_low > high
    finding = "lie apart, from a single training each" if apart else "overlap: no difference is shown"
    return (
        f"Without the video loss, action-only reaches {of(ablation)}; the intervals of {name(lead)} and "
        f"action-only {finding}. No benefit of the video loss is claimed."
    )


def learning_curves(run: Run) -> list[tuple[str, Markup]]:
    """One chart per logged quantity of `CURVES` that any variant has at least two finite values of."""
    found = []
    for key, title in CURVES:
        lines = []
        for variant in run.variants.values():
            points = [
                (r["step"], r[key])
                for r in variant.metrics
                if isinstance(r.get(key), int | float) and math.isfinite(r[key])
            ]
            if len(points) > 1:
                x, y = zip(*points, strict=True)
                lines.append(charts.Line(label(variant.name), variant_css(variant.name), x, y))
        if lines:
            found.append((title, charts.curves(lines, title=title, logarithmic=key != "learning_rate")))
    return found


def imagination(run: Run, notes: list[str]) -> dict[str, Any] | None:
    """Quality per camera and clips of the first variant that imagines; None when none does."""
    variant = run.imagining
    if variant is None:
        return None
    measures = {m: variant.open_loop[m] for m in ("psnr", "ssim") if variant.open_loop.get(m)}
    folder = variant.folder / "open_loop"
    return {
        "variant": variant,
        "cameras": list(measures["psnr"]["imagined"]),
        "measures": measures,
        "clips": [uri for clip in variant.open_loop.get("clips", []) if (uri := _shown(folder, clip, run, notes))],
    }


def rollouts(run: Run, notes: list[str]) -> list[dict[str, Any]]:
    """Recorded episodes per actor and task.

    The first of each task in order of seeds, whatever the outcome, then a further failure where there is one.
    """
    groups = []
    for result in run.results:
        tasks: dict[str, list[dict[str, Any]]] = {}
        for episode in sorted(result.record.get("episodes", []), key=lambda e: e["seed"]):
            if episode.get("video"):
                tasks.setdefault(episode["task"], []).append(episode)
        shown = {}
        for task in sorted(tasks, key=run.tasks.index):
            first, rest = tasks[task][:ROLLOUTS_PER_TASK], tasks[task][ROLLOUTS_PER_TASK:]
            chosen = first + [e for e in rest if not e["success"]][:FURTHER_FAILURES]
            uris = ((e, _shown(result.folder, e["video"], run, notes)) for e in chosen)
            shown[task] = [e | {"uri": uri} for e, uri in uris if uri]
        if any(shown.values()):
            groups.append({"result": result, "tasks": shown, "recorded": sum(map(len, tasks.values()))})
    return groups


def _shown(folder: Path, relative: str, run: Run, notes: list[str]) -> str | None:
    """A video as a data URI, or a note that it cannot be shown."""
    uri = videos.data_uri(folder, relative, run.folder)
    if uri is None:
        notes.append(f"The video {relative} is missing or damaged, so it is not shown.")
    return uri


def stage_chart(run: Run) -> Markup | None:
    """Wall time per stage."""
    if not run.stages:
        return None
    rows = [charts.Bar(stage, seconds, duration(seconds), "time") for stage, seconds in run.stages.items()]
    return charts.bars(rows, maximum=max(run.stages.values()), title="Wall time per stage", width=360)


def dataset(run: Run) -> dict[str, Any]:
    """The dataset's description with the list of shards of each split as their number."""
    splits = {
        name: split | {"shards": len(split.get("shards", []))} for name, split in run.dataset.get("splits", {}).items()
    }
    return run.dataset | {"splits": splits} if splits else run.dataset


def differences(run: Run) -> list[tuple[str, list[str]]]:
    """Configuration keys in which the variants differ, with the value of each (a dash where it has none)."""
    flat = [dict(_flatten(variant.config)) for variant in run.variants.values() if variant.config]
    keys = dict.fromkeys(key for config in flat for key in config)
    rows = [(key, [config.get(key, "–") for config in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flatten(config: Any, where: str = "") -> Iterable[tuple[str, str]]:
    """Leaves of a nested configuration as dotted key and JSON text."""
    if isinstance(config, Mapping) and config:
        for key, value in config.items():
            yield from _flatten(value, f"{where}.{key}" if where else str(key))
    else:
        yield where, json.dumps(config)


def _find(config: Any, key: str) -> Any:
    """The first value of `key` at any depth, or None."""
    if not isinstance(config, Mapping):
        return None
    return (
        config[key]
        if key in config
        else next((v for item in config.values() if (v := _find(item, key)) is not None), None)
    )
