"""Files of questions, and of few-shot demonstrations, as records.

A file is .parquet, .feather, .jsonl or .csv (UTF-8, commas, a header; a list is written as JSON).
Its columns:

* `answers` (a list, or one text) or `answer`; in no row, where questions are only to be answered;
* if there: `choices` (a list of two or more texts); `answer_index` (a whole number or a list of
  them, counted from 0) says which of them are right, instead of `answers`;
* the paraphrases, from the first of these that a row has: `paraphrases` (a list);
  `manual_paraphrases` followed by `auto_paraphrases` (lists); `paraphrase0`, `paraphrase1`, …;
  `question`, which then is the only wording. An empty list, or a row of `paraphrase0`, … without
  any, is a question without paraphrases;
* if there: `question` (what the method `origin` asks), `uuid`, `relation` or `rel`. Without `uuid`
  it is the first 32 hex digits of the question's sha256 (where there is no question, of the first
  paraphrase with the answers), and where rows share it, of it and the choices.

A list may also be written as Python prints it. Columns of other names, and files with a row a
wording, are read by `Columns`: see long_format.py.
"""

import re
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from self_ensemble.data.cells import (
    checked_label,
    checked_single,
    checked_text,
    checked_texts,
    is_empty,
    is_missing,
    looks_like_list,
    show,
    show_name,
)
from self_ensemble.data.choice_columns import (
    ANSWER_COLUMNS,
    ANSWER_INDEX,
    CHOICES,
    answers_of,
    choices_of,
)
from self_ensemble.data.foreign_columns import (
    GivenAnswers,
    check_answers_are_texts,
    check_right_columns,
    renaming,
)
from self_ensemble.data.long_format import LIST_COLUMNS, PLAIN, Columns
from self_ensemble.data.names import DEFAULT_INSTRUCTION
from self_ensemble.data.records import (
    Dataset,
    FewShot,
    Record,
    check_all_or_none_answered,
    check_choices,
    compact_json,
    question_uuid,
)
from self_ensemble.data.tables import Row, read_rows, require_columns
from self_ensemble.system.errors import UserError

OTHER_COLUMNS = ("question", "uuid", "relation", "rel", CHOICES, ANSWER_INDEX)
NUMBERED_COLUMN = re.compile(r"paraphrase(0|[1-9][0-9]*)")


def load_question_file(path: Path, how: Columns = PLAIN) -> Dataset:
    """A user's own file (its columns: top of this module), named by the file.

    how: what its columns are called, and whether a row is a wording.

    Raises:
        UserError: one sentence that names file, row and uuid, for anything that is not as it
            should be.
    """
    is_used = partial(is_question_column, how=how)
    records = records_of(path, *how.read(path, *read_rows(path, is_used=is_used)))
    return Dataset(path.stem + how.suffix, records, instruction=DEFAULT_INSTRUCTION)


def read_question_rows(path: Path) -> tuple[list[str], list[Row]]:
    """The columns of a file, and its rows with those that questions are made of."""
    return read_rows(path, is_used=is_question_column)


def is_question_column(column: str, how: Columns = PLAIN) -> bool:
    """Whether questions are made of it."""
    return (
        column in (*ANSWER_COLUMNS, *LIST_COLUMNS, *OTHER_COLUMNS)
        or how.is_used(column)
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
    require_columns(path, columns, ("question", "paraphrases"), or_else=renaming(columns))
    require_columns(path, columns, (*ANSWER_COLUMNS, ANSWER_INDEX), or_else=renaming(columns))
    shots, given = [], []
    for where, row in rows:
        shot = demonstration(where, row)
        shots.append(shot)
        given.append(
            _given_answers(row, where, (shot.question,), choices_of(row, where), (shot.answer,))
        )
    check_answers_are_texts(columns, [each for each in given if each is not None])
    return tuple(shots)


def demonstration(where: str, row: dict[str, Any]) -> FewShot:
    """A row as `load_few_shot` takes it."""
    if is_missing(row.get("question")):
        question = checked_texts(row.get("paraphrases"), "paraphrases", where)[0]
    else:
        question = checked_text(row["question"], "question", where)
    choices = choices_of(row, where)
    if is_missing(row.get("answer")) or choices:
        answers = answers_of(row, choices, where)
        if not answers:
            raise UserError(f"{where} has no answers")
        answer = answers[0]
    else:
        answer = checked_text(row["answer"], "answer", where)
    return FewShot(question=question, answer=answer)


def records_of(
    source: Path | str, columns: list[str], rows: list[Row], *, needs_answers: bool = False
) -> list[Record]:
    """The rows as records, each checked, no uuid twice; with `needs_answers` each has some.

    Raises UserError, one sentence that names row and uuid, or `source` where a column lacks.
    """
    numbered = _numbered_columns(source, columns)
    if not numbered:
        wordings = (*LIST_COLUMNS, "paraphrase0", "question")
        require_columns(source, columns, wordings, or_else=renaming(columns))
    if needs_answers:
        require_columns(source, columns, (*ANSWER_COLUMNS, ANSWER_INDEX))
    check_right_columns(source, columns)
    records = []
    for number, (where, row) in enumerate(rows):
        record = _record(row, numbered, where, number)
        if needs_answers and not record.answers:
            raise UserError(f"{where} has no answers")
        records.append(record)
    check_all_or_none_answered(records)
    check_choices(records)
    if any(r.choices for r in records) or all(_is_bare(row) for _, row in rows):
        given = [
            _given_answers(row, r.where, (r.question or "", *r.paraphrases), r.choices, r.answers)
            for r, (_, row) in zip(records, rows, strict=True)
        ]
        check_answers_are_texts(columns, [each for each in given if each is not None])
    own = [not is_missing(row.get("uuid")) for _, row in rows]
    records = _told_apart_by_choices(records, own)
    _check_uuids(records, own)
    return records


def _given_answers(
    row: dict[str, Any],
    where: str,
    wordings: tuple[str, ...],
    choices: tuple[str, ...],
    answers: tuple[str, ...],
) -> GivenAnswers | None:
    """The answers of a row, which are texts; None where there are none, or numbers say it."""
    if not answers or not is_empty(row.get(ANSWER_INDEX)):
        return None
    return GivenAnswers(where, wordings, choices, answers, _is_bare(row))


def _is_bare(row: dict[str, Any]) -> bool:
    """Whether no cell holds a list of answers, but one text or nothing."""
    value = row.get("answer") if is_empty(row.get("answers")) else row["answers"]
    return is_empty(value) or (isinstance(value, str) and not looks_like_list(value))


def _told_apart_by_choices(records: list[Record], own: list[bool]) -> list[Record]:
    """Of questions without a uuid that have the same text, the choices are a part of it.

    Files of choices ask `Which of these is true?` many times. own: which have their own uuid.
    """
    made = Counter(r.uuid for r, is_own in zip(records, own, strict=True) if not is_own)
    return [
        replace(record, uuid=question_uuid(compact_json([record.uuid, record.choices])))
        if made[record.uuid] > 1 and record.choices and not is_own
        else record
        for record, is_own in zip(records, own, strict=True)
    ]


def _check_uuids(records: list[Record], own: list[bool]) -> None:
    seen: dict[str, Record] = {}
    for record, is_own in zip(records, own, strict=True):
        if record.uuid in seen:
            if is_own:
                problem = f"has the uuid {show_name(record.uuid)}"
            else:
                asked = record.question or (record.paraphrases or ("nothing",))[0]
                problem = f"asks {show(asked)}, without a uuid of its own,"
            raise UserError(f"{record.place} {problem} like {seen[record.uuid].place}")
        seen[record.uuid] = record


def _record(row: dict[str, Any], numbered: list[str], where: str, number: int) -> Record:
    place = where
    uuid = checked_label(row.get("uuid"), "uuid", where)
    if uuid is not None:
        where = f"{where} (uuid {show_name(uuid)})"
    relation_column = "rel" if is_missing(row.get("relation")) else "relation"
    relation = checked_label(row.get(relation_column), relation_column, where)
    question = row.get("question")
    question = None if is_missing(question) else checked_single(question, "question", where)
    choices = choices_of(row, where)
    answers = answers_of(row, choices, where)
    paraphrases = _paraphrases(row, numbered, question, where)
    if uuid is None:
        # Two rows may share their first wording and differ in what is right. One that asks nothing
        # is told from others by its number.
        first = paraphrases[0] if paraphrases else number
        uuid = question_uuid(question or compact_json([first, *answers]))
    return Record(uuid, paraphrases, answers, question, relation, choices, place)


def _paraphrases(
    row: dict[str, Any], numbered: list[str], question: str | None, where: str
) -> tuple[str, ...]:
    if not is_missing(row.get("paraphrases")):
        if is_empty(row["paraphrases"]):
            return ()
        return checked_texts(row["paraphrases"], "paraphrases", where)
    pooled: tuple[str, ...] = ()
    lists = [row.get(column) for column in ("manual_paraphrases", "auto_paraphrases")]
    for column, value in zip(("manual_paraphrases", "auto_paraphrases"), lists, strict=True):
        if not is_empty(value):
            pooled += checked_texts(value, column, where)
    if pooled:
        return pooled
    # A row of a wide table has fewer wordings than the widest where its last cells are empty.
    cells = [row.get(column) for column in numbered]
    while cells and is_missing(cells[-1]):
        cells.pop()
    if cells:
        return tuple(checked_single(cell, f"paraphrase{i}", where) for i, cell in enumerate(cells))
    if question is not None:
        return (question,)
    if numbered or not all(map(is_missing, lists)):
        return ()
    raise UserError(f"{where} has no paraphrases and no question")


def _numbered_columns(source: Path | str, columns: list[str]) -> list[str]:
    """paraphrase0, paraphrase1, … in order of their numbers."""
    numbers = sorted(int(m[1]) for c in columns if (m := NUMBERED_COLUMN.fullmatch(c)))
    for expected, number in enumerate(numbers):
        if number != expected:
            raise UserError(f"{source} has a column paraphrase{number} but no paraphrase{expected}")
    return [f"paraphrase{number}" for number in numbers]
