"""How answers are generated, whatever fuses them."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

from self_ensemble.system.errors import UserError

DEFAULT_MAX_NEW_TOKENS = 20


@dataclass(frozen=True)
class GenerationConfig:
    """Settings of the decode loop.

    max_new_tokens: the longest answer, in tokens.
    batch_size: questions at a time; None takes what fits.

    Raises:
        UserError: one of them is no whole number above 0.
    """

    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    batch_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Integral) and int(value) >= 1):
                raise UserError(f"{name}: {value} is not a whole number above 0")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """From what distribution tokens are drawn; the defaults stand here alone.

    temperature: above 0; the logits are divided by it.
    top_p: above 0; drawn from the likeliest tokens that together have this probability.
    seed: whatever is drawn with another seed is drawn independently.
    """

    temperature: float = 1.0
    top_p: float = 0.95
    seed: int = 0
