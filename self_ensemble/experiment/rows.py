"""The rows of result tables: what was generated for a question, or how likely its choices are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from self_ensemble.data import Record
from self_ensemble.data.choices import NORMS, choose, is_tied, normalized
from self_ensemble.data.result_tables import table_of

if TYPE_CHECKING:  # torch takes seconds to import: mistakes on the command line come first
    import pyarrow

    from self_ensemble.generation.decode import Answer
    from self_ensemble.generation.likelihood import Likelihood


# What a method found for a row: values of `ANSWER_COLUMNS`, or of `CHOICE_COLUMNS`.
Cells = tuple[Any, ...]
ANSWER_COLUMNS = ("prediction", "generation", "logprob", "truncated")
CHOICE_COLUMNS = (*(f"choice_{norm}" for norm in NORMS), *ANSWER_COLUMNS)


def answer_cells(answer: Answer, tokenizer: Any, extract: Callable[[str], str]) -> Cells:
    """Of an answer."""
    from self_ensemble.generation.decode import answer_text

    generation = answer_text(tokenizer, answer)
    prediction = extract(generation)
    if prediction == generation:  # one text, not two that are equal
        prediction = generation
    return prediction, generation, sum(answer.logprobs), answer.truncated


def choices_cells(record: Record, likelihoods: Sequence[Likelihood], norm: str) -> Cells:
    """Of scored choices: each one's log-likelihood by every norm, and the one taken.

    norm: by which of them it is taken.
    """
    scores = {
        each: [
            normalized(likelihood.logprobs, choice, each)
            for likelihood, choice in zip(likelihoods, record.choices, strict=True)
        ]
        for each in NORMS
    }
    chosen = choose(scores[norm])
    taken = record.choices[chosen]
    return *scores.values(), taken, taken, scores["sum"][chosen], False


def answer_row(
    record: Record, answer: Answer, tokenizer: Any, extract: Callable[[str], str], **columns: Any
) -> dict[str, Any]:
    """The row of an answer. columns: further ones."""
    found = zip(ANSWER_COLUMNS, answer_cells(answer, tokenizer, extract), strict=True)
    row = {
        "uuid": record.uuid,
        "paraphrases": list(record.paraphrases),
        **columns,
        "answers": list(record.answers),
        **dict(found),
    }
    if record.relation is not None:
        row["relation"] = record.relation
    return row


@dataclass(frozen=True)
class ResultRows:
    """The rows of a result's table, made when they are written: held is only what was found.

    records: whose rows they are.
    found: of each record its rows: one, or where `each_paraphrase` one a paraphrase.
    columns: what is found, in each row.
    give_choices: pass on those that the questions give.
    """

    records: Sequence[Record]
    found: Sequence[Sequence[Cells]]
    columns: Sequence[str]
    give_choices: bool
    each_paraphrase: bool

    def __len__(self) -> int:
        return sum(map(len, self.found))

    @property
    def names(self) -> list[str]:
        """Of the columns, in their order."""
        names = ["uuid", "paraphrases", "answers", *self.columns]
        if self.each_paraphrase:
            names.insert(2, "paraphrase")
        if self.give_choices:
            names.insert(names.index("answers") + 1, "choices")
        if any(record.relation is not None for record in self.records):
            names.append("relation")
        return names

    def tables(self, records_at_once: int) -> Iterator[pyarrow.Table]:
        """The rows of so many records at a time."""
        names = self.names
        for begin in range(0, len(self.records), records_at_once):
            part = slice(begin, begin + records_at_once)
            rows = [
                self._row(record, index, cells)
                for record, found in zip(self.records[part], self.found[part], strict=True)
                for index, cells in enumerate(found)
            ]
            yield table_of({name: [row[name] for row in rows] for name in names})

    def _row(self, record: Record, index: int, cells: Cells) -> dict[str, Any]:
        return {
            "uuid": record.uuid,
            "paraphrases": record.paraphrases,
            "paraphrase": record.paraphrases[index],
            "answers": record.answers,
            "choices": record.choices,
            "relation": record.relation,
            **dict(zip(self.columns, cells, strict=True)),
        }

    def count_ties(self, norm: str) -> int:
        """In how many rows the choice that was taken is not the only likeliest one."""
        column = self.columns.index(f"choice_{norm}")
        return count_ties(cells[column] for found in self.found for cells in found)


def count_ties(scores: Iterable[Sequence[float]]) -> int:
    """In how many rows of scored choices the likeliest one is not alone."""
    return sum(map(is_tied, scores))
