"""Result files: their names, their columns, writing them whole, reading them back.

A result is three files with one stem: `<stem>.feather` (the table), `<stem>.csv` (the same for eyes
and spreadsheets, lists as JSON) and `<stem>.json` (the manifest: identity, counts, versions). With
--part_rows the table is parts in a folder, `<stem>.parts/`, and there is no CSV.
The manifest comes last and is taken away first: where it stands the result is whole.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate, chain, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from self_ensemble.data.cells import parsed_list
from self_ensemble.data.identities import (
    SHOWN_CHARACTERS,
    canonical_json,
    identity_differences,
)
from self_ensemble.data.result_tables import (
    LIST_DEPTHS,
    ROWS_AT_ONCE,
    in_pieces,
    table_of_frame,
    write_csv,
    write_feather,
    write_parquet,
)
from self_ensemble.data.tables import feather_tables, read_columns
from self_ensemble.system.errors import UserError
from self_ensemble.system.files import temporary_path, unlink_quietly
from self_ensemble.system.replacing import NewFiles, replaced_together

if TYPE_CHECKING:  # pandas and pyarrow are imported where they are used: --help stays quick
    import pyarrow
    from pandas import DataFrame

REQUIRED_COLUMNS = (
    "uuid",
    "paraphrases",
    "answers",
    "prediction",
    "generation",
    "logprob",
    "truncated",
)

RESULT_SUFFIXES = (".feather", ".csv", ".json")
PARTS_SUFFIX = ".parts"
# Of a part's sha256 (hex), in its name.
PART_DIGITS = 16

# A folder's name is kept far below the 255 bytes that file systems allow.
MAX_NAME_BYTES = 120
MAX_REASON = 200


def safe_name(name: str) -> str:
    """One path part that says what `name` is: no separators, no leading dot, not too long.

    `meta-llama/Llama-3.2-3B` (one slash, a hub id) becomes `meta-llama--Llama-3.2-3B`; of a local
    folder (`./m`, `/data/models/m`, `../m/`) the last part stays, `m`; of a GGUF file its name
    without the suffix.
    """
    if name.lower().endswith(".gguf"):
        name = os.path.basename(name)[: -len(".gguf")]
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        name = os.path.basename(os.path.abspath(name))
    name = name.replace("/", "--").replace("\\", "--")
    name = re.sub(r"[^\w.+=@-]", "_", name)
    name = re.sub(r"^\.+", "_", name) or "_"
    if len(name.encode()) > MAX_NAME_BYTES:
        kept = name.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
        name = f"{kept}-{fingerprint(name)[:8]}"
    return name


def result_file(stem: str | Path, suffix: str) -> Path:
    """`<stem><suffix>`; with_suffix would cut a stem such as `avg-0.5` at its dot."""
    stem = Path(stem)
    return stem.with_name(stem.name + suffix)


def fingerprint(value: Any) -> str:
    """sha256 (hex) of the value's canonical JSON: order of keys, tuple or list do not matter."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def read_manifest(path: str | Path) -> dict[str, Any] | None:
    """The manifest of a result.

    Args:
        path: the stem, or any one of the result's files.

    Returns:
        The manifest, or None where there is none.

    Raises:
        UserError: it is there but unreadable, or no manifest.
    """
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in RESULT_SUFFIXES else path
    path = result_file(stem, ".json")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the manifest {path}: {_reason(error)}") from None
    is_manifest = (
        isinstance(manifest, dict)
        and isinstance(manifest.get("identity"), dict)
        and isinstance(manifest.get("num_questions"), int)
    )
    if not is_manifest:
        raise UserError(f"{path} is not a manifest: it lacks `identity` and `num_questions`")
    return manifest


def table_files(stem: str | Path, manifest: Mapping[str, Any]) -> list[Path]:
    """The files that the table of a result is in, in the order of its rows.

    Raises:
        UserError: the manifest's list of parts is none.
    """
    if "parts" not in manifest:
        return [result_file(stem, ".feather")]
    parts = manifest["parts"]
    named = isinstance(parts, list) and parts
    if not named or not all(isinstance(p, dict) and isinstance(p.get("file"), str) for p in parts):
        raise UserError(f"{result_file(stem, '.json')} does not say which parts there are")
    return [Path(stem).parent / part["file"] for part in parts]


def result_path(stem: str | Path) -> Path:
    """What names a result: the file with its table, or where that is parts, the manifest."""
    with suppress(UserError):
        if "parts" in (read_manifest(stem) or {}):
            return result_file(stem, ".json")
    return result_file(stem, ".feather")


def has_table(stem: str | Path, manifest: Mapping[str, Any]) -> bool:
    """Whether the files are there that the table is in.

    Raises:
        UserError: some are, and others are not.
    """
    paths = table_files(stem, manifest)
    missing = [path for path in paths if not path.exists()]
    if missing and len(missing) < len(paths):
        raise UserError(
            f"{missing[0]} is missing, of {len(paths)} parts that "
            f"{result_file(stem, '.json')} names: put it back, or --overwrite"
        )
    return not missing


def count_finished(stem: str | Path, identity: Mapping[str, Any]) -> int:
    """How many questions the finished result at `stem` has answered, 0 where there is none.

    Args:
        stem: the path without suffix.
        identity: what the run's answers depend on; JSON types.

    Raises:
        UserError: the manifest there has another identity, or cannot be read.
    """
    manifest_path = result_file(stem, ".json")
    try:
        manifest = read_manifest(stem)
    except UserError as error:
        raise UserError(f"{error}; --overwrite or another --output_dir") from None
    if manifest is None or not has_table(stem, manifest):
        return 0
    differences = identity_differences(manifest["identity"], identity)
    if differences:
        raise UserError(
            f"{manifest_path} belongs to another run: {'; '.join(differences)}; "
            "--overwrite or another --output_dir"
        )
    return manifest["num_questions"]


def write_results(
    stem: str | Path,
    frame: "DataFrame",
    manifest: Mapping[str, Any],
    *,
    part_rows: int | None = None,
    same_answers: bool = False,
) -> None:
    """Writes the files of a result, whole or not at all.

    Args:
        frame: one row a question (`per_prompt`: a paraphrase) with at least REQUIRED_COLUMNS.
        part_rows: of each part but the last; None: the table is one file.
        others: see `write_result_tables`.
    """
    table = table_of_frame(frame)
    parts = None if part_rows is None else even_parts(len(table), part_rows)
    write_result_tables(
        stem, [table], table.schema, manifest, part_rows=parts, same_answers=same_answers
    )


def write_result_tables(
    stem: str | Path,
    tables: "Iterable[pyarrow.Table]",
    schema: "pyarrow.Schema",
    manifest: Mapping[str, Any],
    *,
    part_rows: Sequence[int] | None = None,
    same_answers: bool = False,
) -> None:
    """Writes the files of a result, whole or not at all.

    Args:
        stem: the path without suffix; its folder is made.
        tables: the rows, some at a time.
        schema: of all of them, with at least REQUIRED_COLUMNS.
        manifest: with `identity` and `num_questions`; JSON types. Where the table is parts, they
            are added to it.
        part_rows: how many rows each part has; None: the table is one file.
        same_answers: the finished result there only gets further columns or further questions.
            Its manifest holds for any mix of its old and new files, so it stays while the others
            change: a crash must not cost the answers. Where the table was or becomes parts, it
            stays in any case: none of the files that it lists change.

    Raises:
        UserError: the disk is full, a folder cannot be written and the like. No temporary file
            stays. An earlier result stands as it was, or (where a rename itself was refused) counts
            as unfinished.
    """
    missing = [name for name in REQUIRED_COLUMNS if name not in schema.names]
    assert not missing, f"result lacks the columns {missing}"
    assert {"identity", "num_questions"} <= manifest.keys(), sorted(manifest)
    manifest = {name: value for name, value in manifest.items() if name != "parts"}
    seal = result_file(stem, ".json")
    in_parts = part_rows is not None or result_path(stem) == seal
    with replaced_together(seal, keep_seal=same_answers or in_parts) as new:
        if part_rows is None:
            _write_one_file(stem, tables, schema, new)
        else:
            manifest["parts"] = _write_parts(stem, tables, schema, part_rows, new)
        with new(seal) as file:
            file.write(manifest_bytes(manifest))
    remove_unlisted(stem)


def _write_one_file(
    stem: str | Path, tables: "Iterable[pyarrow.Table]", schema: "pyarrow.Schema", new: NewFiles
) -> None:
    path = result_file(stem, ".feather")
    with new(path) as file:
        write_feather(tables, schema, file)
    with new(result_file(stem, ".csv")) as file:
        # What was just written is read again, so that the rows are made once.
        write_csv(feather_tables(temporary_path(path)), schema.names, file)


def _write_parts(
    stem: str | Path,
    tables: "Iterable[pyarrow.Table]",
    schema: "pyarrow.Schema",
    part_rows: Sequence[int],
    new: NewFiles,
) -> list[dict[str, Any]]:
    """The manifest's list of them.

    Their names have a fingerprint of their bytes, so that no part that an earlier manifest lists is
    ever replaced by another.
    """
    folder = result_file(stem, PARTS_SUFFIX)
    pieces = in_pieces(tables, chain.from_iterable(even_parts(n, ROWS_AT_ONCE) for n in part_rows))
    parts = []
    for first, end in pairwise(accumulate(part_rows, initial=0)):
        rows = f"{first:09}-{end:09}"
        unnamed = folder / f"{rows}.parquet"
        with new(unnamed) as file:
            write_parquet(islice(pieces, len(even_parts(end - first, ROWS_AT_ONCE))), schema, file)
        with open(new.temporary[unnamed], "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        path = folder / f"{rows}-{digest[:PART_DIGITS]}.parquet"
        new.rename(unnamed, path)
        parts.append({"file": f"{folder.name}/{path.name}", "rows": end - first})
    assert next(pieces, None) is None, f"more rows than the {sum(part_rows)} of the parts"
    return parts


def even_parts(rows: int, part_rows: int) -> list[int]:
    """How many rows each part has: as many as are asked for, the last one what is left."""
    assert part_rows > 0, part_rows
    return [min(part_rows, rows - first) for first in range(0, rows, part_rows)]


def remove_unlisted(stem: str | Path) -> None:
    """Removes what a result had before it was one file, or parts, or other parts.

    A process that was killed as it wrote may have left both. Nothing goes where no manifest says
    what counts, and what cannot go stays.
    """
    with suppress(UserError, OSError):
        manifest = read_manifest(stem)
        if manifest is None or not has_table(stem, manifest):
            return
        folder, listed = result_file(stem, PARTS_SUFFIX), set(table_files(stem, manifest))
        if "parts" not in manifest:
            if folder.is_dir():
                shutil.rmtree(folder)
            return
        for suffix in (".feather", ".csv"):
            unlink_quietly(result_file(stem, suffix))
        for path in folder.iterdir():
            if path not in listed:
                unlink_quietly(path)


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """A manifest as its file has it."""
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    # The name of a file need not be UTF-8; what is not is written as JSON's own escapes.
    return text.encode(errors="backslashreplace")


def read_results(path: str | Path) -> "DataFrame":
    """Reads a table of predictions, ours or another's.

    Args:
        path: .feather, .parquet, .csv (lists as JSON) or .jsonl; or .json, a result's manifest, for
            whatever files the table is in.

    Returns:
        The table. Cells that are lists are Python lists, nested ones too; missing texts are None.
        From a CSV every column is text but LIST_DEPTHS, `logprob` and `truncated`; there a list
        column's cell that is no list but one text is that text.

    Raises:
        UserError: no such file, another suffix, not what the suffix says, no rows, or one part of
            a table, or a table that the manifest beside it does not mean.
    """
    path = Path(path)
    if path.suffix == ".json":
        manifest = read_manifest(path)
        if manifest is None:
            raise UserError(f"there is no file {path}")
        return _frame_of_objects(_joined(table_files(path.with_suffix(""), manifest)))
    refuse_part(path)
    _refuse_replaced(path)
    columns = read_columns(path)
    if path.suffix.lower() == ".csv":
        try:
            columns = _typed_cells(columns)
        except (ValueError, RecursionError) as error:
            raise UserError(f"cannot read {path}: {_reason(error)}") from None
    return _frame_of_objects(columns)


def refuse_part(path: Path) -> None:
    """Raises UserError where a file is one part of a result: its rows alone say little.

    path: any, such as a part's bare name inside its folder, or a link.
    """
    for folder in (path.parent, path.absolute().parent, path.resolve().parent):
        if folder.suffix == PARTS_SUFFIX and folder.with_suffix(".json").exists():
            raise UserError(
                f"{path} is one part of a result; {folder.with_suffix('.json')} stands for all of "
                "it"
            )


def _refuse_replaced(path: Path) -> None:
    """Raises UserError where a killed process was to replace a result in parts by this file."""
    if path.suffix in (".feather", ".csv"):
        manifest = result_path(path.with_suffix(""))
        if manifest.suffix == ".json":
            raise UserError(f"{path} is unfinished: {manifest} stands for the result, and is parts")


def _joined(paths: Sequence[Path]) -> dict[str, list[Any]]:
    """The columns of files whose rows follow each other."""
    columns = read_columns(paths[0])
    for path in paths[1:]:
        more = read_columns(path)
        if more.keys() != columns.keys():
            raise UserError(f"{path} has other columns than {paths[0]}: they are of two results")
        for name, cells in columns.items():
            cells += more[name]
    return columns


def _typed_cells(columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """What a CSV's texts stand for in the columns whose types are known by name."""
    typed: dict[str, list[Any]] = dict(columns)
    for name in [name for name in columns if name in LIST_DEPTHS]:
        typed[name] = [_parse_list(name, i, cell) for i, cell in enumerate(columns[name], 1)]
    if "logprob" in columns:
        typed["logprob"] = [float(cell) if cell else None for cell in columns["logprob"]]
    if "truncated" in columns:
        truth = {"True": True, "False": False}
        typed["truncated"] = [truth.get(cell, cell) for cell in columns["truncated"]]
    return typed


def _parse_list(name: str, row: int, cell: str) -> Any:
    """A list column's cell. One text, without the bracket of a list, stays a text."""
    if cell == "":
        return None
    if not cell.lstrip().startswith("["):
        return cell
    try:
        return parsed_list(cell)
    except ValueError:
        shown = cell[:SHOWN_CHARACTERS]
        raise ValueError(f"{name} of row {row} is not a JSON list: {shown!r}") from None


def _frame_of_objects(columns: Mapping[str, list[Any]]) -> "DataFrame":
    """Texts and lists stay the Python objects they are; numbers get a dtype of their own."""
    import pandas as pd

    def series(values: list[Any]) -> pd.Series:
        numeric = all(v is None or isinstance(v, (bool, int, float)) for v in values)
        missing = all(v is None for v in values)
        return pd.Series(values, dtype=None if numeric and not missing else object)

    return pd.DataFrame({name: series(values) for name, values in columns.items()})


def _reason(error: Exception) -> str:
    """Why something failed, as one line without the path, which the caller's sentence has.

    A library's text may hold a damaged file's bytes.
    """
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(text.split()) or type(error).__name__
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}..."
