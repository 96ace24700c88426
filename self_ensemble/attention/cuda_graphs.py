"""Decode steps captured once as a CUDA graph and replayed, and the state that lets them be.

A decode step is some thousand small kernels, which take longer to launch than to run. A CUDA graph
launches them all at once, and they read and write where they did when it was captured: so all
states of a run keep their tensors in one `BufferPool`.

Legend as in kv_state.py.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from self_ensemble.attention.buffers import BufferPool
from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.kv_state import FusedTokenState
from self_ensemble.attention.scoring import KeyValues, Scoring


class CapturedDecodeState(FusedTokenState):
    """What `DecodeState` does, in the kernels of kernels/, so that it can be captured.

    The rows of a forward come as one packed sequence, as in encoding, so that the model's layers
    are compiled once for both. Segments stay packed as the encoding left them.

    Args:
        segments: layer → [J, T, D], packed, in the pool; a view whose strides do not depend on T.
        starts, lengths: [R, K], where in T each row's segments are, and how long they are.
        segment_positions: [R, K], the positions of the segments' first tokens.
        counts: how many of its K partitions each row has; the others are padding.
        weights: of every row's partitions its own instead of the fusion's, [R, K]; on padding 0.
        longest: no segment is longer, nor of rows that are put in later; None: the longest there.
        room: of each row for so many tokens of segments, once rows are put in.
        others: see `FusedTokenState`.
    """

    def __init__(
        self,
        *,
        starts: torch.Tensor,
        lengths: torch.Tensor,
        segment_positions: torch.Tensor,
        counts: Sequence[int] | None = None,
        weights: torch.Tensor | None = None,
        longest: int | None = None,
        room: int | None = None,
        fusion: Fusion,
        buffers: BufferPool,
        **others: Any,
    ) -> None:
        assert fusion.in_kernel, f"no kernel computes the fusion {fusion.kind!r}"
        R, K = starts.shape
        super().__init__(rows=R, fusion=fusion, buffers=buffers, **others)
        self.buffers: BufferPool = buffers
        device = self.at.device
        self.room = room
        self.has_moved = False  # into the rows' room
        self.starts = buffers.keep("starts", starts.int().to(device))
        self.lengths = buffers.keep("lengths", lengths.int().to(device))
        self.segment_positions = buffers.keep("segment positions", segment_positions.to(device))
        # In the pool too: a captured step reads the weights of the state that it is replayed under.
        counts = [K] * R if counts is None else counts
        if weights is None:
            log_weights = log_partition_weights(fusion, counts, K)
        else:
            log_weights = kernel_log_weights(fusion, weights, torch.tensor(counts)[:, None])
        self.log_weights = buffers.keep("log weights", log_weights.to(device))
        # The kernel's tiles are of 16, 32, ... keys.
        longest = int(lengths.max()) if longest is None else longest
        self.longest = max(16, 1 << (longest - 1).bit_length())

    @property
    def shape(self) -> tuple[Hashable, ...]:
        """What two states of one pool must share for one's captured forward to be the other's."""
        sizes = *self.starts.shape, self.longest, self.own_mask.shape[1]
        rotated = self.rope_offsets is not None
        fusion = self.fusion.kind, self.fusion.tau
        return *sizes, rotated, *fusion, self.has_moved, self.buffers.version

    def keep_rows(self, rows: torch.Tensor) -> None:
        super().keep_rows(rows)
        self.starts = self.buffers.keep("starts", self.starts[rows])
        self.lengths = self.buffers.keep("lengths", self.lengths[rows])
        self.segment_positions = self.buffers.keep(
            "segment positions", self.segment_positions[rows]
        )
        self.log_weights = self.buffers.keep("log weights", self.log_weights[rows])
        self.room = None  # rows are no longer where their room is

    def expect_rows(self) -> None:
        """Copy the segments to where the next encode pass does not overwrite them."""
        if self.has_moved:
            return
        assert self.room is not None
        rows, segments = len(self.begun), self.segments
        self.segments = {
            layer: KeyValues(
                *(
                    self.buffers.take((layer, name), (rows * self.room, J, D), like).transpose(0, 1)
                    for name, like, (J, _, D) in (
                        ("segment keys", kv.keys, kv.keys.shape),
                        ("segment values", kv.values, kv.values.shape),
                    )
                )
            )
            for layer, kv in segments.items()
        }
        starts, lengths = self.starts.cpu().long(), self.lengths.cpu().long()
        starts = self._copy_segments(range(rows), segments, starts, lengths)
        self.starts.copy_(starts)
        self.has_moved = True

    def _copy_segments(
        self,
        rows: Sequence[int],
        segments: dict[int, KeyValues],
        starts: torch.Tensor,
        lengths: torch.Tensor,
    ) -> torch.Tensor:
        """Segments into the room of these rows, one behind the other. Returns their new starts.

        starts, lengths: of as many rows, [rows, K], on the host.
        """
        assert self.room is not None
        ends = lengths.cumsum(1)
        assert int(ends.max()) <= self.room, (int(ends.max()), self.room)
        begun = torch.tensor(rows)[:, None] * self.room + ends - lengths
        sizes = lengths.flatten().long()
        within = torch.arange(int(sizes.sum())) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        device = self.at.device
        read = (starts.flatten().repeat_interleave(sizes) + within).to(device)
        written = (begun.flatten().repeat_interleave(sizes) + within).to(device)
        for layer, kv in segments.items():
            own = self.segments[layer]
            own.keys[:, written] = kv.keys[:, read]
            own.values[:, written] = kv.values[:, read]
        return begun

    def _put_segments(self, at: torch.Tensor, others: Any) -> None:
        count, rows = len(at), at.tolist()
        starts, lengths = (x[:count].cpu().long() for x in (others.starts, others.lengths))
        begun = self._copy_segments(rows, others.segments, starts, lengths)
        self.starts[at] = begun.int().to(at.device)
        self.lengths[at] = others.lengths[:count]
        self.segment_positions[at] = others.segment_positions[:count]
        self.log_weights[at] = others.log_weights[:count]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scoring: Scoring,
    ) -> torch.Tensor:
        """query, key, value: [1, heads, R * S, D] → [1, H, R * S, D]."""
        from self_ensemble.attention.kernels.launch import fuse

        by_row = self.own_mask.shape[0], self.queries
        query, key, value = (x[0].unflatten(1, by_row).transpose(0, 1) for x in (query, key, value))
        out = fuse(
            query,
            self.prefix.get(layer),
            self.segments[layer],
            self.starts,
            self.lengths,
            self.longest,
            self.segment_positions,
            self.own[layer],
            self.own_mask,
            self.own_positions,
            KeyValues(key, value),
            self.at,
            self.rope_offsets,
            self.angles(layer),
            scoring,
            self.fusion,
            self.log_weights,
        )  # [R, H, S, D]
        return out.transpose(1, 2).flatten(0, 1).transpose(0, 1)[None]


def log_partition_weights(fusion: Fusion, counts: Sequence[int], K: int) -> torch.Tensor:
    """[R, K] float32, in base 2: of ``mean`` the logarithms of u, of ``joint`` what scores gain.

    counts: how many partitions each row has; minus infinity for the others.
    """
    by_count = {}
    for count in set(counts):
        given = fusion.of_first(count).weights
        u = torch.full((count,), 1 / count) if given is None else given.float().cpu()
        u = torch.cat([u, torch.zeros(K - count)])
        by_count[count] = kernel_log_weights(fusion, u, torch.tensor(count))
    return torch.stack([by_count[count] for count in counts])


def kernel_log_weights(fusion: Fusion, weights: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """See `log_partition_weights`. weights: summing to one; counts: of partitions."""
    if fusion.kind == "joint":
        weights = weights * counts.to(weights.device)
    return weights.float().log2()


class CapturedStep:
    """A decode step as a CUDA graph. It can be replayed under any state of the same pool and shape.

    Args:
        forward: (ids [R, 1], positions [R, 1]) → logits [R, V], under ``state``.
        others: steps whose graphs' memory this one may use too, since replays never overlap.
    """

    graph: torch.cuda.CUDAGraph

    def __init__(
        self,
        state: CapturedDecodeState,
        forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        ids: torch.Tensor,
        positions: torch.Tensor,
        others: Sequence[CapturedStep],
    ) -> None:
        self.ids, self.positions = ids.clone(), positions.clone()
        pool = others[0].graph.pool() if others else None  # it goes with the last of them
        self.graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self.graph, pool=pool):
                state.mark(self.positions, torch.ones_like(self.positions, dtype=torch.bool))
                self.logits = forward(self.ids, self.positions)
        except RuntimeError as error:  # ending a capture that failed fails too, and hides why
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise error.__context__ from None
            raise

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """ids, positions: [R, 1]. Returns logits [R, V], valid until the next step."""
        self.ids.copy_(ids)
        self.positions.copy_(positions)
        self.graph.replay()
        return self.logits
