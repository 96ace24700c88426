"""A file of predictions, scored by every matcher.

Matchers say whether a prediction is right: `exact` (normalised, it is an answer), `first_token`
(its first word is an answer's), `one_way` (an answer's lemmas are a contiguous run of its lemmas),
`two_way` (or its lemmas are a run of an answer's). `f1` says how far: the overlap of words. By all
of them an empty prediction is wrong.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from self_ensemble.data.result_files import read_results
from self_ensemble.evaluation.matchers import f1, first_token_is_right, is_right, lemmas_match
from self_ensemble.system.errors import UserError

if TYPE_CHECKING:  # numpy and pandas come after parsing: --help stays quick
    import numpy as np
    from pandas import DataFrame, Series

MATCHERS = ("exact", "first_token", "one_way", "two_way")
LEMMA_COLUMNS = ("predict_lemma", "answer_lemmas")
RELATION_COLUMNS = ("relation", "rel")

# A prediction's lemmas, and those of each answer, row by row.
Lemmas = list[tuple[list[str], list[list[str]]]]


@dataclass(frozen=True)
class ScoredPredictions:
    """A file's scored predictions: Q questions, N paraphrases (1 where a row is a question)."""

    path: str
    per_prompt: bool
    match: str  # the matcher that `right` is by
    uuids: list[str] | None  # [Q]
    matches: Mapping[str, "np.ndarray"]  # [Q, N] each: bool by MATCHERS, float by f1
    predictions: list[list[str]]  # [Q][N], as they stand in the file
    answers: list[list[str]]  # [Q]
    asked: list[list[str]]  # [Q][any number of wordings]
    truncated: "np.ndarray | None"  # [Q, N] bool
    relations: list[str] | None  # [Q]
    groups: list[str] | None  # [Q], by the column asked for

    @property
    def right(self) -> "np.ndarray":  # [Q, N] bool
        return self.matches[self.match]

    @property
    def num_prompts(self) -> int:
        """How many wordings a question was asked in, as far as the file tells."""
        if self.per_prompt:
            return self.right.shape[1]
        return max(1, max(map(len, self.asked)))

    def first_paraphrase(self) -> "ScoredPredictions":
        """Paraphrase 0 alone, what a baseline of several counts as."""
        return replace(
            self,
            matches={name: each[:, :1] for name, each in self.matches.items()},
            predictions=[group[:1] for group in self.predictions],
            truncated=None if self.truncated is None else self.truncated[:, :1],
        )

    def take(self, which: Sequence[int]) -> "ScoredPredictions":
        """The questions at these places alone."""

        def some(values: list[Any]) -> list[Any]:
            return [values[i] for i in which]

        return replace(
            self,
            uuids=None if self.uuids is None else some(self.uuids),
            matches={name: each[list(which)] for name, each in self.matches.items()},
            predictions=some(self.predictions),
            answers=some(self.answers),
            asked=some(self.asked),
            truncated=None if self.truncated is None else self.truncated[list(which)],
            relations=None if self.relations is None else some(self.relations),
            groups=None if self.groups is None else some(self.groups),
        )


def score_predictions(
    path: str,
    *,
    match: str = "exact",
    lemmas: str | None = None,
    spacy_model: str | None = None,
    by: str | None = None,
) -> ScoredPredictions:
    """Reads a file and scores its predictions.

    Args:
        path: .feather, .parquet, .csv or .jsonl with the columns `prediction` and `answers`.
        match: one of MATCHERS, which the file's accuracy is by.
        lemmas: `file` takes the columns `predict_lemma` and `answer_lemmas`, `recompute` makes
            lemmas of the texts; None takes the columns where they are.
        spacy_model: what recomputes; None takes the default of `init_spacy`.
        by: a column that splits the questions.

    Raises:
        UserError: with the path and the offending value.
    """
    import numpy as np

    frame = read_results(path)
    _check_columns(frame, ("prediction", "answers"), path)
    if frame.empty:
        raise UserError(f"{path} has no rows")
    uuids = _uuids(frame["uuid"].tolist(), path) if "uuid" in frame.columns else None
    predictions = [_prediction(cell, f"{path}, row {i}") for i, cell in _rows(frame["prediction"])]
    answers = [_answers(cell, f"{path}, row {i}") for i, cell in _rows(frame["answers"])]

    # A column `paraphrase` in a file without uuids says nothing about which rows belong together.
    per_prompt = uuids is not None and "paraphrase" in frame.columns
    rows = _rows_of_questions(uuids, path, per_prompt=per_prompt) if uuids else _each(predictions)

    def grouped(values: Sequence[Any]) -> list[list[Any]]:
        return [[values[i] for i in group] for group in rows]

    pairs = list(zip(predictions, answers, strict=True))
    scores: dict[str, list[float]] = {
        name: [matcher(*pair) for pair in pairs] for name, matcher in _TEXT_MATCHERS.items()
    }
    if (found := _lemmas(frame, predictions, answers, lemmas, spacy_model, path)) is not None:
        both = [
            lemmas_match(*row) if prediction.strip() else (False, False)
            for row, prediction in zip(found, predictions, strict=True)
        ]
        scores |= {"one_way": [one for one, _ in both], "two_way": [two for _, two in both]}
    if match not in scores:
        raise UserError(
            f"--match {match}: {path} lacks the columns predict_lemma and answer_lemmas; "
            "--lemmas recompute makes them"
        )
    truncated = frame["truncated"].tolist() if "truncated" in frame.columns else None
    relation = next((name for name in RELATION_COLUMNS if _names_relations(frame, name)), None)
    return ScoredPredictions(
        path=path,
        per_prompt=per_prompt,
        match=match,
        uuids=list(dict.fromkeys(uuids)) if uuids else None,
        matches={name: np.array(grouped(values)) for name, values in scores.items()},
        predictions=grouped(predictions),
        answers=[answers[group[0]] for group in rows],
        asked=_wordings(frame, rows, per_prompt=per_prompt),
        truncated=np.array(grouped([cell is True for cell in truncated])) if truncated else None,
        relations=_of_questions(frame, relation, rows, path) if relation else None,
        groups=_of_questions(frame, by, rows, path) if by else None,
    )


_TEXT_MATCHERS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact": is_right,
    "first_token": first_token_is_right,
    "f1": f1,
}


def _check_columns(frame: "DataFrame", names: Sequence[str], path: str) -> None:
    missing = [f"`{name}`" for name in names if name not in frame.columns]
    if missing:
        found = ", ".join(map(str, frame.columns))
        raise UserError(f"{path} lacks the column {' and '.join(missing)}; it has {found}")


def _lemmas(
    frame: "DataFrame",
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    source: str | None,
    spacy_model: str | None,
    path: str,
) -> Lemmas | None:
    """The lemmas of each row, or None where there are none and none were asked for."""
    if source == "recompute":
        from self_ensemble.evaluation.lemmatizer import init_spacy, lemmas_of

        flat = [*predictions, *(answer for row in answers for answer in row)]
        lemmas = iter(lemmas_of(flat, init_spacy(spacy_model)))
        made = [next(lemmas) for _ in predictions]
        return [(row, [next(lemmas) for _ in a]) for row, a in zip(made, answers, strict=True)]
    if source is None and not set(LEMMA_COLUMNS) <= set(frame.columns):
        return None
    _check_columns(frame, LEMMA_COLUMNS, path)
    columns = (frame[name].tolist() for name in LEMMA_COLUMNS)
    return [
        _lemma_row(of_prediction, of_answers, f"{path}, row {i}")
        for i, (of_prediction, of_answers) in enumerate(zip(*columns, strict=True), 1)
    ]


def _lemma_row(predict: Any, answers: Any, where: str) -> tuple[list[str], list[list[str]]]:
    if not _is_texts(predict := [] if predict is None else predict):
        raise UserError(f"{where}: predict_lemma is not a list of texts: {predict!r}")
    if not isinstance(answers, list) or not all(map(_is_texts, answers)):
        raise UserError(f"{where}: answer_lemmas is not a list of lists of texts: {answers!r}")
    return predict, answers


def _is_texts(cell: Any) -> bool:
    return isinstance(cell, list) and all(isinstance(text, str) for text in cell)


def _wordings(
    frame: "DataFrame", rows: Sequence[Sequence[int]], *, per_prompt: bool
) -> list[list[str]]:
    """[Q][any number]: how each question was asked, as far as the columns tell."""
    if per_prompt:
        cells = frame["paraphrase"].tolist()
        return [[str(cells[i]) for i in group] for group in rows]
    for name in ("paraphrases", "question"):
        if name in frame.columns:
            cells = frame[name].tolist()
            listed = [cells[group[0]] for group in rows]
            return [c if _is_texts(c) else [] if _missing(c) else [str(c)] for c in listed]
    return [[] for _ in rows]


def _of_questions(
    frame: "DataFrame", column: str, rows: Sequence[Sequence[int]], path: str
) -> list[str]:
    """[Q]: a column's value for each question, as text."""
    _check_columns(frame, [column], path)
    cells = frame[column].tolist()
    for group in rows:
        for i in group:
            if isinstance(cells[i], (list, dict)):
                raise UserError(f"{path}, row {i + 1}: {column} is a list: {cells[i]!r}")
            if str(cells[i]) != str(cells[group[0]]):
                raise UserError(
                    f"{path}, row {i + 1}: {column} is {cells[i]!r}, but {cells[group[0]]!r} in "
                    f"row {group[0] + 1} of the same question"
                )
    return ["(none)" if _missing(cells[g[0]]) else str(cells[g[0]]) for g in rows]


def _names_relations(frame: "DataFrame", column: str) -> bool:
    return column in frame.columns and all(isinstance(c, str) for c in frame[column].tolist())


def _missing(cell: Any) -> bool:
    return cell is None or cell != cell  # NaN differs from itself


def _rows(column: "Series") -> list[tuple[int, Any]]:
    return list(enumerate(column.tolist(), 1))


def _each(values: Sequence[Any]) -> list[list[int]]:
    return [[i] for i in range(len(values))]


def _uuids(cells: Sequence[Any], path: str) -> list[str]:
    for i, cell in enumerate(cells, 1):
        if _missing(cell) or cell == "":
            raise UserError(f"{path}, row {i}: no uuid")
    return [str(cell) for cell in cells]


def _prediction(cell: Any, where: str) -> str:
    if _missing(cell):
        return ""
    if not isinstance(cell, str):
        raise UserError(f"{where}: prediction is not a text: {cell!r}")
    return cell


def _answers(cell: Any, where: str) -> list[str]:
    answers = [cell] if isinstance(cell, str) else cell
    if not _is_texts(answers):
        raise UserError(f"{where}: answers is not a list of texts: {cell!r}")
    if not answers:
        raise UserError(f"{where}: no answers")
    return answers


def _rows_of_questions(uuids: Sequence[str], path: str, *, per_prompt: bool) -> list[list[int]]:
    """[Q][N] row numbers: the rows of a question are its paraphrases in the order of the file."""
    rows: dict[str, list[int]] = {}
    for i, uuid in enumerate(uuids):
        rows.setdefault(uuid, []).append(i)
    first, expected = next(iter(rows.items()))
    for uuid, group in rows.items():
        if not per_prompt and len(group) > 1:
            numbers = f"{group[0] + 1} and {group[1] + 1}"
            raise UserError(f"{path}: uuid {uuid} stands twice, in rows {numbers}")
        if len(group) != len(expected):
            raise UserError(
                f"{path}: uuid {uuid} has {len(group)} rows, {first} has {len(expected)}"
            )
    return list(rows.values())
