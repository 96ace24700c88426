"""The fusion `joint`: one softmax over a row's fused tokens, prefix and segments.

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
from self_ensemble.attention.kernels.tiles import NOTHING, take_up


@triton.jit(do_not_specialize=["count", "P", "spans", "slots"])
def joint_kernel(
    query, prefix_keys, prefix_values, partial, partial_log, segment_keys, segment_values,
    starts, lengths, segment_positions, own_keys, own_values, own_mask, own_positions,
    new_keys, new_values, at, weights, out, out_log,
    P, spans, count, slots, query_row, query_head, query_step, new_row, new_head, new_step,
    segment_head, segment_token, own_head, own_row,
    J: tl.constexpr, K: tl.constexpr, PER: tl.constexpr, G: tl.constexpr, S: tl.constexpr,
    D: tl.constexpr, LANES: tl.constexpr, INLINE: tl.constexpr, SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, COLUMNS: tl.constexpr, KEYS: tl.constexpr,
    SEGMENT: tl.constexpr,
):  # fmt: skip
    """``PER`` segments of one row and kv head; its first program has the other keys too.

    Program: (row * J + kv head, which of the row's segments, tile of queries). ``weights`` [R, K]:
    what a segment's scores gain, in base 2. Outputs as `mean_kernel` leaves them.
    """
    part = tl.program_id(1)
    r, j, slot, g, s, valid, there, _, q, position = find_queries(
        query, own_positions, at, query, query, slots, query_row, query_head, query_step,
        J, G, S, D, LANES, WINDOW, COLUMNS,
    )  # fmt: skip
    real = (tl.arange(0, LANES) < D)[None, :]
    top = tl.full([COLUMNS], NOTHING, tl.float32)
    total = tl.zeros([COLUMNS], tl.float32)
    sums = tl.zeros([LANES, COLUMNS], tl.float32)
    if part == 0:  # one softmax over all takes them up once
        top, total, sums = take_up_fused_tokens(
            q, position, own_keys, own_values, own_mask, own_positions, new_keys, new_values,
            r, j, s, slot, real, slots, own_head, own_row, new_row, new_head, new_step,
            top, total, sums, S, D, LANES, SCALE, SOFTCAP, WINDOW, KEYS,
        )  # fmt: skip
        if INLINE:
            top, total, sums = take_up_prefix(
                q, position, prefix_keys, prefix_values, j, real, P, top, total, sums,
                D, LANES, SCALE, SOFTCAP, WINDOW, KEYS,
            )  # fmt: skip
        else:
            top, total, sums = take_up_prefix_parts(
                partial, partial_log, spans, count, r, j, g, s, there, valid, top, total, sums,
                J, G, S, D, LANES,
            )  # fmt: skip

    for i in range(part * PER, tl.minimum(part * PER + PER, K)):
        start = j * segment_head + tl.load(starts + r * K + i).to(tl.int64) * segment_token
        length = tl.load(lengths + r * K + i)
        bias = tl.load(weights + r * K + i)
        if WINDOW > 0:
            begun = tl.load(segment_positions + r * K + i).to(tl.int32)
            window_end = position - begun - WINDOW  # where in the segment a window begins
        for first in range(0, length, SEGMENT):
            n = first + tl.arange(0, SEGMENT)
            visible = (n < length)[:, None]
            if WINDOW > 0:
                visible = visible & (n[:, None] > window_end[None, :])
            top, total, sums = take_up(
                q, segment_keys, segment_values, start + n * segment_token,
                (n < length)[:, None] & real, visible, bias, top, total, sums,
                LANES, SCALE, SOFTCAP,
            )  # fmt: skip

    store_outputs(
        out, out_log, sums, total, top, r, j, g, s, there, valid, J, K, PER, G, S, D, LANES
    )
    keep_new_tokens(
        own_keys, own_values, new_keys, new_values, r, j, slot, real,
        own_head, own_row, new_row, new_head, new_step, S, D, LANES, KEYS,
    )  # fmt: skip
