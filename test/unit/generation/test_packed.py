"""Packed streams are the streams that were packed."""

import pytest

from self_ensemble.attention.segments import SplitQuestion
from self_ensemble.generation.limits import check_request
from self_ensemble.generation.packed import PackedStreams
from self_ensemble.generation.request import Extent, Request
from self_ensemble.generation.streams import attention_streams, logit_streams

QUESTIONS = [
    SplitQuestion(((3, 70_000), (4,)), (9,)),
    SplitQuestion(((1 << 31, 5, 6), (7, 8)), (9, 10), ((3, 11), (6, 12))),
    SplitQuestion(((), (2,)), ()),
]


@pytest.mark.parametrize("positions", ["exact", "left", "right"])
def test_what_is_packed_comes_out(positions):
    groups = [attention_streams(question, 2, positions) for question in QUESTIONS]
    groups += [logit_streams(question, 2) for question in QUESTIONS]
    packed = PackedStreams(iter(groups))
    assert len(packed) == 6 and list(packed) == groups
    assert [packed[index] for index in range(-6, 6)] == groups * 2
    assert packed[::-2] == groups[::-2]
    assert packed[1] is not packed[1]
    with pytest.raises(IndexError):
        packed[6]


def test_the_extent_is_the_largest_of_each():
    groups = [attention_streams(question, 2, "exact") for question in QUESTIONS[:2]]
    groups += [logit_streams(QUESTIONS[0], 2)]
    request = Request((1, 2), PackedStreams(groups))
    # The second question's tail and separators stand behind a segment of three tokens.
    assert request.extent == Extent(
        answer_start=2 + 3 + 2 + 2, rope_offset=3, token=1 << 31, segments=2, streams=2
    )
    assert Request((), []).extent == Extent()


def test_a_token_of_any_part_is_checked(small):
    config, unknown = small.model.config, small.model.config.vocab_size
    for group in (
        logit_streams(SplitQuestion(((unknown,),), (1,)), 0),
        logit_streams(SplitQuestion(((1,),), (unknown,)), 0),
        attention_streams(SplitQuestion(((1,), (2,)), (), ((1, unknown),)), 0, "left"),
    ):
        with pytest.raises(Exception, match="beyond the model's vocabulary"):
            check_request(Request((), [group]), config, small.tokenizer)
    with pytest.raises(Exception, match="beyond the model's vocabulary"):
        check_request(Request((unknown,), []), config, small.tokenizer)
