"""How the decode loop takes a token from the fused distribution: the likeliest, or a draw.

A draw's chance comes from one number a token, and that from the seed, the question's key and the
token's place alone: neither the order of the questions nor their batch changes it. The numbers of
many steps lie on the device, so that no step waits for the host.

Legend: ``B`` rows, ``V`` vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

# Chances that are computed at a time: several copies of them are needed, one in float64.
CPU_CHANCES, GPU_CHANCES = 1 << 21, 1 << 26
# The numbers of so many steps are made at once: a paraphrase seldom has more tokens.
STEPS_AT_ONCE = 32


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
        self._columns = torch.empty(0, 1, dtype=torch.long, device=device)  # of the next numbers

    def put(self, places: Sequence[int], questions: Sequence[int]) -> None:
        missing = max(places) + 1 - len(self._questions)
        if missing > 0:
            for kept in (self._questions, self._steps, self._first):
                kept.extend([0] * missing)
            more = self._numbers.new_zeros(missing, self._numbers.shape[1])
            self._numbers = torch.cat([self._numbers, more])
            self._columns = torch.cat([self._columns, self._columns.new_zeros(missing, 1)])
        for place, question in zip(places, questions, strict=True):
            self._questions[place], self._steps[place] = question, 0
        self._make_numbers(places)

    def choose(self, scores: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
        spent = [p for p in places if self._steps[p] - self._first[p] == self._numbers.shape[1]]
        if spent:
            self._make_numbers(spent)
        for place in places:
            self._steps[place] += 1
        # Of all places, as in nearly every step, nothing is sent to the device.
        at: torch.Tensor | slice = slice(None)
        if len(places) < len(self._questions):
            at = torch.tensor(list(places), device=self.device)
        numbers = self._numbers[at].gather(1, self._columns[at])[:, 0]
        self._columns[at] += 1
        return pick(scores, numbers, self.sampling.temperature, self.sampling.top_p)

    def keep(self, places: Sequence[int]) -> None:
        for name in ("_questions", "_steps", "_first"):
            kept = getattr(self, name)
            setattr(self, name, [kept[place] for place in places])
        at = torch.tensor(list(places), device=self.device)
        self._numbers, self._columns = self._numbers[at], self._columns[at]

    def _make_numbers(self, places: Sequence[int]) -> None:
        """Of the next tokens in these places."""
        seed, keys, count = self.sampling.seed, self.sampling.keys, self._numbers.shape[1]
        rows = []
        for place in places:
            self._first[place] = step = self._steps[place]
            rows.append(uniforms(seed, *keys[self._questions[place]], step, count))
        at = torch.tensor(list(places), device=self.device)
        self._numbers[at] = torch.tensor(rows, dtype=torch.float64).to(self.device)
        self._columns[at] = 0


def uniform(seed: int, uuid: str, attempt: int, step: int) -> float:
    """A number in [0, 1), one of 2^48; the same for the same arguments, always and everywhere."""
    return uniforms(seed, uuid, attempt, step, 1)[0]


def uniforms(seed: int, uuid: str, attempt: int, step: int, count: int) -> list[float]:
    """`uniform` of so many steps, from this one on."""
    # The digests of JSON lists [seed, uuid, attempt, step] begin alike.
    begun = hashlib.sha256(json.dumps([seed, uuid, attempt])[:-1].encode())
    found = []
    for k in range(step, step + count):
        digest = begun.copy()
        digest.update(f", {k}]".encode())
        found.append(int.from_bytes(digest.digest()[:6], "big") / 2**48)
    return found


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
        temperature, top_p: see `Sampling`.

    Returns:
        Token ids [B].
    """
    on_cpu = logits.device.type == "cpu"
    rows = max(1, (CPU_CHANCES if on_cpu else GPU_CHANCES) // logits.shape[-1])
    one = _pick_among_few if on_cpu and top_p < 1 else _pick_among_all
    parts = zip(logits.float().split(rows), numbers.split(rows), strict=True)
    return torch.cat([one(*part, temperature, top_p) for part in parts])


def _pick_among_all(
    logits: torch.Tensor, numbers: torch.Tensor, temperature: float, top_p: float
) -> torch.Tensor:
    """See `pick`. The host waits for nothing."""
    chances = (logits / temperature).softmax(-1)  # [B, V]
    if top_p < 1:
        chances = chances.where(chances >= nucleus_floor(chances, top_p), 0.0)
    edges = chances.cumsum(-1, dtype=torch.float64)
    at = numbers.to(edges.device)[:, None] * edges[:, -1:]
    # The first edge above: never a token without probability.
    return torch.searchsorted(edges, at, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def nucleus_floor(chances: torch.Tensor, top_p: float) -> torch.Tensor:
    """The least chance of those in the nucleus: what is likelier has less than ``top_p``.

    Found without sorting, by halving the range of numbers that it can be, down to one: a positive
    float is ordered as its bits are, read as a whole number. The nucleus is what is at least as
    likely, so that of equally likely tokens all are in it or none.

    Args:
        chances: [B, V] float32.

    Returns:
        [B, 1] float32.
    """
    lowest = _bits(_below_nucleus(chances.shape[-1], top_p))
    highest = _bits(1.0) + 1  # a rounding above 1
    low = torch.full((len(chances), 1), lowest, dtype=torch.int32, device=chances.device)
    high = torch.full_like(low, highest)
    for _ in range((highest - lowest).bit_length()):
        middle = low + (high - low) // 2
        above = chances.where(chances > middle.view(torch.float32), 0.0)
        is_in = above.sum(-1, keepdim=True, dtype=torch.float64) < top_p
        low, high = torch.where(is_in, low, middle), torch.where(is_in, middle, high)
    return high.view(torch.float32)


def _bits(number: float) -> int:
    """Of the number as a float of 32 bits."""
    return int(np.float32(number).view(np.int32))


def _below_nucleus(vocabulary: int, top_p: float) -> float:
    """A chance that none of the nucleus has: all such together are less than ``1 - top_p``."""
    return (1 - top_p) / 2 / vocabulary


def _pick_among_few(
    logits: torch.Tensor, numbers: torch.Tensor, temperature: float, top_p: float
) -> torch.Tensor:
    """See `pick`; on a CPU, row by row among the tokens that may be in the nucleus at all."""
    last = logits.shape[-1] - 1
    tops = logits.amax(-1, keepdim=True)
    totals = ((logits - tops) / temperature).exp().sum(-1, dtype=torch.float64).tolist()
    least = _below_nucleus(logits.shape[-1], top_p)
    taken = []
    rows = zip(logits.numpy(), tops[:, 0].tolist(), totals, numbers.tolist(), strict=True)
    for row, top, total, number in rows:
        is_real = math.isfinite(total) and total > 0
        bound = top + temperature * math.log(least * total) if is_real else math.inf
        ids = np.flatnonzero(row > bound)
        if not len(ids):
            taken.append(last)
            continue
        chances = np.exp((row[ids].astype(np.float64) - top) / temperature) / total
        ordered = np.sort(chances)[::-1]
        before = ordered.cumsum() - ordered  # what the likelier ones have
        floor = ordered[max(1, int((before < top_p).sum())) - 1]
        edges = np.where(chances >= floor, chances, 0.0).cumsum()
        at = int(np.searchsorted(edges, number * edges[-1], side="right"))
        taken.append(int(ids[min(at, len(ids) - 1)]))
    return torch.tensor(taken, device=logits.device)
