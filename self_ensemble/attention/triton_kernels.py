"""Fused tokens' attention in one kernel, for GPUs: what `attention.split_attention` computes.

Each program has one row, one kv head and some of the row's segments. The fused tokens before and,
where rows are few, the prefix come first, since all partitions share them; then the segments follow
one by one: first the sum that a partition's softmax divides by, which is all that partitions of
their own need, then the values, already weighted. Segments are read packed as the encoding left
them, those of one tile once, and no score is ever written to memory.

A prefix that many rows share is read by a kernel of its own, since its products are large; that one
leaves an output and the logarithm of its softmax's sum. Where rows are few, a row's segments are
spread over several programs, whose outputs a last kernel brings together.

Legend as in attention.py. Scores are kept times log2(e), since the GPU's exponential has base 2.
This module needs Triton, which comes with torch for GPUs: import it only there.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import triton
import triton.language as tl

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
LOG2E = tl.constexpr(1.4426950408889634)
NOTHING = tl.constexpr(-1.0e30)  # below every score; finite, so that no difference is NaN


@triton.jit
def _as_scores(products, scale: tl.constexpr, softcap: tl.constexpr):
    """From products of queries and keys to scores in base 2."""
    scores = products * scale
    if softcap > 0:
        scores = (2 * tl.sigmoid(2 * scores / softcap) - 1) * softcap
    return scores * LOG2E


@triton.jit
def _query(pointer, lane, valid, turn, cos, sin, ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Queries at ``pointer + lane``, turned by ``turn`` positions; all of these broadcast."""
    query = tl.load(pointer + lane, mask=valid, other=0.0)
    if ROTATED > 0:
        rotated = lane < ROTATED
        if INTERLEAVED:
            partner, sign = lane ^ 1, tl.where(lane % 2 == 0, -1.0, 1.0)
        else:
            partner = (lane + ROTATED // 2) % ROTATED
            sign = tl.where(lane < ROTATED // 2, -1.0, 1.0)
        other = tl.load(pointer + partner, mask=valid & rotated, other=0.0).to(tl.float32)
        at = turn * ROTATED + lane
        cosine = tl.load(cos + at, mask=valid & rotated, other=1.0)
        sine = tl.load(sin + at, mask=valid & rotated, other=0.0)
        turned = query.to(tl.float32) * cosine + sign * other * sine
        query = turned.to(query.dtype)
    return query


@triton.jit(do_not_specialize=["count", "P", "span", "slots"])
def _prefix_kernel(
    query, keys, values, turns, cos, sin, own_positions, at, partial, partial_log,
    count, P, span, slots, query_row, query_head, query_step,
    G: tl.constexpr, S: tl.constexpr, KQ: tl.constexpr, D: tl.constexpr, LANES: tl.constexpr,
    TURNED: tl.constexpr, ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr, SCALE: tl.constexpr,
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
    turn = tl.load(turns + r * KQ + k, mask=valid, other=0) if ROTATED > 0 else k
    pointer = query + r * query_row + (j * G + g) * query_head + s * query_step
    there = valid[:, None] & (lane < D)
    q = _query(pointer[:, None], lane, there, turn[:, None], cos, sin, ROTATED, INTERLEAVED)
    if WINDOW > 0:
        position = tl.load(own_positions + r * slots + tl.load(at) + s, mask=valid, other=0)
        if TURNED:
            position -= tl.load(turns + r * KQ + k, mask=valid, other=0)

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
        scores = _as_scores(tl.dot(q, tl.trans(key), input_precision="ieee"), SCALE, SOFTCAP)
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


# In the kernel below a query is a column, of which a product has eight at least, of rows sixteen: a
# group's few query heads leave less of it empty.


@triton.jit
def _tile(
    query, keys, place, inside, visible,
    LANES: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Scores of some keys, [keys, queries].

    query [LANES, queries]; place [keys], of the keys' first numbers; inside [keys, LANES], what is
    there; visible [keys, queries]. LANES: a head's size, or the next power of two.
    """
    lane = tl.arange(0, LANES)[None, :]
    key = tl.load(keys + place[:, None] + lane, mask=inside, other=0.0)
    scores = _as_scores(tl.dot(key, query, input_precision="ieee"), SCALE, SOFTCAP)
    return tl.where(visible, scores, float("-inf"))


@triton.jit
def _segment_tile(
    query, keys, start, token, first, length, window_end, real,
    LANES: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr,
    SEGMENT: tl.constexpr,
):  # fmt: skip
    """Scores of a segment's tokens from ``first`` on. window_end [queries]: what a window hides."""
    n = first + tl.arange(0, SEGMENT)
    inside = (n < length)[:, None]
    visible = inside
    if WINDOW > 0:
        visible = visible & (n[:, None] > window_end[None, :])
    place = start + n * token
    return _tile(query, keys, place, inside & real, visible, LANES, SCALE, SOFTCAP)


@triton.jit
def _read(values, place, inside, probabilities, LANES: tl.constexpr):
    """Values summed by their probabilities [keys, queries]: [LANES, queries]."""
    lane = tl.arange(0, LANES)[None, :]
    value = tl.load(values + place[:, None] + lane, mask=inside, other=0.0)
    return tl.dot(tl.trans(value), probabilities.to(value.dtype), input_precision="ieee")


@triton.jit
def _read_segment(
    values, start, token, first, length, scores, top, scale, real,
    LANES: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """Values of the tokens that `_segment_tile` scored, summed: [LANES, queries].

    top, scale: [queries], of the partition's softmax, and what its exponentials are weighted with.
    """
    n = first + tl.arange(0, SEGMENT)
    probabilities = tl.exp2(scores - top[None, :]) * scale[None, :]
    inside = (n < length)[:, None] & real
    return _read(values, start + n * token, inside, probabilities, LANES)


@triton.jit
def _count(scores, top, total):
    """One more tile of the sum of an online softmax."""
    new_top = tl.maximum(top, tl.max(scores, 0))
    total = total * tl.exp2(top - new_top) + tl.sum(tl.exp2(scores - new_top[None, :]), 0)
    return new_top, total


@triton.jit
def _take_up(
    query, keys, values, place, inside, visible, bias, top, total, sums,
    LANES: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """One more tile of an online softmax, whose scores gain ``bias``."""
    scores = _tile(query, keys, place, inside, visible, LANES, SCALE, SOFTCAP) + bias
    new_top, total = _count(scores, top, total)
    sums *= tl.exp2(top - new_top)[None, :]
    sums += _read(values, place, inside, tl.exp2(scores - new_top[None, :]), LANES)
    return new_top, total, sums


@triton.jit
def _take_up_part(partial, partial_log, place, lane, there, valid, D, top, total, sums):
    """What `_prefix_kernel` left of these queries. place: [queries]."""
    log = tl.load(partial_log + place, mask=valid, other=NOTHING)
    more = tl.load(partial + place[None, :] * D + lane, mask=there, other=0.0)
    new_top = tl.maximum(top, log)
    shrink, grow = tl.exp2(top - new_top), tl.exp2(log - new_top)
    sums = sums * shrink[None, :] + more.to(tl.float32) * grow[None, :]
    return new_top, total * shrink + grow, sums


@triton.jit(do_not_specialize=["count", "P", "spans", "slots"])
def _fuse_kernel(
    query, prefix_keys, prefix_values, partial, partial_log, segment_keys, segment_values,
    starts, lengths, segment_positions, own_keys, own_values, own_mask, own_positions,
    new_keys, new_values, at, turns, cos, sin, weights, out, out_log,
    P, spans, count, slots, query_row, query_head, query_step, new_row, new_head, new_step,
    segment_head, segment_token, own_head, own_row,
    J: tl.constexpr, K: tl.constexpr, PER: tl.constexpr, G: tl.constexpr, S: tl.constexpr,
    D: tl.constexpr, LANES: tl.constexpr, JOINT: tl.constexpr, TAU: tl.constexpr,
    INLINE: tl.constexpr, TURNED: tl.constexpr, ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, COLUMNS: tl.constexpr,
    KEYS: tl.constexpr, SEGMENT: tl.constexpr, ONE_TILE: tl.constexpr,
):  # fmt: skip
    """Fused tokens, prefix and ``PER`` segments of one row and kv head.

    Program: (row * J + kv head, which of the row's segments, tile of queries). A tile's queries are
    (query head of the group, step). With ``PER`` = K, ``out`` is [R, S, H, D]; with fewer, programs
    leave [parts, R, S, H, D] and what a part weighs, ``out_log`` [parts, R, S, H]. The first also
    writes the new keys and values into their slots.
    """
    j = (tl.program_id(0) % J).to(tl.int64)
    r = (tl.program_id(0) // J).to(tl.int64)
    part = tl.program_id(1)
    slot = tl.load(at).to(tl.int32)  # of the first new token
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    valid = column < G * S
    s = column % S
    g = column // S % G
    lane = tl.arange(0, LANES)[:, None]
    real = (tl.arange(0, LANES) < D)[None, :]
    there = valid[None, :] & (lane < D)
    pointer = (query + r * query_row + (j * G + g) * query_head + s * query_step)[None, :]
    straight = _query(pointer, lane, there, 0, cos, sin, 0, False)
    position = column
    if WINDOW > 0:
        position = tl.load(own_positions + r * slots + slot + s, mask=valid, other=0).to(tl.int32)

    # What all partitions share: earlier fused tokens, and the prefix where no query is turned.
    top = tl.full([COLUMNS], NOTHING, tl.float32)
    total = tl.zeros([COLUMNS], tl.float32)
    sums = tl.zeros([LANES, COLUMNS], tl.float32)
    shares = (part == 0) if JOINT else True  # one softmax over all takes them up once
    if shares:
        # The new tokens, each seeing those before it. Padding sees itself: no softmax is empty.
        for first in tl.static_range(0, S, KEYS):
            m = first + tl.arange(0, KEYS)
            seen = tl.load(own_mask + r * slots + slot + m, mask=m < S, other=0) != 0
            sees = seen[:, None] & (m[:, None] <= s[None, :])
            if WINDOW > 0:
                at_m = tl.load(own_positions + r * slots + slot + m, mask=m < S, other=0)
                sees = sees & (position[None, :] - at_m[:, None] < WINDOW)
            top, total, sums = _take_up(
                straight, new_keys, new_values, r * new_row + j * new_head + m * new_step,
                (m < S)[:, None] & real, sees | (m[:, None] == s[None, :]), 0.0, top, total, sums,
                LANES, SCALE, SOFTCAP,
            )  # fmt: skip
        for first in range(0, slot, KEYS):
            n = first + tl.arange(0, KEYS)
            visible = (tl.load(own_mask + r * slots + n, mask=n < slot, other=0) != 0)[:, None]
            if WINDOW > 0:
                at_n = tl.load(own_positions + r * slots + n, mask=n < slot, other=0)
                visible = visible & (position[None, :] - at_n[:, None] < WINDOW)
            top, total, sums = _take_up(
                straight, own_keys, own_values, j * own_head + r * own_row + n * D,
                (n < slot)[:, None] & real, visible, 0.0, top, total, sums, LANES, SCALE, SOFTCAP,
            )  # fmt: skip
        if INLINE:
            for first in range(0, P, KEYS):
                n = first + tl.arange(0, KEYS)
                visible = (n < P)[:, None]
                if WINDOW > 0:
                    visible = visible & (position[None, :] - n[:, None] < WINDOW)
                top, total, sums = _take_up(
                    straight, prefix_keys, prefix_values, j * P * D + n * D,
                    (n < P)[:, None] & real, visible, 0.0, top, total, sums, LANES, SCALE, SOFTCAP,
                )  # fmt: skip
        elif not TURNED:
            for span in range(spans):
                place = (span * J + j) * count + (r * G + g) * S + s
                top, total, sums = _take_up_part(
                    partial, partial_log, place, lane, there, valid, D, top, total, sums
                )

    fused = tl.zeros([LANES, COLUMNS], tl.float32)
    kept = tl.zeros([COLUMNS], tl.float32)  # how much of what is shared goes into ``fused``
    weight = tl.zeros([COLUMNS], tl.float32)  # of the partitions so far, times exp2(-dial_top)
    dial_top = tl.full([COLUMNS], NOTHING if TAU != 0 else 0.0, tl.float32)
    for i in range(part * PER, tl.minimum(part * PER + PER, K)):
        start = j * segment_head + tl.load(starts + r * K + i).to(tl.int64) * segment_token
        length = tl.load(lengths + r * K + i)
        bias = tl.load(weights + i)
        q = straight
        window_end = column  # where in the segment a window begins
        turn = tl.load(turns + r * K + i).to(tl.int32) if TURNED else 0
        if TURNED:
            q = _query(pointer, lane, there, turn, cos, sin, ROTATED, INTERLEAVED)
        if WINDOW > 0:
            begun = tl.load(segment_positions + r * K + i).to(tl.int32)
            window_end = position - turn - begun - WINDOW
        if JOINT:
            for first in range(0, length, SEGMENT):
                n = first + tl.arange(0, SEGMENT)
                visible = (n < length)[:, None]
                if WINDOW > 0:
                    visible = visible & (n[:, None] > window_end[None, :])
                top, total, sums = _take_up(
                    q, segment_keys, segment_values, start + n * segment_token,
                    (n < length)[:, None] & real, visible, bias, top, total, sums,
                    LANES, SCALE, SOFTCAP,
                )  # fmt: skip
        else:
            # First what the partition's softmax divides by, then its values, weighted.
            its_top, its_total = top, total
            if TURNED:
                for span in range(spans):
                    place = (span * J + j) * count + ((r * K + i) * G + g) * S + s
                    log = tl.load(partial_log + place, mask=valid, other=NOTHING)
                    its_top, its_total = _count(log[None, :], its_top, its_total)
            if ONE_TILE:
                scores = _segment_tile(
                    q, segment_keys, start, segment_token, 0, length, window_end, real,
                    LANES, SCALE, SOFTCAP, WINDOW, SEGMENT,
                )  # fmt: skip
                its_top, its_total = _count(scores, its_top, its_total)
            else:
                for first in range(0, length, SEGMENT):
                    tile = _segment_tile(
                        q, segment_keys, start, segment_token, first, length, window_end, real,
                        LANES, SCALE, SOFTCAP, WINDOW, SEGMENT,
                    )  # fmt: skip
                    its_top, its_total = _count(tile, its_top, its_total)
            share = tl.exp2(bias + tl.zeros([COLUMNS], tl.float32))
            if TAU != 0:
                dial = bias + TAU * (its_top + tl.log2(its_total))
                new_top = tl.maximum(dial_top, dial)
                shrink = tl.exp2(dial_top - new_top)
                fused, kept, weight = fused * shrink[None, :], kept * shrink, weight * shrink
                share, dial_top = tl.exp2(dial - new_top), new_top
            weight += share
            scale = share / its_total
            kept += scale * tl.exp2(top - its_top)
            if TURNED:
                for span in range(spans):
                    place = (span * J + j) * count + ((r * K + i) * G + g) * S + s
                    log = tl.load(partial_log + place, mask=valid, other=NOTHING)
                    more = tl.load(partial + place[None, :] * D + lane, mask=there, other=0.0)
                    fused += more.to(tl.float32) * (scale * tl.exp2(log - its_top))[None, :]
            if ONE_TILE:
                fused += _read_segment(
                    segment_values, start, segment_token, 0, length, scores, its_top, scale, real,
                    LANES, SEGMENT,
                )  # fmt: skip
            else:
                for first in range(0, length, SEGMENT):
                    tile = _segment_tile(
                        q, segment_keys, start, segment_token, first, length, window_end, real,
                        LANES, SCALE, SOFTCAP, WINDOW, SEGMENT,
                    )  # fmt: skip
                    fused += _read_segment(
                        segment_values, start, segment_token, first, length, tile, its_top, scale,
                        real, LANES, SEGMENT,
                    )  # fmt: skip

    if JOINT:
        fused, weight, dial_top = sums, total, top
    else:
        fused += sums * kept[None, :]
    fused = fused / tl.where(weight > 0, weight, 1.0)[None, :]
    rows = tl.num_programs(0) // J
    place = ((part * rows + r) * S + s) * (J * G) + j * G + g
    tl.store(out + place[None, :] * D + lane, fused.to(out.dtype.element_ty), mask=there)
    if PER < K:
        log = tl.where(weight > 0, dial_top + tl.log2(weight), NOTHING)
        tl.store(out_log + place, log, mask=valid)

    if (part == 0) & (tl.program_id(2) == 0):
        number = tl.arange(0, LANES)[None, :]
        for first in tl.static_range(0, S, KEYS):
            of = first + tl.arange(0, KEYS)
            fits = (of < S)[:, None] & real
            source = (r * new_row + j * new_head + of * new_step)[:, None] + number
            target = (j * own_head + r * own_row + (slot + of) * D)[:, None] + number
            tl.store(own_keys + target, tl.load(new_keys + source, mask=fits), mask=fits)
            tl.store(own_values + target, tl.load(new_values + source, mask=fits), mask=fits)


@triton.jit(do_not_specialize=["rows"])
def _merge_kernel(
    parts, parts_log, out, rows,
    PARTS: tl.constexpr, D: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The parts of one row, step and head. parts [PARTS, rows, D], parts_log [PARTS, rows]."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    top = tl.full([], NOTHING, tl.float32)
    total = tl.zeros([], tl.float32)
    sums = tl.zeros([LANES], tl.float32)
    for part in range(PARTS):
        log = tl.load(parts_log + part * rows + row)
        more = tl.load(parts + (part * rows + row) * D + lane, mask=lane < D, other=0.0)
        new_top = tl.maximum(top, log)
        shrink, grow = tl.exp2(top - new_top), tl.exp2(log - new_top)
        total, sums, top = total * shrink + grow, sums * shrink + more * grow, new_top
    tl.store(out + row * D + lane, (sums / total).to(out.dtype.element_ty), mask=lane < D)


def fuse(
    query, prefix, segments, starts, lengths, longest, segment_positions,
    own, own_mask, own_positions, new, at, turns, angles, scoring, fusion,
) -> torch.Tensor:  # fmt: skip
    """The attention of fused tokens; their keys and values are written into their slots too.

    Args:
        query: [R, H, S, D], D contiguous.
        prefix: `KeyValues` [J, P, D], contiguous, or None.
        segments: `KeyValues` [J, T, D] of all rows' segments, packed; D contiguous.
        starts, lengths: [R, K] int32, where in T each row's segments are, and how long.
        longest: no segment is longer.
        segment_positions: [R, K], the positions of the segments' first tokens.
        own: `KeyValues` [J, R, slots, D], contiguous; unfilled slots are not read.
        own_mask, own_positions: [R, slots], the new tokens' included.
        new: `KeyValues` [R, J, S, D] of these tokens. at: [S] their slots, one after the other.
        turns: [R, K] positions by which queries are nearer to a segment and the prefix, or None.
        angles: how this layer's queries turn then: (cos, sin, interleaved), the tables [turns,
            rotated size] in float32; None where they stay as they are.
        scoring, fusion: how scores are made and partitions combined.

    Returns:
        [R, H, S, D], a view of contiguous [R, S, H, D].

    Raises:
        ValueError: heads of a shape that the kernels do not have.
    """
    R, H, S, D = query.shape
    if segments.values.shape[-1] != D or D > MAX_SIZE:
        raise ValueError(
            f"heads with keys of {D} numbers and values of {segments.values.shape[-1]}: the "
            f"kernels are for as many of both, at most {MAX_SIZE}"
        )
    J, K = own.keys.shape[0], starts.shape[1]
    G, slots = H // J, own_mask.shape[1]
    joint = fusion.kind == "joint"
    # Without rotary positions a turn matters to a window alone.
    turned = turns is not None and (angles is not None or scoring.window is not None)
    assert not (joint and turned), "the fusion 'joint' has one softmax: queries cannot be turned"
    assert segments.keys.stride() == segments.values.stride() and segments.keys.stride(2) == 1
    assert own.keys.is_contiguous() and own.values.is_contiguous() and own_mask.is_contiguous()
    assert starts.dtype == lengths.dtype == torch.int32, (starts.dtype, lengths.dtype)
    assert at.shape == (S,) and own_positions.is_contiguous(), (at.shape, own_positions.stride())
    query = query if query.stride(3) == 1 else query.contiguous()
    new_keys, new_values = new.keys, new.values
    if new_keys.stride() != new_values.stride() or new_keys.stride(3) != 1:  # cut from one product
        new_keys, new_values = new_keys.contiguous(), new_values.contiguous()
    rotated = turned and angles is not None
    cos, sin, interleaved = angles if rotated else (query, query, False)
    P = 0 if prefix is None else prefix.keys.shape[1]
    assert P == 0 or (prefix.keys.is_contiguous() and prefix.values.is_contiguous())
    inline = not turned and P <= INLINE_PREFIX and R * P <= INLINE_ROWS_TIMES_PREFIX
    shared = {
        "G": G,
        "S": S,
        "D": D,
        "LANES": max(16, triton.next_power_of_2(D)),
        "TURNED": turned,
        "ROTATED": cos.shape[-1] if rotated else 0,
        "INTERLEAVED": interleaved,
        "SCALE": scoring.scaling,
        "SOFTCAP": scoring.softcap or 0.0,
        "WINDOW": scoring.window or 0,
    }
    head = shared["LANES"] * query.element_size()
    # By how much heads are larger, or a program's memory smaller, than the sizes above are for.
    larger = head / 256 * H100_SHARED_BYTES / shared_bytes(query.device)
    larger = triton.next_power_of_2(max(1, math.ceil(larger)))
    turns = turns if turned else starts
    partial = partial_log = query
    spans, count = 0, R * (K if turned else 1) * G * S
    if P and not inline:
        # A narrow product is cut along the prefix, so that it fills the GPU too.
        rows, keys = max(16, PREFIX_ROWS // larger), max(16, PREFIX_KEYS // larger)
        tile = min(rows, max(16, triton.next_power_of_2(count)))
        tiles = triton.cdiv(count, tile)
        spans = max(1, min(FILLING // (tiles * J), triton.cdiv(P, 4 * PREFIX_KEYS)))
        span = triton.cdiv(triton.cdiv(P, spans), keys) * keys
        spans = triton.cdiv(P, span)
        partial = query.new_empty(spans, J, count, D)
        partial_log = query.new_empty(spans, J, count, dtype=torch.float32)
        _prefix_kernel[(tiles, J, spans)](
            query, prefix.keys, prefix.values, turns, cos, sin, own_positions, at,
            partial, partial_log, count, P, span, slots, *query.stride()[:3],
            KQ=K if turned else 1, ROWS=tile, KEYS=keys, num_warps=8 if tile > 64 else 4,
            **shared,
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
    _fuse_kernel[(R * J, parts, tiles)](
        query, *((prefix.keys, prefix.values) if P else (query, query)), partial, partial_log,
        segments.keys, segments.values, starts, lengths, segment_positions,
        own.keys, own.values, own_mask, own_positions, new_keys, new_values, at, turns, cos, sin,
        partition_weights(fusion, K, query.device), found, found_log,
        P, spans, count, slots, *query.stride()[:3], *new_keys.stride()[:3],
        *segments.keys.stride()[:2], *own.keys.stride()[:2],
        J=J, K=K, PER=per, JOINT=joint, TAU=fusion.tau, INLINE=inline and P > 0,
        COLUMNS=columns, KEYS=OWN_KEYS, SEGMENT=tile, ONE_TILE=longest <= tile,
        num_stages=2, num_warps=min(8, max(2, columns * shared["LANES"] // 1024)), **shared,
    )  # fmt: skip
    if parts > 1:
        _merge_kernel[(R * S * H,)](
            found, found_log, out, R * S * H, PARTS=parts, D=D, LANES=shared["LANES"], num_warps=1
        )
    return out.transpose(1, 2)


@lru_cache(maxsize=16)
def shared_bytes(device: torch.device) -> int:
    """What a program may have of a GPU's fastest memory."""
    if device.type != "cuda":  # in the interpreter
        return H100_SHARED_BYTES
    found = triton.runtime.driver.active.utils.get_device_properties(device.index or 0)
    return found["max_shared_mem"]


_weights_of: dict[tuple, torch.Tensor] = {}


def partition_weights(fusion, K: int, device) -> torch.Tensor:
    """[K] float32, in base 2: the logarithms of what partitions count before any dial; for
    ``joint`` what a segment's scores gain."""
    if fusion.weights is None:
        key = (fusion.kind, K, device)
        if key not in _weights_of:
            value = 1.0 if fusion.kind == "joint" else 1.0 / K
            _weights_of[key] = torch.full((K,), value, device=device).log2()
        return _weights_of[key]
    key = (fusion.kind, fusion.weights)  # a tensor is hashed by identity
    if key not in _weights_of:
        scale = K if fusion.kind == "joint" else 1
        _weights_of[key] = (scale * fusion.weights.float()).log2()
    return _weights_of[key]
