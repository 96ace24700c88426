"""What the kernels are made of: tiles of scores and values, and online softmaxes over them.

A query is a column of a tile, except in prefix.py: a product has eight columns at least and sixteen
rows, so a group's few query heads leave less of it empty. Scores are kept times log2(e), since the
GPU's exponential has base 2.

Legend as in kv_state.py.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
NOTHING = tl.constexpr(-1.0e30)  # below every score; finite, so that no difference is NaN


@triton.jit
def as_scores(products, scale: tl.constexpr, softcap: tl.constexpr):
    """From products of queries and keys to scores in base 2."""
    scores = products * scale
    if softcap > 0:
        scores = (2 * tl.sigmoid(2 * scores / softcap) - 1) * softcap
    return scores * LOG2E


@triton.jit
def load_query(
    pointer, lane, valid, offset, cos, sin, ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr
):  # fmt: skip
    """Queries at ``pointer + lane``, re-rotated by ``offset`` positions; all of these broadcast."""
    query = tl.load(pointer + lane, mask=valid, other=0.0)
    if ROTATED > 0:
        rotated = lane < ROTATED
        if INTERLEAVED:
            partner, sign = lane ^ 1, tl.where(lane % 2 == 0, -1.0, 1.0)
        else:
            partner = (lane + ROTATED // 2) % ROTATED
            sign = tl.where(lane < ROTATED // 2, -1.0, 1.0)
        other = tl.load(pointer + partner, mask=valid & rotated, other=0.0).to(tl.float32)
        at = offset * ROTATED + lane
        cosine = tl.load(cos + at, mask=valid & rotated, other=1.0)
        sine = tl.load(sin + at, mask=valid & rotated, other=0.0)
        moved = query.to(tl.float32) * cosine + sign * other * sine
        query = moved.to(query.dtype)
    return query


@triton.jit
def score_tile(
    query, keys, place, inside, visible,
    LANES: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Scores of some keys, [keys, queries].

    query [LANES, queries]; place [keys], of the keys' first numbers; inside [keys, LANES], what is
    there; visible [keys, queries]. LANES: a head's size, or the next power of two.
    """
    lane = tl.arange(0, LANES)[None, :]
    key = tl.load(keys + place[:, None] + lane, mask=inside, other=0.0)
    scores = as_scores(tl.dot(key, query, input_precision="ieee"), SCALE, SOFTCAP)
    return tl.where(visible, scores, float("-inf"))


@triton.jit
def score_segment(
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
    return score_tile(query, keys, place, inside & real, visible, LANES, SCALE, SOFTCAP)


@triton.jit
def read_values(values, place, inside, probabilities, LANES: tl.constexpr):
    """Values summed by their probabilities [keys, queries]: [LANES, queries]."""
    lane = tl.arange(0, LANES)[None, :]
    value = tl.load(values + place[:, None] + lane, mask=inside, other=0.0)
    return tl.dot(tl.trans(value), probabilities.to(value.dtype), input_precision="ieee")


@triton.jit
def read_segment(
    values, start, token, first, length, scores, top, scale, real,
    LANES: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """Values of the tokens that `score_segment` scored, summed: [LANES, queries].

    top, scale: [queries], of the partition's softmax, and what its exponentials are weighted with.
    """
    n = first + tl.arange(0, SEGMENT)
    probabilities = tl.exp2(scores - top[None, :]) * scale[None, :]
    inside = (n < length)[:, None] & real
    return read_values(values, start + n * token, inside, probabilities, LANES)


@triton.jit
def count_up(scores, top, total):
    """One more tile of the sum of an online softmax."""
    new_top = tl.maximum(top, tl.max(scores, 0))
    total = total * tl.exp2(top - new_top) + tl.sum(tl.exp2(scores - new_top[None, :]), 0)
    return new_top, total


@triton.jit
def take_up(
    query, keys, values, place, inside, visible, bias, top, total, sums,
    LANES: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """One more tile of an online softmax, whose scores gain ``bias``."""
    scores = score_tile(query, keys, place, inside, visible, LANES, SCALE, SOFTCAP) + bias
    new_top, total = count_up(scores, top, total)
    sums *= tl.exp2(top - new_top)[None, :]
    sums += read_values(values, place, inside, tl.exp2(scores - new_top[None, :]), LANES)
    return new_top, total, sums


@triton.jit
def take_up_partial(partial, partial_log, place, lane, there, valid, D, top, total, sums):
    """What `prefix_kernel` left of these queries. place: [queries]."""
    log = tl.load(partial_log + place, mask=valid, other=NOTHING)
    more = tl.load(partial + place[None, :] * D + lane, mask=there, other=0.0)
    new_top = tl.maximum(top, log)
    shrink, grow = tl.exp2(top - new_top), tl.exp2(log - new_top)
    sums = sums * shrink[None, :] + more.to(tl.float32) * grow[None, :]
    return new_top, total * shrink + grow, sums
