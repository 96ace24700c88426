"""The attention that is put into a model's layers: isolated encoding, and fusion for fused tokens.

`FlexAttentionWrapper` hooks a function into every attention layer through transformers' attention
interface. What that function does is decided by the wrapper's ``plan``: a plan receives one
layer's queries, keys and values, keeps the keys and values it needs later, and returns the
attention's output. A model is never given a cache of transformers: the plans are the cache.

Legend: ``T`` packed tokens, ``R`` rows (decode streams), ``K`` partitions of a row, ``S`` queries
of a row, ``H`` query heads, ``J`` key/value heads, ``G = H / J``, ``D`` head size, ``P`` prefix
tokens, ``M`` tokens of the longest segment, ``F`` fused tokens so far.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from self_ensemble.attention.segments import dense_mask, packed_segment_mask
from self_ensemble.system.errors import UserError

logger = logging.getLogger(__name__)

BACKENDS = ("flex", "sdpa", "eager")
FUSIONS = ("mean", "joint")
# Two segments of this many tokens show whether a model works under our attention.
PROBE_TOKENS = 8

# What the layers of the supported architectures hand to an attention function beside the tensors.
_HARMLESS = {"dropout", "position_ids", "use_cache", "is_causal", "output_attentions"}


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


# ---- plain math: every plan can be computed with this alone -------------------------------------


def partial_scores(query: torch.Tensor, keys: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """Scores of every query towards every key, one dense product a batch entry.

    query [J, batch, queries, D], keys [J, batch, tokens, D] → [J, batch, queries, tokens].
    """
    return scoring(torch.matmul(query, keys.transpose(-1, -2)))


def masked(scores: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
    return scores if visible is None else scores.masked_fill(~visible, float("-inf"))


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
        assert prefix.shape[2] == 1, "the fusion 'joint' has one softmax: queries cannot be turned"
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


def _read(probabilities: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return torch.matmul(probabilities.to(values.dtype), values)


# ---- plans --------------------------------------------------------------------------------------


class MaskPlan:
    """The whole sequence in one forward, under a mask: a ``mask_mod``, or plain causal attention.

    Rows have no padding; a row's indices are its positions.
    """

    def __init__(self, mask_mod=None, *, backend: str, compiled: bool = True):
        self.mask_mod = mask_mod or (lambda b, h, q_idx, kv_idx: q_idx >= kv_idx)
        self.backend = backend
        self.compiled = compiled
        self._masks = {}

    def attend(self, layer, query, key, value, scoring):
        S = query.shape[2]
        if key.shape[2] != S:
            raise ValueError(
                f"{key.shape[2]} keys for {S} queries: under a mask a patched model takes the "
                "whole sequence at once; call it with use_cache=False"
            )

        def windowed(b, h, q_idx, kv_idx):
            visible = self.mask_mod(b, h, q_idx, kv_idx)
            return visible & (q_idx - kv_idx < scoring.window) if scoring.window else visible

        cached = (S, scoring.window)
        if cached not in self._masks:
            self._masks[cached] = make_mask(windowed, S, S, query.device, self.backend)
        return attend_under_mask(
            query, key, value, self._masks[cached], scoring, self.backend, self.compiled
        )


class Fresh:
    """Where a plan's tensors lie that nothing will look for again: anywhere."""

    def take(self, name, shape, like: torch.Tensor) -> torch.Tensor:
        """Uninitialised, contiguous."""
        return like.new_empty(shape)

    def reserve(self, name, size: int, like: torch.Tensor) -> None:
        """See `recorded.Room`."""

    def keep(self, name, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


class EncodePlan:
    """Segments packed behind each other, each seeing the prefix and itself.

    After the forward, ``layers[i]`` holds layer i's keys and values of the packed tokens,
    [J, T, D].

    Args:
        lengths: the segments' lengths, in packed order; they sum to T less the padding.
        segment_ids: [T], see `packed_segment_mask`.
        position_ids: [T].
        prefix: keys and values of each layer's prefix, [J, P, D], or an empty dict.
        backend: ``flex`` packs under a block mask; ``sdpa`` and ``eager`` pad inside attention.
        room: where ``flex`` keeps keys and values, with place for at least ``capacity`` tokens.
    """

    def __init__(
        self,
        lengths,
        segment_ids,
        position_ids,
        prefix,
        *,
        backend,
        compiled=True,
        room: Fresh | None = None,
        capacity: int = 0,
    ):
        sizes = torch.as_tensor(lengths)
        self.lengths = sizes
        self.starts = sizes.cumsum(0) - sizes
        self.room = room or Fresh()
        self.capacity = max(capacity, segment_ids.shape[0])
        self.segment_ids = segment_ids
        self.position_ids = position_ids
        self.prefix = prefix
        self.prefix_length = next(iter(prefix.values())).keys.shape[1] if prefix else 0
        self.backend = backend
        self.compiled = compiled
        self.layers: dict[int, KeyValues] = {}
        self._masks = {}

    @cached_property
    def padding(self) -> tuple[torch.Tensor, torch.Tensor]:
        """See `padding_indices`."""
        indices = padding_indices(self.lengths, self.segment_ids.shape[0])
        return tuple(index.to(self.segment_ids.device) for index in indices)

    @property
    def gather(self) -> torch.Tensor:
        return self.padding[0]

    def attend(self, layer, query, key, value, scoring):
        if self.backend == "flex":
            P, prefix = self.prefix_length, self.prefix.get(layer, KeyValues(None, None))
            keys = self._behind(prefix.keys, key[0], (layer, "keys"))
            values = self._behind(prefix.values, value[0], (layer, "values"))
            self.layers[layer] = KeyValues(keys[:, P:], values[:, P:])
            mask = self._mask(scoring.window, query.device)
            return attend_under_mask(
                query, keys[None], values[None], mask, scoring, "flex", self.compiled
            )

        own = KeyValues(key[0], value[0])
        self.layers[layer] = own
        rows = self.gather.shape[0]
        padded_query = query[0][:, self.gather].transpose(0, 1)  # [rows, H, M, D]
        keys = own.keys[:, self.gather].transpose(0, 1)  # [rows, J, M, D]
        values = own.values[:, self.gather].transpose(0, 1)
        if self.prefix:
            prefix = self.prefix[layer]
            keys = torch.cat([prefix.keys.expand(rows, -1, -1, -1), keys], dim=2)
            values = torch.cat([prefix.values.expand(rows, -1, -1, -1), values], dim=2)
        mask = self._mask(scoring.window, query.device)
        out = attend_under_mask(padded_query, keys, values, mask, scoring, self.backend)
        return out.transpose(0, 1).flatten(1, 2)[:, self.padding[1]][None]  # [1, H, T, D]

    def _behind(self, prefix, own, name) -> torch.Tensor:
        """The packed tokens behind the prefix, [J, P + T, D].

        Token by token in memory, so that what finds a token in it need not know how many there are.
        """
        J, T, D = own.shape
        P = self.prefix_length
        self.room.reserve(name, (P + self.capacity) * J * D, own)
        joined = self.room.take(name, (P + T, J, D), own).transpose(0, 1)
        if P:
            joined[:, :P] = prefix
        joined[:, P:] = own
        return joined

    def _mask(self, window, device):
        if window not in self._masks:
            P, T = self.prefix_length, self.segment_ids.shape[0]
            if self.backend == "flex":
                mask_mod = packed_segment_mask(self.segment_ids, self.position_ids, P, window)
                self._masks[window] = make_mask(mask_mod, T, P + T, device, "flex")
            else:
                self._masks[window] = self._padded_mask(window)
        return self._masks[window]

    def _padded_mask(self, window):
        """[rows or 1, 1, M, P + M]: the prefix and the row's own earlier tokens."""
        P, M = self.prefix_length, self.gather.shape[1]
        device = self.gather.device
        causal = torch.ones(M, P + M, dtype=torch.bool, device=device).tril(P)
        if window is None:
            return causal[None, None]
        q_position = self.position_ids[self.gather]  # [rows, M]
        prefix_position = torch.arange(P, device=device).expand(q_position.shape[0], P)
        kv_position = torch.cat([prefix_position, q_position], dim=1)
        near = q_position[:, :, None] - kv_position[:, None, :] < window
        return (causal & near)[:, None]


def padding_indices(lengths, total: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Between packed and padded: ``gather`` [rows, M] into the packed, ``scatter`` [total] back.

    Padding cells of ``gather`` point at some token of the row, padding tokens of the packed
    sequence (behind the last segment) at some cell: neither is ever read as anything else.
    """
    sizes = torch.as_tensor(lengths)
    M = int(sizes.max())
    starts = sizes.cumsum(0) - sizes
    within = torch.minimum(torch.arange(M)[None, :], sizes[:, None] - 1)
    gather = starts[:, None] + within
    scatter = torch.zeros(total, dtype=torch.long)
    cells = torch.arange(len(lengths))[:, None] * M + torch.arange(M)[None, :]
    valid = torch.arange(M)[None, :] < sizes[:, None]
    scatter[gather[valid]] = cells[valid]
    return gather, scatter


class FusedTokens:
    """What a row's fused tokens keep for later ones: keys and values in slots, and what these are.

    `append` tells which slots the next forward fills, `keep_rows` drops finished rows.

    Args:
        rows: R.
        segments: layer → keys and values of the rows' segments, [J, ..., D].
        prefix: layer → [J, P, D], or empty.
        turns: [R, K] positions by which a query is turned back towards segment k; None for none.
        rotary: how a layer's queries are turned; needed with ``turns``.
        slots: room for fused tokens a row.
        fusion: how the partitions are combined.
        room: where the tensors lie: `Fresh`, or `recorded.Room`.
    """

    def __init__(
        self,
        *,
        rows: int,
        segments: dict[int, KeyValues],
        prefix: dict[int, KeyValues],
        turns: torch.Tensor | None,
        rotary: RotaryTurn | None,
        slots: int,
        fusion: Fusion,
        room: Fresh,
    ):
        self.room = room
        self.prefix = prefix
        self.segments = segments
        self.turns = None if turns is None else room.keep("turns", turns)
        self.rotary = rotary
        self.fusion = fusion
        self.prefix_length = next(iter(prefix.values())).keys.shape[1] if prefix else 0
        device = next(iter(segments.values())).keys.device
        empty = torch.zeros(rows, slots, dtype=torch.bool, device=device)
        self.own_mask = room.keep("own mask", empty)
        self.own_positions = room.keep("own positions", empty.long())

        def some(name, like):  # what is not filled is not read
            return room.take(name, (like.shape[0], rows, slots, like.shape[-1]), like)

        self.own = {
            layer: KeyValues(
                some((layer, "own keys"), kv.keys), some((layer, "own values"), kv.values)
            )
            for layer, kv in segments.items()
        }
        self.filled = 0  # slots of the forwards before
        self.queries = 0  # slots of the next forward
        self.at = torch.empty(0, dtype=torch.long, device=device)  # which these are, [S]

    def append(self, positions: torch.Tensor, mask: torch.Tensor) -> None:
        """The next forward brings these tokens. positions, mask: [R, S]."""
        self.advance(positions.shape[1])
        self.mark(positions, mask)

    def advance(self, queries: int) -> None:
        """The next forward brings this many tokens a row."""
        self.filled += self.queries
        self.queries = queries
        assert self.filled + self.queries <= self.own_mask.shape[1], (self.filled, self.queries)
        at = torch.arange(self.filled, self.filled + self.queries, device=self.at.device)
        self.at = self.room.keep(("at", queries), at)

    def mark(self, positions: torch.Tensor, mask: torch.Tensor) -> None:
        """Say what these tokens are. positions, mask: [R, S]."""
        self.own_positions.index_copy_(1, self.at, positions)
        self.own_mask.index_copy_(1, self.at, mask)

    def put(self, layers: dict[int, KeyValues], positions: torch.Tensor) -> None:
        """Tokens every fused token sees, encoded elsewhere. layers: [J, R, S, D]."""
        self.append(positions, torch.ones_like(positions, dtype=torch.bool))
        for layer, kv in layers.items():
            self._write(layer, kv.keys, kv.values)

    def _write(self, layer, keys, values):
        """keys, values: [J, R, S, D]."""
        self.own[layer].keys.index_copy_(2, self.at, keys)
        self.own[layer].values.index_copy_(2, self.at, values)

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Keep only these rows, in this order. rows: [R'] indices."""
        self._keep_rows(self.own, "own", rows)
        self.own_mask = self.room.keep("own mask", self.own_mask[rows])
        self.own_positions = self.room.keep("own positions", self.own_positions[rows])
        if self.turns is not None:
            self.turns = self.room.keep("turns", self.turns[rows])

    def _keep_rows(self, layers, name, rows):
        for layer, kv in layers.items():
            layers[layer] = KeyValues(
                self.room.keep((layer, f"{name} keys"), kv.keys[:, rows]),
                self.room.keep((layer, f"{name} values"), kv.values[:, rows]),
            )

    def angles(self, layer) -> tuple[torch.Tensor, torch.Tensor, bool] | None:
        """Tables of cosines and sines, by turn, and whether pairs are neighbours; None where this
        layer's queries stay as they are."""
        if self.turns is None or layer not in self.rotary.tables:
            return None
        return *self.rotary.tables[layer], self.rotary.interleaved[layer]


class FusePlan(FusedTokens):
    """Fused tokens: each attends to the prefix, to every segment of its row and to earlier ones.

    In plain math; `recorded.RecordedFusePlan` does the same in a kernel.

    Args:
        segments: layer → [J, R, K, M, D], right-padded.
        segment_mask: [R, K, M] bool, false on padding.
        segment_positions: [R, K, M].
        observe: called with the layer and what `split_attention` says, in every layer of every
            forward.
        others: see `FusedTokens`.
    """

    def __init__(
        self,
        *,
        segments: dict[int, KeyValues],
        segment_mask: torch.Tensor,
        segment_positions: torch.Tensor,
        observe: Callable[..., None] | None = None,
        **others,
    ):
        super().__init__(rows=segment_mask.shape[0], segments=segments, room=Fresh(), **others)
        self.segment_mask = segment_mask
        self.segment_positions = segment_positions
        self.observe = observe
        self._masks = {}

    def advance(self, queries):
        super().advance(queries)
        self._masks.clear()

    def keep_rows(self, rows):
        super().keep_rows(rows)
        self._keep_rows(self.segments, "segment", rows)
        self.segment_mask = self.segment_mask[rows]
        self.segment_positions = self.segment_positions[rows]
        self._masks.clear()

    def attend(self, layer, query, key, value, scoring):
        S, J = query.shape[2], key.shape[1]
        assert self.queries == S, (self.queries, S)
        self._write(layer, key.transpose(0, 1), value.transpose(0, 1))
        end = self.filled + S
        own, angles, interleaved = self.own[layer], self.angles(layer), False
        if angles is not None:
            *tables, interleaved = angles
            angles = tuple(table[self.turns] for table in tables)  # [R, K, rotated size]
        return split_attention(
            query,
            self.prefix.get(layer),
            self.segments[layer],
            KeyValues(own.keys[:, :, :end], own.values[:, :, :end]),
            self._visible(scoring.window, query.shape[1] // J),
            angles,
            interleaved,
            scoring,
            self.fusion,
            None if self.observe is None else partial(self.observe, layer),
        )

    def _visible(self, window, group):
        if (window, group) not in self._masks:
            self._masks[window, group] = self._build_masks(window, group)
        return self._masks[window, group]

    def _build_masks(self, window, group):
        """Masks that broadcast to the scores' [J, R, K, G*S, keys]."""
        S = self.queries
        end = self.filled + S
        device = self.segment_mask.device
        position = self.own_positions[:, self.at]  # [R, S]
        order = torch.arange(end, device=device)
        causal = order[None, :] <= self.at[:, None]  # [S, F]
        fused = causal[None] & self.own_mask[:, None, :end]  # [R, S, F]
        # A padding query sees itself, so that its softmax is not empty.
        fused = fused | (order[None, :] == self.at[:, None])[None]
        segments = self.segment_mask[:, :, None, :].expand(-1, -1, S, -1)  # [R, K, S, M]
        prefix = None
        if window is not None:
            turns = 0 if self.turns is None else self.turns[:, :, None]
            towards = (position[:, None, :] - turns)[..., None]  # [R, K or 1, S, 1]
            segments = segments & (towards - self.segment_positions[:, :, None, :] < window)
            prefix_position = torch.arange(self.prefix_length, device=device)
            prefix = spread_over_group(towards - prefix_position < window, group)[None]
            distance = position[:, :, None] - self.own_positions[:, None, :end]
            fused = fused & (distance < window)
        return Visible(
            prefix,
            spread_over_group(segments, group)[None],
            spread_over_group(fused[:, None], group)[None],
        )


@dataclass(frozen=True)
class Visible:
    """Which keys a fused token sees: bool masks over [J, R, K, G*S, keys]; None for all."""

    prefix: torch.Tensor | None
    segments: torch.Tensor
    fused: torch.Tensor


def spread_over_group(mask: torch.Tensor, group: int) -> torch.Tensor:
    """[R, K, S, keys] → [R, K, G*S, keys]: the query heads of a kv head see the same."""
    return mask.repeat(1, 1, group, 1) if mask.shape[2] > 1 else mask


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
        angles: cosines and sines that turn the query towards each segment, [R, K, rotated size].
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
    turned = straight[:, :, None]  # [J, R, 1 or K, G*S, D]
    if angles is not None:
        cos, sin = (table[None, :, :, None, :] for table in angles)
        turned = rotate(turned, cos, sin, interleaved)

    to_segments = partial_scores(turned, segments.keys, scoring)
    to_fused = partial_scores(straight, own.keys, scoring)
    if prefix is None:
        to_prefix = to_segments[:, :, : turned.shape[2], :, :0]
    else:
        rows = turned.flatten(1, 3)  # [J, R*K*G*S, D]: one product for all rows
        to_prefix = partial_scores(rows, prefix.keys, scoring).unflatten(1, turned.shape[1:4])
    p_prefix, p_segments, p_fused = fuse_probabilities(
        masked(to_prefix, visible.prefix),
        masked(to_segments, visible.segments),
        masked(to_fused[:, :, None], visible.fused),
        fusion,
    )
    if observe is not None:
        observe(*(p.unflatten(-2, (G, S)) for p in (p_prefix, p_segments, p_fused)))
    out = _read(p_segments.transpose(2, 3).flatten(3), segments.values.flatten(2, 3))
    out = out + _read(p_fused, own.values)
    if prefix is not None:
        read = _read(p_prefix.flatten(1, 2), prefix.values)
        out = out + read.unflatten(1, (R, G * S))
    return out.unflatten(2, (G, S)).transpose(0, 1).flatten(1, 2)  # [R, H, S, D]


# ---- rotary positions ---------------------------------------------------------------------------


class RotaryTurn:
    """Turns rotated queries back by some positions, with the model's own cosines and sines.

    tables: layer → (cos, sin), each [max turn + 1, rotated size], of the angles of positions
        0, -1, -2, …; a layer without rotary positions is missing: its queries stay as they are.
    interleaved: layer → whether neighbouring values form the rotated pairs (else the two halves).
    """

    def __init__(self, tables, interleaved):
        self.tables = tables
        self.interleaved = interleaved

    @property
    def furthest(self) -> float:
        """The largest turn that the tables hold."""
        return min((len(cos) - 1 for cos, _ in self.tables.values()), default=math.inf)


def rotate(query, cos, sin, interleaved: bool) -> torch.Tensor:
    size = cos.shape[-1]
    head, rest = query[..., :size].float(), query[..., size:]
    if interleaved:
        other = torch.stack([-head[..., 1::2], head[..., ::2]], dim=-1).flatten(-2)
    else:
        other = torch.cat([-head[..., size // 2 :], head[..., : size // 2]], dim=-1)
    turned = (head * cos + other * sin).to(query.dtype)
    rest = rest.expand(*turned.shape[:-1], -1)
    return torch.cat([turned, rest], dim=-1)


class _QueryPlan(MaskPlan):
    """Causal attention that keeps every layer's queries."""

    def __init__(self):
        super().__init__(backend="eager")
        self.queries = {}

    def attend(self, layer, query, key, value, scoring):
        self.queries[layer] = query
        return super().attend(layer, query, key, value, scoring)


@torch.inference_mode()
def learn_rotary(wrapper: FlexAttentionWrapper, max_turn: int, last_position: int):
    """Read off a patched model how its queries turn, and prove it on every layer.

    A token alone in its sequence has the same hidden states wherever it stands, so its queries at
    two positions differ by the rotation between them and by nothing else. The rotation is built
    from the cosines and sines that the model hands to its own layers and must turn the query at
    ``last_position`` into the one ``max_turn`` positions earlier.

    Args:
        wrapper: around a patched model.
        max_turn: the largest turn that will be asked for, at least 1.
        last_position: the largest position that will be fed.

    Returns:
        A `RotaryTurn`, or None where the model's positions cannot be turned (learned positions,
        or a rotation of another kind).
    """
    if not wrapper.layers:
        check_architecture(wrapper)
    with wrapper.planned(_QueryPlan()):
        angles = _forward_with_angles(wrapper, [[last_position], [last_position - max_turn]])
        queries = wrapper.plan.queries
        if not angles:
            return None
    # The first token keeps length-dependent rotations at the scale of the run.
    behind = [last_position, *(-turn for turn in range(max_turn + 1))]
    with wrapper.planned(_QueryPlan()):
        angles = _forward_with_angles(wrapper, [behind])

    turn = RotaryTurn({}, {})
    for layer, query in queries.items():
        there, wanted = query[0, :, 0], query[1, :, 0]  # [H, D]
        tolerance = 1e-4 if query.dtype == torch.float32 else 2e-2
        close = lambda got: (got - wanted).abs().max() <= tolerance * wanted.abs().max()  # noqa: B023, E731
        if not wanted.any():  # zeros would prove anything
            return None
        if close(there):
            continue
        if layer not in angles:
            return None
        cos, sin = (table[0, 1:].float() for table in angles[layer])
        length = (cos.square() + sin.square()).sqrt()  # some models scale attention through these
        tables = (cos / length, sin / length)
        for interleaved in (False, True):
            if close(rotate(there, tables[0][-1], tables[1][-1], interleaved)):
                turn.tables[layer], turn.interleaved[layer] = tables, interleaved
                break
        else:
            return None
    return turn


def _forward_with_angles(wrapper, positions) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """One forward of a token at these positions; the (cos, sin) each attention layer was given.

    The token is one whose embedding is not zero, as a padding token's may be.
    """
    found = {}

    def keep(module, args, kwargs):
        for value in (*args, *kwargs.values()):
            if isinstance(value, tuple) and len(value) == 2 and torch.is_tensor(value[0]):
                found[module.layer_idx] = value

    hooks = [
        module.register_forward_pre_hook(keep, with_kwargs=True)
        for module, _ in wrapper.layers.values()
    ]
    try:
        position_ids = torch.tensor(positions, device=wrapper.model.device)
        some = wrapper.model.get_input_embeddings().weight[:64]
        ids = torch.full_like(position_ids, some.norm(dim=1).argmax().item())
        wrapper.model.base_model(input_ids=ids, position_ids=position_ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found


# ---- kernels ------------------------------------------------------------------------------------


def compile_with_room(function, **settings):
    """`torch.compile`, with room for every length and window that a run may bring.

    A model's numbers, such as its soft cap, are compiled in: as inputs, with dynamic shapes,
    FlexAttention's code does not build.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    torch._dynamo.config.specialize_float = True
    return torch.compile(function, **settings)


def make_mask(mask_mod, q_length: int, kv_length: int, device, backend: str):
    """A `BlockMask` for flex, a dense [1, 1, q, kv] bool mask for the others."""
    if backend != "flex":
        return dense_mask(mask_mod, q_length, kv_length, device)[None, None]
    from torch.nn.attention.flex_attention import create_block_mask

    make = create_block_mask
    if torch.device(device).type == "cuda":
        make = compiled_create_block_mask()  # writes no dense mask: at 30,000 tokens it is 1 GB
    return make(mask_mod, None, None, q_length, kv_length, device=device)


@lru_cache(maxsize=1)
def compiled_create_block_mask():
    from torch.nn.attention.flex_attention import create_block_mask

    return compile_with_room(create_block_mask, dynamic=True)


def attend_under_mask(query, key, value, mask, scoring, backend, compiled=True):
    """Attention under a mask. query [B, H, S, D], key and value [B, J, KV, D] → [B, H, S, D]."""
    if backend == "flex":
        return _flex(query, key, value, mask, scoring, compiled)
    if backend == "sdpa":
        assert scoring.softcap is None, "sdpa has no soft cap"
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scoring.scaling, enable_gqa=True
        )
    _, H, S, _ = query.shape
    J = key.shape[1]
    grouped = query.unflatten(1, (J, H // J)).flatten(2, 3)  # [B, J, G*S, D]
    scores = partial_scores(grouped, key, scoring).unflatten(2, (H // J, S))
    probabilities = masked(scores, mask[:, :, None]).softmax(-1, dtype=torch.float32)
    return _read(probabilities.flatten(2, 3), value).unflatten(2, (H // J, S)).flatten(1, 2)


def _flex(query, key, value, block_mask, scoring, compiled):
    kernel = compiled_flex_attention(query.device.type) if compiled else _eager_flex()
    lengths = (query.shape[2], key.shape[2])
    assert block_mask.seq_lengths == lengths, (block_mask.seq_lengths, lengths)
    return kernel(
        query,
        key,
        value,
        score_mod=None if scoring.softcap is None else soft_cap(scoring.softcap),
        block_mask=block_mask,
        scale=scoring.scaling,
        enable_gqa=True,
    )


def _eager_flex():
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@lru_cache(maxsize=2)
def compiled_flex_attention(device_type: str):
    """FlexAttention, on a GPU compiled once for all packed lengths.

    On a CPU once a length: with dynamic shapes its code does not build there. Past the limit of
    recompilations torch would go over to the unfused kernel in silence; ``fullgraph`` makes that
    an error.
    """
    return compile_with_room(_eager_flex(), dynamic=device_type == "cuda", fullgraph=True)


@lru_cache(maxsize=8)
def soft_cap(cap: float):
    def score_mod(score, b, h, q_idx, kv_idx):
        return cap * torch.tanh(score / cap)

    return score_mod


# ---- the hook -----------------------------------------------------------------------------------


class FlexAttentionWrapper:
    """Puts our attention into every attention layer of a model, and takes it out again.

    >>> with FlexAttentionWrapper(model).patch_model(mask_mod):
    ...     model(input_ids)  # every layer attends under mask_mod

    Args:
        model: a causal language model of transformers.
        backend: ``flex``, ``sdpa`` or ``eager``.
        compiled: compile FlexAttention; eager FlexAttention is exact and slow.
    """

    _serial = itertools.count()

    def __init__(self, model, backend: str = "sdpa", *, compiled: bool = True):
        assert backend in BACKENDS, backend
        self.model = model
        self.backend = backend
        self.compiled = compiled
        self.fallback = None  # why ``auto`` did not take FlexAttention where it tried to
        self.plan = None
        self.layers = {}  # index → (attention module, its scoring), as the last forwards met them
        self._name = None
        self._before = None
        self._hook = None
        self._untraced = None
        self._compiled = {}  # for one token alone or not → layers and their compiled forwards

    def patch_model(self, mask_mod=None) -> FlexAttentionWrapper:
        """Every forward from now on attends under ``mask_mod`` (plain causal attention if None).

        Raises:
            UserError: the model's layers do not go through transformers' attention interface.
        """
        assert self._name is None, "the model is patched already"
        self.plan = MaskPlan(mask_mod, backend=self.backend, compiled=self.compiled)
        self._before = self.model.config._attn_implementation
        self._name = f"self_ensemble_{next(self._serial)}"
        ALL_ATTENTION_FUNCTIONS[self._name] = self._attention
        ALL_MASK_ATTENTION_FUNCTIONS[self._name] = _no_mask
        self._hook = self.model.base_model.register_forward_pre_hook(_refuse_mask, with_kwargs=True)
        try:
            self.model.set_attn_implementation(self._name)
            if self.model.config._attn_implementation != self._name:
                raise UserError(
                    unsupported(self.model.config, "its layers do not use the attention interface")
                )
        except BaseException:
            self.unpatch_model()
            raise
        return self

    def unpatch_model(self) -> None:
        """Put back what was there. Harmless on a model that is not patched."""
        if self._name is None:
            return
        if self.model.config._attn_implementation == self._name:
            self.model.set_attn_implementation(self._before)
        del ALL_ATTENTION_FUNCTIONS[self._name]
        del ALL_MASK_ATTENTION_FUNCTIONS[self._name]
        self._hook.remove()
        self.plan = self._name = self._before = self._hook = None

    @contextmanager
    def planned(self, plan):
        """Within, every forward follows this plan."""
        before, self.plan = self.plan, plan
        try:
            yield
        finally:
            self.plan = before

    @contextmanager
    def taken_out(self):
        """Within, the model is as it was before it was patched."""
        self.model.set_attn_implementation(self._before)
        self._hook.remove()
        try:
            yield
        finally:
            self._hook = self.model.base_model.register_forward_pre_hook(
                _refuse_mask, with_kwargs=True
            )
            self.model.set_attn_implementation(self._name)

    @contextmanager
    def compiled_layers(self, *, one_token: bool = False):
        """Within, the model's layers run compiled, all but the attention, which stays ours.

        Their small passes are then fused into few kernels, with the roundings that they have one by
        one. For one token alone the products are compiled too, since they only read weights then.
        Compiled once for all lengths; kept on disk between runs.
        """
        if self._untraced is None:  # one object: another one would be compiled for again
            self._untraced = torch.compiler.disable(self._attention)
        if one_token not in self._compiled:
            kind = "coordinate_descent_tuning" if one_token else "emulate_precision_casts"
            self._compiled[one_token] = [
                (
                    layer,
                    compile_with_room(layer.forward, dynamic=not one_token, options={kind: True}),
                )
                for layer in self._decoder_layers()
            ]
        ALL_ATTENTION_FUNCTIONS[self._name] = self._untraced
        for layer, forward in self._compiled[one_token]:
            layer.forward = forward
        try:
            yield
        finally:
            for layer, _ in self._compiled[one_token]:
                del layer.forward
            ALL_ATTENTION_FUNCTIONS[self._name] = self._attention

    def _decoder_layers(self):
        """The modules that hold the attention modules."""
        if not self.layers:
            check_architecture(self)
        names = {module: name for name, module in self.model.named_modules()}
        parents = [names[module].rpartition(".")[0] for module, _ in self.layers.values()]
        return [self.model.get_submodule(parent) for parent in parents]

    def __enter__(self) -> FlexAttentionWrapper:
        return self if self._name else self.patch_model()

    def __exit__(self, *exception) -> None:
        self.unpatch_model()

    def _attention(self, module, query, key, value, attention_mask=None, **options):
        scoring = read_scoring(self.model.config, query, options)
        if attention_mask is not None:
            raise ValueError("a patched model takes its mask from the wrapper, not attention_mask")
        self.layers[module.layer_idx] = (module, scoring)
        out = self.plan.attend(module.layer_idx, query, key, value, scoring)
        return out.transpose(1, 2).contiguous(), None  # [B, S, H, D]; some layers view it


def read_scoring(config, query, options: dict) -> Scoring:
    """What a layer says of its scores. Anything we would have to ignore is refused."""
    scaling = options.pop("scaling", None)
    softcap = options.pop("softcap", None)
    window = options.pop("sliding_window", None)
    for name, value in options.items():
        if name not in _HARMLESS and value is not None and value is not False:
            raise UserError(unsupported(config, f"its attention uses {name!r}"))
    return Scoring(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, window)


def _no_mask(*args, **kwargs):
    """In transformers' mask interface: the plan brings the mask."""


def _refuse_mask(module, args, kwargs):
    """Before a patched model's forward: a mask that hides something would be ignored."""
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    if torch.is_tensor(mask) and not mask.all():
        raise ValueError("a patched model takes its mask from the wrapper, not attention_mask")


def unsupported(config, reason: str) -> str:
    return f"the architecture {config.model_type!r} is not supported: {reason}"


def reason_of(error: Exception) -> str:
    """Its kind and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# ---- what a model and a machine can do ----------------------------------------------------------


def head_shape(config) -> tuple[int, int, int]:
    """Query heads, key/value heads and head size of a text model's configuration."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return heads, kv_heads, getattr(config, "head_dim", None) or config.hidden_size // heads


def check_config(config) -> None:
    """Refuse, before any weights are loaded, what the configuration already shows cannot work.

    Raises:
        UserError: with the reason.
    """
    text_config = config.get_text_config()
    kinds = set(getattr(text_config, "layer_types", None) or ())
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(unsupported(config, "it is an encoder-decoder model"))
    if (
        getattr(text_config, "alibi", False)
        or getattr(text_config, "position_embedding_type", "") == "alibi"
    ):
        raise UserError(unsupported(config, "its positions are alibi biases on the attention"))
    if not kinds <= {"full_attention", "sliding_attention"}:
        other = sorted(kinds - {"full_attention", "sliding_attention"})[0]
        raise UserError(unsupported(config, f"it has layers of the kind {other!r}"))
    if getattr(text_config, "num_kv_shared_layers", 0):
        raise UserError(unsupported(config, "its layers share keys and values"))


class _ProbePlan(EncodePlan):
    """Remembers which layers attended, in order."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.attended = []

    def attend(self, layer, query, key, value, scoring):
        self.attended.append(layer)
        return super().attend(layer, query, key, value, scoring)


@torch.inference_mode()
def check_architecture(wrapper: FlexAttentionWrapper) -> None:
    """Run a patched model once and refuse what our attention would silently get wrong.

    Two segments packed into one sequence must come out as the model's own attention has each of
    them alone: with layers that look ahead, or carry a state from token to token, they do not.

    Raises:
        UserError: with the reason.
    """
    model, config = wrapper.model, wrapper.model.config.get_text_config()
    check_config(model.config)
    try:
        alone, packed, attended = _probe(wrapper)
    except UserError:
        raise
    except torch.OutOfMemoryError as error:
        raise UserError(f"out of memory with a few tokens: {reason_of(error)}") from error
    except Exception as error:  # a foreign architecture may raise anything; --verbose shows it
        logger.info("the probe failed", exc_info=True)
        raise UserError(unsupported(model.config, reason_of(error))) from error
    count = config.num_hidden_layers
    if sorted(attended) != list(range(count)):
        raise UserError(
            unsupported(
                model.config,
                f"it attends {len(attended)} times through the attention interface where its "
                f"{count} layers should once each: they are state-space, linear or of their own "
                "making",
            )
        )
    for layer, kind in enumerate(getattr(config, "layer_types", None) or ()):
        if (kind == "sliding_attention") != (wrapper.layers[layer][1].window is not None):
            reason = f"layer {layer} does not pass on its window"
            raise UserError(unsupported(model.config, reason))
    difference = ((packed - alone).norm() / alone.norm()).item()
    # Half precision rounds by shape; layers that look ahead move the logits by their own size.
    if difference > (1e-3 if model.dtype == torch.float32 else 0.1):
        raise UserError(
            unsupported(
                model.config,
                f"packed with others, a segment's logits move by {difference:.1%}: its layers look "
                "ahead, or tokens meet in it outside the attention",
            )
        )


def _probe(wrapper):
    """Logits of two segments under the model's own attention and packed under ours, and which
    layers attended, in order."""
    model, n = wrapper.model, PROBE_TOKENS
    ids = torch.arange(2 * n, device=model.device) % model.config.get_text_config().vocab_size
    positions = torch.arange(n, device=model.device).repeat(2)
    segment_ids = torch.arange(2, device=model.device).repeat_interleave(n)
    with wrapper.taken_out():
        model.set_attn_implementation("eager")
        alone = model(
            input_ids=ids.view(2, n), position_ids=positions.view(2, n), use_cache=False
        ).logits
    plan = _ProbePlan([n, n], segment_ids, positions, {}, backend="eager")
    with wrapper.planned(plan):
        packed = model(input_ids=ids[None], position_ids=positions[None], use_cache=False).logits
    return alone.flatten(0, 1).float(), packed[0].float(), plan.attended


@torch.inference_mode()
def flex_problem(wrapper: FlexAttentionWrapper) -> str | None:
    """Why compiled FlexAttention cannot run for this model on its device; None if it can.

    Compiles it for the model's heads and holds it against plain math.
    """
    model = wrapper.model
    _, scoring = next(iter(wrapper.layers.values()))
    heads, kv_heads, size = head_shape(model.config.get_text_config())
    segment_ids = torch.arange(256, device=model.device) // 100
    mask_mod = packed_segment_mask(segment_ids, segment_ids, 0, None)
    q, k, v = (
        torch.randn(1, h, 256, size, device=model.device, dtype=model.dtype)
        for h in (heads, kv_heads, kv_heads)
    )
    try:
        mask = make_mask(mask_mod, 256, 256, model.device, "flex")
        got = attend_under_mask(q, k, v, mask, scoring, "flex", wrapper.compiled)
    except Exception as error:  # the compiler's own faults come in every kind
        return reason_of(error)
    mask = make_mask(mask_mod, 256, 256, model.device, "eager")
    difference = (got - attend_under_mask(q, k, v, mask, scoring, "eager")).abs().max().item()
    if difference > (1e-4 if model.dtype == torch.float32 else 5e-2):
        return f"its result is off by {difference:.3g}"
    return None
