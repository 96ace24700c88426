"""Lemmas of predictions and answers, for matches that do not depend on a plural or a case.

    nlp = init_spacy()
    lemmas_of(["The Beatles", "pianos"], nlp)           [["the", "beatles"], ["piano"]]

A text's lemmas are those of its tokens as spaCy cuts them, lower-cased; punctuation and blanks are
tokens too. Without a model of spaCy's they come from a table of words (`spacy-lookups-data`), which
leaves words it does not hold, names among them, as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from self_ensemble.system.errors import UserError

if TYPE_CHECKING:  # spacy takes a second to import
    from pandas import DataFrame
    from spacy.language import Language

PREFERRED_MODEL = "en_core_web_lg"
LOOKUP = "lookup"


@cache
def init_spacy(model: str | None = None) -> Language:
    """The pipeline that lemmatises; loaded once a process.

    Args:
        model: a spaCy pipeline's package or folder, or ``lookup`` for the table of words. None
            takes `en_core_web_lg` where it is installed, else ``lookup``.

    Raises:
        UserError: spaCy, the model or the table is not installed, or the model gives no lemmas.
    """
    try:
        import spacy
    except ImportError as error:
        raise UserError(f"lemmas need spaCy: {error}; pip install -r requirements.txt") from error

    if model is None:
        model = PREFERRED_MODEL if find_spec(PREFERRED_MODEL) else LOOKUP
    if model == LOOKUP:
        if find_spec("spacy_lookups_data") is None:
            raise UserError(
                "lemmas need the package spacy-lookups-data (pip install -r requirements.txt) or "
                f"the model {PREFERRED_MODEL} (python -m spacy download {PREFERRED_MODEL})"
            )
        nlp = spacy.blank("en")
        nlp.add_pipe("lemmatizer", config={"mode": "lookup"})
        nlp.initialize()
        return nlp

    # Whatever a foreign package or folder makes spaCy raise is about that model.
    try:
        # Entities say nothing about lemmas. The parser does: it tells auxiliaries from verbs.
        nlp = spacy.load(model, exclude=["ner"])
        lemma = nlp("towns")[0].lemma_
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--spacy_model: cannot load {model!r}: {reason.rstrip('.')} "
            f"(--spacy_model {LOOKUP} needs no model)"
        ) from error
    if not lemma:
        raise UserError(f"--spacy_model: {model!r} has no lemmatizer")
    return nlp


def lemmatizer_of(nlp: Language) -> dict[str, str]:
    """What lemmatises, for a manifest: the model and the versions that its lemmas depend on."""
    versions = {"spacy": version("spacy")}
    if nlp.meta["name"] == "pipeline":  # what spaCy calls one that was not loaded
        return {"model": LOOKUP, **versions, "spacy-lookups-data": version("spacy-lookups-data")}
    name = f"{nlp.meta['lang']}_{nlp.meta['name']}"
    return {"model": name, "version": nlp.meta["version"], **versions}


def lemmas_of(texts: Sequence[str], nlp: Language) -> list[list[str]]:
    """The lower-cased lemmas of each text, in its order; none of an empty text.

    A text that comes again is not analysed again: answers repeat from question to question.
    """
    # In this process: handing texts this short to others and back costs more than analysing them.
    # 2,000 questions of MyriadLAMA have 16,647 texts, 4,861 of them distinct: 0.2 s by the table;
    # 1.7 s by a pipeline built like en_core_web_lg, 4.3 s with n_process=2 on two cores.
    distinct = list(dict.fromkeys(texts))
    lemmas = {
        text: [token.lemma_.lower() for token in doc]
        for text, doc in zip(distinct, nlp.pipe(distinct), strict=True)
    }
    return [list(lemmas[text]) for text in texts]


def lemmaize_predicts(predict: str | None, nlp: Language | None = None) -> list[str]:
    """The lemmas of one prediction (or answer); none where there is none.

    nlp: from `init_spacy`; None takes its default.
    """
    return lemmas_of([_text(predict)], nlp or init_spacy())[0]


def _text(cell: object) -> str:
    # A prediction that is missing is None, or NaN where pandas read it.
    return cell if isinstance(cell, str) else ""


def lemmaize_chunk(
    chunk: DataFrame | Mapping[str, Iterable[Any]], nlp: Language | None = None
) -> tuple[list[list[str]], list[list[list[str]]]]:
    """The lemmas of a table's rows.

    Args:
        chunk: with the columns `prediction` (text) and `answers` (list of texts), by their names.
        nlp: from `init_spacy`; None takes its default.

    Returns:
        The columns `predict_lemma`, a list a row, and `answer_lemmas`, a list of lists a row.
    """
    predictions = [_text(predict) for predict in chunk["prediction"]]
    answers = [list(row) for row in chunk["answers"]]
    flat = [answer for row in answers for answer in row]
    lemmas = iter(lemmas_of([*predictions, *flat], nlp or init_spacy()))
    predict_lemma = [next(lemmas) for _ in predictions]
    return predict_lemma, [[next(lemmas) for _ in row] for row in answers]


def append_lemmas(
    frame: DataFrame, results: Iterable[tuple[list[list[str]], list[list[list[str]]]]]
) -> DataFrame:
    """A copy of the table with the columns `predict_lemma` and `answer_lemmas`, new or replaced.

    results: of `lemmaize_chunk`, for each chunk of the table in its order.
    """
    import pandas as pd

    pairs = list(results)
    columns = {
        name: [row for pair in pairs for row in pair[which]]
        for which, name in enumerate(("predict_lemma", "answer_lemmas"))
    }
    for name, rows in columns.items():
        assert len(rows) == len(frame), f"{len(rows)} rows of {name} for {len(frame)} of the table"
    return frame.assign(
        **{name: pd.Series(r, index=frame.index, dtype=object) for name, r in columns.items()}
    )
