"""Given choices by their log-likelihood: norms for their lengths, and which one is taken.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from self_ensemble.system.errors import UserError

NORMS = ("sum", "mean", "bytes")


def normalized(logprobs: Sequence[float], choice: str, norm: str) -> float:
    """A choice's log-likelihood under a norm for its length.

    ``sum`` is the log-probability of the choice; ``mean`` divides it by the number of tokens, as in
    Brown et al. 2020, "Language Models are Few-Shot Learners", section 2.4; ``bytes`` by the bytes
    of the choice in UTF-8, which does not depend on the tokenizer (``acc_bytes`` of
    lm-evaluation-harness; its ``acc_norm`` divides by characters, which is the same for ASCII).

    Args:
        logprobs: natural log-probabilities of the choice's tokens; at least one.
        choice: its text, without what separates it from the prompt.
        norm: one of `NORMS`.

    Raises:
        UserError: there is no such norm.
    """
    total = sum(logprobs)
    if norm == "sum":
        return total
    if norm == "mean":
        return total / len(logprobs)
    if norm == "bytes":
        return total / len(choice.encode("utf-8"))
    raise UserError(f"unknown norm {norm!r}: there is {', '.join(NORMS)}")


def choose(scores: Sequence[float]) -> int:
    """The index of the highest score; ties go to the earlier choice."""
    return max(range(len(scores)), key=lambda index: (scores[index], -index))


def is_tied(scores: Sequence[float]) -> bool:
    """Whether more than one choice has the highest score."""
    return list(scores).count(max(scores)) > 1
