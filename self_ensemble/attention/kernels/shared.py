"""What the kernels of a row begin and end with: its earlier fused tokens, the prefix, its outputs.

Legend as in kv_state.py.
"""

import triton
import triton.language as tl

from self_ensemble.attention.kernels.tiles import NOTHING, load_query, take_up, take_up_partial


@triton.jit
def find_queries(
    query, own_positions, at, cos, sin, slots, query_row, query_head, query_step,
    J: tl.constexpr, G: tl.constexpr, S: tl.constexpr, D: tl.constexpr, LANES: tl.constexpr,
    WINDOW: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Which queries a program has: a tile of (query head of the group, step) of a row and kv head.

    Returns: row, kv head, the first new token's slot; of each column head, step and whether it is
    there, also for each of its numbers; pointers to the queries, these queries as they are, and
    their positions (of no meaning without a window).
    """
    j = (tl.program_id(0) % J).to(tl.int64)
    r = (tl.program_id(0) // J).to(tl.int64)
    slot = tl.load(at).to(tl.int32)  # of the first new token
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    valid = column < G * S
    s = column % S
    g = column // S % G
    lane = tl.arange(0, LANES)[:, None]
    there = valid[None, :] & (lane < D)
    pointer = (query + r * query_row + (j * G + g) * query_head + s * query_step)[None, :]
    straight = load_query(pointer, lane, there, 0, cos, sin, 0, False)
    position = column
    if WINDOW > 0:
        position = tl.load(own_positions + r * slots + slot + s, mask=valid, other=0).to(tl.int32)
    return r, j, slot, g, s, valid, there, pointer, straight, position


@triton.jit
def take_up_fused_tokens(
    straight, position, own_keys, own_values, own_mask, own_positions, new_keys, new_values,
    r, j, s, slot, real, slots, own_head, own_row, new_row, new_head, new_step, top, total, sums,
    S: tl.constexpr, D: tl.constexpr, LANES: tl.constexpr, SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The new tokens, each seeing those before it, and the earlier ones."""
    # Padding sees itself: no softmax is empty.
    for first in tl.static_range(0, S, KEYS):
        m = first + tl.arange(0, KEYS)
        seen = tl.load(own_mask + r * slots + slot + m, mask=m < S, other=0) != 0
        sees = seen[:, None] & (m[:, None] <= s[None, :])
        if WINDOW > 0:
            at_m = tl.load(own_positions + r * slots + slot + m, mask=m < S, other=0)
            sees = sees & (position[None, :] - at_m[:, None] < WINDOW)
        top, total, sums = take_up(
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
        top, total, sums = take_up(
            straight, own_keys, own_values, j * own_head + r * own_row + n * D,
            (n < slot)[:, None] & real, visible, 0.0, top, total, sums, LANES, SCALE, SOFTCAP,
        )  # fmt: skip
    return top, total, sums


@triton.jit
def take_up_prefix(
    straight, position, keys, values, j, real, P, top, total, sums,
    D: tl.constexpr, LANES: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """A short prefix, read by every row itself."""
    for first in range(0, P, KEYS):
        n = first + tl.arange(0, KEYS)
        visible = (n < P)[:, None]
        if WINDOW > 0:
            visible = visible & (position[None, :] - n[:, None] < WINDOW)
        top, total, sums = take_up(
            straight, keys, values, j * P * D + n * D,
            (n < P)[:, None] & real, visible, 0.0, top, total, sums, LANES, SCALE, SOFTCAP,
        )  # fmt: skip
    return top, total, sums


@triton.jit
def take_up_prefix_parts(
    partial, partial_log, spans, count, r, j, g, s, there, valid, top, total, sums,
    J: tl.constexpr, G: tl.constexpr, S: tl.constexpr, D: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """What `prefix_kernel` left of a row's queries, the same for all partitions."""
    lane = tl.arange(0, LANES)[:, None]
    for span in range(spans):
        place = (span * J + j) * count + (r * G + g) * S + s
        top, total, sums = take_up_partial(
            partial, partial_log, place, lane, there, valid, D, top, total, sums
        )
    return top, total, sums


@triton.jit
def store_outputs(
    out, out_log, fused, weight, log_scale, r, j, g, s, there, valid,
    J: tl.constexpr, K: tl.constexpr, PER: tl.constexpr, G: tl.constexpr, S: tl.constexpr,
    D: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """A program's outputs, over what they weigh; with few segments a program, that is left too."""
    part = tl.program_id(1)
    lane = tl.arange(0, LANES)[:, None]
    fused = fused / tl.where(weight > 0, weight, 1.0)[None, :]
    rows = tl.num_programs(0) // J
    place = ((part * rows + r) * S + s) * (J * G) + j * G + g
    tl.store(out + place[None, :] * D + lane, fused.to(out.dtype.element_ty), mask=there)
    if PER < K:
        log = tl.where(weight > 0, log_scale + tl.log2(weight), NOTHING)
        tl.store(out_log + place, log, mask=valid)


@triton.jit
def keep_new_tokens(
    own_keys, own_values, new_keys, new_values, r, j, slot, real,
    own_head, own_row, new_row, new_head, new_step,
    S: tl.constexpr, D: tl.constexpr, LANES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The first program of a row and kv head writes the new keys and values into their slots."""
    if (tl.program_id(1) == 0) & (tl.program_id(2) == 0):
        number = tl.arange(0, LANES)[None, :]
        for first in tl.static_range(0, S, KEYS):
            of = first + tl.arange(0, KEYS)
            fits = (of < S)[:, None] & real
            source = (r * new_row + j * new_head + of * new_step)[:, None] + number
            target = (j * own_head + r * own_row + (slot + of) * D)[:, None] + number
            tl.store(own_keys + target, tl.load(new_keys + source, mask=fits), mask=fits)
            tl.store(own_values + target, tl.load(new_values + source, mask=fits), mask=fits)
