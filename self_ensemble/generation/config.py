"""How answers are generated, whatever fuses them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

from self_ensemble.system.errors import UserError

DEFAULT_MAX_NEW_TOKENS = 20


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """From what distribution tokens are drawn; the defaults stand here alone.

    temperature: above 0; the logits are divided by it.
    top_p: above 0, at most 1; drawn from the likeliest tokens that together have this probability.
    seed: whatever is drawn with another seed is drawn independently.

    Raises:
        UserError: one of them is no such number.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (_is_number(self.temperature) and 0 < self.temperature < math.inf):
            raise UserError(f"temperature: {self.temperature} is not a number above 0")
        if not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise UserError(f"top_p: {self.top_p} is not a number above 0 and at most 1")
        if not _is_whole(self.seed, at_least=0):
            raise UserError(f"seed: {self.seed} is not a whole number of 0 or more")


def make_sampling(
    *,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    usual: SamplingConfig | None = None,
) -> SamplingConfig | None:
    """How tokens are drawn where some of it is said; None: they are not.

    usual: from what they are drawn where no temperature is given; None: nothing is drawn then.

    Raises:
        UserError: top_p or a seed is given where nothing is drawn.
    """
    given = {"temperature": temperature, "top_p": top_p, "seed": seed}
    told: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if temperature is not None:
        usual = SamplingConfig()
    elif usual is None:
        for name in told:
            raise UserError(f"{name}: without a temperature nothing is drawn")
        return None
    return replace(usual, **told)


@dataclass(frozen=True)
class GenerationConfig:
    """Settings of the decode loop.

    max_new_tokens: the longest answer, in tokens.
    batch_size: questions at a time; None takes what fits.
    stop: texts that end an answer where the first of them is complete, and are no part of it; ():
        only end-of-sequence and the limit end it; None: the newline after its first visible
        character.
    sampling: how tokens are drawn; None: the likeliest is taken.

    Raises:
        UserError: a number is no whole one above 0, or a stop is no text or empty.
    """

    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    batch_size: int | None = None
    stop: tuple[str, ...] | None = None
    sampling: SamplingConfig | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size"):
            value = getattr(self, name)
            if value is not None and not _is_whole(value, at_least=1):
                raise UserError(f"{name}: {value} is not a whole number above 0")
        if self.stop is not None:
            object.__setattr__(self, "stop", _checked_stops(self.stop))


def _checked_stops(stop: Sequence[str]) -> tuple[str, ...]:
    if isinstance(stop, str):
        raise UserError(f"stop: {stop!r} is one text; give a list of texts, such as ['\\n\\n']")
    if not isinstance(stop, Iterable):
        raise UserError(f"stop: {stop!r} is no list of texts")
    for text in stop:
        if not isinstance(text, str) or not text:
            raise UserError(f"stop: {text!r} is not a text of at least one character")
    return tuple(dict.fromkeys(stop))


def _is_whole(value: object, *, at_least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= at_least


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
