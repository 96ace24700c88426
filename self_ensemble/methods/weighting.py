"""How sure each paraphrase of a question is before anything is fused: weights of a question's own.

A weighting looks at the first answer token of every paraphrase as if it were asked alone, and says
from these distributions how much each paraphrase counts, in the attention or at the logits.
Nothing here imports torch, so that a command line knows the names at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from self_ensemble.system.errors import UserError
from self_ensemble.system.registry import Registry

if TYPE_CHECKING:
    import torch

    from self_ensemble.generation.streams import Weigh

# (logits [B, N, V] float32, strength) → [B, N]: logarithms of the weights, up to a constant.
LogWeights = Callable[["torch.Tensor", float], "torch.Tensor"]
WEIGHTINGS: Registry[LogWeights] = Registry("unknown weighting {name!r}: there is {names}")


@dataclass(frozen=True)
class Weighting:
    """A registered weighting, and how strongly it tells paraphrases apart: 0 is equal weights."""

    name: str
    strength: float

    def __str__(self) -> str:
        return f"{self.name}:{self.strength!r}".removesuffix(".0")

    @property
    def weigh(self) -> Weigh:
        """What a request is given."""
        return partial(_weigh, WEIGHTINGS.get(self.name), self.strength)


def _weigh(function: LogWeights, strength: float, logits: torch.Tensor) -> torch.Tensor:
    return function(logits, strength)


def parse_weighting(text: str) -> Weighting:
    """``NAME:STRENGTH``, such as ``entropy:1``.

    Raises:
        UserError: there is no such weighting, or its strength is no finite number of 0 or more.
    """
    name, _, number = text.partition(":")
    WEIGHTINGS.get(name)
    try:
        strength = float(number)
    except ValueError:
        strength = math.nan
    if not 0 <= strength < math.inf:
        raise UserError(
            f"the weighting {text!r} must be written {name}:NUMBER, with a number of 0 or more, "
            f"such as {name}:1"
        )
    return Weighting(name, strength)


def weigh_by(text: str | None) -> Weigh | None:
    """What a request is given for a method's ``weights_by``."""
    return None if text is None else parse_weighting(text).weigh


def register_weighting(name: str) -> Callable[[LogWeights], LogWeights]:
    """Register a function of (logits, strength) as the weighting ``name:STRENGTH``.

    The function gets logits [B, N, V] float32 of B questions with N paraphrases each, of each
    paraphrase's first answer token as if it were asked alone. It returns the logarithms of the
    weights, [B, N]; what is added to all N of a question changes nothing, and minus infinity leaves
    a paraphrase out.

    Raises:
        ValueError: the name is taken, or is no name.
    """
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        raise ValueError(f"{name!r} is no name: a letter, then letters, digits and _ only")
    return WEIGHTINGS.register(name)


@register_weighting("entropy")
def entropy(logits: torch.Tensor, strength: float) -> torch.Tensor:
    """exp(-strength * H), H the entropy in nats: a paraphrase that wavers counts less."""
    logprobs = logits.log_softmax(-1)
    # A token that cannot be adds nothing, where 0 * -inf is no number. What is no number stays so.
    each = (logprobs.exp() * logprobs).masked_fill(logprobs.isneginf(), 0.0)
    return strength * each.sum(-1)
