"""The calls of the kernels, and the sizes of their tiles.

A prefix that many rows share is read by a kernel of its own, since its products are large. Where
rows are few, a row's segments are spread over several programs, whose outputs a last kernel brings
together.

Legend as in kv_state.py.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import triton

from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.kernels.joint import joint_kernel
from self_ensemble.attention.kernels.mean import mean_kernel
from self_ensemble.attention.kernels.merge import merge_kernel
from self_ensemble.attention.kernels.prefix import prefix_kernel
from self_ensemble.attention.scoring import KeyValues, Scoring

# A prefix up to this long is read by every row itself where that is few keys in all.
INLINE_PREFIX, INLINE_ROWS_TIMES_PREFIX = 512, 16384
# Programs that fill a GPU twice over.
FILLING = 264
# So many at a time, at most, where a head has 256 bytes and a program may have an H100's memory:
# queries and keys of the prefix; a row's queries to a kv head, keys of what all its partitions
# share, keys of a segment. Small programs wait for memory side by side: the last three are the
# fastest of those tried on an H100, for few rows as for many.
PREFIX_ROWS, PREFIX_KEYS = 128, 64
QUERIES, OWN_KEYS, SEGMENT_KEYS = 64, 16, 64
H100_SHARED_BYTES = 232448
MAX_SIZE = 256


def fuse(
    query: torch.Tensor,
    prefix: KeyValues | None,
    segments: KeyValues,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    longest: int,
    segment_positions: torch.Tensor,
    own: KeyValues,
    own_mask: torch.Tensor,
    own_positions: torch.Tensor,
    new: KeyValues,
    at: torch.Tensor,
    rope_offsets: torch.Tensor | None,
    angles: tuple[torch.Tensor, torch.Tensor, bool] | None,
    scoring: Scoring,
    fusion: Fusion,
    log_weights: torch.Tensor,
) -> torch.Tensor:
    """The attention of fused tokens; their keys and values are written into their slots too.

    Args:
        query: [R, H, S, D], D contiguous.
        prefix: [J, P, D], contiguous, or None.
        segments: [J, T, D] of all rows' segments, packed; D contiguous.
        starts, lengths: [R, K] int32, where in T each row's segments are, and how long.
        longest: no segment is longer.
        segment_positions: [R, K], the positions of the segments' first tokens.
        own: [J, R, slots, D], contiguous; unfilled slots are not read.
        own_mask, own_positions: [R, slots], the new tokens' included.
        new: [R, J, S, D] of these tokens. at: [S] their slots, one after the other.
        rope_offsets: [R, K] positions by which queries are nearer to a segment and the prefix, or
            None.
        angles: how this layer's queries are re-rotated then: (cos, sin, interleaved), the tables
            [offsets, rotated size] in float32; None where they stay as they are.
        scoring, fusion: how scores are made and partitions combined.
        log_weights: [R, K], see `cuda_graphs.log_partition_weights`.

    Returns:
        [R, H, S, D], a view of contiguous [R, S, H, D].

    Raises:
        ValueError: a fusion that the kernels do not know, or heads of a shape that they do not
            have.
    """
    R, H, S, D = query.shape
    if not fusion.in_kernel or fusion.kind not in ("mean", "joint"):
        raise ValueError(f"no kernel computes the fusion {fusion.kind!r}")
    if segments.values.shape[-1] != D or D > MAX_SIZE:
        raise ValueError(
            f"heads with keys of {D} numbers and values of {segments.values.shape[-1]}: the "
            f"kernels are for as many of both, at most {MAX_SIZE}"
        )
    J, K = own.keys.shape[0], starts.shape[1]
    G, slots = H // J, own_mask.shape[1]
    # Without rotary positions an offset matters to a window alone.
    offset = rope_offsets is not None and (angles is not None or scoring.window is not None)
    assert fusion.rope_offsets or not offset, f"the fusion {fusion.kind!r} has no RoPE offsets"
    assert segments.keys.stride() == segments.values.stride() and segments.keys.stride(2) == 1
    assert own.keys.is_contiguous() and own.values.is_contiguous() and own_mask.is_contiguous()
    assert starts.dtype == lengths.dtype == torch.int32, (starts.dtype, lengths.dtype)
    assert at.shape == (S,) and own_positions.is_contiguous(), (at.shape, own_positions.stride())
    assert log_weights.shape == (R, K) and log_weights.is_contiguous(), log_weights.shape
    query = query if query.stride(3) == 1 else query.contiguous()
    new_keys, new_values = new.keys, new.values
    if new_keys.stride() != new_values.stride() or new_keys.stride(3) != 1:  # cut from one product
        new_keys, new_values = new_keys.contiguous(), new_values.contiguous()
    cos, sin, interleaved = angles if offset and angles is not None else (query, query, False)
    P = 0 if prefix is None else prefix.keys.shape[1]
    inline = not offset and P <= INLINE_PREFIX and R * P <= INLINE_ROWS_TIMES_PREFIX
    lanes = max(16, triton.next_power_of_2(D))
    # By how much heads are larger, or a program's memory smaller, than the sizes above are for.
    larger = lanes * query.element_size() / 256 * H100_SHARED_BYTES / shared_bytes(query.device)
    larger = triton.next_power_of_2(max(1, math.ceil(larger)))
    shared = {
        "G": G,
        "S": S,
        "D": D,
        "LANES": lanes,
        "SCALE": scoring.scaling,
        "SOFTCAP": scoring.softcap or 0.0,
        "WINDOW": scoring.window or 0,
    }
    rotation = {
        "OFFSET": offset,
        "ROTATED": cos.shape[-1] if offset and angles is not None else 0,
        "INTERLEAVED": interleaved,
    }
    offsets = rope_offsets if offset and rope_offsets is not None else starts
    count = R * (K if offset else 1) * G * S
    prefix_keys = prefix_values = partial = partial_log = query
    spans = 0
    if prefix is not None and P:
        prefix_keys, prefix_values = prefix.keys, prefix.values
        assert prefix_keys.is_contiguous() and prefix_values.is_contiguous()
        if not inline:
            spans, partial, partial_log = _attend_to_prefix(
                query, prefix, offsets, cos, sin, own_positions, at, count, slots, larger,
                {"KQ": K if offset else 1, **shared, **rotation},
            )  # fmt: skip
    columns = max(8, min(QUERIES // larger, triton.next_power_of_2(G * S)))
    tiles = triton.cdiv(G * S, columns)
    per = max(1, min(K, K * R * J * tiles // FILLING))  # segments a program
    parts = triton.cdiv(K, per)
    out = query.new_empty(R, S, H, D)
    found, found_log = out, query
    if parts > 1:
        found = query.new_empty(parts, R, S, H, D, dtype=torch.float32)
        found_log = query.new_empty(parts, R, S, H, dtype=torch.float32)
    tile = max(16, min(SEGMENT_KEYS // larger, triton.next_power_of_2(longest)))
    tensors = (
        query, prefix_keys, prefix_values, partial, partial_log, segments.keys, segments.values,
        starts, lengths, segment_positions, own.keys, own.values, own_mask, own_positions,
        new_keys, new_values, at, log_weights, found, found_log,
    )  # fmt: skip
    sizes = (
        P, spans, count, slots, *query.stride()[:3], *new_keys.stride()[:3],
        *segments.keys.stride()[:2], *own.keys.stride()[:2],
    )  # fmt: skip
    settings = {
        "J": J,
        "K": K,
        "PER": per,
        "INLINE": inline and P > 0,
        "COLUMNS": columns,
        "KEYS": OWN_KEYS,
        "SEGMENT": tile,
        "num_stages": 2,
        "num_warps": min(8, max(2, columns * lanes // 1024)),
        **shared,
    }
    grid = (R * J, parts, tiles)
    if fusion.kind == "joint":
        joint_kernel[grid](*tensors, *sizes, **settings)
    else:
        mean_kernel[grid](
            *tensors, offsets, cos, sin, *sizes,
            ONE_TILE=longest <= tile, TAU=fusion.tau, **settings, **rotation,
        )  # fmt: skip
    if parts > 1:
        merge_kernel[(R * S * H,)](
            found, found_log, out, R * S * H, PARTS=parts, D=D, LANES=lanes, num_warps=1
        )
    return out.transpose(1, 2)


def _attend_to_prefix(
    query: torch.Tensor,
    prefix: KeyValues,
    offsets: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    own_positions: torch.Tensor,
    at: torch.Tensor,
    count: int,
    slots: int,
    larger: int,
    settings: dict[str, Any],
) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Spans of the prefix, and what `prefix_kernel` leaves of each."""
    J, P, D = prefix.keys.shape
    # A narrow product is cut along the prefix, so that it fills the GPU too.
    rows, keys = max(16, PREFIX_ROWS // larger), max(16, PREFIX_KEYS // larger)
    tile = min(rows, max(16, triton.next_power_of_2(count)))
    tiles = triton.cdiv(count, tile)
    spans = max(1, min(FILLING // (tiles * J), triton.cdiv(P, 4 * PREFIX_KEYS)))
    span = triton.cdiv(triton.cdiv(P, spans), keys) * keys
    spans = triton.cdiv(P, span)
    partial = query.new_empty(spans, J, count, D)
    partial_log = query.new_empty(spans, J, count, dtype=torch.float32)
    prefix_kernel[(tiles, J, spans)](
        query, prefix.keys, prefix.values, offsets, cos, sin, own_positions, at,
        partial, partial_log, count, P, span, slots, *query.stride()[:3],
        ROWS=tile, KEYS=keys, num_warps=8 if tile > 64 else 4, **settings,
    )  # fmt: skip
    return spans, partial, partial_log


@lru_cache(maxsize=16)
def shared_bytes(device: torch.device) -> int:
    """What a program may have of a GPU's fastest memory."""
    if device.type != "cuda":  # in the interpreter
        return H100_SHARED_BYTES
    found = triton.runtime.driver.active.utils.get_device_properties(device.index or 0)
    return int(found["max_shared_mem"])
