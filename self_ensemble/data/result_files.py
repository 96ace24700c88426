"""Result files: their names, their columns, writing them whole, reading them back.

A result is three files with one stem: `<stem>.feather` (the table), `<stem>.csv` (the same for eyes
and spreadsheets, lists as JSON) and `<stem>.json` (the manifest: identity, counts, versions).
The manifest comes last and is taken away first: where it stands the result is whole.
"""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from self_ensemble.data.cells import parsed_list
from self_ensemble.data.identities import (
    SHOWN_CHARACTERS,
    canonical_json,
    identity_differences,
)
from self_ensemble.data.tables import read_rows
from self_ensemble.system.errors import UserError
from self_ensemble.system.files import (
    make_folder,
    sync_folder,
    temporary_path,
    unlink_quietly,
    write_synced,
)

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
# Which columns hold lists, and how deep. A CSV cannot say it, so the names do.
LIST_DEPTHS = {
    **dict.fromkeys(("paraphrases", "answers", "choices", "predict_lemma"), 1),
    **dict.fromkeys(("choice_sum", "choice_mean", "choice_bytes"), 1),
    "answer_lemmas": 2,
}
# Lists of numbers; the others are of texts.
NUMBER_COLUMNS = ("choice_sum", "choice_mean", "choice_bytes")
TEXT_COLUMNS = ("uuid", "prediction", "generation", "paraphrase", "relation")

RESULT_SUFFIXES = (".feather", ".csv", ".json")

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
    if manifest is None or not result_file(stem, ".feather").exists():
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
    same_answers: bool = False,
) -> None:
    """Writes the three files of a result, whole or not at all.

    Args:
        stem: the path without suffix; its folder is made.
        frame: one row a question (`per_prompt`: a paraphrase) with at least REQUIRED_COLUMNS.
        manifest: with `identity` and `num_questions`; JSON types.
        same_answers: the finished result there only gets further columns or further questions.
            Its manifest holds for any mix of its old and new files, so it stays while the others
            change: a crash must not cost the answers.

    Raises:
        UserError: the disk is full, a folder cannot be written and the like. No temporary file
            stays. An earlier result stands as it was, or (where a rename itself was refused) counts
            as unfinished.
    """
    missing = [name for name in REQUIRED_COLUMNS if name not in frame.columns]
    assert not missing, f"result lacks the columns {missing}"
    assert {"identity", "num_questions"} <= manifest.keys(), sorted(manifest)
    table = _result_table(frame)
    contents = {
        result_file(stem, ".feather"): _feather_bytes(table),
        result_file(stem, ".csv"): _csv_bytes(table),
        result_file(stem, ".json"): manifest_bytes(manifest),
    }
    replace_files(contents, seal=result_file(stem, ".json"), keep_seal=same_answers)


def replace_files(contents: Mapping[Path, bytes], *, seal: Path, keep_seal: bool) -> None:
    """Puts all files in place of what is there, with `seal` away while the others change.

    Every byte is on the disk under a temporary name before the first file is touched: what commonly
    fails, fails there and leaves the old files alone. A crash between the renames leaves each file
    old or new, and no seal; with `keep_seal` the old one stays until the new one takes its place.
    """
    folder = seal.parent
    temporary = {path: temporary_path(path) for path in contents}
    path = folder
    try:
        make_folder(folder)
        for path, content in contents.items():
            write_synced(temporary[path], content)
        if not keep_seal:
            path = seal
            seal.unlink(missing_ok=True)
            sync_folder(folder)
        for path in contents:
            if path != seal:
                os.replace(temporary[path], path)
        path = seal
        sync_folder(folder)
        os.replace(temporary[seal], seal)
        sync_folder(folder)
    except OSError as error:
        raise UserError(f"cannot write {path}: {_reason(error)}") from None
    finally:
        for leftover in temporary.values():
            unlink_quietly(leftover)


def _result_table(frame: "DataFrame") -> "pyarrow.Table":
    """The frame with the schema's types; columns that the schema does not know are inferred."""
    import pyarrow as pa

    types = {name: pa.string() for name in TEXT_COLUMNS}
    types |= {"logprob": pa.float64(), "truncated": pa.bool_()}
    for name, depth in LIST_DEPTHS.items():
        types[name] = pa.list_(pa.float64() if name in NUMBER_COLUMNS else pa.string())
        if depth == 2:
            types[name] = pa.list_(types[name])
    columns = {
        name: pa.array(frame[name].tolist(), type=types.get(name), from_pandas=True)
        for name in frame.columns
    }
    for name, column in columns.items():
        assert name in LIST_DEPTHS or not pa.types.is_list(column.type), (
            f"list column {name!r} is not in LIST_DEPTHS, so its CSV could not be read back"
        )
    return pa.table(columns)


def _feather_bytes(table: "pyarrow.Table") -> bytes:
    import pyarrow as pa
    from pyarrow import feather

    sink = pa.BufferOutputStream()
    feather.write_feather(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _csv_bytes(table: "pyarrow.Table") -> bytes:
    """Text is always quoted: then a lone carriage return, a comma or the answer NA survive."""
    columns = table.to_pydict()
    for name in LIST_DEPTHS.keys() & columns.keys():
        columns[name] = [
            None if cell is None else json.dumps(cell, ensure_ascii=False) for cell in columns[name]
        ]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return buffer.getvalue().encode()


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """A manifest as its file has it."""
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    # The name of a file need not be UTF-8; what is not is written as JSON's own escapes.
    return text.encode(errors="backslashreplace")


def read_results(path: str | Path) -> "DataFrame":
    """Reads a table of predictions, ours or another's.

    Args:
        path: .feather, .parquet, .csv (lists as JSON) or .jsonl.

    Returns:
        The table. Cells that are lists are Python lists, nested ones too; missing texts are None.
        From a CSV every column is text but LIST_DEPTHS, `logprob` and `truncated`; there a list
        column's cell that is no list but one text is that text.

    Raises:
        UserError: no such file, another suffix, not what the suffix says, or no rows.
    """
    path = Path(path)
    names, rows = read_rows(path)
    columns: dict[str, list[Any]] = {n: [row.get(n) for _, row in rows] for n in names}
    if path.suffix.lower() == ".csv":
        try:
            columns = _typed_cells(columns)
        except (ValueError, RecursionError) as error:
            raise UserError(f"cannot read {path}: {_reason(error)}") from None
    return _frame_of_objects(columns)


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
