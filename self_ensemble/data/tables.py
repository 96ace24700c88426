"""The one reader of tables: .parquet, .feather, .jsonl and .csv, with a place for every row.

    columns, rows = read_rows(Path("questions.csv"))
    where, row = rows[0]                                # "line 2 of questions.csv", {"answers": …}

A .csv file is UTF-8 with commas and a header, and its cells are texts. A .jsonl file has an object
a line. Rows are counted from 1; in .jsonl and .csv a place is a line of the file. Whatever is wrong
with a file is a UserError of one sentence that names it, and the place where it can.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from self_ensemble.data.cells import shortened, show, show_names
from self_ensemble.system.errors import UserError

if TYPE_CHECKING:  # with the first table only: --help stays quick
    import pyarrow

# A row with its place in words, which errors begin with.
Row = tuple[str, dict[str, Any]]

ARROW_SUFFIXES = (".parquet", ".feather")
TABLE_SUFFIXES = (*ARROW_SUFFIXES, ".jsonl", ".csv")


def any_column(name: str) -> bool:
    return True


def read_rows(
    path: Path, *, is_used: Callable[[str], bool] = any_column
) -> tuple[list[str], list[Row]]:
    """The names of a file's columns, and its rows.

    Args:
        path: one of TABLE_SUFFIXES, in capitals too.
        is_used: which columns of a .parquet or .feather file become Python values. The others may
            hold what Python cannot, and cost no time. A row lacks them.

    Raises:
        UserError: there is no such file, it is damaged or not what its suffix says, it has two
            columns of one name, or no rows.
    """
    check_file(path)
    try:
        columns, rows = _read(path, is_used)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error_line(error)}") from error
    _check_whole(path, columns, len(rows))
    return columns, rows


def read_columns(path: Path) -> dict[str, list[Any]]:
    """A file's columns, of which a row has None where it lacks a value.

    Raises:
        UserError: what `read_rows` raises.
    """
    if path.suffix.lower() not in ARROW_SUFFIXES:
        names, rows = read_rows(path)
        return {name: [row.get(name) for _, row in rows] for name in names}
    check_file(path)
    names, table = read_arrow(path)
    _check_whole(path, names, len(table))
    return columns_of(path, table)


def _check_whole(path: Path, columns: Sequence[str], rows: int) -> None:
    doubled = sorted({column for column in columns if columns.count(column) > 1})
    if doubled:
        raise UserError(f"{path} has two columns named {show(doubled[0])}")
    if not rows:
        raise UserError(f"{path} has no rows")


def check_file(path: Path) -> None:
    """Raises UserError where there is no file, or none that `read_rows` takes."""
    try:
        # os.path, since those of Path raise on too long a name.
        if os.path.isdir(path):
            raise UserError(f"{path} is a folder; give a file ({', '.join(TABLE_SUFFIXES)})")
        if not os.path.exists(path):
            raise UserError(f"there is no file {path}")
        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise UserError(
                f"{path} ends in {path.suffix or 'nothing'!r}; "
                f"files that can be read end in {', '.join(TABLE_SUFFIXES)}"
            )
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error_line(error)}") from error


def require_columns(
    source: Path | str, columns: Sequence[str], any_of: Sequence[str], *, or_else: str = ""
) -> None:
    """Raises UserError where none of the columns is there; `or_else` ends its sentence."""
    if not set(columns) & set(any_of):
        raise UserError(
            f"{source} has none of the columns {', '.join(any_of)}; "
            f"its columns are {show_names(columns)}{or_else}"
        )


def _read(path: Path, is_used: Callable[[str], bool]) -> tuple[list[str], list[Row]]:
    suffix = path.suffix.lower()
    if suffix in ARROW_SUFFIXES:
        columns, table = read_arrow(path, is_used=is_used)
        return columns, rows_of(path, table)
    return _read_jsonl(path) if suffix == ".jsonl" else _read_csv(path)


def _read_jsonl(path: Path) -> tuple[list[str], list[Row]]:
    columns: dict[str, None] = {}
    rows: list[Row] = []
    # In bytes: texts may hold other line separators of Unicode.
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"line {number} of {path}"
            if not line.strip():
                continue
            try:
                row = json.loads(line.removesuffix(b"\n").decode("utf-8-sig"))
            except UnicodeDecodeError:
                raise UserError(f"{where} is not valid UTF-8") from None
            except json.JSONDecodeError as error:
                raise UserError(f"{where} is not JSON: {error.msg}, column {error.colno}") from None
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where} is not JSON that can be read: {error}") from None
            if not isinstance(row, dict):
                raise UserError(
                    f"{where} is not a JSON object with named values, found {show(row)}"
                )
            columns.update(dict.fromkeys(row))
            rows.append((where, row))
    return list(columns), rows


def _read_csv(path: Path) -> tuple[list[str], list[Row]]:
    # Not by pandas: it takes surplus fields for an index, and the answer "NA" for a missing value.
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"line {line} of {path} is not valid UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] = []
    rows: list[Row] = []
    line = 1  # where the row starts: a quoted cell may hold line breaks
    try:
        for cells in reader:
            where = f"line {line} of {path}"
            line = reader.line_num + 1
            if not cells:
                continue
            if not columns:
                columns = cells
                _check_commas(path, columns)
                continue
            if len(cells) != len(columns):
                raise UserError(f"{where} has {len(cells)} cells, the header has {len(columns)}")
            rows.append((where, dict(zip(columns, cells, strict=True))))
    except csv.Error as error:
        raise UserError(f"line {line} of {path} is not CSV: {error}") from None
    return columns, rows


def _check_commas(path: Path, columns: Sequence[str]) -> None:
    """Raises UserError where the header has other separators, as spreadsheets may write them."""
    if len(columns) == 1 and any(separator in columns[0] for separator in ";\t|"):
        raise UserError(
            f"the header of {path} has no comma: {show(columns[0])}; save the file with commas "
            "between the cells"
        )


def read_arrow(
    path: Path, *, is_used: Callable[[str], bool] = any_column
) -> "tuple[list[str], pyarrow.Table]":
    """The names of a .parquet or .feather file's columns, and those of them that `is_used`.

    Raises:
        UserError: the file is damaged.
    """
    # pyarrow only here, and no pandas: --help stays quick, and rows hold plain Python values.
    import pyarrow as pa
    import pyarrow.feather
    import pyarrow.parquet

    is_parquet = path.suffix.lower() == ".parquet"
    # A path and one thread: given a Python file, Arrow's threads outlive the call and now and then
    # abort the whole process at its exit (apache/arrow issues 34314 and 50482).
    try:
        if is_parquet:
            with pa.parquet.ParquetFile(str(path)) as file:
                columns = file.schema_arrow.names
                used = [column for column in columns if is_used(column)]
                table = file.read(columns=used, use_threads=False)
        else:
            table = pa.feather.read_table(str(path), memory_map=False, use_threads=False)
            columns = table.column_names
            table = table.select([i for i, column in enumerate(columns) if is_used(column)])
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        kind = "parquet" if is_parquet else "feather"
        raise UserError(f"{path} is not a whole {kind} file: {error_line(error)}") from error
    _check_values(path, table)
    return columns, table


def _check_values(path: Path, table: "pyarrow.Table", *, before: int = 0) -> None:
    """Raises UserError where the table is damaged. before: rows of the file that come before."""
    import pyarrow as pa

    for name, column in zip(table.column_names, table.columns, strict=True):
        # Reading a damaged column without this could end the interpreter instead of raising.
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            row = _undecodable_row(column) if "UTF8" in str(error) else None
            if row is None:
                raise UserError(f"{path}: {name} is damaged: {error_line(error)}") from error
            raise UserError(f"row {before + row} of {path}: {name} is not valid UTF-8") from error


def arrow_tables(path: Path, *, rows: int) -> "Iterator[pyarrow.Table]":
    """A .parquet file, so many rows at a time; a .feather file, as `feather_tables` gives it.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    check_file(path)
    return _parquet_tables(path, rows) if path.suffix == ".parquet" else feather_tables(path)


def _parquet_tables(path: Path, rows: int) -> "Iterator[pyarrow.Table]":
    import pyarrow as pa
    import pyarrow.parquet

    before = 0
    try:
        with pa.parquet.ParquetFile(str(path)) as file:
            for batch in file.iter_batches(batch_size=rows, use_threads=False):
                table = pa.Table.from_batches([batch])
                _check_values(path, table, before=before)
                before += len(table)
                yield table
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a whole parquet file: {error_line(error)}") from error


def feather_tables(path: Path) -> "Iterator[pyarrow.Table]":
    """A feather file in the pieces that it was written in, which are 65,536 rows or fewer.

    Raises:
        UserError: it is damaged.
    """
    import pyarrow as pa

    before = 0
    try:
        with pa.OSFile(str(path)) as source:
            options = pa.ipc.IpcReadOptions(use_threads=False)
            reader = pa.ipc.open_file(source, options=options)
            for number in range(reader.num_record_batches):
                table = pa.Table.from_batches([reader.get_batch(number)], reader.schema)
                _check_values(path, table, before=before)
                before += len(table)
                yield table
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a whole feather file: {error_line(error)}") from error


def columns_of(source: Path | str, table: "pyarrow.Table") -> dict[str, list[Any]]:
    """The columns of a table as Python values."""
    try:
        return dict(zip(table.column_names, (c.to_pylist() for c in table.columns), strict=True))
    except (OverflowError, ValueError) as error:  # times beyond the year 9999, and the like
        raise _cannot_be_read(source, error) from error


def _cannot_be_read(source: Path | str, error: Exception) -> UserError:
    return UserError(f"{source} holds a value that cannot be read: {error_line(error)}")


def rows_of(source: Path | str, table: "pyarrow.Table") -> list[Row]:
    """The rows of a table as Python values; `source` names it in their places."""
    try:
        rows = table.to_pylist()
    except (OverflowError, ValueError) as error:  # times beyond the year 9999, and the like
        raise _cannot_be_read(source, error) from error
    return [(f"row {i} of {source}", row) for i, row in enumerate(rows, 1)]


def _undecodable_row(column: "pyarrow.ChunkedArray") -> int | None:
    for start in range(len(column)):
        try:
            column.slice(start, 1).to_pylist()
        except UnicodeDecodeError:
            return start + 1
    return None


def error_line(error: BaseException) -> str:
    """What a library says, of which a damaged file's bytes may be a part."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return shortened(line if line.isprintable() else ascii(line)[1:-1], 120)
