"""How what the engine says of a question stands in a journal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:  # torch takes seconds to import: mistakes on the command line come first
    from self_ensemble.generation.decode import Answer
    from self_ensemble.generation.likelihood import Likelihood

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Entries(Generic[Kept]):
    """How the answers of a pass stand in the journal.

    write: (index, what the engine gives) → JSON value.
    read: (index, JSON value) → what the pass gives for that index. Raises UserError where the
        value is no answer to what is asked now.
    """

    write: Callable[[int, Any], Any]
    read: Callable[[int, Any], Kept]


def _write_answer(index: int, answer: Answer) -> list[Any]:
    entry = [answer.token_ids, answer.logprobs, answer.truncated]
    return entry if answer.text_end is None else [*entry, answer.text_end]


def _read_answer(index: int, entry: list[Any]) -> Answer:
    from self_ensemble.generation.decode import Answer

    token_ids, logprobs, *rest = entry
    return Answer(tuple(token_ids), tuple(logprobs), *rest)


def _write_likelihoods(index: int, likelihoods: tuple[Likelihood, ...]) -> list[Any]:
    return [[each.logprobs, each.greedy] for each in likelihoods]


def _read_likelihoods(index: int, entry: list[Any]) -> tuple[Likelihood, ...]:
    from self_ensemble.generation.likelihood import Likelihood

    return tuple(Likelihood(tuple(logprobs), tuple(greedy)) for logprobs, greedy in entry)


ANSWERS = Entries(_write_answer, _read_answer)
LIKELIHOODS = Entries(_write_likelihoods, _read_likelihoods)
