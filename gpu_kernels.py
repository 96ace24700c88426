"""Fused tokens' attention in one kernel, for GPUs: what `attention.split_attention` computes.

Each program has one row and one kv head, and all partitions of that row as rows of one product:
every key and value is read once, and no score is ever written to memory. The prefix, which all rows
share, is read by a kernel of its own where there are many rows, since its products are large; that
one leaves an output and the logarithm of its softmax's sum, which the other takes up.

Legend as in attention.py. Scores are kept times log2(e), since the GPU's exponential has base 2.
This module needs Triton, which comes with torch for GPUs: import it only there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# A prefix up to this long is read by every row itself where that is few keys in all, or where a
# row's queries fill a product by themselves.
INLINE_PREFIX, INLINE_ROWS_TIMES_PREFIX, INLINE_ROWS = 512, 16384, 64
# Of the products' rows: a program holds [rows, D] float32 sums in registers.
MAX_ROWS_TIMES_SIZE = 128 * 128
PREFIX_ROWS, PREFIX_KEYS = 128, 64
LOG2E = tl.constexpr(1.4426950408889634)
NOTHING = tl.constexpr(-1.0e30)  # below every score; finite, so that no difference is NaN


def can_fuse(query: torch.Tensor, values: torch.Tensor, K: int, window, fusion) -> bool:
    """Whether `fuse` computes this; all else is left to `attention.split_attention`.

    query: [R, H, S, D]; values: [J, R, K, M, D].
    """
    _, H, S, D = query.shape
    rows = (1 if fusion.kind == "joint" else K) * (H // values.shape[0]) * S
    return (
        window is None
        and fusion.tau == 0
        and values.shape[-1] == D
        and D in (16, 32, 64, 128, 256)
        and triton.next_power_of_2(max(16, rows)) * D <= MAX_ROWS_TIMES_SIZE
    )


@triton.jit
def _scores(query, keys, scale: tl.constexpr, softcap: tl.constexpr):
    """[rows, D] and [D, keys] → [rows, keys], in base 2."""
    scores = tl.dot(query, keys, input_precision="ieee") * scale
    if softcap > 0:
        scores = (2 * tl.sigmoid(2 * scores / softcap) - 1) * softcap
    return scores * LOG2E


@triton.jit
def _take_up(scores, values, top, total, sums):
    """One more tile of an online softmax."""
    new_top = tl.maximum(top, tl.max(scores, 1))
    shrink = tl.exp2(top - new_top)
    weights = tl.exp2(scores - new_top[:, None])
    total = total * shrink + tl.sum(weights, 1)
    sums = sums * shrink[:, None]
    sums += tl.dot(weights.to(values.dtype), values, input_precision="ieee")
    return new_top, total, sums


@triton.jit
def _query(pointer, lane, valid, turn, cos, sin, ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Queries [rows, D], turned by ``turn`` [rows] positions. pointer: [rows, 1]; lane: [1, D]."""
    query = tl.load(pointer + lane, mask=valid, other=0.0)
    if ROTATED > 0:
        rotated = lane < ROTATED
        if INTERLEAVED:
            partner, sign = lane ^ 1, tl.where(lane % 2 == 0, -1.0, 1.0)
        else:
            partner = (lane + ROTATED // 2) % ROTATED
            sign = tl.where(lane < ROTATED // 2, -1.0, 1.0)
        other = tl.load(pointer + partner, mask=valid & rotated, other=0.0).to(tl.float32)
        at = turn[:, None] * ROTATED + lane
        cosine = tl.load(cos + at, mask=valid & rotated, other=1.0)
        sine = tl.load(sin + at, mask=valid & rotated, other=0.0)
        turned = query.to(tl.float32) * cosine + sign * other * sine
        query = turned.to(query.dtype)
    return query


@triton.jit(do_not_specialize=["count", "P", "span"])
def _prefix_kernel(
    query, keys, values, turns, cos, sin, partial, partial_log,
    count, P, span, query_row, query_head, query_step,
    G: tl.constexpr, S: tl.constexpr, KQ: tl.constexpr, D: tl.constexpr,
    ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr, SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
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
    lane = tl.arange(0, D)[None, :]
    turn = tl.load(turns + r * KQ + k, mask=valid, other=0) if ROTATED > 0 else k
    pointer = query + r * query_row + (j * G + g) * query_head + s * query_step
    q = _query(pointer[:, None], lane, valid[:, None], turn, cos, sin, ROTATED, INTERLEAVED)

    top = tl.full([ROWS], NOTHING, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, D], tl.float32)
    begin = tl.program_id(2) * span
    for first in range(begin, tl.minimum(begin + span, P), KEYS):
        n = first + tl.arange(0, KEYS)
        inside = n < P
        at = j * P * D + n[:, None] * D + lane
        key = tl.load(keys + at, mask=inside[:, None], other=0.0)
        value = tl.load(values + at, mask=inside[:, None], other=0.0)
        scores = _scores(q, tl.trans(key), SCALE, SOFTCAP)
        scores = tl.where(inside[None, :], scores, float("-inf"))
        top, total, sums = _take_up(scores, value, top, total, sums)
    place = (tl.program_id(2) * J + j) * count + index
    out = sums / total[:, None]
    tl.store(partial + place[:, None] * D + lane, out.to(partial.dtype.element_ty), valid[:, None])
    tl.store(partial_log + place, top + tl.log2(total), mask=valid)


@triton.jit(do_not_specialize=["count", "P", "spans", "M", "slots"])
def _fuse_kernel(
    query, prefix_keys, prefix_values, partial, partial_log, segment_keys, segment_values,
    segment_mask, own_keys, own_values, own_mask, new_keys, new_values, at, turns, cos, sin,
    weights, out,
    P, spans, count, M, slots, query_row, query_head, query_step, new_row, new_head, new_step,
    segment_head, segment_row, own_head, own_row,
    K: tl.constexpr, G: tl.constexpr, S: tl.constexpr, D: tl.constexpr,
    JOINT: tl.constexpr, INLINE: tl.constexpr, ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    OUT: tl.constexpr, STEPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One row and kv head: prefix, segments and fused tokens. Program: (row, kv head).

    The product's rows are (partition, query head of the group, step): K*G*S, or G*S for ``joint``.
    Also writes the new keys and values into their slots.
    """
    r = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1).to(tl.int64)
    J = tl.num_programs(1)
    slot = tl.load(at)  # of the first new token
    row = tl.arange(0, ROWS)
    KR: tl.constexpr = 1 if JOINT else K
    KQ: tl.constexpr = K if ROTATED > 0 else 1  # queries that differ
    valid = row < KR * G * S
    s = row % S
    g = row // S % G
    k = tl.minimum(row // (S * G), K - 1)
    lane = tl.arange(0, D)[None, :]
    pointer = (query + r * query_row + (j * G + g) * query_head + s * query_step)[:, None]
    straight = _query(pointer, lane, valid[:, None], k, cos, sin, 0, False)
    turned = straight
    if ROTATED > 0:
        turn = tl.load(turns + r * K + k)
        turned = _query(pointer, lane, valid[:, None], turn, cos, sin, ROTATED, INTERLEAVED)

    top = tl.full([ROWS], NOTHING, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, D], tl.float32)
    if INLINE:
        for first in range(0, P, KEYS):
            n = first + tl.arange(0, KEYS)
            inside = n < P
            place = j * P * D + n[:, None] * D + lane
            key = tl.load(prefix_keys + place, mask=inside[:, None], other=0.0)
            value = tl.load(prefix_values + place, mask=inside[:, None], other=0.0)
            scores = _scores(turned, tl.trans(key), SCALE, SOFTCAP)
            scores = tl.where(inside[None, :], scores, float("-inf"))
            top, total, sums = _take_up(scores, value, top, total, sums)
    else:
        index = ((r * KQ + (k if KQ > 1 else 0)) * G + g) * S + s
        for span in range(spans):
            place = (span * J + j) * count + index
            log = tl.load(partial_log + place, mask=valid, other=NOTHING)
            part = tl.load(partial + place[:, None] * D + lane, mask=valid[:, None], other=0.0)
            new_top = tl.maximum(top, log)
            shrink, grow = tl.exp2(top - new_top), tl.exp2(log - new_top)
            total = total * shrink + grow
            sums = sums * shrink[:, None] + part.to(tl.float32) * grow[:, None]
            top = new_top

    for first in range(0, K * M, KEYS):
        n = first + tl.arange(0, KEYS)
        exists = n < K * M
        inside = tl.load(segment_mask + r * K * M + n, mask=exists, other=0) != 0
        # Padding is loaded too: what waited for the mask could not be fetched ahead.
        place = j * segment_head + r * segment_row + n[:, None] * D + lane
        key = tl.load(segment_keys + place, mask=exists[:, None], other=0.0)
        value = tl.load(segment_values + place, mask=exists[:, None], other=0.0)
        scores = _scores(turned, tl.trans(key), SCALE, SOFTCAP)
        if JOINT:
            bias = tl.load(weights + n // M, mask=inside, other=0.0)
            scores += (bias * LOG2E)[None, :]
            visible = inside[None, :]
        else:
            visible = inside[None, :] & ((n // M)[None, :] == k[:, None])
        scores = tl.where(visible, scores, float("-inf"))
        top, total, sums = _take_up(scores, value, top, total, sums)

    for first in range(0, slot + S, KEYS):
        n = first + tl.arange(0, KEYS)
        seen = tl.load(own_mask + r * slots + n, mask=n < slot + S, other=0) != 0
        is_old = (n < slot)[:, None]
        is_new = ((n >= slot) & (n < slot + S))[:, None]
        old = j * own_head + r * own_row + n[:, None] * D + lane
        new = r * new_row + j * new_head + (n[:, None] - slot) * new_step + lane
        key = tl.load(own_keys + old, mask=is_old, other=0.0)
        key += tl.load(new_keys + new, mask=is_new, other=0.0)
        value = tl.load(own_values + old, mask=is_old, other=0.0)
        value += tl.load(new_values + new, mask=is_new, other=0.0)
        scores = _scores(straight, tl.trans(key), SCALE, SOFTCAP)
        # A padding query sees itself, so that its softmax is not empty.
        visible = (seen[None, :] & (n[None, :] <= slot + s[:, None])) | (
            n[None, :] == slot + s[:, None]
        )
        scores = tl.where(visible, scores, float("-inf"))
        top, total, sums = _take_up(scores, value, top, total, sums)

    sums = sums / total[:, None]
    o = tl.arange(0, OUT)
    share = tl.full([ROWS], 1.0, tl.float32) if JOINT else tl.load(weights + k)
    pick = tl.where((o[:, None] == (row % (G * S))[None, :]) & valid[None, :], share[None, :], 0.0)
    # [(head of the group, step), D]
    fused = tl.dot(pick, sums, input_precision=PRECISION)
    place = ((r * S + o % S) * J * G + j * G + o // S)[:, None] * D + lane
    tl.store(out + place, fused.to(out.dtype.element_ty), mask=(o < G * S)[:, None])

    step = tl.arange(0, STEPS)
    new = r * new_row + j * new_head + step[:, None] * new_step + lane
    written = j * own_head + r * own_row + (slot + step)[:, None] * D + lane
    fits = (step < S)[:, None]
    tl.store(own_keys + written, tl.load(new_keys + new, mask=fits), mask=fits)
    tl.store(own_values + written, tl.load(new_values + new, mask=fits), mask=fits)


def fuse(
    query, prefix, segments, segment_mask, own, own_mask, new, at, turns, angles, scoring, fusion
) -> torch.Tensor:
    """The attention of fused tokens; their keys and values are written into their slots too.

    Args:
        query: [R, H, S, D], D contiguous.
        prefix, segments, own: `KeyValues` [J, P, D] or None, [J, R, K, M, D], [J, R, slots, D].
            Padding and unfilled slots are read too and must be finite.
        segment_mask: [R, K, M] bool. own_mask: [R, slots] bool, the new tokens' included.
        new: `KeyValues` [R, J, S, D] of these tokens. at: [S] their slots, one after the other.
        turns: [R, K] positions, and angles: (cos, sin, interleaved), the tables [turns, rotated
            size] in float32, or None both.
        scoring, fusion: how scores are made and partitions combined.

    Returns:
        [R, H, S, D], a view of contiguous [R, S, H, D].
    """
    R, H, S, D = query.shape
    J, _, K, M, _ = segments.keys.shape
    G, slots = H // J, own_mask.shape[1]
    joint = fusion.kind == "joint"
    assert segments.keys.stride()[2:] == (M * D, D, 1) and own.keys.stride()[2:] == (D, 1)
    assert own.keys.stride() == own.values.stride()
    assert segments.keys.stride() == segments.values.stride() and segment_mask.is_contiguous()
    assert own_mask.is_contiguous() and at.shape == (S,), (own_mask.stride(), at.shape)
    query = query if query.stride(3) == 1 else query.contiguous()
    new_keys, new_values = new.keys, new.values
    if new_keys.stride() != new_values.stride() or new_keys.stride(3) != 1:  # cut from one product
        new_keys, new_values = new_keys.contiguous(), new_values.contiguous()
    assert not (joint and angles), "the fusion 'joint' has one softmax: queries cannot be turned"
    shared = {"ROTATED": 0, "INTERLEAVED": False, "SCALE": scoring.scaling}
    shared |= {"SOFTCAP": scoring.softcap or 0.0, "G": G, "S": S, "D": D}
    cos = sin = query
    if angles is not None:
        cos, sin, shared["INTERLEAVED"] = angles
        shared["ROTATED"] = cos.shape[-1]
    else:
        turns = segment_mask
    P = 0 if prefix is None else prefix.keys.shape[1]
    rows = triton.next_power_of_2(max(16, (1 if joint else K) * G * S))
    few = R * P <= INLINE_ROWS_TIMES_PREFIX or rows >= INLINE_ROWS
    inline = P <= INLINE_PREFIX and few
    partial = partial_log = query
    spans, count = 0, R * (K if angles else 1) * G * S
    if not inline:
        assert prefix.keys.is_contiguous() and prefix.values.is_contiguous()
        # A narrow product is cut along the prefix, so that it fills the GPU too.
        tile = min(PREFIX_ROWS, max(16, triton.next_power_of_2(count)))
        tiles = triton.cdiv(count, tile)
        spans = max(1, min(264 // (tiles * J), triton.cdiv(P, 4 * PREFIX_KEYS)))
        span = triton.cdiv(triton.cdiv(P, spans), PREFIX_KEYS) * PREFIX_KEYS
        spans = triton.cdiv(P, span)
        partial = query.new_empty(spans, J, count, D)
        partial_log = query.new_empty(spans, J, count, dtype=torch.float32)
        _prefix_kernel[(tiles, J, spans)](
            query, prefix.keys, prefix.values, turns, cos, sin, partial, partial_log,
            count, P, span, *query.stride()[:3],
            KQ=K if angles else 1, ROWS=tile, KEYS=PREFIX_KEYS, num_warps=8 if tile > 64 else 4,
            **shared,
        )  # fmt: skip
    out = query.new_empty(R, S, H, D)
    _fuse_kernel[(R, J)](
        query, *((prefix.keys, prefix.values) if P else (query, query)), partial, partial_log,
        segments.keys, segments.values, segment_mask, own.keys, own.values, own_mask,
        new_keys, new_values, at, turns, cos, sin, partition_weights(fusion, K, query.device), out,
        P, spans, count, M, slots, *query.stride()[:3], *new_keys.stride()[:3],
        *segments.keys.stride()[:2], *own.keys.stride()[:2],
        K=K, JOINT=joint, INLINE=inline, ROWS=rows, **fuse_settings(rows, D),
        OUT=max(16, triton.next_power_of_2(G * S)), STEPS=triton.next_power_of_2(S),
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32", **shared,
    )  # fmt: skip
    return out.transpose(1, 2)


def fuse_settings(rows: int, size: int) -> dict[str, int]:
    """How `_fuse_kernel` runs, by its products' rows: the fastest of those tried on an H200.

    What a program fetches ahead takes the room of the next one, so little is fetched ahead.
    """
    return {"KEYS": 32, "num_warps": 8 if rows * size > 64 * 128 else 4, "num_stages": 2}


_weights_of: dict[tuple, torch.Tensor] = {}


def partition_weights(fusion, K: int, device) -> torch.Tensor:
    """[K] float32: what a partition's attention counts; for ``joint`` what its scores gain."""
    if fusion.weights is None:
        key = (fusion.kind, K, device)
        if key not in _weights_of:
            value = 0.0 if fusion.kind == "joint" else 1.0 / K
            _weights_of[key] = torch.full((K,), value, device=device)
        return _weights_of[key]
    key = (fusion.kind, fusion.weights)  # a tensor is hashed by identity
    if key not in _weights_of:
        joint = fusion.kind == "joint"
        _weights_of[key] = (K * fusion.weights).log() if joint else fusion.weights.float()
    return _weights_of[key]
