"""The fusion `mean`: each partition's softmax by itself, weighted by u, tau and its mass.

What all partitions share comes first. Then the segments follow one by one: first the sum that a
partition's softmax divides by, which is all that partitions of their own need, then the values,
already weighted. Segments are read packed as the encoding left them, those of one tile once, and no
score is ever written to memory.

Legend as in kv_state.py.
"""

import triton
import triton.language as tl

from self_ensemble.attention.kernels.shared import (
    find_queries,
    keep_new_tokens,
    store_outputs,
    take_up_fused_tokens,
    take_up_prefix,
    take_up_prefix_parts,
)
from self_ensemble.attention.kernels.tiles import (
    NOTHING,
    count_up,
    load_query,
    read_segment,
    score_segment,
)


@triton.jit(do_not_specialize=["count", "P", "spans", "slots"])
def mean_kernel(
    query, prefix_keys, prefix_values, partial, partial_log, segment_keys, segment_values,
    starts, lengths, segment_positions, own_keys, own_values, own_mask, own_positions,
    new_keys, new_values, at, weights, out, out_log, rope_offsets, cos, sin,
    P, spans, count, slots, query_row, query_head, query_step, new_row, new_head, new_step,
    segment_head, segment_token, own_head, own_row,
    J: tl.constexpr, K: tl.constexpr, PER: tl.constexpr, G: tl.constexpr, S: tl.constexpr,
    D: tl.constexpr, LANES: tl.constexpr, INLINE: tl.constexpr, SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, COLUMNS: tl.constexpr, KEYS: tl.constexpr,
    SEGMENT: tl.constexpr, ONE_TILE: tl.constexpr, TAU: tl.constexpr, OFFSET: tl.constexpr,
    ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Fused tokens, prefix and ``PER`` segments of one row and kv head.

    Program: (row * J + kv head, which of the row's segments, tile of queries). ``weights`` [R, K]:
    the logarithms of u, in base 2. With ``PER`` = K, ``out`` is [R, S, H, D]; with fewer, programs
    leave [parts, R, S, H, D] and what a part weighs, ``out_log`` [parts, R, S, H].
    """
    part = tl.program_id(1)
    r, j, slot, g, s, valid, there, pointer, straight, position = find_queries(
        query, own_positions, at, cos, sin, slots, query_row, query_head, query_step,
        J, G, S, D, LANES, WINDOW, COLUMNS,
    )  # fmt: skip
    lane = tl.arange(0, LANES)[:, None]
    real = (tl.arange(0, LANES) < D)[None, :]

    # What all partitions share: fused tokens, and the prefix where queries have no RoPE offsets.
    top = tl.full([COLUMNS], NOTHING, tl.float32)
    total = tl.zeros([COLUMNS], tl.float32)
    sums = tl.zeros([LANES, COLUMNS], tl.float32)
    top, total, sums = take_up_fused_tokens(
        straight, position, own_keys, own_values, own_mask, own_positions, new_keys, new_values,
        r, j, s, slot, real, slots, own_head, own_row, new_row, new_head, new_step,
        top, total, sums, S, D, LANES, SCALE, SOFTCAP, WINDOW, KEYS,
    )  # fmt: skip
    if INLINE:
        top, total, sums = take_up_prefix(
            straight, position, prefix_keys, prefix_values, j, real, P, top, total, sums,
            D, LANES, SCALE, SOFTCAP, WINDOW, KEYS,
        )  # fmt: skip
    elif not OFFSET:
        top, total, sums = take_up_prefix_parts(
            partial, partial_log, spans, count, r, j, g, s, there, valid, top, total, sums,
            J, G, S, D, LANES,
        )  # fmt: skip

    fused = tl.zeros([LANES, COLUMNS], tl.float32)
    kept = tl.zeros([COLUMNS], tl.float32)  # how much of what is shared goes into ``fused``
    weight = tl.zeros([COLUMNS], tl.float32)  # of the partitions so far, times exp2(-log_scale)
    log_scale = tl.full([COLUMNS], NOTHING if TAU != 0 else 0.0, tl.float32)
    for i in range(part * PER, tl.minimum(part * PER + PER, K)):
        start = j * segment_head + tl.load(starts + r * K + i).to(tl.int64) * segment_token
        length = tl.load(lengths + r * K + i)
        log_u = tl.load(weights + r * K + i)
        q = straight
        window_end = s  # where in the segment a window begins
        offset = tl.load(rope_offsets + r * K + i).to(tl.int32) if OFFSET else 0
        if OFFSET:
            q = load_query(pointer, lane, there, offset, cos, sin, ROTATED, INTERLEAVED)
        if WINDOW > 0:
            begun = tl.load(segment_positions + r * K + i).to(tl.int32)
            window_end = position - offset - begun - WINDOW

        # 1. What the partition's softmax divides by.
        its_top, its_total = top, total
        if OFFSET:
            for span in range(spans):
                place = (span * J + j) * count + ((r * K + i) * G + g) * S + s
                log = tl.load(partial_log + place, mask=valid, other=NOTHING)
                its_top, its_total = count_up(log[None, :], its_top, its_total)
        if ONE_TILE:
            scores = score_segment(
                q, segment_keys, start, segment_token, 0, length, window_end, real,
                LANES, SCALE, SOFTCAP, WINDOW, SEGMENT,
            )  # fmt: skip
            its_top, its_total = count_up(scores, its_top, its_total)
        else:
            for first in range(0, length, SEGMENT):
                tile = score_segment(
                    q, segment_keys, start, segment_token, first, length, window_end, real,
                    LANES, SCALE, SOFTCAP, WINDOW, SEGMENT,
                )  # fmt: skip
                its_top, its_total = count_up(tile, its_top, its_total)

        # 2. How much the partition counts.
        share = tl.exp2(log_u + tl.zeros([COLUMNS], tl.float32))
        if TAU != 0:
            log_share = log_u + TAU * (its_top + tl.log2(its_total))
            new_scale = tl.maximum(log_scale, log_share)
            shrink = tl.exp2(log_scale - new_scale)
            fused, kept, weight = fused * shrink[None, :], kept * shrink, weight * shrink
            share, log_scale = tl.exp2(log_share - new_scale), new_scale
        weight += share
        scale = share / its_total

        # 3. Its values, weighted.
        kept += scale * tl.exp2(top - its_top)
        if OFFSET:
            for span in range(spans):
                place = (span * J + j) * count + ((r * K + i) * G + g) * S + s
                log = tl.load(partial_log + place, mask=valid, other=NOTHING)
                more = tl.load(partial + place[None, :] * D + lane, mask=there, other=0.0)
                fused += more.to(tl.float32) * (scale * tl.exp2(log - its_top))[None, :]
        if ONE_TILE:
            fused += read_segment(
                segment_values, start, segment_token, 0, length, scores, its_top, scale, real,
                LANES, SEGMENT,
            )  # fmt: skip
        else:
            for first in range(0, length, SEGMENT):
                tile = score_segment(
                    q, segment_keys, start, segment_token, first, length, window_end, real,
                    LANES, SCALE, SOFTCAP, WINDOW, SEGMENT,
                )  # fmt: skip
                fused += read_segment(
                    segment_values, start, segment_token, first, length, tile, its_top, scale,
                    real, LANES, SEGMENT,
                )  # fmt: skip
    fused += sums * kept[None, :]

    store_outputs(
        out, out_log, fused, weight, log_scale, r, j, g, s, there, valid,
        J, K, PER, G, S, D, LANES,
    )  # fmt: skip
    keep_new_tokens(
        own_keys, own_values, new_keys, new_values, r, j, slot, real,
        own_head, own_row, new_row, new_head, new_step, S, D, LANES, KEYS,
    )  # fmt: skip
