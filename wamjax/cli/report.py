"""Draws the report of a run.

Writes RUN_DIR/report.html (one self-contained page, for people) and RUN_DIR/report.json (for programs).
The run may be unfinished; the page says what is missing.
"""

from __future__ import annotations

import argparse

HELP = "draw the page and the summary of a run: success, video, curves, compute"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of ``wamjax report``."""
    parser.add_argument("run_dir", metavar="RUN_DIR", help="folder of the run, e.g. runs/demo")


def run(args: argparse.Namespace) -> None:
    """Writes both files and prints where they are."""
    from wamjax.evaluation import report

    facts, page = report.write(args.run_dir)
    print(f"page     {page}\nsummary  {facts}")
