"""Columns of Parquet files as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wamjax.data.episode import BadEpisode
from wamjax.data.storage import Place, brief


def read_columns(file: Place, columns: Sequence[str], length: int) -> dict[str, np.ndarray]:
    """Columns of a file of `length` rows, as `column_array` gives them.

    Raises:
        BadEpisode: the file is missing, damaged, of another length, or lacks a column.
    """
    table = open_table(file, tuple(columns))
    if table.num_rows != length:
        raise BadEpisode(f"{file} has {table.num_rows} rows for {length} steps: get it again")
    return {name: column_array(table, name, file) for name in columns}


def open_table(file: Place, columns: tuple[str, ...] | None = None, groups: tuple[int, ...] | None = None) -> Any:
    """A file, or some of its columns and row groups, as a pyarrow table.

    Checksums of pages are verified where the writer has left some (our own files have them, LeRobot's have none).

    Raises:
        BadEpisode: the file is missing or damaged, or lacks a column.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with file.open() as stream:
            parquet = pyarrow.parquet.ParquetFile(stream, page_checksum_verification=True)
            known = parquet.schema_arrow.names
            if missing := [name for name in columns or () if name not in known]:
                raise BadEpisode(f"{file} has no column '{missing[0]}'")
            wanted = list(columns) if columns is not None else None
            if groups is None:
                return parquet.read(columns=wanted)
            return parquet.read_row_groups(list(groups), columns=wanted)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise BadEpisode(f"{file} cannot be read ({brief(error)}): get it again") from error


def row_groups(file: Place) -> tuple[int, ...]:
    """First row of each row group, and the number of rows at the end."""
    import pyarrow
    import pyarrow.parquet

    try:
        with file.open() as stream:
            metadata = pyarrow.parquet.ParquetFile(stream).metadata
            sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise BadEpisode(f"{file} cannot be read ({brief(error)}): get it again") from error
    return tuple(np.cumsum([0, *sizes]).tolist())


def column_array(table: Any, name: str, file: Place) -> np.ndarray:
    """A column as an array (rows,), or (rows, n) where its values are lists of n (flattened) numbers.

    Raises:
        BadEpisode: a value is missing, or lists differ in length.
    """
    import pyarrow

    def is_list(kind: Any) -> bool:
        types = pyarrow.types
        return types.is_list(kind) or types.is_fixed_size_list(kind) or types.is_large_list(kind)

    try:
        values = table.column(name).combine_chunks()
        if isinstance(values.type, pyarrow.ExtensionType):
            values = values.storage
        nested, whole = is_list(values.type), not values.null_count
        while is_list(values.type):
            lengths = values.value_lengths()
            whole = whole and not lengths.null_count and len(lengths.unique()) <= 1
            values = values.flatten()
            whole = whole and not values.null_count
        array = values.to_numpy(zero_copy_only=False)
    except (pyarrow.ArrowException, ValueError) as error:
        raise BadEpisode(f"column '{name}' of {file} cannot be read ({brief(error)}): get it again") from error
    if not whole:
        raise BadEpisode(f"column '{name}' of {file} has gaps")
    return array.reshape(table.num_rows, -1) if nested else array
