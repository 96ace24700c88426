"""How a fused token's attention towards its paraphrases becomes one: the fusions.

Legend: ``R`` rows (decode streams), ``K`` partitions of a row, ``S`` queries of a row, ``H`` query
heads, ``J`` key/value heads, ``G = H / J``, ``D`` head size, ``P`` prefix tokens, ``M`` tokens of
the longest segment, ``F`` fused tokens so far, ``Q = G * S``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

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
from self_ensemble.system.errors import UserError
from self_ensemble.system.registry import Registry

Probabilities = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class FuseProbabilities(Protocol):
    """A plain function from masked scores to probabilities."""

    def __call__(
        self, prefix: torch.Tensor, segments: torch.Tensor, fused: torch.Tensor, fusion: Fusion
    ) -> Probabilities:
        """See `fuse_probabilities`."""
        ...


@dataclass(frozen=True)
class FusionKind:
    """What is registered under a fusion's name; see `register_fusion`."""

    fuse: FuseProbabilities
    tau: bool
    weights: bool
    rope_offsets: bool
    in_kernel: bool


FUSIONS: Registry[FusionKind] = Registry("unknown fusion {name!r}: there are {names}")

Function = TypeVar("Function", bound=FuseProbabilities)


def register_fusion(
    name: str,
    *,
    tau: bool = False,
    weights: bool = False,
    rope_offsets: bool = True,
    in_kernel: bool = False,
) -> Callable[[Function], Function]:
    """A decorator that registers a function as the fusion ``Fusion(name)``.

    The function gets a layer's masked scores and returns probabilities; see `fuse_probabilities`
    for both. `partition_scores` and `weighted_partitions` are the halves of a fusion that weights
    partitions, each of them the softmax of one prompt:

    >>> @register_fusion("surest")
    ... def surest(prefix, segments, fused, fusion):
    ...     scores = partition_scores(prefix, segments, fused)
    ...     mass = scores.logsumexp(-1, keepdim=True)  # [J, R, K, Q, 1]
    ...     weights = (mass * 4).softmax(2)
    ...     return weighted_partitions(scores, weights, prefix, segments)

    Args:
        name: what `Fusion` is asked for.
        tau: whether the function reads ``fusion.tau``.
        weights: whether it reads ``fusion.weights``.
        rope_offsets: whether it can do with scores of the prefix that differ from partition to
            partition, which the positions ``exact`` give.
        in_kernel: whether the Triton kernels compute it too. What they do not know runs in plain
            torch, on a GPU too, and is captured in no CUDA graph.

    Raises:
        ValueError: the name is taken.
    """

    def decorate(fuse: Function) -> Function:
        FUSIONS.add(name, FusionKind(fuse, tau, weights, rope_offsets, in_kernel))
        return fuse

    return decorate


@dataclass(frozen=True)
class Fusion:
    """How a fused token's partitions are combined.

    Args:
        kind: ``mean`` of the partitions' attentions, ``joint``, one softmax over all of them, or a
            name that `register_fusion` was given.
        tau: the weight of partition i is ``u_i * exp(tau * lse_i)``, normalised (``mean``).
        weights: ``u``, non-negative, summing to one over the partitions; [K], or of every row
            its own, [R, K]; None for equal ones.

    Raises:
        UserError: there is no such fusion, it has no tau, or tau is not finite.
    """

    kind: str = "mean"
    tau: float = 0.0
    weights: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if not FUSIONS.get(self.kind).tau and self.tau != 0:
            raise UserError(f"the fusion {self.kind!r} has no tau: leave it at 0")
        if not FUSIONS.get(self.kind).weights and self.weights is not None:
            raise UserError(f"the fusion {self.kind!r} uses no weights: leave them out")
        if not math.isfinite(self.tau):
            raise UserError(f"the fusion's tau must be a finite number, not {self.tau}")

    @classmethod
    def of(
        cls,
        kind: str,
        tau: float,
        weights: Sequence[float] | None,
        device: torch.device | str,
    ) -> Fusion:
        """With weights as they are typed: any non-negative numbers, not all zero."""
        if weights is None:
            return cls(kind, tau)
        u = torch.tensor(list(weights), dtype=torch.float64) / max(weights)  # a sum could overflow
        return cls(kind, tau, (u / u.sum()).float().to(device))

    def of_first(self, K: int) -> Fusion:
        """Of a question that has K paraphrases, the first K weights."""
        if self.weights is None or len(self.weights) == K:
            return self
        u = self.weights[:K]
        return replace(self, weights=u / u.sum())

    @property
    def rope_offsets(self) -> bool:
        """Whether the positions ``exact`` are possible, under which partitions' queries differ."""
        return FUSIONS.get(self.kind).rope_offsets

    @property
    def in_kernel(self) -> bool:
        """Whether the Triton kernels compute it; if not, nothing may be captured."""
        return FUSIONS.get(self.kind).in_kernel


def fuse_probabilities(
    prefix: torch.Tensor, segments: torch.Tensor, fused: torch.Tensor, fusion: Fusion
) -> Probabilities:
    """From scores towards the three kinds of keys to the probabilities their values are read with.

    A value is a sum over its probabilities, so weighting the partitions' probabilities and adding
    them up is the weighted mean of the partitions' attentions, with every value read once.

    Args:
        prefix: [J, R, K or 1, Q, P]; segments: [J, R, K, Q, M]; fused: [J, R, 1, Q, F]; minus
            infinity where a key is not seen. Q are the queries of a kv head's group, G * S; the
            prefix has K where queries have RoPE offsets.
        fusion: how to combine.

    Returns:
        Probabilities [J, R, Q, P], [J, R, K, Q, M] and [J, R, Q, F], float32; over all keys they
        sum to 1.
    """
    kind = FUSIONS.get(fusion.kind)
    assert kind.rope_offsets or prefix.shape[2] == 1, (
        f"the fusion {fusion.kind!r} cannot have RoPE offsets"
    )
    return kind.fuse(prefix, segments, fused, fusion)


@register_fusion("mean", tau=True, weights=True, in_kernel=True)
def mean_of_partitions(
    prefix: torch.Tensor, segments: torch.Tensor, fused: torch.Tensor, fusion: Fusion
) -> Probabilities:
    """Each partition's softmax by itself, weighted: sum_i w_i softmax_i, w_i from u, tau and lse_i.

    At tau = 0 and equal u it is a mean of attentions, as if each prompt were alone.
    """
    scores = partition_scores(prefix, segments, fused)
    return weighted_partitions(scores, _partition_weights(scores, fusion), prefix, segments)


@register_fusion("joint", weights=True, rope_offsets=False, in_kernel=True)
def joint_softmax(
    prefix: torch.Tensor, segments: torch.Tensor, fused: torch.Tensor, fusion: Fusion
) -> Probabilities:
    """One softmax over prefix, all segments and fused tokens.

    As in Parallel Context Windows (Ratner et al., 2023), where windows are attended to side by
    side. A weight u_i adds log(K u_i) to segment i's scores.
    """
    K, M = segments.shape[2], segments.shape[4]
    P, F = prefix.shape[-1], fused.shape[-1]
    if fusion.weights is not None:
        segments = segments + (K * fusion.weights).log()[..., None, None]
    flat = segments.transpose(2, 3).flatten(3)  # [J, R, Q, K * M]
    scores = torch.cat([prefix[:, :, 0], flat, fused[:, :, 0]], dim=-1)
    probabilities = scores.softmax(-1, dtype=torch.float32)
    p_prefix, p_flat, p_fused = probabilities.split([P, K * M, F], dim=-1)
    return p_prefix, p_flat.unflatten(3, (K, M)).transpose(2, 3), p_fused


def partition_scores(
    prefix: torch.Tensor, segments: torch.Tensor, fused: torch.Tensor
) -> torch.Tensor:
    """All scores of each partition beside each other, [J, R, K, Q, P + M + F] float32."""
    K = segments.shape[2]
    return torch.cat(
        [prefix.expand(-1, -1, K, -1, -1), segments, fused.expand(-1, -1, K, -1, -1)], dim=-1
    ).float()


def weighted_partitions(
    scores: torch.Tensor,
    weights: torch.Tensor | float,
    prefix: torch.Tensor,
    segments: torch.Tensor,
) -> Probabilities:
    """Each partition's softmax times its weight, with what partitions share added up.

    Args:
        scores: see `partition_scores`.
        weights: [J, R, K, Q, 1], or what broadcasts to it; over K they sum to 1.
        prefix, segments: what the scores were made of: their last sizes are P and M.

    Returns:
        See `fuse_probabilities`.
    """
    P, M = prefix.shape[-1], segments.shape[-1]
    probabilities = scores.softmax(-1) * weights
    p_prefix, p_segments, p_fused = probabilities.split([P, M, scores.shape[-1] - P - M], dim=-1)
    return p_prefix.sum(2), p_segments, p_fused.sum(2)


def _partition_weights(scores: torch.Tensor, fusion: Fusion) -> torch.Tensor | float:
    """w_i of each partition: [J, R, K, Q, 1], or something that broadcasts to it."""
    K = scores.shape[2]
    log_u = None if fusion.weights is None else fusion.weights.log()[..., None, None]
    if fusion.tau == 0:
        return 1.0 / K if log_u is None else log_u.exp()
    mass = scores.logsumexp(-1, keepdim=True)
    exponent = fusion.tau * (mass - mass.amax(2, keepdim=True))  # no overflow, whatever tau
    return (exponent if log_u is None else exponent + log_u).softmax(2)


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
