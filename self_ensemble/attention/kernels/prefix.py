"""Queries of all rows towards a prefix that they share, whose products are large.

Leaves an output and the logarithm of its softmax's sum, as split-KV decoding does (Dao et al.,
Flash-Decoding, 2023), a part for each span of the prefix.

Legend as in kv_state.py.
"""

import triton
import triton.language as tl

from self_ensemble.attention.kernels.tiles import NOTHING, as_scores, load_query


@triton.jit(do_not_specialize=["count", "P", "span", "slots"])
def prefix_kernel(
    query, keys, values, rope_offsets, cos, sin, own_positions, at, partial, partial_log,
    count, P, span, slots, query_row, query_head, query_step,
    G: tl.constexpr, S: tl.constexpr, KQ: tl.constexpr, D: tl.constexpr, LANES: tl.constexpr,
    OFFSET: tl.constexpr, ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr, SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Queries of all rows towards a span of the prefix. Program: (tile of queries, kv head, span).

    ``count`` = R*KQ*G*S queries of a kv head; keys, values [J, P, D]; partial [spans, J, count, D],
    partial_log [spans, J, count].
    """
    j = tl.program_id(1).to(tl.int64)
    J = tl.num_programs(1)
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = index < count
    s = index % S
    g = index // S % G
    k = index // (S * G) % KQ
    r = (index // (S * G * KQ)).to(tl.int64)
    lane = tl.arange(0, LANES)[None, :]
    offset = tl.load(rope_offsets + r * KQ + k, mask=valid, other=0) if ROTATED > 0 else k
    pointer = query + r * query_row + (j * G + g) * query_head + s * query_step
    there = valid[:, None] & (lane < D)
    q = load_query(pointer[:, None], lane, there, offset[:, None], cos, sin, ROTATED, INTERLEAVED)
    if WINDOW > 0:
        position = tl.load(own_positions + r * slots + tl.load(at) + s, mask=valid, other=0)
        if OFFSET:
            position -= tl.load(rope_offsets + r * KQ + k, mask=valid, other=0)

    top = tl.full([ROWS], NOTHING, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, LANES], tl.float32)
    begin = tl.program_id(2) * span
    for first in range(begin, tl.minimum(begin + span, P), KEYS):
        n = first + tl.arange(0, KEYS)
        inside = (n < P)[:, None] & (lane < D)
        visible = (n < P)[None, :]
        if WINDOW > 0:
            visible = visible & (position[:, None] - n[None, :] < WINDOW)
        place = j * P * D + n[:, None] * D + lane
        key = tl.load(keys + place, mask=inside, other=0.0)
        value = tl.load(values + place, mask=inside, other=0.0)
        scores = as_scores(tl.dot(q, tl.trans(key), input_precision="ieee"), SCALE, SOFTCAP)
        scores = tl.where(visible, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        shrink = tl.exp2(top - new_top)
        weights = tl.exp2(scores - new_top[:, None])
        total, top = total * shrink + tl.sum(weights, 1), new_top
        sums *= shrink[:, None]
        sums += tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    place = (tl.program_id(2) * J + j) * count + index
    total = tl.where(total > 0, total, 1.0)  # where a window hides all of it
    out = sums / total[:, None]
    tl.store(partial + place[:, None] * D + lane, out.to(partial.dtype.element_ty), there)
    tl.store(partial_log + place, top + tl.log2(total), mask=valid)
