"""Every notebook runs from top to bottom."""

from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


def notebook(path):
    """A notebook as a case; the demo collects, trains and evaluates, which takes most of a minute."""
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem == "demo" else [])


@pytest.mark.parametrize("path", map(notebook, NOTEBOOKS))
def test_notebook_runs_and_is_stored_without_outputs(path, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("WAMJAX_NOTEBOOK_RUNS", str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs before committing"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
