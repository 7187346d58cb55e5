"""The page on compute is up to date: its text, and the numbers that its pictures were drawn from."""

import json
from pathlib import Path

import pytest

from wamjax.compute import page, plots

DOCS = Path(__file__).parents[2] / "docs"
AGAIN = "out of date: run `wamjax flops --write-page docs/compute.md`"


def test_the_page_says_what_the_code_counts():
    assert (DOCS / "compute.md").read_text() == page.text(), AGAIN


@pytest.mark.parametrize("name", plots.PICTURES)
def test_pictures_show_what_the_code_counts(name):
    drawn = (DOCS / f"{name}.svg").read_text()
    assert f"drawn from {plots.digest(name)}" in drawn, AGAIN
    assert f"]({name}.svg)" in (DOCS / "compute.md").read_text()


def test_pictures_are_drawn_the_same_every_time(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "PICTURES", {"compute_law": plots.PICTURES["compute_law"]})
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        plots.write_pictures(tmp_path / folder)
    assert (tmp_path / "a/compute_law.svg").read_bytes() == (tmp_path / "b/compute_law.svg").read_bytes()


def test_digests_do_not_hang_on_last_bits():
    assert plots._rounded({"a": [1.0000000001, (2, "b")]}) == plots._rounded({"a": [1.0, [2, "b"]]})
    assert json.dumps(plots._rounded([0.1 + 0.2])) == "[0.3]"
