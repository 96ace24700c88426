"""Differences of computed states, and how large rounding can make them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch


def rounding(dtype: torch.dtype, layers: int, *, more: int = 0) -> float:
    """How far two right computations of the same states may differ, relative to their norm.

    They differ in the order of their sums alone. A layer rounds its states to the dtype some eight
    times on their way through (two norms, queries, keys, values, attention, two products of the
    feed-forward), each time by half of ``eps`` at most. Roundings that know nothing of each other
    add up like a random walk, here over two computations: ``eps / 2 * sqrt(2 * 8 * layers)``.
    Weights amplify what went in; half precision gets a factor of 2 for that, where seeing the
    other segments moves states by tens of percent, and float32, with room to spare, one of 100.

    Args:
        dtype: of the states.
        layers: how many the states have passed.
        more: how many times more one of the two computations rounds in a layer.
    """
    walk = torch.finfo(dtype).eps / 2 * math.sqrt((2 * 8 + more) * layers)
    return walk * (100 if dtype == torch.float32 else 2)


def fused_rounding(dtype: torch.dtype, layers: int, *, exact: bool) -> float:
    """`rounding` of fused tokens' logits against those of a single prompt.

    Fused tokens round four times more in a layer, since their attention is a sum of three parts
    (two parts and two sums more), and four times more again where queries are re-rotated: their
    cosines and sines, those of the offset, the re-rotated query, and the keys of other positions.
    The head amplifies all of it once more, in logits: half as much again.

    exact: whether positions are exact, so that queries are re-rotated.
    """
    return 1.5 * rounding(dtype, layers, more=8 if exact else 4)


def largest(numbers: Iterable[float]) -> float:
    """The maximum; NaN where there is one, since Python's own `max` may pass over it."""
    numbers = list(numbers)
    return numbers[where_largest(numbers)]


def where_largest(numbers: Sequence[float]) -> int:
    """The index of the `largest`."""
    return max(range(len(numbers)), key=lambda i: (math.isnan(numbers[i]), numbers[i]))


def within(difference: float, tolerance: float) -> bool:
    """Whether a difference is one of rounding. NaN, which passes no comparison, is not."""
    return difference <= tolerance


def logit_difference(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest difference of any logits, as a part of the reference's spread. [..., V] both."""
    spread = reference - reference.mean(-1, keepdim=True)
    return ((logits - reference).norm(dim=-1) / spread.norm(dim=-1)).max().item()


def state_difference(states: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """How far states are off: relative to the reference's norm, and the largest of any value."""
    difference = states.float() - reference.float()
    # Where all is zero nothing differs.
    norm = max(reference.float().norm().item(), torch.finfo(torch.float32).tiny)
    return difference.norm().item() / norm, difference.abs().max().item()
