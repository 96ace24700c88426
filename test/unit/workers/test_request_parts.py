"""Requests in parts: what a worker is sent decides the same shapes as all of the request would."""

import itertools

import pytest
import torch

from self_ensemble.attention.continuations import Continuation
from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.positions import assign_positions
from self_ensemble.generation.batching import filling
from self_ensemble.generation.likelihood import ScoringRequest
from self_ensemble.generation.request import Request
from self_ensemble.generation.sampling import Sampling
from self_ensemble.generation.streams import Stream
from self_ensemble.workers.parts import on_device, open_with, part_of


def stream(*lengths: int, positions: str = "left") -> Stream:
    segments = tuple((7,) * length for length in lengths)
    return Stream(segments, (5,), (), assign_positions(list(lengths), 3, positions))


QUESTIONS = [
    [stream(1)],
    [stream(2)],
    [stream(1, 3, positions="exact")],  # the furthest from its place
    [stream(1), stream(1)],  # the most streams
    [stream(1, 1, 1)],  # the most segments
    [stream(9)],  # the longest prompt
    [stream(4)],
]


def test_an_opening_has_what_is_largest():
    batches = [[0], [1, 2, 3], [4, 5], [6]]
    opening = open_with(Request((1, 2, 3), QUESTIONS), batches, 2, 4096)
    chosen = [QUESTIONS.index(question) for question in opening.request.questions]
    assert chosen == [1, 2, 3, 4, 5]
    asked = [[chosen[at] for at in batch] for batch in opening.batches]
    assert asked == [[1, 2, 3], [4, 5]] and opening.batch_size == 2
    assert opening.request.prefix == (1, 2, 3)


def test_an_opening_has_no_question_that_is_not_asked():
    opening = open_with(Request((), QUESTIONS), [[0], [1]], None, 4096)
    assert [QUESTIONS.index(question) for question in opening.request.questions] == [0, 1]


@pytest.mark.parametrize(("batch_size", "most"), [(1, (1, 14)), (2, (2, 14)), (None, (3, 14))])
def test_an_opening_has_the_batches_that_decide_sizes(batch_size, most):
    """In whatever order they are: a run that goes on begins with what was left of an older plan."""
    questions = [*QUESTIONS[:6], [stream(14)], [stream(6)], [stream(4)], [stream(2)]]
    batches = [[0], [1, 2, 3], [4, 7, 8], [5, 9], [6]]

    def sizes(questions, batches):
        """(questions, encoded tokens) at a time, the most of all batches."""
        places, encoded = [], []
        for batch in batches:
            costs = sorted(sum(s.encoded_tokens for s in questions[at]) for at in batch)
            places.append(min(batch_size or filling(16 // costs[-1]), len(batch)))
            encoded.append(sum(costs[-places[-1] :]))
        return max(places), max(encoded)

    assert sizes(questions, batches) == most
    for order in itertools.permutations(batches):
        opening = open_with(Request((), questions), order, batch_size, 16)
        assert len(opening.batches) == 2
        assert sizes(opening.request.questions, opening.batches) == most, order


def test_an_opening_has_the_longest_continuation():
    given = [[Continuation((4,) * length, length)] for length in (1, 2, 3, 1, 1)]
    request = ScoringRequest((), [[stream(1)]] * 5, continuations=given)
    opening = open_with(request, [[0], [1, 2], [3, 4]], None, 4096)
    assert opening.request.max_new_tokens == request.max_new_tokens == 3


def test_a_part_has_what_belongs_to_its_questions():
    keys = [(f"u{index}", 0) for index in range(7)]
    weights = torch.arange(14.0).reshape(7, 2)
    sampling = Sampling(temperature=1, top_p=1, seed=0, keys=keys)
    request = Request(
        (), QUESTIONS, weights=weights, sampling=sampling, limits=range(1, 8), max_new_tokens=9
    )
    part = part_of(request, [5, 0])
    assert part.questions == [QUESTIONS[5], QUESTIONS[0]]
    assert part.weights.tolist() == [[10, 11], [0, 1]]
    assert part.limits == [6, 1] and part.max_new_tokens == 9
    assert part.sampling.keys == [("u5", 0), ("u0", 0)] and part.sampling.seed == 0


def test_weights_of_a_fusion_go_where_the_model_is():
    request = Request((), QUESTIONS, Fusion("mean", 1.0, torch.tensor([0.5, 0.5])))
    assert on_device(request, torch.device("meta")).fusion.weights.device.type == "meta"
    assert on_device(Request((), QUESTIONS), torch.device("meta")).fusion.weights is None
