"""The rows of result tables: what was generated for a question, or how likely its choices are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from self_ensemble.data import Record
from self_ensemble.data.choices import NORMS, choose, is_tied, normalized

if TYPE_CHECKING:  # torch takes seconds to import: mistakes on the command line come first
    from self_ensemble.generation.decode import Answer
    from self_ensemble.generation.likelihood import Likelihood


def answer_row(
    record: Record,
    answer: Answer,
    tokenizer: Any,
    extract: Callable[[str], str],
    *,
    choices: bool = False,
    **columns: Any,
) -> dict[str, Any]:
    """The row of an answer.

    choices: pass on those that the question gives.
    columns: further ones.
    """
    from self_ensemble.generation.decode import answer_text

    generation = answer_text(tokenizer, answer)
    found: dict[str, Any] = {
        "prediction": extract(generation),
        "generation": generation,
        "logprob": sum(answer.logprobs),
        "truncated": answer.truncated,
    }
    if choices:
        found = {"choices": list(record.choices), **found}
    return _row(record, columns, found)


def choices_row(
    record: Record, likelihoods: Sequence[Likelihood], norm: str, **columns: Any
) -> dict[str, Any]:
    """The row of scored choices: each one's log-likelihood by every norm, and the one taken.

    norm: by which of them it is taken.
    """
    scores = {
        _column(each): [
            normalized(likelihood.logprobs, choice, each)
            for likelihood, choice in zip(likelihoods, record.choices, strict=True)
        ]
        for each in NORMS
    }
    chosen = choose(scores[_column(norm)])
    found = {
        "choices": list(record.choices),
        **scores,
        "prediction": record.choices[chosen],
        "generation": record.choices[chosen],
        "logprob": scores[_column("sum")][chosen],
        "truncated": False,
    }
    return _row(record, columns, found)


def count_ties(rows: Sequence[Mapping[str, Any]], norm: str) -> int:
    """In how many rows the choice that was taken is not the only likeliest one."""
    return sum(is_tied(row[_column(norm)]) for row in rows)


def _column(norm: str) -> str:
    return f"choice_{norm}"


def _row(record: Record, columns: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    row = {
        "uuid": record.uuid,
        "paraphrases": list(record.paraphrases),
        **columns,
        "answers": list(record.answers),
        **found,
    }
    if record.relation is not None:
        row["relation"] = record.relation
    return row
