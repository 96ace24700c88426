"""How a fused token's attention towards its paraphrases becomes one: the fusions.

Legend: ``R`` rows (decode streams), ``K`` partitions of a row, ``S`` queries of a row, ``H`` query
heads, ``J`` key/value heads, ``G = H / J``, ``D`` head size, ``P`` prefix tokens, ``M`` tokens of
the longest segment, ``F`` fused tokens so far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from self_ensemble.attention.masks import Visible
from self_ensemble.attention.rotary import rotate
from self_ensemble.attention.scoring import (
    KeyValues,
    Scoring,
    attention_scores,
    masked,
    read_values,
)

FUSIONS = ("mean", "joint")


@dataclass(frozen=True)
class Fusion:
    """How a fused token's partitions are combined.

    kind: ``mean`` of the partitions' attentions, or ``joint``: one softmax over all of them.
    tau: the weight of partition i is ``u_i * exp(tau * lse_i)``, normalised (``mean`` only).
    weights: ``u`` [K], non-negative, summing to one; None for equal ones.
    """

    kind: str = "mean"
    tau: float = 0.0
    weights: torch.Tensor | None = None

    def __post_init__(self):
        assert self.kind in FUSIONS, self.kind
        assert self.kind == "mean" or self.tau == 0, "tau is a dial of the fusion 'mean'"

    @classmethod
    def of(cls, kind: str, tau: float, weights, device) -> Fusion:
        """With weights as they are typed: any non-negative numbers, not all zero."""
        if weights is None:
            return cls(kind, tau)
        u = torch.tensor(weights, dtype=torch.float64) / max(weights)  # a sum could overflow
        return cls(kind, tau, (u / u.sum()).float().to(device))


def fuse_probabilities(
    prefix: torch.Tensor, segments: torch.Tensor, fused: torch.Tensor, fusion: Fusion
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """From scores towards the three kinds of keys to the probabilities their values are read with.

    A value is a sum over its probabilities, so weighting the partitions' probabilities and adding
    them up is the weighted mean of the partitions' attentions, with every value read once.

    Args:
        prefix: [J, R, K or 1, Q, P]; segments: [J, R, K, Q, M]; fused: [J, R, 1, Q, F]; masked.
        fusion: how to combine.

    Returns:
        Probabilities [J, R, Q, P], [J, R, K, Q, M] and [J, R, Q, F]; over all keys they sum to 1.
    """
    K, M = segments.shape[2], segments.shape[4]
    P, F = prefix.shape[-1], fused.shape[-1]
    if fusion.kind == "joint":
        assert prefix.shape[2] == 1, "the fusion 'joint' has one softmax: no RoPE offsets"
        if fusion.weights is not None:
            segments = segments + (K * fusion.weights).log()[:, None, None]
        flat = segments.transpose(2, 3).flatten(3)  # [J, R, Q, K * M]
        scores = torch.cat([prefix[:, :, 0], flat, fused[:, :, 0]], dim=-1)
        probabilities = scores.softmax(-1, dtype=torch.float32)
        p_prefix, p_flat, p_fused = probabilities.split([P, K * M, F], dim=-1)
        return p_prefix, p_flat.unflatten(3, (K, M)).transpose(2, 3), p_fused

    scores = torch.cat(
        [
            prefix.expand(-1, -1, K, -1, -1),
            segments,
            fused.expand(-1, -1, K, -1, -1),
        ],
        dim=-1,
    ).float()  # [J, R, K, Q, P + M + F]
    probabilities = scores.softmax(-1) * _partition_weights(scores, fusion)
    p_prefix, p_segments, p_fused = probabilities.split([P, M, F], dim=-1)
    return p_prefix.sum(2), p_segments, p_fused.sum(2)


def _partition_weights(scores: torch.Tensor, fusion: Fusion) -> torch.Tensor | float:
    """w_i of each partition: [J, R, K, Q, 1], or something that broadcasts to it."""
    K = scores.shape[2]
    log_u = None if fusion.weights is None else fusion.weights.log()[:, None, None]
    if fusion.tau == 0:
        return 1.0 / K if log_u is None else log_u.exp()
    mass = scores.logsumexp(-1, keepdim=True)
    dial = fusion.tau * (mass - mass.amax(2, keepdim=True))  # no overflow, whatever tau
    return (dial if log_u is None else dial + log_u).softmax(2)


def split_attention(
    query: torch.Tensor,
    prefix: KeyValues | None,
    segments: KeyValues,
    own: KeyValues,
    visible: Visible,
    angles: tuple[torch.Tensor, torch.Tensor] | None,
    interleaved: bool,
    scoring: Scoring,
    fusion: Fusion,
    observe: Callable[..., None] | None = None,
) -> torch.Tensor:
    """The attention of fused tokens, split at the borders of prefix, segments and fused tokens.

    Args:
        query: [R, H, S, D].
        prefix, segments, own: [J, P, D], [J, R, K, M, D] and [J, R, F, D].
        visible: which keys are seen.
        angles: cosines and sines that re-rotate the query towards each segment,
            [R, K, rotated size].
        interleaved: see `rotate`.
        scoring, fusion: how scores are made and partitions combined.
        observe: called with the probabilities that the values of prefix, segments and fused tokens
            are read with, [J, R, G, S, P], [J, R, K, G, S, M] and [J, R, G, S, F].

    Returns:
        [R, H, S, D].
    """
    R, H, S, _ = query.shape
    J = segments.keys.shape[0]
    G = H // J
    straight = query.unflatten(1, (J, G)).transpose(0, 1).flatten(2, 3)  # [J, R, G*S, D]
    rotated = straight[:, :, None]  # [J, R, 1 or K, G*S, D]
    if angles is not None:
        cos, sin = (table[None, :, :, None, :] for table in angles)
        rotated = rotate(rotated, cos, sin, interleaved)

    to_segments = attention_scores(rotated, segments.keys, scoring)
    to_fused = attention_scores(straight, own.keys, scoring)
    if prefix is None:
        to_prefix = to_segments[:, :, : rotated.shape[2], :, :0]
    else:
        rows = rotated.flatten(1, 3)  # [J, R*K*G*S, D]: one product for all rows
        to_prefix = attention_scores(rows, prefix.keys, scoring).unflatten(1, rotated.shape[1:4])
    p_prefix, p_segments, p_fused = fuse_probabilities(
        masked(to_prefix, visible.prefix),
        masked(to_segments, visible.segments),
        masked(to_fused[:, :, None], visible.fused),
        fusion,
    )
    if observe is not None:
        observe(*(p.unflatten(-2, (G, S)) for p in (p_prefix, p_segments, p_fused)))
    out = read_values(p_segments.transpose(2, 3).flatten(3), segments.values.flatten(2, 3))
    out = out + read_values(p_fused, own.values)
    if prefix is not None:
        read = read_values(p_prefix.flatten(1, 2), prefix.values)
        out = out + read.unflatten(1, (R, G * S))
    return out.unflatten(2, (G, S)).transpose(0, 1).flatten(1, 2)  # [R, H, S, D]
