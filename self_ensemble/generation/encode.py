"""The encode pass: segments of many questions packed into one sequence, isolated by a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from self_ensemble.attention.buffers import Buffers
from self_ensemble.attention.kv_state import EncodeState
from self_ensemble.attention.scoring import KeyValues
from self_ensemble.generation.batching import padded_length
from self_ensemble.generation.forward import Forward
from self_ensemble.generation.streams import Stream


@dataclass(frozen=True, eq=False)
class Prefix:
    """What every stream of a request begins with, encoded once.

    layers: keys and values of each layer, [J, P, D]; empty where there are no ids.
    """

    ids: tuple[int, ...]
    layers: dict[int, KeyValues]


def encode_prefix(forward: Forward, ids: Sequence[int]) -> Prefix:
    """May run out of memory, which it leaves to the caller."""
    if not ids:
        return Prefix((), {})
    P = len(ids)
    state, _ = encode_packed(forward, [tuple(ids)], [0], {})
    layers = {
        # Without a bucket's padding.
        layer: KeyValues(
            kv.keys[:, :P].clone(memory_format=torch.contiguous_format),
            kv.values[:, :P].clone(memory_format=torch.contiguous_format),
        )
        for layer, kv in state.layers.items()
    }
    return Prefix(tuple(ids), layers)


def encode_streams(
    forward: Forward,
    streams: Sequence[Stream],
    prefix: Prefix,
    *,
    each_tail: bool = False,
    buffers: Buffers | None = None,
    capacity: int = 0,
) -> tuple[EncodeState, torch.Tensor | None]:
    """All segments, then all separators, packed.

    Args:
        forward: of the model.
        streams: whose.
        prefix: what they see beside themselves.
        each_tail: read the tail behind every segment too, as if its prompt were alone.
        buffers, capacity: see `EncodeState`.

    Returns:
        The encoded state, and logits: with ``each_tail`` those after every segment's tail,
        [number of segments, V]; else, where the streams have no tail, those after each one's last
        segment, [R, V].
    """
    segments = [segment for stream in streams for segment in stream.segments]
    starts = [start for stream in streams for start in stream.positions.starts]
    segments += [(token,) for stream in streams for token in stream.separators]
    starts += [position for stream in streams for position in stream.positions.separators]
    last = None
    if each_tail:
        assert all(stream.tail for stream in streams), "each_tail needs a tail"
        tails = [stream.tail for stream in streams for _ in stream.segments]
        read = [a + b for a, b in zip(segments, tails, strict=False)]
        segments[: len(read)] = read
        last = torch.tensor(list(map(len, read))).cumsum(0) - 1
        return encode_packed(
            forward, segments, starts, prefix.layers, last, buffers=buffers, capacity=capacity
        )
    if not streams[0].tail:
        last = torch.tensor([sum(map(len, s.segments)) for s in streams]).cumsum(0) - 1
    return encode_packed(
        forward, segments, starts, prefix.layers, last, buffers=buffers, capacity=capacity
    )


def encode_packed(
    forward: Forward,
    segments: Sequence[tuple[int, ...]],
    starts: Sequence[int],
    prefix: dict[int, KeyValues],
    last: torch.Tensor | None = None,
    *,
    buffers: Buffers | None = None,
    capacity: int = 0,
) -> tuple[EncodeState, torch.Tensor | None]:
    """One packed forward of segments whose first tokens have the positions ``starts``.

    Returns:
        Its state, and the logits at the packed indices ``last``, [R, V], or None.
    """
    wrapper, device = forward.wrapper, forward.model.device
    lengths = torch.tensor(list(map(len, segments)))
    ids = torch.from_numpy(np.fromiter(chain.from_iterable(segments), np.int64))
    segment_ids = torch.arange(len(lengths)).repeat_interleave(lengths)
    begun = torch.tensor(starts) - (lengths.cumsum(0) - lengths)
    position_ids = torch.arange(len(ids)) + begun.repeat_interleave(lengths)
    if wrapper.backend == "flex":
        ids, segment_ids, position_ids = pad_packed(ids, segment_ids, position_ids, device)
    ids, segment_ids, position_ids = (t.to(device) for t in (ids, segment_ids, position_ids))
    state = EncodeState(
        lengths,
        segment_ids,
        position_ids,
        prefix,
        backend=wrapper.backend,
        compiled=wrapper.compiled,
        buffers=buffers,
        capacity=capacity if buffers else 0,
    )
    last = None if last is None else last.to(device)
    return state, forward.encode(state, ids, position_ids, last)


def pad_packed(
    ids: torch.Tensor, segment_ids: torch.Tensor, position_ids: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Padding tokens behind the packed ones, each a segment of its own that nobody reads.

    device: what they will be encoded on.
    """
    missing = padded_length(len(ids), device) - len(ids)
    padding_ids = segment_ids[-1] + 1 + torch.arange(missing)
    zeros = torch.zeros(missing, dtype=torch.long)
    return (
        torch.cat([ids, zeros]),
        torch.cat([segment_ids, padding_ids]),
        torch.cat([position_ids, zeros]),
    )
