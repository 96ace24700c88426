"""The files that paraphrasing writes: paraphrases, the quality filter's report, the manifest.

Beside `<stem>.jsonl` are `<stem>_report.csv` and the manifest `<stem>.json`, which comes last:
where it stands the file is whole.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from self_ensemble.data import Record
from self_ensemble.data.names import PARAPHRASE_FILE
from self_ensemble.data.result_files import manifest_bytes, result_file, safe_name
from self_ensemble.paraphrasing.report import Filtered, report_csv
from self_ensemble.system.errors import UserError
from self_ensemble.system.replacing import replace_files

SUFFIXES = (".jsonl", "_report.csv", ".json")

# The question's record, its wording, its paraphrases.
Row = tuple[Record, str | None, list[str]]


def output_stem(output: Path | None, folder: Path, dataset_name: str, model_name: str) -> Path:
    """Where the files go, without suffix.

    output: the file itself, as the user gave it; None: in `folder`.
    """
    if output is not None:
        return output.with_name(output.name.removesuffix(".jsonl"))
    folder = folder / safe_name(dataset_name) / safe_name(model_name)
    return folder / PARAPHRASE_FILE.removesuffix(".jsonl")


def refuse_foreign(stem: Path) -> None:
    """Raises UserError where a file of one of the three names is there, which would be replaced."""
    for suffix in SUFFIXES:
        path = result_file(stem, suffix)
        if path.exists():
            raise UserError(
                f"{path} is there already, and this run did not make it; --overwrite replaces it, "
                "or give another --output"
            )


def too_few(rows: Sequence[Row], wanted: int) -> dict[str, int]:
    """How many paraphrases each question has that has fewer than it should."""
    return {record.uuid: len(kept) for record, _, kept in rows if len(kept) < wanted}


def row_line(row: Row) -> str:
    """A line of the file, which --dataset also takes as it is."""
    record, question, paraphrases = row
    fields: dict[str, Any] = {"uuid": record.uuid, "question": question, "paraphrases": paraphrases}
    fields["answers"] = list(record.answers) or None
    fields["relation"] = record.relation
    fields["choices"] = list(record.choices) or None
    return json.dumps({k: v for k, v in fields.items() if v is not None}, ensure_ascii=False)


def write_files(
    stem: Path, rows: Sequence[Row], filtered: Sequence[Filtered], manifest: dict[str, Any]
) -> None:
    """All of them, whole or not at all.

    Raises:
        UserError: the disk is full, the folder cannot be written and the like.
    """
    lines = "".join(row_line(row) + "\n" for row in rows)
    contents = (lines.encode(), report_csv(filtered).encode(), manifest_bytes(manifest))
    paths = [result_file(stem, suffix) for suffix in SUFFIXES]
    replace_files(dict(zip(paths, contents, strict=True)), seal=paths[-1], keep_seal=False)
