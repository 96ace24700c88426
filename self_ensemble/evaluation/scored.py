"""A file of predictions, scored by every matcher.

Matchers say whether a prediction is right: `exact` (normalised, it is an answer), `first_token`
(its first word is an answer's), `number` (its last number is an answer's), `one_way` (an answer's
lemmas are a contiguous run of its lemmas), `two_way` (or its lemmas are a run of an answer's). `f1`
says how far: the overlap of words. By all of them an empty prediction is wrong.

In a file of `--task choices` a prediction is the choice of the highest log-likelihood, and the
place of the matchers have the norms for its length, see `choices`.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from self_ensemble.data.answers import normalize_answer
from self_ensemble.data.choices import NORMS
from self_ensemble.data.extraction import Extraction
from self_ensemble.data.numbers import is_number, read_number
from self_ensemble.data.records import indexs_taken
from self_ensemble.data.result_files import read_results
from self_ensemble.evaluation.choices import ChoiceRow, choice_rows, has_choices, norm_of
from self_ensemble.evaluation.lemma_matches import has_lemmas, lemma_matches
from self_ensemble.evaluation.matchers import f1, first_token_is_right, is_right, number_is_right
from self_ensemble.evaluation.result_table import ResultTable, is_missing, result_table
from self_ensemble.system.errors import UserError

if TYPE_CHECKING:  # numpy comes after parsing: --help stays quick
    import numpy as np

MATCHERS = ("exact", "first_token", "number", "one_way", "two_way")
VOTES = ("vote", "self_consistency")  # the names of methods


@dataclass(frozen=True)
class ScoredPredictions:
    """A file's scored predictions: Q questions, N paraphrases (1 where a row is a question)."""

    path: str
    per_prompt: bool
    match: str  # the matcher, or the norm, that `right` is by
    uuids: list[str] | None  # [Q]
    present: "np.ndarray"  # [Q, N] bool: a question may have fewer than N paraphrases
    matches: Mapping[str, "np.ndarray"]  # [Q, N] each: bool by matchers and norms, float by f1
    predictions: list[list[str]]  # [Q][up to N], those that were scored
    answers: list[list[str]]  # [Q]
    asked: list[list[str]]  # [Q][any number of wordings]
    truncated: "np.ndarray | None"  # [Q, N] bool
    relations: list[str] | None  # [Q]
    groups: list[str] | None  # [Q], by the column asked for
    choices: list[list[ChoiceRow]] | None  # [Q][up to N], in a file of --task choices
    indexs: tuple[int, ...] | None  # what --indexs chose, as far as the file's manifest tells
    notes: tuple[str, ...]  # what to know of the file before its figures are believed

    @property
    def right(self) -> "np.ndarray":  # [Q, N] bool
        return self.matches[self.match]

    @property
    def num_prompts(self) -> int:
        """How many wordings a question was asked in, as far as the file tells."""
        if self.per_prompt:
            return self.right.shape[1]
        return max(1, max(map(len, self.asked)))

    def fractions(self, match: str) -> "np.ndarray":
        """[Q] the mean of a matcher over each question's paraphrases."""
        return self.matches[match].sum(axis=1) / self.present.sum(axis=1)

    def said(self) -> list[list[Hashable]]:
        """[Q][up to N] what each prediction says: equal where two of a question agree."""
        if self.choices is not None:  # normalised, the choice "A" would be nothing
            return [list(group) for group in self.predictions]
        says = _number_or_text if self.match == "number" else normalize_answer
        return [[says(prediction) for prediction in group] for group in self.predictions]

    def numbers(self, count: int) -> tuple[int, ...]:
        """The numbers of a question's `count` paraphrases, from 0, as --indexs counts them."""
        return tuple(range(count)) if self.indexs is None else indexs_taken(self.indexs, count)

    def first_paraphrase(self) -> "ScoredPredictions":
        """The first paraphrase alone, what a baseline of several counts as.

        Raises:
            UserError: a question lacks it.
        """
        if not self.present[:, 0].all():
            raise UserError(
                f"{self.path} can be no baseline: some of its questions lack paraphrase "
                f"{self.numbers(self.present.shape[1])[0]}, its first"
            )
        return replace(
            self,
            present=self.present[:, :1],
            matches={name: each[:, :1] for name, each in self.matches.items()},
            predictions=[group[:1] for group in self.predictions],
            truncated=None if self.truncated is None else self.truncated[:, :1],
            choices=None if self.choices is None else [group[:1] for group in self.choices],
        )

    def take(self, which: Sequence[int]) -> "ScoredPredictions":
        """The questions at these places alone."""

        def some(values: list[Any]) -> list[Any]:
            return [values[i] for i in which]

        return replace(
            self,
            uuids=None if self.uuids is None else some(self.uuids),
            present=self.present[list(which)],
            matches={name: each[list(which)] for name, each in self.matches.items()},
            predictions=some(self.predictions),
            answers=some(self.answers),
            asked=some(self.asked),
            truncated=None if self.truncated is None else self.truncated[list(which)],
            relations=None if self.relations is None else some(self.relations),
            groups=None if self.groups is None else some(self.groups),
            choices=None if self.choices is None else some(self.choices),
        )


@dataclass(frozen=True)
class _Found:
    """What the rows of a file say, and whether they are right.

    scores: matcher or norm to a value a row. match: that which the accuracy is by.
    """

    match: str
    predictions: list[str]
    scores: Mapping[str, Sequence[float]]
    choices: list[ChoiceRow] | None = None
    notes: tuple[str, ...] = ()


def score_predictions(
    path: str,
    *,
    match: str = "exact",
    extract: Extraction | None = None,
    choice_norm: str | None = None,
    lemmas: str | None = None,
    spacy_model: str | None = None,
    by: str | None = None,
) -> ScoredPredictions:
    """Reads a file and scores its predictions.

    Args:
        path: .feather, .parquet, .csv or .jsonl with the columns `prediction` and `answers`; or
            those of `--task choices`, see `choices`.
        match: one of MATCHERS, which the accuracy of generated answers is by.
        extract: makes predictions anew of the column `generation`.
        choice_norm: one of `data.choices.NORMS`, by which choices are taken; None takes that by
            which the column `prediction` was made.
        lemmas: `file` takes the columns `predict_lemma` and `answer_lemmas`, `recompute` makes
            lemmas of the texts; None takes the columns where they are.
        spacy_model: what recomputes; None takes the default of `init_spacy`.
        by: a column that splits the questions.

    Raises:
        UserError: with the path and the offending value.
    """
    frame = read_results(path)
    is_chosen = has_choices(frame.columns)
    if is_chosen and extract is not None:
        raise UserError(f"--extract: {path} holds chosen answers, there is nothing to extract from")
    needs = [] if is_chosen else ["prediction" if extract is None else "generation"]
    table = result_table(frame, path, needs=needs)
    if is_chosen:
        found = _choose(table, choice_norm)
    else:
        found = _match(table, match, extract, lemmas, spacy_model)
    truncated = frame["truncated"].tolist() if "truncated" in frame.columns else None
    return ScoredPredictions(
        path=path,
        per_prompt=table.per_prompt,
        match=found.match,
        uuids=table.uuids,
        present=table.array([True] * len(table.answers)),
        matches={name: table.array(values) for name, values in found.scores.items()},
        predictions=table.lists(found.predictions),
        answers=[table.answers[group[0]] for group in table.rows],
        asked=table.wordings(),
        truncated=table.array([cell is True for cell in truncated]) if truncated else None,
        relations=table.relations(),
        groups=table.of_questions(by) if by else None,
        choices=None if found.choices is None else table.lists(found.choices),
        indexs=table.indexs,
        notes=found.notes,
    )


# ---- chosen answers -----------------------------------------------------------------------------


def _choose(table: ResultTable, norm: str | None) -> _Found:
    rows = choice_rows(table.frame, table.answers, table.path)
    for first, *others in table.rows:
        for i in others:
            if rows[i].choices != rows[first].choices:
                raise UserError(
                    f"{table.path}, row {i + 1}: its choices are not those of row {first + 1}, "
                    "which is of the same question"
                )
    if norm is None:
        there = _texts(table, "prediction") if "prediction" in table.frame.columns else None
        norm = norm_of(rows, there, table.path, first=table.identity.get("choice_norm"))
    notes = []
    if _is_of_votes(table):
        by = table.identity.get("choice_norm", NORMS[0])
        notes.append(
            f"{table.path} is of votes by {by}: its figures by another norm are of the paraphrase "
            "that won, and not of votes by that norm"
        )
    return _Found(
        match=norm,
        predictions=[row.choices[row.chosen(norm)] for row in rows],
        scores={name: [row.is_right(name) for row in rows] for name in NORMS},
        choices=rows,
        notes=tuple(notes),
    )


def _is_of_votes(table: ResultTable) -> bool:
    method = table.identity.get("method")
    return isinstance(method, dict) and method.get("name") in VOTES


# ---- generated answers --------------------------------------------------------------------------

_TEXT_MATCHERS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact": is_right,
    "first_token": first_token_is_right,
    "f1": f1,
}


def _match(
    table: ResultTable,
    match: str,
    extract: Extraction | None,
    lemmas: str | None,
    spacy_model: str | None,
) -> _Found:
    predictions, notes, are_stale = _texts(table, "prediction", extract), [], False
    if extract is not None:
        are_stale = lemmas != "recompute" and _has_stale_lemmas(table, predictions)
        notes = _notes_on_extraction(table, are_stale=are_stale)
    if are_stale and lemmas == "file":
        raise UserError(f"--lemmas file: {notes[0]}")
    pairs = list(zip(predictions, table.answers, strict=True))
    scores: dict[str, Sequence[float]] = {
        name: [matcher(*pair) for pair in pairs] for name, matcher in _TEXT_MATCHERS.items()
    }
    if match == "number":
        _check_numbers(table)
    if match == "number" or _asks_for_numbers(table):
        scores["number"] = [number_is_right(*pair) for pair in pairs]
    if not are_stale:
        how = {"source": lemmas, "spacy_model": spacy_model}
        scores |= lemma_matches(table, predictions, **how) or {}
    if match not in scores:
        lacks = "lacks the columns predict_lemma and answer_lemmas"
        lacks = "has no lemmas of what --extract makes" if are_stale else lacks
        raise UserError(f"--match {match}: {table.path} {lacks}; --lemmas recompute makes them")
    return _Found(match, predictions, scores, notes=tuple(notes))


def _has_stale_lemmas(table: ResultTable, predictions: Sequence[str]) -> bool:
    """Whether the file's lemmas are of other predictions than these, but for space around them."""
    if not has_lemmas(table):
        return False
    if "prediction" not in table.frame.columns:
        return True
    pairs = zip(_texts(table, "prediction"), predictions, strict=True)
    return any(one.strip() != other.strip() for one, other in pairs)


def _notes_on_extraction(table: ResultTable, *, are_stale: bool) -> list[str]:
    notes = []
    if are_stale:
        notes.append(
            f"{table.path} has lemmas of other predictions than --extract makes, which are not "
            "matched: --lemmas recompute makes lemmas of these"
        )
    if _is_of_votes(table):
        notes.append(
            f"{table.path} is of votes: --extract reads anew the answer that won, and not what was "
            "compared when it won"
        )
    return notes


def _check_numbers(table: ResultTable) -> None:
    """Raises UserError where no answer holds a number: every prediction would be wrong."""
    for i, answers in enumerate(table.answers, 1):
        if all(read_number(answer) is None for answer in answers):
            raise UserError(
                f"--match number: {table.path}, row {i}: no answer is a number: {answers!r}"
            )


def _asks_for_numbers(table: ResultTable) -> bool:
    """Whether every question has an answer that is nothing but a number."""
    return all(any(map(is_number, answers)) for answers in table.answers)


def _number_or_text(prediction: str) -> Hashable:
    number = read_number(prediction)
    return normalize_answer(prediction) if number is None else number


def _texts(table: ResultTable, column: str, extract: Extraction | None = None) -> list[str]:
    """A text a row: of the column, or extracted from the generation."""
    if extract is not None:
        column = "generation"
    texts = []
    for i, cell in enumerate(table.frame[column].tolist(), 1):
        if is_missing(cell) and extract is None:
            cell = ""
        if not isinstance(cell, str):
            raise UserError(f"{table.path}, row {i}: {column} is not a text: {cell!r}")
        texts.append(cell if extract is None else extract(cell))
    return texts
