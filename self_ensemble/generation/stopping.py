"""When an answer ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Cut:
    """Where a stop string ends an answer.

    text_end: how many characters of the text (`tokenizer.decode` without special tokens) come
        before it.
    tokens: how many tokens have text before it.
    """

    text_end: int
    tokens: int


class StopRule(ABC):
    """Says when an answer ends. ``B`` rows."""

    @abstractmethod
    def __call__(
        self, tokens: torch.Tensor, seen: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What chosen tokens mean for their rows, by token id, on the device.

        Args:
            tokens: [B].
            seen: whether a visible character came before, bool [B].

        Returns:
            Whether the row stops, whether the token has text of the answer or comes before it, and
            the new ``seen``; bool [B] each.
        """

    def cut(self, token_ids: Sequence[int]) -> Cut | None:
        """Where the text of an answer that goes on is to end; None where it goes on.

        Asked after every token, so that no stop string is complete before the last one.
        """
        return None


class LineStop(StopRule):
    """Stops a row at end-of-sequence, or at a newline after its first visible character.

    Exact, by token id: what a token's text holds is tabled once for the whole vocabulary. Special
    tokens have no text, as in the generation that is shown.

    Args:
        tokenizer: the model's own.
        eos_ids: token ids that end a sequence.
        vocabulary: how many ids the model can choose.
        device: of the tokens that are asked about.
    """

    def __init__(
        self,
        tokenizer: Any,
        eos_ids: Collection[int],
        vocabulary: int,
        device: torch.device | str,
    ):
        texts = tokenizer.batch_decode(
            [[token] for token in range(vocabulary)], skip_special_tokens=True
        )

        def table(values: list[bool]) -> torch.Tensor:
            return torch.tensor(values, device=device)

        self.visible = table([bool(text.strip()) for text in texts])
        self.newline = table(["\n" in text for text in texts])
        self.newline_after_visible = table(["\n" in text.lstrip() for text in texts])
        self.visible_before_newline = table([bool(text.split("\n")[0].strip()) for text in texts])
        self.eos = table([token in eos_ids for token in range(vocabulary)])

    def __call__(
        self, tokens: torch.Tensor, seen: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        eos = self.eos[tokens]
        line_ends = torch.where(seen, self.newline[tokens], self.newline_after_visible[tokens])
        only_ends = line_ends & seen & ~self.visible_before_newline[tokens]
        return eos | line_ends, ~(eos | only_ends), seen | self.visible[tokens]


class EndStop(StopRule):
    """Stops a row at end-of-sequence alone. Arguments: see `LineStop`."""

    def __init__(
        self, eos_ids: Collection[int], vocabulary: int, device: torch.device | str
    ) -> None:
        self.eos = torch.tensor([token in eos_ids for token in range(vocabulary)], device=device)

    def __call__(
        self, tokens: torch.Tensor, seen: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        eos = self.eos[tokens]
        return eos, ~eos, seen


class NeverStop(StopRule):
    """Goes on to the token limit whatever comes: for benchmarks and proofs."""

    def __call__(
        self, tokens: torch.Tensor, seen: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return torch.zeros_like(seen), torch.ones_like(seen), seen


def end_of_sequence_ids(model: Any, tokenizer: Any, vocabulary: int) -> frozenset[int]:
    """Of the model and of the tokenizer. An id beyond the vocabulary cannot come."""
    ids = model.generation_config.eos_token_id
    ids = ids if isinstance(ids, list) else [ids]
    return frozenset(
        token
        for token in (*ids, tokenizer.eos_token_id)
        if token is not None and 0 <= token < vocabulary
    )


def make_stop_rule(
    stop: Sequence[str],
    tokenizer: Any,
    eos_ids: Collection[int],
    vocabulary: int,
    device: torch.device | str,
) -> StopRule:
    """What ends answers at these texts, or where there are none, at end-of-sequence alone.

    Other arguments: see `LineStop`.
    """
    assert not stop, stop
    return EndStop(eos_ids, vocabulary, device)
