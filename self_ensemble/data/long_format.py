"""Tables with a row a wording: how their columns are read, and rows gathered into questions.

    id,question,possible_answers                       id 7, paraphrases ["Capital of Peru?",
    7,Capital of Peru?,"[""Lima""]"            ──▶      "Peru's capital?"], answers ["Lima"]
    7,Peru's capital?,"[""Lima""]"

    columns, rows = gather("f.csv", columns, rows, Columns(group_by="id"))

What comes out is a table with a row a question, as `question_files` takes it: so both forms of the
same data give the same records, and the same fingerprint.

Rows need not stand together. Questions keep the order of their first rows, and wordings that of
theirs. What belongs to the question (answers, choices, relation, and its original wording) must be
the same in all of its rows: the same answers in another order are. A wording that a question has
twice is asked twice, as in a list, and told of.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
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
    show_names,
)
from self_ensemble.data.choice_columns import (
    ANSWER_COLUMNS,
    ANSWER_INDEX,
    CHOICES,
    answers_of,
    choices_of,
)
from self_ensemble.data.tables import Row
from self_ensemble.system.console import say
from self_ensemble.system.errors import UserError

# In which column a row's wording is looked for, where nothing is said.
WORDING_COLUMNS = ("paraphrase", "question")
# What holds several wordings of a row, in a table with a row a question.
LIST_COLUMNS = ("paraphrases", "manual_paraphrases", "auto_paraphrases")
# What is the question's, and no wording's.
SHARED_COLUMNS = (*ANSWER_COLUMNS, CHOICES, ANSWER_INDEX, "relation", "rel", "question")
# From here on not every whole number is a float.
EXACT = 2**53


@dataclass(frozen=True, kw_only=True)
class Columns:
    """How a table's columns are read, where it is not as `question_files` has it.

    Args:
        group_by: the column whose value all rows of one question share; None: a row a question.
        paraphrase_column: with `group_by`, each row's wording, as a text (None: `paraphrase`, else
            `question`); without it, a list of wordings or one.
        answer_column: what counts as right (None: `answers`, else `answer`).
        where: pairs of a column and a value. Rows are left out whose column has none of the values
            that are given for it.
    """

    group_by: str | None = None
    paraphrase_column: str | None = None
    answer_column: str | None = None
    where: tuple[tuple[str, str], ...] = ()

    @property
    def named(self) -> list[tuple[str, str]]:
        """Each flag that names a column, and the column."""
        flags = ("group_by", "paraphrase_column", "answer_column")
        given = [(flag, getattr(self, flag)) for flag in flags if getattr(self, flag) is not None]
        return given + [("where", column) for column, _ in self.where]

    def is_used(self, column: str) -> bool:
        """Whether it is one of the columns that are named, or may be looked for."""
        may_be_wording = self.group_by is not None and column in WORDING_COLUMNS
        return may_be_wording or any(column == name for _, name in self.named)

    @property
    def suffix(self) -> str:
        """Of a dataset's name: which of the rows are taken. A slash would make it a path."""
        return "".join(f"-{value.replace('/', '_')}" for _, value in self.where)

    def read(
        self, source: Path | str, columns: list[str], rows: list[Row]
    ) -> tuple[list[str], list[Row]]:
        """The table in the columns of `question_files`, with a row a question.

        Raises:
            UserError: a column is not there, no row is left, or rows of one question disagree.
        """
        for flag, name in self.named:
            if name not in columns:
                raise UserError(
                    f"--{flag}: {source} has no column {show(name)}; its columns are "
                    f"{show_names(columns)}"
                )
        if self.group_by in (*ANSWER_COLUMNS, ANSWER_INDEX, self.answer_column or "answers"):
            raise UserError(
                f"--group_by {show_name(self.group_by)}: questions of one answer are not one "
                "question; give the column that tells questions apart"
            )
        if self.paraphrase_column is not None and self.paraphrase_column == self.answer_column:
            raise UserError(
                f"--paraphrase_column and --answer_column are both {show_name(self.answer_column)}"
            )
        rows = _chosen(source, rows, self.where)
        if self.answer_column is not None:
            columns, rows = _answers_renamed(columns, rows, self.answer_column)
        if self.group_by is not None:
            return gather(source, columns, rows, self)
        if self.paraphrase_column is not None:
            return _with_wordings(columns, rows, self.paraphrase_column)
        return columns, rows


def _chosen(source: Path | str, rows: list[Row], where: Sequence[tuple[str, str]]) -> list[Row]:
    """The rows that have one of the values given for each column."""
    wanted: dict[str, list[str]] = {}
    for column, value in where:
        wanted.setdefault(column, []).append(value)
    for column, values in wanted.items():
        there = {_as_typed(row.get(column)): None for _, row in rows}
        for value in values:
            if value not in there:
                raise UserError(
                    f"--where: no row of {source} has {column}={value}; its values there are "
                    f"{show_names(sorted(there))}"
                )
    left = [
        (place, row)
        for place, row in rows
        if all(_as_typed(row.get(column)) in values for column, values in wanted.items())
    ]
    if not left:
        raise UserError(
            f"--where: no row of {source} has {' and '.join(f'{c}={v}' for c, v in where)} at once"
        )
    return left


def _as_typed(value: Any) -> str:
    """A cell as it is typed at a command line."""
    if is_missing(value):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _answers_renamed(
    columns: list[str], rows: list[Row], column: str
) -> tuple[list[str], list[Row]]:
    """The column as `answers`; others that hold texts which are right are left out."""
    kept = [name for name in columns if name not in (column, *ANSWER_COLUMNS)]
    renamed = []
    for where, row in rows:
        cells = {name: row[name] for name in kept if name in row}
        renamed.append((where, {**cells, "answers": row.get(column)}))
    return [*kept, "answers"], renamed


def _with_wordings(columns: list[str], rows: list[Row], column: str) -> tuple[list[str], list[Row]]:
    """A list of wordings becomes `paraphrases`, and one wording the list of it alone."""
    kept = [name for name in columns if name not in (column, "paraphrases")]
    found = []
    for where, row in rows:
        value = row.get(column)
        if isinstance(value, str) and not looks_like_list(value):
            value = [checked_single(value, column, where)]
        if is_missing(value) or not is_empty(value):  # an empty list: a question without wordings
            value = list(checked_texts(value, column, where))
        cells = {name: row[name] for name in kept if name in row}
        found.append((where, {**cells, "paraphrases": value}))
    return [*kept, "paraphrases"], found


# Nothing has another name, and a row is a question.
PLAIN = Columns()


@dataclass
class _Group:
    """The rows of a question: its id, first place and row, and each wording with its place."""

    id: Any
    where: str
    row: dict[str, Any]
    wordings: list[tuple[str, str]] = field(default_factory=list)


def gather(
    source: Path | str, columns: list[str], rows: list[Row], how: Columns
) -> tuple[list[str], list[Row]]:
    """The rows of a question become one row, at the place of the first of them.

    The value of `how.group_by` becomes the uuid. Where that column is the question itself, the uuid
    is made from it as elsewhere.

    Raises:
        UserError: a row has no id or no wording, or says something else than the first row of its
            question.
    """
    by = how.group_by
    assert by is not None
    wording = _wording_column(source, columns, how)
    shared = [name for name in SHARED_COLUMNS if name in columns and name != wording]
    groups: dict[str, _Group] = {}
    for where, row in rows:
        value = row.get(by)
        # One id in two spellings, 7 and "7 ", would be two questions in silence.
        group = groups.setdefault(_spelling(_label(value, by, where)), _Group(value, where, row))
        if isinstance(value, str) != isinstance(group.id, str) or value != group.id:
            raise UserError(
                f"{where}: {by} is {show(value)}, and {show(group.id)} in {group.where}: write the "
                "id of a question in one way"
            )
        _check_agrees(row, where, group, shared, by)
        group.wordings.append((where, checked_single(row.get(wording), wording, where)))
    _tell(source, list(groups.values()), by)
    gathered = []
    for group in groups.values():
        cells = {name: group.row[name] for name in shared if name in group.row}
        if by != "question":
            cells["uuid"] = _label(group.id, by, group.where)
        texts = [text for _, text in group.wordings]
        gathered.append((group.where, {**cells, "paraphrases": texts}))
    return [*shared, "uuid", "paraphrases"], gathered


def _wording_column(source: Path | str, columns: Sequence[str], how: Columns) -> str:
    found = how.paraphrase_column
    if found is None:
        there = [name for name in WORDING_COLUMNS if name in columns and name != how.group_by]
        if not there:
            raise UserError(
                f"--group_by: {source} has no column {' or '.join(WORDING_COLUMNS)} with the "
                f"wordings; --paraphrase_column names it, of {show_names(columns)}"
            )
        found = there[0]
        lists = [name for name in (*LIST_COLUMNS, "paraphrase0") if name in columns]
        if found == "question" and lists:  # which would be left out in silence
            raise UserError(
                f"--group_by: {source} has several wordings a row, in {lists[0]}: leave --group_by "
                "out, or name the column of one wording with --paraphrase_column"
            )
    if found == how.group_by:
        raise UserError(
            f"--group_by {show_name(found)}: the same column has the wordings, which differ within "
            "a question; give the column that tells questions apart"
        )
    return found


def _label(value: Any, column: str, where: str) -> str:
    """An id as text: 7 and 7.0, as tables with gaps have it, are "7", and "007" is "007"."""
    if is_missing(value):
        raise UserError(f"{where}: {column} is empty: nothing says which question the row is of")
    if isinstance(value, float) and value.is_integer():
        if abs(value) >= EXACT:
            raise UserError(
                f"{where}: {column} is {show(value)}, a number that has lost its last digits: "
                "write ids as texts"
            )
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(
            f"{where}: {column} must be a text or a whole number, to tell questions apart; found "
            f"{show(value)}"
        )
    label = checked_label(value, column, where)
    assert label is not None, value
    return label


def _spelling(label: str) -> str:
    """What ids that differ in how they are written have in common.

    "7.0" is 7 of a table that had a gap once, and an accent is a character or behind one.
    """
    text = unicodedata.normalize("NFC", label.strip())
    return re.sub(r"\A(-?[0-9]+)\.0+\Z", r"\1", text)


def _check_agrees(
    row: dict[str, Any], where: str, group: _Group, shared: Sequence[str], by: str
) -> None:
    """Raises UserError where the row says something else of the question than the first."""
    if all(row.get(name) == group.row.get(name) for name in shared):
        return
    first = f"{group.where}, which has the same {by}"
    remedy = "rows of one question must agree, and --where leaves rows out"
    here, there = _said(row, where, shared), _said(group.row, group.where, shared)
    for answer in here.answers:
        if answer not in there.answers:
            raise UserError(f"{where}: the answer {show(answer)} is none in {first}: {remedy}")
    for answer in there.answers:
        if answer not in here.answers:
            raise UserError(f"{where} lacks the answer {show(answer)} of {first}: {remedy}")
    for name in ("choices", "relation", "question"):
        ours, theirs = getattr(here, name), getattr(there, name)
        if ours != theirs:
            raise UserError(
                f"{where}: {name} is {_shown(ours)}, and {_shown(theirs)} in {first}: {remedy}"
            )


@dataclass(frozen=True)
class _Said:
    """What a row says of its question."""

    answers: tuple[str, ...]
    choices: tuple[str, ...]
    relation: str | None
    question: str | None


def _said(row: dict[str, Any], where: str, shared: Sequence[str]) -> _Said:
    choices = choices_of(row, where)
    relation_column = "rel" if is_missing(row.get("relation")) else "relation"
    question = row.get("question") if "question" in shared else None
    return _Said(
        answers_of(row, choices, where),
        choices,
        checked_label(row.get(relation_column), relation_column, where),
        None if is_missing(question) else checked_text(question, "question", where),
    )


def _shown(value: Any) -> str:
    return "none" if not value else show(list(value) if isinstance(value, tuple) else value)


def _tell(source: Path | str, groups: Sequence[_Group], by: str) -> None:
    """What is read, and may not be meant."""
    if len(groups) > 1 and all(len(group.wordings) == 1 for group in groups):
        say(f"{source}: no two rows have the same {by}: each is a question of one wording")
    doubled = []
    for group in groups:
        seen: dict[str, str] = {}
        for where, text in group.wordings:
            if text in seen:
                doubled.append((where, seen[text]))
                break
            seen[text] = where
    if doubled:
        questions = "1 question has" if len(doubled) == 1 else f"{len(doubled)} questions have"
        say(
            f"{questions} a wording more than once, such as {doubled[0][0]} and {doubled[0][1]}: "
            "it is asked as often as it stands there"
        )
