"""A result's table, piece by piece: as the types that its columns have, and as its files.

A million rows are never a Python value each at the same time: tables are made, written and read
some rows at a time.

The table is one file, `<stem>.feather` (with `<stem>.csv` beside it, the same for eyes and
spreadsheets, lists as JSON), or it is parts: `<stem>.parts/000000000-000100000-<sha256>.parquet`
and so on, named by their first row, the one behind their last, and their bytes, so that a part of
some name never comes to hold anything else. The manifest lists the parts; what else lies in their
folder counts for nothing.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from self_ensemble.data.tables import arrow_tables

if TYPE_CHECKING:  # pandas and pyarrow are imported where they are used: --help stays quick
    import pyarrow
    from pandas import DataFrame

# Which columns hold lists, and how deep. A CSV cannot say it, so the names do.
LIST_DEPTHS = {
    **dict.fromkeys(("paraphrases", "answers", "choices", "predict_lemma"), 1),
    **dict.fromkeys(("choice_sum", "choice_mean", "choice_bytes"), 1),
    "answer_lemmas": 2,
}
LEMMA_COLUMNS = ("predict_lemma", "answer_lemmas")
# Lists of numbers; the others are of texts.
NUMBER_COLUMNS = ("choice_sum", "choice_mean", "choice_bytes")
TEXT_COLUMNS = ("uuid", "prediction", "generation", "paraphrase", "relation")

# Rows of a piece, and so of a record batch of the file: what Arrow's own writer of feather takes.
ROWS_AT_ONCE = 1 << 16


def table_of(columns: Mapping[str, Sequence[Any]]) -> pyarrow.Table:
    """Columns with the schema's types; those that the schema does not know are inferred."""
    import pyarrow as pa

    arrays = {
        name: pa.array(values, type=_type_of(name), from_pandas=True)
        for name, values in columns.items()
    }
    for name, array in arrays.items():
        assert name in LIST_DEPTHS or not pa.types.is_list(array.type), (
            f"list column {name!r} is not in LIST_DEPTHS, so its CSV could not be read back"
        )
    return pa.table(arrays)


def table_of_frame(frame: DataFrame) -> pyarrow.Table:
    return table_of({name: frame[name].tolist() for name in frame.columns})


def _type_of(name: str) -> pyarrow.DataType | None:
    import pyarrow as pa

    if name in LIST_DEPTHS:
        found = pa.float64() if name in NUMBER_COLUMNS else pa.string()
        for _ in range(LIST_DEPTHS[name]):
            found = pa.list_(found)
        return found
    if name in TEXT_COLUMNS:
        return pa.string()
    return {"logprob": pa.float64(), "truncated": pa.bool_()}.get(name)


def schema_with(schema: pyarrow.Schema | None, names: Iterable[str]) -> pyarrow.Schema:
    """The schema, with those of these columns behind it that it lacks. None: of nothing."""
    import pyarrow as pa

    schema = pa.schema([]) if schema is None else schema
    for name in names:
        if name not in schema.names:
            schema = schema.append(pa.field(name, _type_of(name)))
    return schema


def in_schema(table: pyarrow.Table, schema: pyarrow.Schema) -> pyarrow.Table:
    """The table with these columns in this order; one that it lacks is empty."""
    import pyarrow as pa

    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def in_pieces(tables: Iterable[pyarrow.Table], sizes: Iterable[int]) -> Iterator[pyarrow.Table]:
    """The same rows in tables of these sizes; the last has what is left."""
    import pyarrow as pa

    of_each = iter(sizes)
    left: list[pyarrow.Table] = []
    count, size = 0, next(of_each, 0)
    for table in tables:
        left.append(table)
        count += len(table)
        while size and count >= size:
            joined = pa.concat_tables(left)
            yield joined.slice(0, size).combine_chunks()
            left, count, size = [joined.slice(size)], count - size, next(of_each, 0)
    if count:
        yield pa.concat_tables(left).combine_chunks()


# ---- files --------------------------------------------------------------------------------------


def write_feather(tables: Iterable[pyarrow.Table], schema: pyarrow.Schema, file: IO[bytes]) -> None:
    """As `pyarrow.feather.write_feather`: a table that comes as one has the same bytes."""
    import pyarrow as pa

    options = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
    with pa.ipc.new_file(file, schema, options=options) as writer:
        for table in in_pieces(tables, repeat(ROWS_AT_ONCE)):
            writer.write_table(table)


def write_csv(tables: Iterable[pyarrow.Table], names: Sequence[str], file: IO[bytes]) -> None:
    """Text is always quoted: then a lone carriage return, a comma or the answer NA survive."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(names)
    for table in tables:
        columns = table.to_pydict()
        for name in LIST_DEPTHS.keys() & columns.keys():
            columns[name] = [
                None if cell is None else json.dumps(cell, ensure_ascii=False)
                for cell in columns[name]
            ]
        writer.writerows(zip(*columns.values(), strict=True))
    text.detach()  # flushed, and the file stays open


def write_parquet(tables: Iterable[pyarrow.Table], schema: pyarrow.Schema, file: IO[bytes]) -> None:
    from pyarrow import parquet

    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)


def read_tables(paths: Iterable[Path]) -> Iterator[pyarrow.Table]:
    """The rows of files of a table, some at a time.

    Raises:
        UserError: a file is not there, or damaged.
    """
    for path in paths:
        yield from arrow_tables(path, rows=ROWS_AT_ONCE)
