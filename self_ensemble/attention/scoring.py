"""Keys, values and scores of one layer, in plain math.

Legend: ``J`` key/value heads, ``D`` head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Scoring:
    """How a layer turns query-key products into scores."""

    scaling: float
    softcap: float | None = None
    window: int | None = None  # positions seen back, the token itself included

    def __call__(self, products: torch.Tensor) -> torch.Tensor:
        scores = products * self.scaling
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        return scores


@dataclass(frozen=True)
class KeyValues:
    """Keys and values of one layer, kv heads first: [J, ..., tokens, D]."""

    keys: torch.Tensor
    values: torch.Tensor


def attention_scores(query: torch.Tensor, keys: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """Scores of every query towards every key, one dense product a batch entry.

    query [J, batch, queries, D], keys [J, batch, tokens, D] → [J, batch, queries, tokens].
    """
    return scoring(torch.matmul(query, keys.transpose(-1, -2)))


def masked(scores: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
    """Scores, minus infinity where ``visible`` (which broadcasts to them) is false; None: all."""
    return scores if visible is None else scores.masked_fill(~visible, float("-inf"))


def read_values(probabilities: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """[J, batch, queries, tokens] and [J, batch, tokens, D] → [J, batch, queries, D]."""
    return torch.matmul(probabilities.to(values.dtype), values)
