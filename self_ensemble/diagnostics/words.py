"""Token ids as texts, paraphrases as names, and tables of them as aligned lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from self_ensemble.data.answers import first_line
from self_ensemble.generation.decode import Answer
from self_ensemble.system.console import quoted, visible

# Rows of cells, the header first.
Table = list[list[str]]

NOTHING = "-"


class Words:
    """The texts of token ids, and the numbers of paraphrases, which are counted from 0.

    indexs: of the question's paraphrases where they were chosen by index; None: the first ones.
    """

    def __init__(self, tokenizer: Any, indexs: Sequence[int] | None = None):
        self.tokenizer, self.indexs = tokenizer, indexs

    def number(self, place: int) -> int:
        """Of a paraphrase in its question, as --indexs counts them."""
        return place if self.indexs is None else self.indexs[place]

    def paraphrase(self, place: int) -> str:
        return str(self.number(place))

    def paraphrases(self, places: Sequence[int]) -> str:
        return ", ".join(map(self.paraphrase, places)) or "none"

    def token(self, token: int) -> str:
        return quoted(self.tokenizer.decode([token]))

    def tokens(self, ids: Sequence[int]) -> str:
        """With a bar at every border."""
        return "|".join(visible(self.tokenizer.decode([token])) for token in ids)

    def abbreviated(self, ids: Sequence[int], most: int) -> str:
        """`tokens`, those in the middle counted where there are more than ``most``."""
        if len(ids) <= most:
            return self.tokens(ids)
        half = most // 2
        between = f" ... {len(ids) - 2 * half} more ... "
        return f"{self.tokens(ids[:half])}|{between}|{self.tokens(ids[-half:])}"

    def answer(self, answer: Answer) -> str:
        text = self.tokenizer.decode(answer.token_ids, skip_special_tokens=True)
        return visible(first_line(text))


def percent(share: float) -> str:
    return f"{share:.1%}"


def align(rows: Table) -> list[str]:
    """The cells of a table under each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 2] + ".."
