"""A file of predictions as questions: which rows belong together, and what they say of each.

Q questions, N paraphrases: 1 where a row is a question; in a file of `per_prompt`, which has a row
a paraphrase, the most that a question has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from self_ensemble.data.records import indexs_taken
from self_ensemble.data.result_files import read_manifest
from self_ensemble.system.errors import UserError

if TYPE_CHECKING:  # numpy and pandas come after parsing: --help stays quick
    import numpy as np
    from pandas import DataFrame

RELATION_COLUMNS = ("relation", "rel")
SHOWN_ROWS = 5


@dataclass(frozen=True, eq=False)
class ResultTable:
    """A file's rows, grouped by question.

    per_prompt: whether a row is a paraphrase.
    uuids: [Q], or None where the file has none.
    answers: of each row, at least one.
    rows: [Q][up to N] row numbers, in the order of the file.
    identity: what the result depends on, as its manifest says; empty where there is none.
    indexs: what --indexs chose, where the manifest says it.
    """

    path: str
    frame: "DataFrame"
    per_prompt: bool
    uuids: list[str] | None
    answers: list[list[str]]
    rows: list[list[int]]
    identity: Mapping[str, Any]
    indexs: tuple[int, ...] | None

    def lists(self, values: Sequence[Any]) -> list[list[Any]]:
        """[Q][up to N] of a value a row."""
        return [[values[i] for i in group] for group in self.rows]

    def array(self, values: Sequence[Any]) -> "np.ndarray":
        """[Q, N] of a value a row; zeros for paraphrases that a question lacks."""
        import numpy as np

        found = np.zeros((len(self.rows), max(map(len, self.rows))), np.array(values).dtype)
        for q, group in enumerate(self.rows):
            found[q, self._places(len(group))] = [values[i] for i in group]
        return found

    def _places(self, count: int) -> list[int]:
        """Which of the N paraphrases a question with so many has."""
        if self.per_prompt and self.indexs is not None:
            return [self.indexs.index(i) for i in indexs_taken(self.indexs, count)]
        return list(range(count))

    def of_questions(self, column: str) -> list[str]:
        """[Q] a column's value for each question, as text.

        Raises:
            UserError: there is no such column, or its value is a list, or not one for a question.
        """
        check_columns(self.frame, [column], self.path)
        cells = self.frame[column].tolist()
        for group in self.rows:
            for i in group:
                where = f"{self.path}, row {i + 1}: {column} is"
                if isinstance(cells[i], (list, dict)):
                    raise UserError(f"{where} a list: {cells[i]!r}")
                if str(cells[i]) != str(cells[group[0]]):
                    raise UserError(
                        f"{where} {cells[i]!r}, but {cells[group[0]]!r} in row {group[0] + 1} of "
                        "the same question"
                    )
        first = [cells[group[0]] for group in self.rows]
        return ["(none)" if is_missing(cell) else str(cell) for cell in first]

    def relations(self) -> list[str] | None:
        """[Q] the kind of fact that is asked, or None where rows carry none."""
        for name in RELATION_COLUMNS:
            if name in self.frame.columns and all(isinstance(c, str) for c in self.frame[name]):
                return self.of_questions(name)
        return None

    def wordings(self) -> list[list[str]]:
        """[Q][any number] how each question was asked, as far as the columns tell."""
        if self.per_prompt:
            return [
                [str(cell) for cell in g] for g in self.lists(self.frame["paraphrase"].tolist())
            ]
        for name in ("paraphrases", "question"):
            if name in self.frame.columns:
                cells = self.frame[name].tolist()
                listed = [cells[group[0]] for group in self.rows]
                return [c if is_texts(c) else [] if is_missing(c) else [str(c)] for c in listed]
        return [[] for _ in self.rows]


def result_table(frame: "DataFrame", path: str, *, needs: Sequence[str]) -> ResultTable:
    """A file's rows, grouped.

    needs: columns besides `answers` without which it cannot be scored.

    Raises:
        UserError: a column or answers are missing, or uuids do not say which rows belong together.
    """
    check_columns(frame, (*needs, "answers"), path)
    answers = _answers(frame["answers"].tolist(), path)
    uuids = _uuids(frame["uuid"].tolist(), path) if "uuid" in frame.columns else None
    # A column `paraphrase` in a file without uuids says nothing about which rows belong together.
    per_prompt = uuids is not None and "paraphrase" in frame.columns
    rows = [[i] for i in range(len(answers))]
    if uuids is not None:
        rows = _rows_of_questions(uuids, path, per_prompt=per_prompt)
    identity = _identity(path)
    indexs = _indexs(identity)
    if per_prompt and indexs is not None and len(indexs) != max(map(len, rows)):
        indexs = None  # the manifest is of another file
    return ResultTable(
        path=path,
        frame=frame,
        per_prompt=per_prompt,
        uuids=None if uuids is None else list(dict.fromkeys(uuids)),
        answers=answers,
        rows=rows,
        identity=identity,
        indexs=indexs,
    )


def check_columns(frame: "DataFrame", names: Sequence[str], path: str) -> None:
    """Raises UserError where the table lacks one of the columns."""
    missing = [f"`{name}`" for name in names if name not in frame.columns]
    if missing:
        found = ", ".join(map(str, frame.columns))
        raise UserError(f"{path} lacks the column {' and '.join(missing)}; it has {found}")


def _answers(cells: Sequence[Any], path: str) -> list[list[str]]:
    """Of each row, one text standing for a list of one."""
    rows = []
    for i, cell in enumerate(cells, 1):
        listed = [] if is_missing(cell) else [cell] if isinstance(cell, str) else cell
        if not is_texts(listed):
            raise UserError(f"{path}, row {i}: answers is not a list of texts: {cell!r}")
        rows.append(listed)
    without = [i for i, answers in enumerate(rows, 1) if not answers]
    if without:
        shown = ", ".join(map(str, without[:SHOWN_ROWS]))
        more = len(without) - SHOWN_ROWS
        raise UserError(
            f"{path}, row{'s' * (len(without) > 1)} {shown}{f' and {more} more' * (more > 0)}: no "
            f"answers, without which {len(without)} of {len(rows)} predictions cannot be scored; "
            "the column `answers` is to hold what is right"
        )
    return rows


def _uuids(cells: Sequence[Any], path: str) -> list[str]:
    for i, cell in enumerate(cells, 1):
        if is_missing(cell) or cell == "":
            raise UserError(f"{path}, row {i}: no uuid")
    return [str(cell) for cell in cells]


def _rows_of_questions(uuids: Sequence[str], path: str, *, per_prompt: bool) -> list[list[int]]:
    rows: dict[str, list[int]] = {}
    for i, uuid in enumerate(uuids):
        rows.setdefault(uuid, []).append(i)
    for uuid, group in rows.items():
        if not per_prompt and len(group) > 1:
            numbers = f"{group[0] + 1} and {group[1] + 1}"
            raise UserError(f"{path}: uuid {uuid} stands twice, in rows {numbers}")
    return list(rows.values())


def _identity(path: str) -> Mapping[str, Any]:
    try:
        manifest = read_manifest(path)
    except UserError:  # beside a table of somebody else's may lie any file of that name
        return {}
    return {} if manifest is None else manifest["identity"]


def _indexs(identity: Mapping[str, Any]) -> tuple[int, ...] | None:
    """What --indexs chose: the identity has them as a list, and else a number of paraphrases."""
    chosen = identity.get("paraphrases")
    if isinstance(chosen, list) and all(isinstance(index, int) for index in chosen):
        return tuple(chosen)
    return None


def is_texts(cell: Any) -> bool:
    return isinstance(cell, list) and all(isinstance(text, str) for text in cell)


def is_missing(cell: Any) -> bool:
    return cell is None or cell != cell  # NaN differs from itself
