"""How answers are generated, whatever fuses them."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_MAX_NEW_TOKENS = 20


@dataclass(frozen=True)
class GenerationConfig:
    """Settings of the decode loop.

    max_new_tokens: the longest answer, in tokens.
    batch_size: questions at a time; None takes what fits.
    """

    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    batch_size: int | None = None

    def __post_init__(self) -> None:
        assert self.max_new_tokens > 0, self.max_new_tokens
        assert self.batch_size is None or self.batch_size > 0, self.batch_size
