"""What a patched model's layers keep and see: keys and values of segments and of fused tokens.

A state receives one layer's queries, keys and values, keeps the keys and values it needs later, and
returns the attention's output. A model is never given a cache of transformers: the states are the
cache.

A model's layers may be on several devices. A layer's keys and values are where the layer is; what
all layers share is where the model takes its tokens, and `Copies` has it beside the others.

Legend: ``T`` packed tokens, ``R`` rows (decode streams), ``K`` partitions of a row, ``S`` queries
of a row, ``H`` query heads, ``J`` key/value heads, ``G = H / J``, ``D`` head size, ``P`` prefix
tokens, ``M`` tokens of the longest segment, ``F`` fused tokens so far.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from self_ensemble.attention.backends import Mask, attend_under_mask, make_mask
from self_ensemble.attention.buffers import Buffers
from self_ensemble.attention.copies import Copies
from self_ensemble.attention.fusion import Fusion, split_attention
from self_ensemble.attention.masks import Visible, packed_segment_mask, spread_over_group
from self_ensemble.attention.rotary import RotaryTables
from self_ensemble.attention.scoring import KeyValues, Scoring

# A row that has finished begins nowhere. So much of the slots is to be free once room was made.
LEFT = 1 << 60
SPARE_SLOTS = 0.25


class EncodeState:
    """Segments packed behind each other, each seeing the prefix and itself.

    After the forward, ``layers[i]`` holds layer i's keys and values of the packed tokens,
    [J, T, D].

    Args:
        lengths: the segments' lengths, in packed order; they sum to T less the padding.
        segment_ids: [T], see `packed_segment_mask`.
        position_ids: [T].
        prefix: keys and values of each layer's prefix, [J, P, D], or an empty dict.
        backend: ``flex`` packs under a block mask; ``sdpa`` and ``eager`` pad inside attention.
        buffers: where ``flex`` keeps keys and values, with room for at least ``capacity`` tokens.
    """

    def __init__(
        self,
        lengths: Sequence[int] | torch.Tensor,
        segment_ids: torch.Tensor,
        position_ids: torch.Tensor,
        prefix: dict[int, KeyValues],
        *,
        backend: str,
        compiled: bool = True,
        buffers: Buffers | None = None,
        capacity: int = 0,
    ) -> None:
        sizes = torch.as_tensor(lengths)
        self.lengths = sizes
        self.starts = sizes.cumsum(0) - sizes
        self.buffers = buffers or Buffers()
        self.capacity = max(capacity, segment_ids.shape[0])
        self.segment_ids = segment_ids
        self.position_ids = position_ids
        self.prefix = prefix
        self.prefix_length = next(iter(prefix.values())).keys.shape[1] if prefix else 0
        self.backend = backend
        self.compiled = compiled
        self.layers: dict[int, KeyValues] = {}
        self._masks: dict[tuple[int | None, torch.device], Mask] = {}
        self._padding: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def padding(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """See `padding_indices`."""
        if device not in self._padding:
            gather, scatter = padding_indices(self.lengths, self.segment_ids.shape[0])
            self._padding[device] = gather.to(device), scatter.to(device)
        return self._padding[device]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scoring: Scoring,
    ) -> torch.Tensor:
        if self.backend == "flex":
            P, before = self.prefix_length, self.prefix.get(layer)
            keys = self._behind(before.keys if before else None, key[0], (layer, "keys"))
            values = self._behind(before.values if before else None, value[0], (layer, "values"))
            self.layers[layer] = KeyValues(keys[:, P:], values[:, P:])
            mask = self._mask(scoring.window, query.device)
            return attend_under_mask(
                query, keys[None], values[None], mask, scoring, "flex", self.compiled
            )

        own = KeyValues(key[0], value[0])
        self.layers[layer] = own
        gather, scatter = self.padding(query.device)
        rows = gather.shape[0]
        padded_query = query[0][:, gather].transpose(0, 1)  # [rows, H, M, D]
        keys = own.keys[:, gather].transpose(0, 1)  # [rows, J, M, D]
        values = own.values[:, gather].transpose(0, 1)
        if self.prefix:
            prefix = self.prefix[layer]
            keys = torch.cat([prefix.keys.expand(rows, -1, -1, -1), keys], dim=2)
            values = torch.cat([prefix.values.expand(rows, -1, -1, -1), values], dim=2)
        mask = self._mask(scoring.window, query.device)
        out = attend_under_mask(padded_query, keys, values, mask, scoring, self.backend)
        return out.transpose(0, 1).flatten(1, 2)[:, scatter][None]  # [1, H, T, D]

    def _behind(
        self, prefix: torch.Tensor | None, own: torch.Tensor, name: Hashable
    ) -> torch.Tensor:
        """The packed tokens behind the prefix, [J, P + T, D].

        Token by token in memory, so that what finds a token in it need not know how many there are.
        """
        J, T, D = own.shape
        P = self.prefix_length
        self.buffers.reserve(name, (P + self.capacity) * J * D, own)
        joined = self.buffers.take(name, (P + T, J, D), own).transpose(0, 1)
        if prefix is not None:
            joined[:, :P] = prefix
        joined[:, P:] = own
        return joined

    def _mask(self, window: int | None, device: torch.device) -> Mask:
        if (window, device) not in self._masks:
            P, T = self.prefix_length, self.segment_ids.shape[0]
            if self.backend == "flex":
                ids, positions = (x.to(device) for x in (self.segment_ids, self.position_ids))
                mask_mod = packed_segment_mask(ids, positions, P, window)
                self._masks[window, device] = make_mask(mask_mod, T, P + T, device, "flex")
            else:
                self._masks[window, device] = self._padded_mask(window, device)
        return self._masks[window, device]

    def _padded_mask(self, window: int | None, device: torch.device) -> torch.Tensor:
        """[rows or 1, 1, M, P + M]: the prefix and the row's own earlier tokens."""
        gather, _ = self.padding(device)
        P, M = self.prefix_length, gather.shape[1]
        causal = torch.ones(M, P + M, dtype=torch.bool, device=device).tril(P)
        if window is None:
            return causal[None, None]
        q_position = self.position_ids.to(device)[gather]  # [rows, M]
        prefix_position = torch.arange(P, device=device).expand(q_position.shape[0], P)
        kv_position = torch.cat([prefix_position, q_position], dim=1)
        near = q_position[:, :, None] - kv_position[:, None, :] < window
        return (causal & near)[:, None]


def padding_indices(
    lengths: Sequence[int] | torch.Tensor, total: int
) -> tuple[torch.Tensor, torch.Tensor]:
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


class FusedTokenState:
    """What a row's fused tokens keep for later ones: keys and values in slots, and what these are.

    All rows fill the same slots at the same time, so that a row that begins later has its first
    tokens in later slots than the others: the newest ones stand below each other. `append` tells
    which slots the next forward fills, `put_rows` gives the places of finished rows to others,
    `keep_rows` drops finished rows. Where the slots are full, those that no row needs any more
    make room, and then there come to be more of them.

    Args:
        rows: R.
        segments: layer → keys and values of the rows' segments, [J, ..., D].
        prefix: layer → [J, P, D], or empty.
        rope_offsets: [R, K] positions by which a query is re-rotated towards the prefix and segment
            k; None for none.
        rotary: how a layer's queries are re-rotated; needed with ``rope_offsets``.
        slots: room for fused tokens a row, to begin with.
        most_slots: for as many as a row can ever have; None for ``slots``.
        fusion: how the partitions are combined.
        device: where what all layers share is; None: where the first layer is.
        buffers: where the tensors lie: `Buffers`, or a `BufferPool`.
    """

    def __init__(
        self,
        *,
        rows: int,
        segments: dict[int, KeyValues],
        prefix: dict[int, KeyValues],
        rope_offsets: torch.Tensor | None,
        rotary: RotaryTables | None,
        slots: int,
        most_slots: int | None = None,
        fusion: Fusion,
        device: torch.device | None = None,
        buffers: Buffers,
    ) -> None:
        self.buffers = buffers
        self.copies = Copies()
        self.most_slots = most_slots or slots
        self.begun = [0] * rows  # the slot of each row's first token; beyond all of one that left
        self.prefix = prefix
        self.segments = segments
        self.rope_offsets = (
            None if rope_offsets is None else buffers.keep("rope offsets", rope_offsets)
        )
        self.rotary = rotary
        self.fusion = fusion
        self.prefix_length = next(iter(prefix.values())).keys.shape[1] if prefix else 0
        if device is None:
            device = next(iter(segments.values())).keys.device
        empty = torch.zeros(rows, slots, dtype=torch.bool, device=device)
        self.own_mask = buffers.keep("own mask", empty)
        self.own_positions = buffers.keep("own positions", empty.long())

        def some(
            name: Hashable, like: torch.Tensor
        ) -> torch.Tensor:  # what is not filled is not read
            return buffers.take(name, (like.shape[0], rows, slots, like.shape[-1]), like)

        self.own = {
            layer: KeyValues(
                some((layer, "own keys"), kv.keys), some((layer, "own values"), kv.values)
            )
            for layer, kv in segments.items()
        }
        self.filled = 0  # slots of the forwards before
        self.queries = 0  # slots of the next forward
        self.at = torch.empty(0, dtype=torch.long, device=device)  # which these are, [S]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scoring: Scoring,
    ) -> torch.Tensor:
        """See `attention.patching.AttentionState`."""
        raise NotImplementedError

    def append(self, positions: torch.Tensor, mask: torch.Tensor) -> None:
        """The next forward brings these tokens. positions, mask: [R, S]."""
        self.advance(positions.shape[1])
        self.mark(positions, mask)

    @property
    def used(self) -> int:
        """Slots of all forwards so far."""
        return self.filled + self.queries

    def advance(self, queries: int) -> None:
        """The next forward brings this many tokens a row."""
        if self.used + queries > self.own_mask.shape[1]:
            self._make_room(queries)
        self.filled += self.queries
        self.queries = queries
        at = torch.arange(self.filled, self.filled + self.queries, device=self.at.device)
        self.at = self.buffers.keep(("at", queries), at)
        self.copies.clear()

    def mark(self, positions: torch.Tensor, mask: torch.Tensor) -> None:
        """Say what these tokens are. positions, mask: [R, S]."""
        self.own_positions.index_copy_(1, self.at, positions)
        self.own_mask.index_copy_(1, self.at, mask)

    def _make_room(self, queries: int) -> None:
        """Slots for so many more tokens of a row."""
        unused = min(min(self.begun), self.used)
        needed, slots = self.used - unused + queries, self.own_mask.shape[1]
        if needed > slots * (1 - SPARE_SLOTS):  # moving them every other step would cost too much
            slots = max(needed, min(2 * slots, int(self.most_slots / (1 - SPARE_SLOTS)) + 1))
        self._move_slots(unused, slots)

    def _move_slots(self, drop: int, slots: int) -> None:
        """Leave out the first slots, and have so many. drop: below 0 for empty ones in front."""
        used, begin = self.used, max(-drop, 0)

        def moved(name: Hashable, tensor: torch.Tensor, dim: int) -> torch.Tensor:
            kept = tensor.narrow(dim, max(drop, 0), used - max(drop, 0)).clone()
            shape = (*tensor.shape[:dim], slots, *tensor.shape[dim + 1 :])
            new = self.buffers.take(name, shape, tensor)
            new.narrow(dim, begin, kept.shape[dim]).copy_(kept)
            new.narrow(dim, 0, begin).zero_()  # nobody sees it, but 0 times it is added
            if dim == 1:  # what they are is read of all slots
                new[:, begin + kept.shape[dim] :] = 0
            return new

        for layer, kv in self.own.items():
            self.own[layer] = KeyValues(
                moved((layer, "own keys"), kv.keys, 2), moved((layer, "own values"), kv.values, 2)
            )
        self.own_mask = moved("own mask", self.own_mask, 1)
        self.own_positions = moved("own positions", self.own_positions, 1)
        self.filled -= drop
        self.begun = [slot - drop for slot in self.begun]

    def put(
        self, layers: dict[int, KeyValues], positions: torch.Tensor, mask: torch.Tensor
    ) -> None:
        """Tokens every fused token sees, encoded elsewhere. layers: [J, R, S, D]."""
        self.append(positions, mask)
        for layer, kv in layers.items():
            self._write(layer, kv.keys, kv.values)

    def _write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """keys, values: [J, R, S, D]."""
        at = self.copies.on(keys.device, self.at, "at")
        self.own[layer].keys.index_copy_(2, at, keys)
        self.own[layer].values.index_copy_(2, at, values)

    def leave(self, rows: Sequence[int]) -> None:
        """These rows have finished: nothing of them is needed any more."""
        for row in rows:
            self.begun[row] = LEFT

    def expect_rows(self) -> None:
        """Other rows will be encoded, to take places here."""

    def put_rows(self, rows: Sequence[int], others: Any) -> None:
        """Other rows take the places of these; `expect_rows` came before they were encoded.

        Args:
            rows: the places.
            others: a state of the same kind and request, whose first rows they are.
        """
        count, width = len(rows), others.used
        if width > self.used:  # their newest tokens come below the newest ones here
            drop = self.used - width
            self._move_slots(drop, max(self.own_mask.shape[1], width))
        begin, end = self.used - width, self.used
        at, beside = torch.tensor(rows, device=self.at.device), Copies()
        for layer, kv in self.own.items():
            new, there = others.own[layer], beside.on(kv.keys.device, at)
            kv.keys[:, there, begin:end] = new.keys[:, :count, :width]
            kv.values[:, there, begin:end] = new.values[:, :count, :width]
            kv.values[:, there, :begin] = 0  # no infinity of a row that left may reach this one
        self.own_mask[at] = False
        self.own_mask[at, begin:end] = others.own_mask[:count, :width]
        self.own_positions[at, begin:end] = others.own_positions[:count, :width]
        if self.rope_offsets is not None:
            self.rope_offsets[at] = others.rope_offsets[:count]
        for row in rows:
            self.begun[row] = begin
        self._put_segments(at, others)
        self.copies.clear()

    def _put_segments(self, at: torch.Tensor, others: Any) -> None:
        """The segments of the rows ``at`` become those of the others' first rows."""
        raise NotImplementedError

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Keep only these rows, in this order. rows: [R'] indices."""
        self.begun = [self.begun[row] for row in rows.tolist()]
        self._keep_rows(self.own, "own", rows)
        self.own_mask = self.buffers.keep("own mask", self.own_mask[rows])
        self.own_positions = self.buffers.keep("own positions", self.own_positions[rows])
        if self.rope_offsets is not None:
            self.rope_offsets = self.buffers.keep("rope offsets", self.rope_offsets[rows])
        self.copies.clear()

    def _keep_rows(self, layers: dict[int, KeyValues], name: str, rows: torch.Tensor) -> None:
        beside = Copies()
        for layer, kv in layers.items():
            there = beside.on(kv.keys.device, rows)
            layers[layer] = KeyValues(
                self.buffers.keep((layer, f"{name} keys"), kv.keys[:, there]),
                self.buffers.keep((layer, f"{name} values"), kv.values[:, there]),
            )

    def angles(self, layer: int) -> tuple[torch.Tensor, torch.Tensor, bool] | None:
        """Tables of cosines and sines, by offset, and whether pairs are neighbours; None where this
        layer's queries stay as they are."""
        if self.rope_offsets is None:
            return None
        assert self.rotary is not None, "RoPE offsets need the angles of `read_rotary`"
        if layer not in self.rotary.tables:
            return None
        return *self.rotary.tables[layer], self.rotary.interleaved[layer]


class DecodeState(FusedTokenState):
    """Fused tokens: each attends to the prefix, to every segment of its row and to earlier ones.

    In plain math; `cuda_graphs.CapturedDecodeState` does the same in a kernel.

    Args:
        segments: layer → [J, R, K, M, D], right-padded.
        segment_mask: [R, K, M] bool, false on padding.
        segment_positions: [R, K, M].
        counts: how many of its K partitions each row has; the others are padding.
        weights: of every row's partitions its own instead of the fusion's, [R, K]; on padding 0.
        observe: called with the layer and what `split_attention` says, in every layer of every
            forward.
        others: see `FusedTokenState`.
    """

    def __init__(
        self,
        *,
        segments: dict[int, KeyValues],
        segment_mask: torch.Tensor,
        segment_positions: torch.Tensor,
        counts: Sequence[int] | None = None,
        weights: torch.Tensor | None = None,
        observe: Callable[..., None] | None = None,
        **others: Any,
    ) -> None:
        R, K, _ = segment_mask.shape
        super().__init__(rows=R, segments=segments, buffers=Buffers(), **others)
        self.segment_mask = segment_mask
        self.segment_positions = segment_positions
        self.counts = [K] * R if counts is None else list(counts)
        self.weights = weights
        self.observe = observe
        self._masks: dict[tuple[int | None, int, torch.device], Visible] = {}

    def advance(self, queries: int) -> None:
        super().advance(queries)
        self._masks.clear()

    def keep_rows(self, rows: torch.Tensor) -> None:
        super().keep_rows(rows)
        self._keep_rows(self.segments, "segment", rows)
        self.segment_mask = self.segment_mask[rows]
        self.segment_positions = self.segment_positions[rows]
        self.counts = [self.counts[row] for row in rows.tolist()]
        if self.weights is not None:
            self.weights = self.weights[rows]
        self._masks.clear()

    def _put_segments(self, at: torch.Tensor, others: Any) -> None:
        count, M = len(at), max(self.segment_mask.shape[2], others.segment_mask.shape[2])

        beside = Copies()

        def put(tensor: torch.Tensor, new: torch.Tensor, dim: int) -> torch.Tensor:
            """[..., R, K, M, ...], the rows at ``dim``, in room for the longest segment."""
            tensor, new = (_widened(x, dim + 2, M) for x in (tensor, new))
            there = beside.on(tensor.device, at)
            return tensor.index_copy_(dim, there, new.narrow(dim, 0, count))

        for layer, kv in self.segments.items():
            new = others.segments[layer]
            self.segments[layer] = KeyValues(
                put(kv.keys, new.keys, 1), put(kv.values, new.values, 1)
            )
        self.segment_mask = put(self.segment_mask, others.segment_mask, 0)
        self.segment_positions = put(self.segment_positions, others.segment_positions, 0)
        for place, row in enumerate(at.tolist()):
            self.counts[row] = others.counts[place]
        if self.weights is not None:
            self.weights[at] = others.weights[:count]
        self._masks.clear()

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scoring: Scoring,
    ) -> torch.Tensor:
        S, J = query.shape[2], key.shape[1]
        assert self.queries == S, (self.queries, S)
        self._write(layer, key.transpose(0, 1), value.transpose(0, 1))
        visible = self._visible(scoring.window, query.shape[1] // J, query.device)
        if len(set(self.counts)) == 1:
            return self._attend(layer, query, visible, scoring, slice(None), self.counts[0])
        # Questions with unlike numbers of paraphrases: those with as many are fused together.
        parts, order = [], []
        for count in sorted(set(self.counts)):
            rows = [row for row, its in enumerate(self.counts) if its == count]
            at = torch.tensor(rows, device=query.device)
            parts.append(self._attend(layer, query[at], visible, scoring, at, count))
            order += rows
        # Not into a tensor like the query: under autocast the outputs have another dtype.
        back = sorted(range(len(order)), key=order.__getitem__)
        return torch.cat(parts)[torch.tensor(back, device=query.device)]

    def _attend(
        self,
        layer: int,
        query: torch.Tensor,
        visible: Visible,
        scoring: Scoring,
        rows: torch.Tensor | slice,
        K: int,
    ) -> torch.Tensor:
        """Of the rows that these are, with K partitions each."""
        own, segments, end = self.own[layer], self.segments[layer], self.used
        angles, interleaved = None, False
        if (tables := self.angles(layer)) is not None:
            assert self.rope_offsets is not None
            cos, sin, interleaved = tables
            offsets = self.copies.on(query.device, self.rope_offsets, "rope offsets")[rows, :K]
            angles = cos[offsets], sin[offsets]  # [R, K, rotated size]
        return split_attention(
            query,
            self.prefix.get(layer),
            KeyValues(segments.keys[:, rows, :K], segments.values[:, rows, :K]),
            KeyValues(own.keys[:, rows, :end], own.values[:, rows, :end]),
            visible.of_rows(rows, K),
            angles,
            interleaved,
            scoring,
            self._fusion_of(rows, K, query.device),
            None if self.observe is None else partial(self.observe, layer),
        )

    def _fusion_of(self, rows: torch.Tensor | slice, K: int, device: torch.device) -> Fusion:
        if self.weights is not None:
            weights = self.copies.on(device, self.weights, "weights")[rows, :K]
        elif self.fusion.weights is not None:
            fusion = self.fusion.of_first(K)
            assert fusion.weights is not None
            weights = fusion.weights.to(device)
        else:
            return self.fusion
        return replace(self.fusion, weights=weights)

    def _visible(self, window: int | None, group: int, device: torch.device) -> Visible:
        if (window, group, device) not in self._masks:
            home = self.segment_mask.device
            if device == home:
                found = self._build_masks(window, group)
            else:
                found = self._visible(window, group, home).to(device)
            self._masks[window, group, device] = found
        return self._masks[window, group, device]

    def _build_masks(self, window: int | None, group: int) -> Visible:
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
            offsets = 0 if self.rope_offsets is None else self.rope_offsets[:, :, None]
            towards = (position[:, None, :] - offsets)[..., None]  # [R, K or 1, S, 1]
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


def _widened(tensor: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """With zeros behind, so that a dimension has this size."""
    missing = size - tensor.shape[dim]
    if missing == 0:
        return tensor
    shape = (*tensor.shape[:dim], missing, *tensor.shape[dim + 1 :])
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)
