"""Puts this folder on the path: worker processes import `toy` by name, and inherit the path of their
parent."""

import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from wamjax.evaluation.processes import worker_pools


@pytest.fixture(scope="session")
def pools() -> Iterator[list[ProcessPoolExecutor]]:
    """Two workers, shared by the tests that do not kill any."""
    with worker_pools(2) as pools:
        yield pools
