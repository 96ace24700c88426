"""How the decode loop takes a token from the fused distribution: the likeliest, or a draw.

A draw's chance comes from one number a token, and that from the seed, the question's key and the
token's place alone: neither the order of the questions nor their batch changes it.

Legend: ``B`` rows, ``V`` vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

# Rows whose distributions are sorted at a time: in float64 those of a batch would not fit.
ROWS_AT_ONCE = 32
# The numbers of so many steps are made at once on the host, so that no step waits for it.
STEPS_AT_ONCE = 64


@dataclass(frozen=True)
class Sampling:
    """Draws instead of the likeliest token.

    temperature: above 0; the logits are divided by it.
    top_p: above 0, at most 1; drawn from the likeliest tokens that together have this probability
        (nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751).
    seed: whatever is drawn with another seed is drawn independently.
    keys: of each question, what its draws depend on beside the seed: its uuid, and which of its
        draws this is.
    """

    temperature: float
    top_p: float
    seed: int
    keys: Sequence[tuple[str, int]]

    def __post_init__(self) -> None:
        assert self.temperature > 0, self.temperature
        assert 0 < self.top_p <= 1, self.top_p


class Chooser(Protocol):
    """Takes the tokens of a batch's questions, step by step."""

    def put(self, places: Sequence[int], questions: Sequence[int]) -> None:
        """These questions begin in these places of the batch."""
        ...

    def choose(self, scores: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
        """The next token of the questions in some places: scores [B, V] → token ids [B]."""
        ...

    def keep(self, places: Sequence[int]) -> None:
        """Go on with the questions in these places of the batch, in this order."""
        ...


class Greedy:
    """The likeliest token; ties go to the lowest id."""

    def put(self, places: Sequence[int], questions: Sequence[int]) -> None:
        pass

    def choose(self, scores: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
        return scores.argmax(-1)

    def keep(self, places: Sequence[int]) -> None:
        pass


class Sampler:
    """Draws, reproducibly, for the questions of one batch.

    Args:
        sampling: of the request.
        device: of the scores.
    """

    def __init__(self, sampling: Sampling, device: torch.device):
        self.sampling = sampling
        self.device = device
        # Of each place: its question, its next token, the token that its first number is for.
        self._questions: list[int] = []
        self._steps: list[int] = []
        self._first: list[int] = []
        self._numbers = torch.empty(0, STEPS_AT_ONCE, dtype=torch.float64, device=device)

    def put(self, places: Sequence[int], questions: Sequence[int]) -> None:
        missing = max(places) + 1 - len(self._questions)
        if missing > 0:
            for kept in (self._questions, self._steps, self._first):
                kept.extend([0] * missing)
            more = self._numbers.new_zeros(missing, self._numbers.shape[1])
            self._numbers = torch.cat([self._numbers, more])
        for place, question in zip(places, questions, strict=True):
            self._questions[place], self._steps[place] = question, 0
        self._make_numbers(places)

    def choose(self, scores: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
        spent = [p for p in places if self._steps[p] - self._first[p] == self._numbers.shape[1]]
        if spent:
            self._make_numbers(spent)
        columns = [self._steps[place] - self._first[place] for place in places]
        at = torch.tensor([list(places), columns]).to(self.device)
        for place in places:
            self._steps[place] += 1
        numbers = self._numbers[at[0], at[1]]
        return pick(scores, numbers, self.sampling.temperature, self.sampling.top_p)

    def keep(self, places: Sequence[int]) -> None:
        for name in ("_questions", "_steps", "_first"):
            kept = getattr(self, name)
            setattr(self, name, [kept[place] for place in places])
        self._numbers = self._numbers[torch.tensor(places, device=self.device)]

    def _make_numbers(self, places: Sequence[int]) -> None:
        """Of the next tokens in these places."""
        seed, keys = self.sampling.seed, self.sampling.keys
        rows = []
        for place in places:
            key, step = keys[self._questions[place]], self._steps[place]
            self._first[place] = step
            rows.append([uniform(seed, *key, step + k) for k in range(self._numbers.shape[1])])
        numbers = torch.tensor(rows, dtype=torch.float64).to(self.device)
        self._numbers[torch.tensor(places, device=self.device)] = numbers


def uniform(seed: int, uuid: str, attempt: int, step: int) -> float:
    """A number in [0, 1), one of 2^48; the same for the same arguments, always and everywhere."""
    name = json.dumps([seed, uuid, attempt, step])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def pick(
    logits: torch.Tensor, numbers: torch.Tensor, temperature: float, top_p: float
) -> torch.Tensor:
    """The token at which the probabilities, added up in order of their ids, pass the number.

    Not in order of probability: two tokens that are about as likely could change places by a
    rounding of their batch, and with them what is drawn.

    Args:
        logits: [B, V]. Where a row holds NaN, some token is taken: whoever reads the token's
            log-probability sees that it is no number.
        numbers: [B] float64 in [0, 1).

    Returns:
        Token ids [B].
    """
    parts = zip(logits.split(ROWS_AT_ONCE), numbers.split(ROWS_AT_ONCE), strict=True)
    return torch.cat([_pick(*part, temperature, top_p) for part in parts])


def _pick(
    logits: torch.Tensor, numbers: torch.Tensor, temperature: float, top_p: float
) -> torch.Tensor:
    probabilities = (logits.double() / temperature).softmax(-1)  # [B, V]
    if top_p < 1:
        ordered = probabilities.sort(-1, descending=True).values
        before = ordered.cumsum(-1) - ordered  # what the likelier ones have
        last = (before < top_p).sum(-1, keepdim=True).clamp(min=1) - 1
        least = ordered.gather(-1, last)  # [B, 1]
        probabilities = probabilities.where(probabilities >= least, 0.0)
    edges = probabilities.cumsum(-1)
    at = numbers.to(edges.device)[:, None] * edges[:, -1:]
    # The first edge above: never a token without probability.
    return torch.searchsorted(edges, at, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
