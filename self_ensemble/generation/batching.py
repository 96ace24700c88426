"""Which questions go together, how long a packed sequence is, and how a batch gets smaller.

Legend: a *slot* is a question's place in a batch. Captured steps have a fixed number of slots, so
that some may be padding: the last question, repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from self_ensemble.attention.checks import head_shape
from self_ensemble.generation.streams import Stream

# Tokens encoded in one forward, at most. On a CPU more gains nothing; on a GPU it was not measured.
CPU_TOKENS_AT_ONCE = 4096
GPU_TOKENS_AT_ONCE = 65536
# A batch has questions for so many fillings of its places. A batch is what an interrupted run
# answers again; at its end places stay empty.
FILLINGS = 4
# Of fillings that are left, where workers share them: see `schedule_batches`.
SHARES, HALVED = 8, 2
# Keys and values of a CPU's batch; so many tokens of a long answer are counted on a GPU.
CPU_BYTES_KEPT = 2 << 30
EXPECTED_TOKENS = 512
# On a CPU FlexAttention compiles once a length, so packed lengths are rounded up to a multiple of
# this, and longer ones to eight lengths an octave. On a GPU to what a block of the mask has: with
# fewer tokens FlexAttention goes over to another kernel.
FLEX_BUCKET, GPU_FLEX_BUCKET = 1024, 128
# Finished questions leave the batch once they are this fraction of it. Where steps are captured,
# once half of it has room for the others: batches of a size then come down by the same sizes.
COMPACTION_FRACTION = 0.25


def schedule_batches(
    questions: Sequence[Sequence[Stream]],
    batch_size: int | None,
    tokens_at_once: int,
    among: Iterable[int] | None = None,
    *,
    shrink: bool = False,
) -> list[list[int]]:
    """Indices of questions, batch by batch, shortest first: a function of data and settings.

    Args:
        questions: the streams of each.
        batch_size: questions that are answered at a time; None for as many as have
            ``tokens_at_once``, see `filling`. A batch has up to `FILLINGS` times as many.
        tokens_at_once: encoded tokens that are answered at a time where no size is given.
        among: the indices of those that are to be answered; None for all.
        shrink: where no size is given, batches get smaller towards the end, so that workers who
            share them end together: a whole number of fillings, at most a `SHARES`-th of those
            that are left, and half ones once fewer than `HALVED` are left.
    """
    indices = np.array(range(len(questions)) if among is None else [*among], dtype=np.int64)
    costs = np.fromiter(
        (sum(stream.encoded_tokens for stream in questions[index]) for index in indices.tolist()),
        dtype=np.int64,
        count=len(indices),
    )
    by_cost = np.lexsort((indices, costs))
    order = indices[by_cost].tolist()
    if batch_size is not None:
        size = FILLINGS * batch_size
        return [order[at : at + size] for at in range(0, len(order), size)]
    batches: list[list[int]] = []
    left, tokens = int(costs.sum()), 0
    fillings = float(FILLINGS)
    for index, cost in zip(order, costs[by_cost].tolist(), strict=True):
        most = max(1, int(fillings * filling(tokens_at_once // cost)))  # no question costs more yet
        if not batches or len(batches[-1]) >= most:
            left -= tokens
            if shrink:
                fillings = _fillings(left / tokens_at_once)
            batches.append([])
            tokens = 0
        batches[-1].append(index)
        tokens += cost
    return batches


def _fillings(left: float) -> float:
    """Of a batch, where so many are left."""
    if left < HALVED:
        return 0.5
    return float(min(FILLINGS, max(1, left // SHARES)))


def filling(questions: int) -> int:
    """Of so many questions those that are answered at a time: where steps are captured no row of
    them is padding, see `captured_slots`."""
    step = _slots_step(questions)
    return max(1, questions // step * step)


def places(
    questions: Sequence[Sequence[Stream]],
    *,
    tokens_at_once: int,
    tokens_kept: int,
    max_new_tokens: int,
) -> int:
    """How many questions of a batch are answered at a time, where no size is given.

    Args:
        questions: of the batch.
        tokens_at_once, tokens_kept: see the functions of these names.
        max_new_tokens: the limit of an answer.
    """
    encoded = max(sum(s.encoded_tokens for s in streams) for streams in questions)
    streams = max(map(len, questions))
    kept = tokens_kept // (encoded + streams * max_new_tokens)
    return filling(min(tokens_at_once // encoded, kept))


def tokens_at_once(config: Any, devices: Sequence[torch.device], bytes_per_value: int) -> int:
    """How many tokens are encoded at a time where no batch size is asked for.

    config: the text model's. devices: that it is on. bytes_per_value: of its number format.
    """
    if devices[0].type != "cuda":
        return CPU_TOKENS_AT_ONCE
    _, heads, size = head_shape(config)
    # Keys and values of all layers, packed and (uncaptured) by row, and the widest activations.
    values = 2 * 3 * config.num_hidden_layers * heads * size + 32 * config.hidden_size
    tokens = free_memory(devices) // 2 // (values * bytes_per_value)
    least = 1024
    rounded = tokens // least * least  # slightly less free memory gives the same batches
    return max(least, min(GPU_TOKENS_AT_ONCE, rounded))


def free_memory(devices: Sequence[torch.device]) -> int:
    """Bytes that a batch may count on: as if all layers were on the fullest GPU."""
    return min(torch.cuda.mem_get_info(device)[0] for device in devices)


def tokens_kept(
    config: Any, devices: Sequence[torch.device], bytes_per_value: int, new_tokens: int
) -> int:
    """Of how many tokens, encoded and fused, keys and values are kept at a time.

    On a GPU long answers count for less than they may have, since few have it, and memory that runs
    out makes batches smaller; on a CPU the process would be killed.

    new_tokens: the limit of an answer.
    """
    _, heads, size = head_shape(config)
    each = 2 * config.num_hidden_layers * heads * size * bytes_per_value
    if devices[0].type != "cuda":
        return CPU_BYTES_KEPT // each
    expected = min(new_tokens, EXPECTED_TOKENS)
    tokens = free_memory(devices) // 2 // each * new_tokens // expected
    return int(max(1024, tokens // 1024 * 1024))


def padded_length(total: int, device: torch.device) -> int:
    """The packed length that so many tokens are padded to for FlexAttention."""
    if device.type == "cuda":
        return total + -total % GPU_FLEX_BUCKET
    return total + -total % max(FLEX_BUCKET, (1 << total.bit_length()) // 16)


def captured_slots(questions: int, fewest: int) -> int:
    """Slots of a batch that is to be captured: four sizes to an octave, at least ``fewest``."""
    step = _slots_step(questions)
    return max(-(-questions // step) * step, fewest)


def _slots_step(questions: int) -> int:
    return 1 << max(0, (questions - 1).bit_length() - 3)


def fill_slots(running: Sequence[int], size: int) -> list[int]:
    """So many slots, the last one repeated."""
    return [*running, *[running[-1]] * (size - len(running))]


def compacted(running: Sequence[int], size: int) -> list[int] | None:
    """Of ``size`` slots those to go on with, if enough questions have finished; else None."""
    return list(running) if size - len(running) >= COMPACTION_FRACTION * size else None


def compacted_captured(
    running: Sequence[int], size: int, fewest: int, *, fine: bool = False
) -> list[int] | None:
    """As `compacted`, by halves, padded: batches of a size all come down by the same sizes.

    fine: in two steps each, by three quarters and then by two thirds, so that fewer rows are
        padding and twice as many steps are captured.
    """
    smaller, least = size, max(len(running), fewest)
    while True:
        lower = smaller // 2
        if fine:
            lower = smaller * 2 // 3 if smaller % 3 == 0 else smaller * 3 // 4
        if lower < least or lower == smaller:
            break
        smaller = lower
    return fill_slots(running, smaller) if smaller < size else None
