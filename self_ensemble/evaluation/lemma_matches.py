"""Matches of lemmas, row by row: those in a file's columns, or made anew."""

from collections.abc import Sequence
from typing import Any

from self_ensemble.evaluation.matchers import lemmas_match
from self_ensemble.evaluation.result_table import ResultTable, check_columns, is_texts
from self_ensemble.system.errors import UserError

LEMMA_COLUMNS = ("predict_lemma", "answer_lemmas")

# A prediction's lemmas, and those of each answer, row by row.
Lemmas = list[tuple[list[str], list[list[str]]]]


def lemma_matches(
    table: ResultTable, predictions: Sequence[str], *, source: str | None, spacy_model: str | None
) -> dict[str, list[bool]] | None:
    """Whether each row is right by `one_way` and `two_way`; None where there are no lemmas.

    predictions: of each row.
    source, spacy_model: see `score_predictions`.

    Raises:
        UserError: lemmas were asked for that the file lacks, or what it has are none.
    """
    if source == "recompute":
        lemmas = _made(table, predictions, spacy_model)
    elif source is None and not has_lemmas(table):
        return None
    else:
        lemmas = _in_columns(table)
    both = [
        lemmas_match(*row) if prediction.strip() else (False, False)
        for row, prediction in zip(lemmas, predictions, strict=True)
    ]
    return {"one_way": [one for one, _ in both], "two_way": [two for _, two in both]}


def has_lemmas(table: ResultTable) -> bool:
    return set(LEMMA_COLUMNS) <= set(table.frame.columns)


def _made(table: ResultTable, predictions: Sequence[str], spacy_model: str | None) -> Lemmas:
    from self_ensemble.evaluation.lemmatizer import init_spacy, lemmas_of

    flat = [*predictions, *(answer for answers in table.answers for answer in answers)]
    lemmas = iter(lemmas_of(flat, init_spacy(spacy_model)))
    made = [next(lemmas) for _ in predictions]
    pairs = zip(made, table.answers, strict=True)
    return [(row, [next(lemmas) for _ in answers]) for row, answers in pairs]


def _in_columns(table: ResultTable) -> Lemmas:
    check_columns(table.frame, LEMMA_COLUMNS, table.path)
    columns = (table.frame[name].tolist() for name in LEMMA_COLUMNS)
    return [
        _lemma_row(of_prediction, of_answers, f"{table.path}, row {i}")
        for i, (of_prediction, of_answers) in enumerate(zip(*columns, strict=True), 1)
    ]


def _lemma_row(predict: Any, answers: Any, where: str) -> tuple[list[str], list[list[str]]]:
    if not is_texts(predict := [] if predict is None else predict):
        raise UserError(f"{where}: predict_lemma is not a list of texts: {predict!r}")
    if not isinstance(answers, list) or not all(map(is_texts, answers)):
        raise UserError(f"{where}: answer_lemmas is not a list of lists of texts: {answers!r}")
    return predict, answers
