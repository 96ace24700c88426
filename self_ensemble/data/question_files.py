"""Files of questions, and of few-shot demonstrations, as records.

A file is .parquet, .feather, .jsonl or .csv (UTF-8, commas, a header; a list is written as JSON).
Its columns:

* `answers` (a list, or one text) or `answer`;
* the paraphrases, from the first of these that a row has: `paraphrases` (a list);
  `manual_paraphrases` followed by `auto_paraphrases` (lists); `paraphrase0`, `paraphrase1`, …;
  `question`, which then is the only wording;
* if there: `question` (what the method `origin` asks), `uuid`, `relation` or `rel`. Without `uuid`
  it is the first 32 hex digits of the question's sha256 (where there is no question, of the first
  paraphrase with the answers).
"""

import re
from pathlib import Path
from typing import Any

from self_ensemble.data.cells import (
    checked_label,
    checked_text,
    checked_texts,
    is_missing,
    looks_like_list,
    show,
    show_name,
)
from self_ensemble.data.names import DEFAULT_INSTRUCTION
from self_ensemble.data.records import Dataset, FewShot, Record, compact_json, question_uuid
from self_ensemble.data.tables import Row, read_rows, require_columns
from self_ensemble.system.errors import UserError

ANSWER_COLUMNS = ("answers", "answer")
LIST_COLUMNS = ("paraphrases", "manual_paraphrases", "auto_paraphrases")
OTHER_COLUMNS = ("question", "uuid", "relation", "rel")
NUMBERED_COLUMN = re.compile(r"paraphrase(0|[1-9][0-9]*)")


def load_question_file(path: Path) -> Dataset:
    """A user's own file (its columns: top of this module), named by the file.

    Raises:
        UserError: one sentence that names file, row and uuid, for anything that is not as it
            should be.
    """
    records = records_of(path, *read_question_rows(path))
    return Dataset(name=path.stem, records=records, instruction=DEFAULT_INSTRUCTION)


def read_question_rows(path: Path) -> tuple[list[str], list[Row]]:
    """The columns of a file, and its rows with those that questions are made of."""
    return read_rows(path, is_used=_is_used)


def _is_used(column: str) -> bool:
    return (
        column in (*ANSWER_COLUMNS, *LIST_COLUMNS, *OTHER_COLUMNS)
        or NUMBERED_COLUMN.fullmatch(column) is not None
    )


def load_few_shot(path: Path) -> tuple[FewShot, ...]:
    """Few-shot demonstrations from a jsonl file (any file of questions will do).

    `question`, or the first of `paraphrases`; `answer`, or the first of `answers`.

    Raises:
        UserError: as `load_question_file`.
    """
    path = Path(path)
    columns, rows = read_question_rows(path)
    require_columns(path, columns, ("question", "paraphrases"))
    require_columns(path, columns, ANSWER_COLUMNS)
    return tuple(demonstration(where, row) for where, row in rows)


def demonstration(where: str, row: dict[str, Any]) -> FewShot:
    """A row as `load_few_shot` takes it."""
    if is_missing(row.get("question")):
        question = checked_texts(row.get("paraphrases"), "paraphrases", where)[0]
    else:
        question = checked_text(row["question"], "question", where)
    if is_missing(row.get("answer")):
        answer = _answers(row, where)[0]
    else:
        answer = checked_text(row["answer"], "answer", where)
    return FewShot(question=question, answer=answer)


def records_of(source: Path | str, columns: list[str], rows: list[Row]) -> list[Record]:
    """The rows as records, each checked, no uuid twice.

    Raises UserError, one sentence that names row and uuid, or `source` where a column lacks.
    """
    numbered = _numbered_columns(source, columns)
    require_columns(source, columns, ANSWER_COLUMNS)
    if not numbered:
        require_columns(source, columns, (*LIST_COLUMNS, "paraphrase0", "question"))
    records = []
    places: dict[str, str] = {}
    for where, row in rows:
        record = _record(row, numbered, where)
        if record.uuid in places:
            if is_missing(row.get("uuid")):
                asked = record.question or record.paraphrases[0]
                problem = f"asks {show(asked)}, without a uuid of its own,"
            else:
                problem = f"has the uuid {show_name(record.uuid)}"
            raise UserError(f"{where} {problem} like {places[record.uuid]}")
        places[record.uuid] = where
        records.append(record)
    return records


def _record(row: dict[str, Any], numbered: list[str], where: str) -> Record:
    uuid = checked_label(row.get("uuid"), "uuid", where)
    if uuid is not None:
        where = f"{where} (uuid {show_name(uuid)})"
    relation_column = "rel" if is_missing(row.get("relation")) else "relation"
    relation = checked_label(row.get(relation_column), relation_column, where)
    question = row.get("question")
    question = None if is_missing(question) else checked_text(question, "question", where)
    answers = _answers(row, where)
    paraphrases = _paraphrases(row, numbered, question, where)
    if uuid is None:
        # Two rows may share their first wording and differ in what is right.
        content = compact_json([paraphrases[0], *answers]) if question is None else question
        uuid = question_uuid(content)
    return Record(uuid, paraphrases, answers, question, relation)


def _answers(row: dict[str, Any], where: str) -> tuple[str, ...]:
    column = "answer" if is_missing(row.get("answers")) else "answers"
    value = row.get(column)
    if is_missing(value):
        raise UserError(f"{where} has no answers")
    if isinstance(value, str) and not looks_like_list(value):
        return (checked_text(value, column, where),)
    if not isinstance(value, (str, list)):
        raise UserError(f"{where}: {column} must be a text or a list of texts, found {show(value)}")
    return checked_texts(value, column, where)


def _paraphrases(
    row: dict[str, Any], numbered: list[str], question: str | None, where: str
) -> tuple[str, ...]:
    if not is_missing(row.get("paraphrases")):
        return checked_texts(row["paraphrases"], "paraphrases", where)
    pooled: tuple[str, ...] = ()
    for column in ("manual_paraphrases", "auto_paraphrases"):
        value = row.get(column)
        if not is_missing(value) and value not in ([], "[]"):
            pooled += checked_texts(value, column, where)
    if pooled:
        return pooled
    # A row of a wide table has fewer wordings than the widest where its last cells are empty.
    cells = [row.get(column) for column in numbered]
    while cells and is_missing(cells[-1]):
        cells.pop()
    if cells:
        return tuple(checked_text(cell, f"paraphrase{i}", where) for i, cell in enumerate(cells))
    if question is not None:
        return (question,)
    raise UserError(f"{where} has no paraphrases and no question")


def _numbered_columns(source: Path | str, columns: list[str]) -> list[str]:
    """paraphrase0, paraphrase1, … in order of their numbers."""
    numbers = sorted(int(m[1]) for c in columns if (m := NUMBERED_COLUMN.fullmatch(c)))
    for expected, number in enumerate(numbers):
        if number != expected:
            raise UserError(f"{source} has a column paraphrase{number} but no paraphrase{expected}")
    return [f"paraphrase{number}" for number in numbers]
