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

    def choose(self, scores: torch.Tensor, step: int) -> torch.Tensor:
        """scores [B, V] → token ids [B]."""
        ...

    def keep(self, slots: Sequence[int]) -> None:
        """Go on with the questions in these places of the batch, in this order."""
        ...


class Greedy:
    """The likeliest token; ties go to the lowest id."""

    def choose(self, scores: torch.Tensor, step: int) -> torch.Tensor:
        return scores.argmax(-1)

    def keep(self, slots: Sequence[int]) -> None:
        pass


class Sampler:
    """Draws, reproducibly, for the questions of one batch.

    Args:
        sampling: of the request.
        questions: which of the request's questions is in each place of the batch.
        device: of the scores.
    """

    def __init__(self, sampling: Sampling, questions: Sequence[int], device: torch.device):
        self.sampling = sampling
        self.questions = list(questions)
        self.device = device
        self._first = 0  # the step that the first column of the numbers is for
        self._numbers = torch.empty(len(self.questions), 0, dtype=torch.float64)

    def choose(self, scores: torch.Tensor, step: int) -> torch.Tensor:
        if step >= self._first + self._numbers.shape[1]:
            self._make_numbers(step)
        numbers = self._numbers[:, step - self._first]
        return pick(scores, numbers, self.sampling.temperature, self.sampling.top_p)

    def keep(self, slots: Sequence[int]) -> None:
        self.questions = [self.questions[slot] for slot in slots]
        self._numbers = self._numbers[torch.tensor(slots, device=self._numbers.device)]

    def _make_numbers(self, step: int) -> None:
        seed, keys = self.sampling.seed, self.sampling.keys
        rows = [
            [uniform(seed, *keys[question], step + k) for k in range(STEPS_AT_ONCE)]
            for question in self.questions
        ]
        self._first = step
        self._numbers = torch.tensor(rows, dtype=torch.float64).to(self.device)


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
