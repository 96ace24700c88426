"""Draws: the same for the same question, whatever the batch; of the right distribution."""

import pytest
import torch
from tiny import VOCABULARY, TinyTokenizer, tiny_model

from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.attention.segments import SplitQuestion
from self_ensemble.generation import sampling as sampling_module
from self_ensemble.generation.engine import Engine
from self_ensemble.generation.request import Request
from self_ensemble.generation.sampling import (
    Sampler,
    Sampling,
    _pick_among_all,
    nucleus_floor,
    pick,
    uniform,
)
from self_ensemble.generation.stopping import NeverStop, StopRule
from self_ensemble.generation.streams import attention_streams

STEPS = 9


@pytest.fixture(params=[pick, _pick_among_all])
def chosen_by(request):
    """How a CPU takes tokens, and how a GPU does."""
    return request.param


def questions(count):
    lengths = [(3 + i % 4, 1 + 2 * i % 5) for i in range(count)]
    return [
        attention_streams(
            SplitQuestion(tuple(tuple(range(2, 2 + n)) for n in pair), (5, 6)), 0, "left"
        )
        for pair in lengths
    ]


def drawn(engine, groups, keys, batch_size, stop=None, **settings):
    given = {"temperature": 1.3, "top_p": 0.9, "seed": 4} | settings
    request = Request(
        (),
        groups,
        max_new_tokens=STEPS,
        stop=stop or NeverStop(),
        sampling=Sampling(**given, keys=keys),
    )
    found = dict(p for batch in engine.generate(request, batch_size=batch_size) for p in batch)
    return [found[index].token_ids for index in range(len(groups))]


@pytest.fixture
def engine():
    with FlexAttentionWrapper(tiny_model("llama"), "sdpa") as wrapper:
        yield Engine(wrapper.model, TinyTokenizer(), wrapper)


@pytest.mark.parametrize("steps_at_once", [1, 4, 64])
def test_draws_do_not_depend_on_the_batch(engine, monkeypatch, steps_at_once):
    """Nor on how many numbers are made at once, nor on questions that end sooner."""
    groups, keys = questions(7), [(f"u{i}", i % 2) for i in range(7)]
    expected = [drawn(engine, [g], [k], 1)[0] for g, k in zip(groups, keys, strict=True)]
    assert len(set(expected)) == 7
    monkeypatch.setattr(sampling_module, "STEPS_AT_ONCE", steps_at_once)
    for batch_size in (2, 3, 7):
        assert drawn(engine, groups, keys, batch_size) == expected
    assert drawn(engine, groups[::-1], keys[::-1], None)[::-1] == expected

    class Unlike(StopRule):
        """Rows end at different steps, by a token that half of them draw sooner or later."""

        def __call__(self, tokens, seen):
            stops = tokens % 5 == 0
            return stops, ~stops, seen

    cut = drawn(engine, groups, keys, 7, stop=Unlike())
    for short, full in zip(cut, expected, strict=True):
        assert short == full[: len(short)] and (short[-1] % 5 == 0 or len(short) == STEPS)
    assert len(set(map(len, cut))) > 2


def test_draws_of_a_question_are_encoded_once_and_end_at_limits_of_their_own(engine):
    groups, keys = questions(3), [(f"u{i // 3}", i % 3) for i in range(9)]
    thrice = [group for group in groups for _ in range(3)]
    alone = [drawn(engine, [g], [k], 1)[0] for g, k in zip(thrice, keys, strict=True)]
    limits = [1 + i % STEPS for i in range(9)]
    for batch_size in (9, 4):  # some wait
        request = Request(
            (),
            thrice,
            max_new_tokens=STEPS,
            limits=limits,
            stop=NeverStop(),
            sampling=Sampling(1.3, 0.9, 4, keys),
        )
        generation = engine.generate(request, batch_size=batch_size)
        found = dict(pair for batch in generation for pair in batch)
        texts = [found[i].token_ids for i in range(9)]
        assert texts == [whole[:limit] for whole, limit in zip(alone, limits, strict=True)]
        if batch_size == 9:
            encoded = sum(stream.encoded_tokens for [stream] in groups)
            assert generation.stats.encoded_tokens == encoded


def test_the_floor_of_the_nucleus_is_that_of_a_sorted_row():
    """On flat and on peaked rows, with ties, and where top_p is as near to 1 as can be."""
    torch.manual_seed(2)
    for scale in (0.01, 1, 8, 40):
        chances = (scale * torch.randn(20, 500)).round(decimals=1).softmax(-1)
        for top_p in (1e-6, 0.3, 0.95, 1 - 1e-7):
            ordered = chances.double().sort(-1, descending=True).values
            above = ordered.cumsum(-1) - ordered
            last = (above < top_p - 1e-12).sum(-1, keepdim=True) - 1
            expected = chances >= ordered.gather(-1, last.clamp(min=0)).float()
            kept = chances >= nucleus_floor(chances, top_p)
            # Where sums differ by a rounding at the border, what lies between is next to nothing.
            assert float((chances * (kept != expected)).sum(-1).max()) < 1e-6


def test_seed_key_temperature_and_top_p_matter(engine):
    groups, keys = questions(3), [("a", 0), ("b", 0), ("c", 0)]
    base = drawn(engine, groups, keys, None)
    assert drawn(engine, groups, keys, None) == base
    assert drawn(engine, groups, keys, None, seed=5) != base
    assert drawn(engine, groups, [("a", 1), ("b", 1), ("c", 1)], None) != base
    assert drawn(engine, groups, keys, None, temperature=0.2) != base
    request = Request((), groups, max_new_tokens=STEPS, stop=NeverStop())
    greedy = dict(p for batch in engine.generate(request) for p in batch)
    nearly = drawn(engine, groups, keys, None, temperature=1e-4)
    assert nearly == [greedy[i].token_ids for i in range(3)]


def test_the_sampler_takes_what_pick_takes_with_the_numbers_of_its_questions():
    torch.manual_seed(1)
    sampling = Sampling(0.7, 0.8, 3, [("a", 0), ("b", 2), ("c", 1)])
    sampler = Sampler(sampling, torch.device("cpu"))
    scores = torch.randn(2, VOCABULARY)

    def expect(places, *names):
        numbers = torch.tensor([uniform(3, *name) for name in names], dtype=torch.float64)
        given = scores[: len(places)]
        assert torch.equal(sampler.choose(given, places), pick(given, numbers, 0.7, 0.8))

    sampler.put([0, 1], [2, 0])
    expect([0, 1], ("c", 1, 0), ("a", 0, 0))
    expect([1], ("a", 0, 1))  # the other one waits
    sampler.put([0], [1])  # its place is taken
    expect([0, 1], ("b", 2, 0), ("a", 0, 2))
    sampler.keep([1, 0])
    expect([0, 1], ("a", 0, 3), ("b", 2, 1))


def test_the_nucleus_ends_with_the_token_that_reaches_top_p(chosen_by):
    """Not with the one after it: where the likeliest token has top_p and a little, it is alone."""
    logits = torch.tensor([4.0, 2.0, 2.0]).log().expand(50, -1)
    numbers = torch.linspace(0, 0.999, 50, dtype=torch.float64)
    assert set(chosen_by(logits, numbers, 1.0, 0.5 - 1e-6).tolist()) == {0}
    assert set(chosen_by(logits, numbers, 1.0, 0.5 + 1e-6).tolist()) == {0, 1, 2}
