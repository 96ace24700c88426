"""Which questions go together, padded lengths, and how batches get smaller."""

import pytest
import torch

from self_ensemble.attention.segments import SplitQuestion
from self_ensemble.generation import batching
from self_ensemble.generation.batching import (
    FILLINGS,
    captured_slots,
    compacted,
    compacted_captured,
    filling,
    padded_length,
    places,
    schedule_batches,
)
from self_ensemble.generation.streams import attention_streams, logit_streams


def split(*lengths, tail=(5, 6)):
    return SplitQuestion(tuple(tuple(range(2, 2 + n)) for n in lengths), tuple(tail))


@pytest.fixture
def one_filling(monkeypatch):
    monkeypatch.setattr(batching, "FILLINGS", 1)


def costing(*costs):
    """Questions of one stream that encode so many tokens."""
    return [attention_streams(split(cost), 0, "left") for cost in costs]


@pytest.mark.parametrize(
    "costs, batch_size, tokens, expected",
    [
        ((5, 3, 4), 2, 99, [[1, 2], [0]]),
        ((5, 3, 4), 1, 99, [[1], [2], [0]]),
        ((5, 3, 4), 10, 1, [[1, 2, 0]]),
        ((3, 3, 3), 2, 99, [[0, 1], [2]]),
        ((5, 3, 4), None, 15, [[1, 2, 0]]),  # three as long as the longest
        ((5, 3, 4), None, 14, [[1, 2], [0]]),
        ((5, 3, 4), None, 1, [[1], [2], [0]]),  # a question that fits nowhere is asked alone
        ((2, 9, 2, 2), None, 4, [[0, 2], [3], [1]]),
        ((), 3, 9, []),
        ((), None, 9, []),
    ],
)
def test_batch_plan(costs, batch_size, tokens, expected, one_filling):
    assert schedule_batches(costing(*costs), batch_size, tokens) == expected


@pytest.mark.parametrize(
    "batch_size, tokens, expected",
    [(1, 99, [4, 3]), (2, 99, [7]), (None, 5, [4, 3]), (None, 1, [4, 3]), (None, 10, [7])],
)
def test_a_batch_has_questions_for_several_fillings_of_its_places(batch_size, tokens, expected):
    assert FILLINGS == 4
    batches = schedule_batches(costing(*[5] * 7), batch_size, tokens)
    assert list(map(len, batches)) == expected
    assert [index for batch in batches for index in batch] == list(range(7))


def test_batches_shrink_for_workers_to_end_together():
    """A `SHARES`-th of the fillings that were left before it, at most `FILLINGS`, in whole ones,
    and the last `HALVED` in halves; all questions are there, in order."""
    questions, tokens = costing(*[1] * 1600), 40
    batches = schedule_batches(questions, None, tokens, shrink=True)
    assert [index for batch in batches for index in batch] == list(range(1600))
    sizes = [len(batch) / tokens for batch in batches]
    assert sizes == [4, 4, 4, 3, 3, 2, 2, 2, 2, *[1] * 13, *[0.5] * 2]


def test_questions_at_a_time_are_rows_without_padding():
    for most in range(1, 3000):
        assert 0.75 * most < filling(most) <= most
        assert captured_slots(filling(most), 1) == filling(most)
    assert [filling(n) for n in (0, 1, 9, 936, 1057)] == [1, 1, 8, 896, 1024]


def test_batches_are_whole_fillings_of_their_longest():
    """So that the last filling of none is a few questions that have the rows to themselves."""
    batches = schedule_batches(costing(*[61] * 900, *[70] * 900), None, 65 * 100)
    assert list(map(len, batches)) == [384, 384, 320, 320, 320, 72]


@pytest.mark.parametrize(
    "kept, new_tokens, expected",
    [(10**6, 20, 8), (10**6, 4096, 8), (210, 20, 7), (300, 90, 3), (300, 4096, 1)],
)
def test_places_are_as_many_as_encode_and_keep(kept, new_tokens, expected):
    """Of questions of 10 tokens at most, where 80 are encoded at a time."""
    questions = costing(10, 4, 7)
    assert (
        places(questions, tokens_at_once=80, tokens_kept=kept, max_new_tokens=new_tokens)
        == expected
    )


def test_places_count_each_stream_of_a_question():
    question = [logit_streams(split(4, 6), 0)]
    assert places(question, tokens_at_once=99, tokens_kept=120, max_new_tokens=15) == 3


def test_batch_plan_counts_every_stream_and_every_separator(one_filling):
    fused = attention_streams(split(2, 3), 0, "left")
    apart = logit_streams(split(2, 2), 0)
    joined = attention_streams(SplitQuestion(((2, 3), (4,)), (), ((2, 9), (4, 9))), 0, "left")
    assert schedule_batches([fused, apart, joined], None, 10) == [[1, 0], [2]]
    assert schedule_batches([fused, joined], None, 10) == [[0, 1]]
    assert schedule_batches([fused, joined], None, 9) == [[0], [1]]


def test_slots_that_captured_batches_begin_with():
    sizes = [captured_slots(n, 1) for n in (1, 2, 5, 8, 9, 17, 300, 512, 513)]
    assert sizes == [1, 2, 5, 8, 10, 20, 320, 512, 640]
    assert all(captured_slots(n, 2) >= max(n, 2) for n in range(1, 3000))


@pytest.mark.parametrize(
    ("size", "fewest", "lowest"), [(20, 2, 2), (7, 2, 3), (3, 2, 3), (4, 1, 1)]
)
def test_captured_batches_of_a_size_come_down_by_the_same_sizes(size, fewest, lowest):
    chain = {size}
    for running in range(1, size + 1):
        slots = compacted_captured(range(running), size, fewest)
        kept = list(range(running))
        assert slots is None or (slots[:running], set(slots)) == (kept, set(kept))
        left = size if slots is None else len(slots)
        assert left >= running and (left == lowest or left // 2 < running)
        chain.add(left)
    assert chain == {size >> k for k in range(5) if size >> k >= lowest}


def test_captured_batches_of_long_answers_come_down_in_smaller_steps():
    chain, size = [], 1024
    for running in range(1024, 0, -1):
        slots = compacted_captured(range(running), size, 2, fine=True)
        if slots is not None:
            size = len(slots)
            chain.append(size)
            assert slots[:running] == list(range(running))
    assert chain[:6] == [768, 512, 384, 256, 192, 128] and chain[-1] == 2


def test_other_batches_come_down_once_a_quarter_has_finished():
    assert compacted([0, 1, 2, 4, 5, 6, 7], 8) is None
    assert compacted([0, 2, 4, 5, 6, 7], 8) == [0, 2, 4, 5, 6, 7]


def test_padding_on_a_gpu_is_to_a_block():
    cuda = torch.device("cuda")
    assert [padded_length(n, cuda) for n in (1, 128, 129, 71680)] == [128, 128, 256, 71680]
