"""From encoded streams to rows: what they attend to, and their tails read.

Legend: ``R`` rows, ``K`` segments of a row, ``M`` tokens of the longest segment, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

from self_ensemble.attention.buffers import BufferPool
from self_ensemble.attention.copies import Copies
from self_ensemble.attention.cuda_graphs import CapturedDecodeState
from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.kv_state import DecodeState, EncodeState
from self_ensemble.attention.rotary import RotaryTables
from self_ensemble.attention.scoring import KeyValues
from self_ensemble.generation.encode import Prefix
from self_ensemble.generation.forward import Forward
from self_ensemble.generation.streams import Stream

RowState = DecodeState | CapturedDecodeState


@dataclass(frozen=True, eq=False)
class RowContext:
    """What all rows of a request share.

    forward: of the model.
    prefix: what all streams begin with.
    rotary: how queries are re-rotated; None where no stream has RoPE offsets.
    fusion: how a row's partitions are combined.
    partitions: K, the most segments that a stream has.
    observe: see `attention.kv_state.DecodeState`.
    """

    forward: Forward
    prefix: Prefix
    rotary: RotaryTables | None
    fusion: Fusion
    partitions: int
    observe: Callable[..., None] | None = None


@dataclass(frozen=True)
class Captured:
    """Where captured rows lie.

    pool: their buffers.
    encoding: those of the encode pass.
    capacity: packed tokens that the encode pass has room for, at least.
    longest: no segment is longer.
    room: see `CapturedDecodeState`.
    """

    pool: BufferPool
    encoding: BufferPool
    capacity: int
    longest: int
    room: int | None


def own_width(streams: Sequence[Stream]) -> int:
    """The most slots that any of the streams has filled once its tail is read."""
    return max(len(stream.separators) + len(stream.tail) for stream in streams)


def make_rows(
    context: RowContext,
    streams: Sequence[Stream],
    encoded: EncodeState,
    rows: Sequence[int],
    *,
    slots: int,
    most_slots: int | None = None,
    captured: Captured | None = None,
    weights: torch.Tensor | None = None,
) -> RowState:
    """What rows' fused tokens attend to, the separators of their streams among it.

    Args:
        context: of the request.
        streams: whose segments were encoded.
        encoded: by `encode.encode_streams`.
        rows: of which stream each row is; several may be of one.
        slots, most_slots: see `FusedTokenState`.
        captured: where the rows lie, if steps are captured.
        weights: of each stream's partitions, [streams, K], see `DecodeState`.
    """
    segments = _Places.of(streams, encoded, context.partitions).of_rows(rows)
    device = encoded.position_ids.device
    common: dict[str, Any] = {
        "prefix": context.prefix.layers,
        "rope_offsets": None if context.rotary is None else segments.rope_offsets.to(device),
        "rotary": context.rotary,
        "slots": slots,
        "most_slots": most_slots,
        "fusion": context.fusion,
        "device": device,
        "counts": segments.counts,
        "weights": None if weights is None else weights[list(rows)],
    }
    state: RowState
    if captured is not None:
        state = CapturedDecodeState(
            segments=encoded.layers,
            starts=segments.starts,
            lengths=segments.lengths,
            segment_positions=segments.positions,
            longest=captured.longest,
            room=captured.room,
            buffers=captured.pool,
            **common,
        )
    else:
        M = int(segments.lengths.max())
        within = torch.arange(M)
        # Padding cells point at some token; the mask hides them.
        end = (segments.lengths - 1).clamp(min=0)[:, :, None]
        gather = (segments.starts[:, :, None] + torch.minimum(within, end)).to(device)  # [R, K, M]
        state = DecodeState(
            segments=_tokens_at(gather, encoded),
            segment_mask=(within < segments.lengths[:, :, None]).to(device),
            segment_positions=encoded.position_ids[gather],
            observe=context.observe,
            **common,
        )
    _put_separators(state, streams, rows, encoded)
    return state


def read_tails(forward: Forward, streams: Sequence[Stream], state: RowState) -> torch.Tensor:
    """The first fused tokens, left-padded to the longest tail, under the state in use.

    streams: of each row. Returns logits [R, V].
    """
    device = state.at.device
    padded = left_padded(streams, [stream.tail for stream in streams])
    ids, positions, mask = (tensor.to(device) for tensor in padded)
    state.append(positions, mask)
    return forward.fused(ids, positions)


def left_padded(
    streams: Sequence[Stream], token_ids: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The fused tokens that each stream begins with: ids, positions, which are real; [R, S]."""
    width = max(map(len, token_ids))
    ids = torch.tensor([[0] * (width - len(tokens)) + [*tokens] for tokens in token_ids])
    lengths = torch.tensor([len(tokens) for tokens in token_ids])[:, None]
    starts = torch.tensor([stream.positions.fused_start for stream in streams])[:, None]
    step = torch.arange(width)[None, :] - (width - lengths)  # negative on padding
    return ids, (starts + step).clamp(min=0), step >= 0


@dataclass(frozen=True)
class _Places:
    """Where the rows' segments are in the packed sequence, [R, K] each; padded with empty ones."""

    starts: torch.Tensor
    lengths: torch.Tensor
    positions: torch.Tensor
    rope_offsets: torch.Tensor
    counts: list[int]

    @classmethod
    def of(cls, streams: Sequence[Stream], encoded: EncodeState, K: int) -> _Places:
        counts = [len(stream.segments) for stream in streams]
        real = torch.arange(K) < torch.tensor(counts)[:, None]
        count = sum(counts)

        def padded(values: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(streams), K, dtype=torch.long).masked_scatter(real, values)

        def each(values: Iterable[Sequence[int]]) -> torch.Tensor:
            return padded(torch.from_numpy(np.fromiter(chain.from_iterable(values), np.int64)))

        return cls(
            padded(encoded.starts[:count]),
            each(list(map(len, stream.segments)) for stream in streams),
            each(stream.positions.starts for stream in streams),
            each(stream.positions.rope_offsets for stream in streams),
            counts,
        )

    def of_rows(self, rows: Sequence[int]) -> _Places:
        at = torch.tensor(rows)
        return _Places(
            self.starts[at],
            self.lengths[at],
            self.positions[at],
            self.rope_offsets[at],
            [self.counts[row] for row in rows],
        )


def _put_separators(
    state: RowState, streams: Sequence[Stream], rows: Sequence[int], encoded: EncodeState
) -> None:
    """Left-padded, as tails are. They were encoded behind all segments."""
    counts = [len(stream.separators) for stream in streams]
    width = max(counts)
    if width == 0:
        return
    first = torch.tensor(counts).cumsum(0) - torch.tensor(counts)
    behind = sum(len(stream.segments) for stream in streams)
    missing = width - torch.tensor(counts)[:, None]
    step = torch.arange(width)[None, :] - missing  # [streams, width], negative on padding
    which = behind + first[:, None] + step.clamp(min=0)
    packed = encoded.starts[which.clamp(max=len(encoded.starts) - 1)]
    device, chosen = encoded.position_ids.device, torch.tensor(rows)
    at = packed[chosen].to(device)
    mask = (step >= 0)[chosen].to(device)
    state.put(_tokens_at(at, encoded), encoded.position_ids[at], mask)


def _tokens_at(packed: torch.Tensor, encoded: EncodeState) -> dict[int, KeyValues]:
    """Keys and values of every layer at packed indices of any shape, [J, *shape, D]."""
    beside, found = Copies(), {}
    for layer, kv in encoded.layers.items():
        at = beside.on(kv.keys.device, packed)
        found[layer] = KeyValues(kv.keys[:, at], kv.values[:, at])
    return found
