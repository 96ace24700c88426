"""The registered logit methods and votes. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from self_ensemble.system.registry import Registry

if TYPE_CHECKING:
    from self_ensemble.generation.streams import Reduce

VoteRule = Callable[[Sequence[str]], int]


@dataclass(frozen=True)
class LogitMethod:
    """A way to combine the logits of a question's paraphrases.

    weighted: it is given a weight for each paraphrase, by default the confidence of the
        paraphrase's own answer, which costs a pass over every paraphrase alone.
    """

    reduce: Reduce
    weighted: bool = False


LOGIT_METHODS: Registry[LogitMethod] = Registry("unknown logit method {name!r}: there is {names}")
VOTES: Registry[VoteRule] = Registry("unknown vote {name!r}: there is {names}")
