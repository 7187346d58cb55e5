"""The page of a dataset says what is there, shows what it links to, and loads nothing."""

import base64
import io
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wamjax.cli.main import main
from wamjax.data import page, viewer
from wamjax.data.episode import BadEpisode, Episode, Video
from wamjax.data.page import charts
from wamjax.data.quality import Thresholds
from wamjax.data.readers import Listed
from wamjax.data.store import EpisodeStore, finish, write_shard
from wamjax.data.video import decode
from wamjax.errors import UserError

VOID = {"meta", "link", "img", "br", "line", "path", "rect", "polyline"}


class Reader(HTMLParser):
    """Text, tags with their attributes; refuses tags that are not closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, attribute: str) -> list[str]:
        return [str(found[attribute]) for name, found in self.tags if name == tag and attribute in found]


def moving(steps: int) -> np.ndarray:
    """Positions none of which stands still."""
    return np.random.default_rng(0).normal(size=(steps, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, make_episode: Callable[..., Episode]) -> Path:
    """Thirty sound episodes, but one without words, one with a NaN and one that cannot be decoded."""
    folder = tmp_path_factory.mktemp("page") / "store"
    long = make_episode(0, 24)
    steps = dict(long.steps) | {"observation/cartesian_position": moving(24)}
    episodes = []
    for i in range(30):
        steps["action"] = np.random.default_rng(i).normal(size=(24, 4)).astype(np.float32)
        episodes.append(replace(long, steps=dict(steps), metadata={**long.metadata, "seed": i}))
    episodes[7] = replace(episodes[7], language=())
    broken = {camera: Video(b"none", 24, video.height, video.width) for camera, video in long.videos.items()}
    episodes[11] = replace(episodes[11], videos=broken, language=("<script>alert(1)</script>",))
    actions = episodes[13].steps["action"].copy()
    actions[3, 2] = np.nan
    episodes[13] = replace(episodes[13], steps={**episodes[13].steps, "action": actions})
    write_shard(folder, "train", "a", episodes)
    finish(folder, name="thirty & more")
    return folder


def test_a_page_shows_the_dataset(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(dataset), "--html", str(tmp_path / "new" / "page.html")]) == 0
    assert "3 of 30 episodes have flags" in capsys.readouterr().out
    html = (tmp_path / "new" / "page.html").read_text()
    found = Reader(html)
    for text in ("thirty & more", "corner2", "<script>alert(1)</script>", "no instruction", "cannot be decoded", "NaN"):
        assert text in found.text
    assert "script" not in {tag for tag, _ in found.tags}
    pictures = found.all("img", "src")
    drawn = found.all("article", "id")
    assert drawn == [f"episode-{n}" for n in (0, 7, 11, 13, 14, 29)]
    assert len(pictures) == 5 * 2 * page.gather.PICTURES
    assert set(found.all("a", "href")) <= {f"#{name}" for name in drawn}
    assert all(address.startswith("data:") for address in pictures + found.all("link", "href"))
    assert not re.search(r"https?://|url\(|@import", html)
    expected = decode(EpisodeStore(dataset)[0].videos["corner2"], [0])[0].astype(float)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[0].partition(",")[2]))), float)
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).mean() < 12  # JPEG
    mean = EpisodeStore(dataset).statistics["observation/gripper_position"]["mean"][0]  # type: ignore[index]
    assert charts.number(mean) in found.text


def test_large_datasets_are_sampled(dataset: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    look = page.write(
        EpisodeStore(dataset),
        tmp_path / "page.html",
        thresholds=Thresholds(),
        examined=4,
        tell=lambda done, total: told.append((done, total)),
    )
    assert [report.episode for report in look.reports] == [0, 10, 19, 29]
    assert told == [(i, 4) for i in range(1, 5)]
    assert "These 4 were read, spread evenly over all 30" in (tmp_path / "page.html").read_text()


def test_sources_of_other_formats_and_damaged_episodes(make_episode: Callable[..., Episode], tmp_path: Path) -> None:
    def read(number: int) -> Episode:
        if number == 1:
            raise BadEpisode("record 1 is cut short")
        wide = np.random.default_rng(1).normal(size=(30, 10, 20))
        steps = {"observation/cartesian_position": moving(30), "wide": wide}
        return replace(make_episode(0, 30), steps=steps, videos={}, metadata={"fps": 10, "seed": number})

    look = page.write(Listed("listed", [0, 1, 2], read), tmp_path / "page.html", thresholds=Thresholds())
    assert not look.exact
    assert list(look.kinds) == ["damaged", "duplicate"]
    assert [episode.number for episode in look.drawn] == [0, 2]
    text = Reader((tmp_path / "page.html").read_text()).text
    assert "record 1 is cut short" in text
    assert "wide (the first 64 of 200 numbers)" in text
    with pytest.raises(UserError, match="no episode of listed can be read: record 1 is cut short"):
        page.write(Listed("listed", [1], read), tmp_path / "none.html", thresholds=Thresholds())
    assert not (tmp_path / "none.html").exists()


def test_thinned_curves_keep_their_spikes_and_gaps() -> None:
    values = np.zeros((10_000, 1))
    values[5003] = 7.0
    values[6000:6100] = np.nan
    drawn = str(charts.curves(values, 15.0, "a & b"))
    lines = re.findall(r'points="([^"]+)"', drawn)
    heights = [float(point.split(",")[1]) for line in lines for point in line.split()]
    assert len(lines) == 2
    assert min(heights) == charts.TOP
    assert len(heights) < 2 * (charts.POINTS + 4)
    assert "a &amp; b" in drawn
    assert "<svg" in str(charts.curves(np.full((1, 2), np.nan), 15.0, "nothing"))


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.0, "0"), (-0.5, "−0.5"), (12345.6, "12,346"), (1e-7, "1e−07"), (np.nan, "NaN"), (-np.inf, "-∞")],
)
def test_numbers(value: float, text: str) -> None:
    assert charts.number(value) == text


def test_no_rerun_no_trace(dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rerun", None)
    assert main(["data", "inspect", str(dataset), "--rerun", "x.rrd"]) == 2
    assert "pip install 'wamjax[rerun]'" in capsys.readouterr().err
    assert main(["data", "inspect", str(dataset), "--episodes", "0"]) == 2


def test_recordings_for_the_viewer(dataset: Path, tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="rerun-sdk is not installed: pip install 'wamjax[rerun]'")
    path = tmp_path / "some.rrd"
    assert viewer.show(EpisodeStore(dataset), path, episodes=4) == 4
    data = path.read_bytes()
    assert data.startswith(b"RRF2")
    assert all(f"episode_{n}".encode() in data for n in (0, 10, 19, 29))
