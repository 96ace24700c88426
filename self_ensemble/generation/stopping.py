"""When an answer ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

# What decoders show of bytes that are not all of a character.
BROKEN = "\ufffd"


@dataclass(frozen=True)
class Cut:
    """Where a stop string ends an answer.

    text_end: how many characters of the text (`tokenizer.decode` without special tokens) come
        before it.
    tokens: how many tokens there are until there: those that have text before it.
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
        texts = _token_texts(tokenizer, vocabulary)

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


class StopStrings(EndStop):
    """Stops a row at end-of-sequence, or where one of some texts is complete.

    The text that is looked through is what is generated, as it would stand in the middle of a
    text, with special tokens: `model.generate` looks for its stop strings in the same. A prompt is
    no part of it. Where several stops are complete after a token, the one that ends first counts,
    and of those the longest: so the answer does not depend on how its text is cut into tokens.

    Nearly all tokens cost one look into a list: whether their text could be the end of a stop.

    Args:
        stops: not empty.
        tokenizer: the model's own.
        eos_ids, vocabulary, device: see `LineStop`.
    """

    def __init__(
        self,
        stops: Sequence[str],
        tokenizer: Any,
        eos_ids: Collection[int],
        vocabulary: int,
        device: torch.device | str,
    ) -> None:
        super().__init__(eos_ids, vocabulary, device)
        assert stops and all(stops), stops
        self.stops = tuple(stops)
        self.tokenizer = tokenizer
        # Decoders drop a space at the beginning of a text: nothing is decoded at a beginning.
        self._anchor = list(tokenizer.encode("a", add_special_tokens=False))
        self._anchor_length = len(self._shown(self._anchor))
        texts = [
            text[self._anchor_length :]
            for text in tokenizer.batch_decode(
                [[*self._anchor, token] for token in range(vocabulary)],
                skip_special_tokens=False,
                clean_up_tokenization_spaces=False,
            )
        ]
        # Part of a character's bytes is shown as U+FFFD: what comes of them is seen with the rest.
        self._lengths = [len(text) - text.count(BROKEN) for text in texts]
        ends = tuple({stop[at:] for stop in stops for at in range(len(stop))})
        self._can_complete = [
            text.startswith(ends) or BROKEN in text or any(stop in text for stop in stops)
            for text in texts
        ]
        self._longest = max(map(len, stops))

    def cut(self, token_ids: Sequence[int]) -> Cut | None:
        """See `StopRule`."""
        if not self._can_complete[token_ids[-1]]:
            return None
        if self._first_stop(self._text(token_ids[self._window_start(token_ids) :])) is None:
            return None
        text = self._text(token_ids)
        start = self._first_stop(text)
        return None if start is None else self._cut_at(start, text, token_ids)

    def _first_stop(self, text: str) -> int | None:
        """Where the stop begins that ends first; the longest of those that end there."""
        places = [(text.find(stop), len(stop)) for stop in self.stops]
        found = [(start + length, start) for start, length in places if start >= 0]
        return min(found)[1] if found else None

    def _cut_at(self, start: int, text: str, token_ids: Sequence[int]) -> Cut:
        """Where a stop begins, from a position in `_text` to one in the text that is shown."""
        tokens = self._fewest(text[:start], token_ids)
        plain = self._plain(token_ids[:tokens])
        # Of the last token, what is the stop's. Counted from there, since at its beginning the
        # shown text may lack a space.
        behind = len(self._text(token_ids[:tokens])) - start
        if behind and plain == self._plain(token_ids[: tokens - 1]):
            behind = 0  # a special token is not shown
        return Cut(self._without_cleaned_spaces(len(plain) - behind, token_ids), tokens)

    def _fewest(self, text: str, token_ids: Sequence[int]) -> int:
        """How many of the tokens have all of a text that they begin with."""
        count = len(token_ids)
        while count > 0 and self._text(token_ids[: count - 1]).startswith(text):
            count -= 1
        return count

    def _window_start(self, token_ids: Sequence[int]) -> int:
        """Of the last tokens that hold any stop which the last one completes."""
        start, length = len(token_ids) - 1, 0
        while start > 0 and length < self._longest:
            start -= 1
            length += self._lengths[token_ids[start]]
        return start

    def _text(self, token_ids: Sequence[int]) -> str:
        return self._shown([*self._anchor, *token_ids])[self._anchor_length :]

    def _shown(self, token_ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(
            token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def _plain(self, token_ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(
            token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _without_cleaned_spaces(self, end: int, token_ids: Sequence[int]) -> int:
        """A position in `_plain` as one in the text that an answer has.

        Some tokenizers take spaces out of it, such as those before punctuation, and nothing else.
        """
        cleaned, kept = self.tokenizer.decode(token_ids, skip_special_tokens=True), 0
        for character in self._plain(token_ids)[:end]:
            kept += cleaned[kept : kept + 1] == character
        return kept


# What tokens say, by tokenizer: decoding a vocabulary of 262,144 takes seconds, and every engine
# around a model asks for it.
_TOKEN_TEXTS: WeakKeyDictionary[Any, dict[tuple[object, ...], list[str]]] = WeakKeyDictionary()


def _token_texts(tokenizer: Any, vocabulary: int) -> list[str]:
    """The text of every token alone; of special ones none.

    The model's vocabulary, not the tokenizer's: an embedding is often padded past the last token,
    and an id that names none has no text. A tokenizer changes by what is added to it, where a
    token that it has may also become a special one: its length is the same then.
    """
    known = _TOKEN_TEXTS.setdefault(tokenizer, {})
    added = tokenizer.added_tokens_decoder.items()
    key = vocabulary, *((token_id, token.content, token.special) for token_id, token in added)
    texts = known.get(key)
    if texts is None:
        texts = tokenizer.batch_decode(
            [[token] for token in range(vocabulary)], skip_special_tokens=True
        )
        known.clear()
        known[key] = texts
    return texts


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
    if not stop:
        return EndStop(eos_ids, vocabulary, device)
    return StopStrings(stop, tokenizer, eos_ids, vocabulary, device)
