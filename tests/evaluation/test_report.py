"""The report: a whole run, parts of one, hostile text, and how the page behaves in a browser.

The sample run below is made up: its numbers test the page and describe no policy.
"""

import base64
import html
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest

from wamjax.cli import main as command
from wamjax.data.video import encode
from wamjax.errors import UserError
from wamjax.evaluation import report
from wamjax.evaluation.report import charts, gather, page, videos, words

TASKS = ("button-press-topdown-v3", "drawer-open-v3", "door-open-v3", "window-open-v3")
CAMERAS = ("corner2", "gripperPOV")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def movie(path: Path, seed: int, width: int = 128, height: int = 64) -> None:
    """A small H.264 MP4 of moving shapes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:height, :width]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for t in range(24):
            disc = (x - 20 - 3 * t - seed % 17) ** 2 + (y - height / 2 - 12 * np.sin(t / 4)) ** 2 < 90
            image = np.stack([90 + 60 * disc, 110 + x // 2 - 50 * disc, 130 + y - 60 * disc], -1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def put(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def put_evaluation(path: Path, variant: str, counts: tuple[int, ...], images: str = "true", recorded: int = 0) -> None:
    """An evaluation of 25 episodes per task, the first `recorded` of each with a video."""
    episodes, tasks = [], {}
    for task, successes in zip(TASKS, counts, strict=True):
        low, high = max(successes / 25 - 0.12, 0), min(successes / 25 + 0.08, 1)
        tasks[task] = {"successes": successes, "episodes": 25, "interval": [low, high]}
        for i in range(25):
            video = f"videos/{variant}_{task}_{i}.mp4" if i < recorded else None
            if video:
                movie(path.parent / video, seed=i)
            success = not 3 <= i < 28 - successes
            episodes.append({"task": task, "seed": 20_000 + i, "success": success, "decisions": 20 + i, "video": video})
    total = sum(counts)
    put(
        path,
        {
            "variant": variant,
            "images": images,
            "seed_set": "held_out_b",
            "tasks": tasks,
            "mean_success": total / 100,
            "successes": total,
            "episodes_total": 100,
            "interval": [max(total / 100 - 0.05, 0), min(total / 100 + 0.03, 1)],
            "episodes": episodes,
            "latency_ms": {"p50": 52.1, "p95": 71.9, "batch": 8} if variant not in ("random", "expert") else None,
            "wall_seconds": 33.0,
            "versions": {"jax": "0.10.2", "metaworld": "3.1.1", "platform": "Linux x86_64"},
        },
    )


def put_training(folder: Path, steps: int = 6000, video: bool = True) -> None:
    """Configuration, metrics and summary of a finished training."""
    put(
        folder / "config.json",
        {"name": "sample run", "policy": {"paradigm": folder.name, "width": 192}, "train": {"steps": steps}},
    )
    generator, lines = np.random.default_rng(len(folder.name)), []
    for step in range(0, steps, 20):
        noise = 0.02 * generator.standard_normal()
        action = 0.2 + 0.002 * len(folder.name) + 0.75 * np.exp(-step / 500) + noise
        row = {
            "step": step,
            "loss": action + 0.5,
            "loss/action": action,
            "learning_rate": 1e-3 * min(1, 4 * (1 - step / steps)),
        }
        extra = {"loss/video": 0.5 + action + 4 * np.exp(-step / 300)} if video else {}
        lines.append(json.dumps(row | extra))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    put(
        folder / "summary.json",
        {
            "steps": steps,
            "flops": 1.32e15,
            "mfu": 0.173,
            "final_loss": 0.56,
            "parameters": 1_640_000,
            "wall_seconds": 1203.4,
            "batch_size": 32,
            "peak_flops": 6.1e9,
            "peak_source": "largest rate of a 2048 x 2048 float32 matrix product here",
        },
    )


def sample_run(folder: Path) -> Path:
    """A complete run folder with every variant, control and reference."""
    counts = {
        "joint": (24, 25, 23, 25),
        "representation_only": (25, 25, 22, 24),
        "action_only": (23, 25, 24, 25),
        "blind": (10, 13, 22, 6),
    }
    for variant, successes in counts.items():
        put_training(folder / variant, 6000 if variant != "action_only" else 9000, variant != "action_only")
        put_evaluation(
            folder / variant / "evaluation" / "held_out_b.json",
            variant,
            successes,
            recorded=4 * (variant == "joint"),
        )
    put_evaluation(folder / "joint/evaluation/swapped_images.json", "joint", (4, 1, 1, 0), images="swap", recorded=1)
    put_evaluation(folder / "reference/random.json", "random", (0, 0, 0, 0))
    put_evaluation(folder / "reference/expert.json", "expert", (25, 25, 25, 25), recorded=1)
    clips = [f"clip_{i:02d}.mp4" for i in range(4)]
    for i, clip in enumerate(clips):
        movie(folder / "joint/open_loop" / clip, seed=5 * i, width=256, height=128)
    quality = {
        "psnr": {"imagined": (19.1, 16.3), "copy_last": (17.5, 13.8), "codec": (26.8, 27.5)},
        "ssim": {"imagined": (0.71, 0.52), "copy_last": (0.66, 0.43), "codec": (0.88, 0.9)},
    }
    per_camera = {
        m: {kind: dict(zip(CAMERAS, v, strict=True)) for kind, v in kinds.items()} for m, kinds in quality.items()
    }
    put(folder / "joint/open_loop/open_loop.json", {"action_mae": 0.11, "clips": clips, **per_camera})
    put(
        folder / "data/dataset.json",
        {
            "name": "sample",
            "fps": 20.0,
            "splits": {"train": {"shards": [{"file": "a"}], "episodes": 400, "steps": 12_830}},
        },
    )
    stages = [
        ("setup", 96.0),
        ("collect", 130.5),
        ("train", 700.0),
        ("train", 1707.4),
        ("evaluate", 141.2),
        ("imagine", 22.3),
    ]
    (folder / "stages.jsonl").write_text("".join(json.dumps({"stage": s, "wall_seconds": w}) + "\n" for s, w in stages))
    return folder


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete sample run with its report written; tests only read it."""
    folder = sample_run(tmp_path_factory.mktemp("report") / "demo")
    report.write(folder)
    return folder


def test_report_json_has_the_documented_keys(complete: Path) -> None:
    facts = json.loads((complete / "report.json").read_text())
    assert set(facts) == {"tasks", "mean_success", "psnr", "wall_seconds", "train", "versions"}
    actors = {
        "joint",
        "representation_only",
        "action_only",
        "blind",
        "joint_swapped_images",
        "random",
        "expert",
    }
    assert set(facts["tasks"]) == set(TASKS)
    assert all(set(actor) == actors for actor in facts["tasks"].values())
    assert facts["tasks"]["window-open-v3"]["blind"] == {"successes": 6, "episodes": 25}
    assert facts["mean_success"]["joint"] == pytest.approx(0.97)
    assert facts["psnr"] == {
        "imagined": {"corner2": 19.1, "gripperPOV": 16.3},
        "copy_last": {"corner2": 17.5, "gripperPOV": 13.8},
    }
    assert facts["train"]["joint"] == {"steps": 6000, "flops": 1.32e15, "mfu": 0.173, "final_loss": 0.56}
    assert facts["versions"]["metaworld"] == "3.1.1"


def test_stages_are_summed_over_reruns(complete: Path) -> None:
    facts = json.loads((complete / "report.json").read_text())
    assert facts["wall_seconds"] == {
        "setup": 96.0,
        "collect": 130.5,
        "train": pytest.approx(2407.4),
        "evaluate": 141.2,
        "imagine": 22.3,
    }


class References(HTMLParser):
    """Everything in a page that a browser could load, run as a handler, or find badly nested."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.handlers: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [key for key, _ in attrs if key.startswith("on")]
        self.urls += [
            v or "" for k, v in attrs if k in ("src", "href", "poster", "data", "srcset", "action", "xlink:href")
        ]
        if tag not in ("meta", "link", "br", "img", "input", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"badly nested </{tag}>"


def parsed(folder: Path) -> tuple[str, References]:
    text = (folder / "report.html").read_text()
    parser = References()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return text, parser


def test_the_page_loads_nothing_from_outside(complete: Path) -> None:
    text, found = parsed(complete)
    assert all(url.startswith("data:") for url in found.urls)
    assert len([url for url in found.urls if url.startswith("data:video/mp4;base64,")]) == 4 + 14 + 4 + 4
    assert not re.search(r"https?://|file:|@import|url\(", text)
    assert "http-equiv" in text
    assert "default-src 'none'" in text


def test_numbers_reach_the_page(complete: Path) -> None:
    text, _ = parsed(complete)
    words_only = " ".join(re.sub(r"<[^>]+>", " ", text).split())
    for phrase in (
        "400 expert episodes of 4 Meta-World tasks",
        "Joint 97 of 100",
        "1.64 M parameters",
        "20.1 min",
        "17.3 %",
        "1.32 PFLOP",
        "19.1",
        "largest rate of a 2048",
        "reaches 51 of 100",
        "46 points more",
        "no difference is shown",
        "No benefit of the video loss is claimed",
        "the imagination is blurry",
        "46.6 min",
    ):
        assert phrase in words_only, phrase
    assert "not complete" not in words_only


@pytest.mark.parametrize("kept", ["data", "stages.jsonl", "joint", "reference", "action_only"])
def test_any_single_part_makes_a_page_that_names_the_missing_ones(complete: Path, tmp_path: Path, kept: str) -> None:
    source = complete / kept
    (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / kept)
    report.write(tmp_path)
    text, _ = parsed(tmp_path)
    assert "This run is not complete." in text
    assert set(json.loads((tmp_path / "report.json").read_text())) == {
        "tasks",
        "mean_success",
        "psnr",
        "wall_seconds",
        "train",
        "versions",
    }


def test_a_training_that_still_runs(tmp_path: Path) -> None:
    folder = tmp_path / "joint"
    put_training(folder, steps=400)
    (folder / "summary.json").unlink()
    with (folder / "metrics.jsonl").open("a") as file:  # killed while writing, then resumed from an earlier step
        file.write(
            '{"step": 400, "loss/ac\n'
            + json.dumps({"step": 300, "loss/action": 0.5, "loss/video": float("nan")})
            + "\n"
        )
    run = gather.read(tmp_path)
    assert [r["step"] for r in run.variants["joint"].metrics] == list(range(0, 400, 20))
    assert run.variants["joint"].metrics[15]["loss/action"] == 0.5
    report.write(tmp_path)
    text, _ = parsed(tmp_path)
    assert "is being trained" in text
    assert "Training of joint has not finished (last logged step: 380)." in text
    assert "1 unreadable line, left out" in text


def test_missing_damaged_and_escaping_videos_are_left_out(complete: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(complete / "joint", run_dir / "joint")
    movie(tmp_path / "secret.mp4", seed=1)
    clips = run_dir / "joint/open_loop"
    (clips / "clip_00.mp4").write_bytes(b"not a video")
    (clips / "clip_01.mp4").unlink()
    record = json.loads((clips / "open_loop.json").read_text())
    put(clips / "open_loop.json", record | {"clips": [*record["clips"], "../../../secret.mp4"]})
    shown = page.imagination(gather.read(run_dir), notes := [])
    assert shown is not None
    assert len(shown["clips"]) == 2
    assert [re.findall(r"\S+\.mp4", note)[0] for note in notes] == [
        "clip_00.mp4",
        "clip_01.mp4",
        "../../../secret.mp4",
    ]


def test_full_colour_video_is_made_playable(tmp_path: Path) -> None:
    frames = np.zeros((6, 32, 48, 3), np.uint8)
    frames[:, :, 24:] = (200, 40, 30)
    (tmp_path / "full.mp4").write_bytes(encode(frames, 20.0).data)
    uri = videos.data_uri(tmp_path, "full.mp4", tmp_path)
    assert uri is not None
    with av.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert np.shape(shown) == (6, 64, 96, 3)
    assert np.abs(shown[3][::2, ::2].astype(int) - frames[3]).mean() < 6


def test_hostile_text_is_escaped(complete: Path, tmp_path: Path) -> None:
    shutil.copytree(complete / "joint", tmp_path / "joint")
    evil = '</script><img src=x onerror="alert(1)"><script>alert(2)</script>'
    path = tmp_path / "joint/evaluation/held_out_b.json"
    path.write_text(path.read_text().replace("door-open-v3", evil.replace('"', '\\"').replace("/", "\\/")))
    put(tmp_path / "joint/config.json", {"name": evil, evil: {"instruction": evil}})
    shutil.copytree(tmp_path / "joint", tmp_path / "joint<b>&")
    put(tmp_path / "data/dataset.json", {"name": evil})
    (tmp_path / "stages.jsonl").write_text(json.dumps({"stage": evil, "wall_seconds": 3.0}) + "\n")
    report.write(tmp_path)
    _, found = parsed(tmp_path)
    assert found.tags.count("script") == 1
    assert "img" not in found.tags
    assert "b" not in found.tags
    assert found.handlers == []


def test_user_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no run folder"):
        report.write(tmp_path / "absent")
    with pytest.raises(UserError, match="holds nothing of a run"):
        report.write(tmp_path)
    assert not list(tmp_path.iterdir())
    put(tmp_path / "joint/summary.json", {})
    (tmp_path / "joint/summary.json").write_text('{"steps": 12')
    assert command.main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "summary.json is damaged" in error
    assert error.count("\n") == 1


def test_the_verb_prints_where_the_page_is(complete: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(complete / "reference", tmp_path / "reference")
    assert command.main(["report", str(tmp_path)]) == 0
    assert str(tmp_path / "report.html") in capsys.readouterr().out
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_headline_is_the_unseen_seed_set(tmp_path: Path) -> None:
    put_evaluation(tmp_path / "joint/evaluation/held_out_a.json", "joint", (25, 25, 25, 25))
    put_evaluation(tmp_path / "joint/evaluation/held_out_b.json", "joint", (20, 20, 20, 20))
    put_evaluation(tmp_path / "blind/evaluation/swapped_images.json", "blind", (1, 1, 1, 1), images="swap")
    mean = gather.facts(gather.read(tmp_path))["mean_success"]
    assert mean == {"joint": 0.8, "joint_held_out_a": 1.0, "blind_swapped_images": pytest.approx(0.04)}


@pytest.mark.parametrize(
    ("margins", "sentence"),
    [
        ((-0.1, 0.0), "its frames are no nearer to what happened than a copy of the last frame is."),
        ((0.1, -0.1), "a copy of the last frame is on corner2, but not on gripperPOV."),
        ((0.1, 0.1), "a copy of the last frame is, on both cameras."),
    ],
)
@pytest.mark.parametrize("measure", ["psnr", "ssim"])
def test_imagination_is_set_against_copying(
    complete: Path, tmp_path: Path, measure: str, margins: tuple[float, float], sentence: str
) -> None:
    shutil.copytree(complete / "joint", tmp_path / "joint")
    path = tmp_path / "joint/open_loop/open_loop.json"
    record = json.loads(path.read_text())
    copied = record[measure]["copy_last"]
    record[measure]["imagined"] = {c: copied[c] + m for c, m in zip(copied, margins, strict=True)}
    put(path, record)
    report.write(tmp_path)
    text = " ".join((tmp_path / "report.html").read_text().split())
    assert sentence in text.split(f"By {measure.upper()}, which")[1].split("By ")[0]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 6183.0), (0.2, 0.21), (-3.0, 2e9), (1e-9, 3e-9)])
def test_ticks_are_few_even_and_inside(low: float, high: float) -> None:
    ticks = charts.ticks(low, high)
    assert 2 <= len(ticks) <= 9
    assert low <= ticks[0] < ticks[-1] <= high
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_a_curve_keeps_its_mean_when_thinned_and_smoothed() -> None:
    x, y = charts._thin(range(3000), np.full(3000, 2.5))
    assert len(x) == len(y) == charts.MOST_POINTS
    assert np.allclose(charts._smooth(y), 2.5)
    drawn = charts.curves([charts.Line("Joint", "v-joint", [0, 10], [1.0, 1.0])], title="Flat")
    assert "nan" not in drawn


def test_numbers_as_people_write_them() -> None:
    assert [words.duration(s) for s in (0.43, 9.97, 59.4, 59.6, 1203.4, 5999, 7260)] == [
        "0.43 s",
        "10 s",
        "59 s",
        "1.0 min",
        "20.1 min",
        "1 h 40 min",
        "2 h 1 min",
    ]
    assert [words.si(v, "FLOP") for v in (1.32e15, 999.6, 0, None)] == [
        "1.32 PFLOP",
        "1 kFLOP",
        "0 FLOP",
        "–",
    ]
    assert words.si(1_640_000, "") == "1.64 M"


MEASURE = """<script>
document.querySelectorAll("details").forEach(d => d.open = true);
function measure(tries) {
  const overflow = e => getComputedStyle(e).overflowX;
  const scrolls = e => e && (["auto", "scroll"].includes(overflow(e)) || scrolls(e.parentElement));
  const beyond = e => e.getBoundingClientRect().right > innerWidth + 0.5 && !scrolls(e.parentElement);
  const wide = [...document.querySelectorAll("body *")].filter(beyond);
  const videos = [...document.querySelectorAll("video")];
  const moving = videos.filter(v => v.currentTime > 0).length;
  if (moving < videos.length && tries) return setTimeout(() => measure(tries - 1), 100);
  document.body.dataset.measured = JSON.stringify({
    viewport: innerWidth, page: document.documentElement.scrollWidth,
    wide: wide.map(e => e.outerHTML.slice(0, 80)),
    decoded: videos.filter(v => v.readyState >= 2 && v.videoWidth > 0).length, videos: videos.length,
    moving, failed: videos.filter(v => v.error).length,
  });
}
addEventListener("load", () => setTimeout(() => measure(200), 500));
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to open the page with")
@pytest.mark.parametrize("width", [360, 1280])
def test_in_a_browser_nothing_overflows_and_videos_play(complete: Path, tmp_path: Path, width: int) -> None:
    source = (complete / "report.html").read_text().replace("</body>", MEASURE + "</body>")
    # A window cannot be as narrow as a phone, so the page is measured inside a frame of the wanted width.
    (tmp_path / "inner.html").write_text(source)
    (tmp_path / "outer.html").write_text(
        f"""<iframe id="f" src="inner.html" style="border:0;width:{width}px;height:20000px"></iframe><script>
        setInterval(() => {{ const d = document.getElementById("f").contentDocument.body.dataset.measured;
          if (d) document.body.dataset.measured = d; }}, 100);</script>"""
    )
    command_line = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path}/profile",
        "--autoplay-policy=no-user-gesture-required",
        "--window-size=1400,20000",
        "--virtual-time-budget=25000",
        "--dump-dom",
        (tmp_path / "outer.html").as_uri(),
    ]
    done = subprocess.run(command_line, capture_output=True, text=True, timeout=120)
    found = re.search(r'data-measured="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    measured = json.loads(html.unescape(found[1]))
    assert measured["viewport"] == width
    assert measured["page"] <= width
    assert measured["wide"] == []
    assert measured["failed"] == 0
    assert measured["decoded"] == measured["moving"] == measured["videos"] == 4 + 14 + 4 + 4
