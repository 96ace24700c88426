"""Questions take the places of finished ones, memory grows, questions have unlike numbers of
paraphrases: none of it changes an answer. The oracle is the question asked alone.
"""

import random
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from fused import PREFIX, TAIL, joined, make_engine, make_request, question
from stand_in import StandIn, stand_in
from tiny import shallow_model

from self_ensemble.attention.fusion import FUSIONS as REGISTERED
from self_ensemble.attention.fusion import Fusion, mean_of_partitions, register_fusion
from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.generation import passes
from self_ensemble.generation.sampling import Sampling
from self_ensemble.generation.stopping import StopRule
from self_ensemble.generation.streams import attention_streams, logit_streams, only_stream
from self_ensemble.methods.logit_fusion import average_logits
from self_ensemble.methods.registries import LOGIT_METHODS

U = (3.0, 1.0, 2.0, 1.0, 0.5, 1.0, 1.0, 2.0)
FUSIONS = {
    "mean": Fusion(),
    "tau": Fusion("mean", 0.7),
    "weights": Fusion.of("mean", 0.3, U, "cpu"),
    "joint": Fusion("joint"),
}


def some_questions(count, most=5, fewest=None, seed=0):
    """Of unlike lengths, tails, and where ``fewest`` is given numbers of paraphrases."""
    chance = random.Random(seed)
    return [
        question(
            seed=index + 1,
            lengths=tuple(
                chance.randint(1, 12) for _ in range(chance.randint(fewest or most, most))
            ),
            tail=TAIL[chance.randint(0, 2) :],
        )
        for index in range(count)
    ]


STREAMS = {
    "exact": (only_stream, lambda q: attention_streams(q, len(PREFIX), "exact")),
    "left": (only_stream, lambda q: attention_streams(q, len(PREFIX), "left")),
    "concat": (only_stream, lambda q: attention_streams(joined(q), len(PREFIX), "sequential")),
    "logits": (average_logits, lambda q: logit_streams(q, len(PREFIX))),
}


@contextmanager
def an_engine(name="llama", *, captured=False):
    backend = "flex" if captured else "sdpa"
    with FlexAttentionWrapper(shallow_model(name), backend, compiled=False) as wrapper:
        engine = make_engine(wrapper, capture=captured)
        engine.capture_problem = lambda fusion: None
        yield engine


def answers(engine, streams, *, batch_size=None, **settings):
    """The answers, in order, and the statistics."""
    generation = engine.generate(make_request(streams, **settings), batch_size=batch_size)
    found = {index: answer for batch in generation for index, answer in batch}
    return [found[index] for index in range(len(found))], generation.stats


def alone(engine, streams, **settings):
    """Each question by itself; what is given for each question goes with it."""
    found = []
    for index, stream in enumerate(streams):
        own = dict(settings)
        if "weights" in own:
            own["weights"] = own["weights"][index : index + 1, : len(stream)]
        if "sampling" in own:
            sampling = own["sampling"]
            own["sampling"] = Sampling(
                sampling.temperature, sampling.top_p, sampling.seed, [sampling.keys[index]]
            )
        found += answers(engine, [stream], batch_size=1, **own)[0]
    return found


def check_same(found, expected):
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.token_ids == other.token_ids, index
        assert one.truncated == other.truncated, index
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4), index


def drawn(count, stops=8):
    """Draws among nearly all tokens, some of which end an answer: lengths are unlike."""
    keys = [(f"u{index}", 0) for index in range(count)]
    return {"sampling": Sampling(3.0, 1.0, 1, keys), "stop": set(range(10, 10 + stops))}


@pytest.fixture
def small_steps(monkeypatch):
    """Fused tokens have room for two at first."""
    monkeypatch.setattr(passes, "FIRST_SLOTS", 2)


@pytest.mark.parametrize("captured", [False, True], ids=["plain", "captured"])
@pytest.mark.parametrize("kind", STREAMS)
def test_who_comes_in_later_is_answered_as_if_alone(kind, captured, small_steps, monkeypatch):
    """However many places there are, in whatever order questions come, wherever they stop."""
    reduce, of = STREAMS[kind]
    streams = [of(q) for q in some_questions(13)]
    name = "gemma3" if kind in ("exact", "left") else "llama"
    with an_engine(name) as engine:
        asked = {"reduce": reduce, "steps": 14, **drawn(13)}
        expected = alone(engine, streams, **asked)
    assert len({len(answer.token_ids) for answer in expected}) > 3
    if captured:
        stand_in(monkeypatch)
        StandIn.replays = 0
    with an_engine(name, captured=captured) as engine:
        for size in (2, 5) if captured else (1, 2, 5, 13):
            found, stats = answers(engine, streams, batch_size=size, **asked)
            check_same(found, expected)
            assert stats.largest_batch == size
        keys = asked["sampling"].keys[::-1]
        turned = asked | {"sampling": replace(asked["sampling"], keys=keys)}
        backwards, _ = answers(engine, streams[::-1], batch_size=4, **turned)
        check_same(backwards[::-1], expected)
        check_same(answers(engine, streams, **asked)[0], expected)
    assert not captured or StandIn.replays > 20


class StopAfterVisible(StopRule):
    """As lines end: what stops a row does so only once the row has had some other token."""

    def __call__(self, tokens, seen):
        stops = seen & (tokens % 8 == 0)
        return stops, ~stops, seen | (tokens % 3 == 1)


@pytest.mark.parametrize("captured", [False, True], ids=["plain", "captured"])
def test_what_a_row_has_seen_leaves_with_its_question(captured, monkeypatch):
    """Who takes its place has seen nothing, and what stays is with its own question."""
    streams = [logit_streams(q, len(PREFIX)) for q in some_questions(13, most=2)]
    asked = {"reduce": average_logits, "steps": 24, **drawn(13), "stop": StopAfterVisible()}
    with an_engine() as engine:
        expected = alone(engine, streams, **asked)
    late = [a for a in expected if any(token % 8 == 0 for token in a.token_ids[:-1])]
    assert late  # which end sooner where something was seen before
    if captured:
        stand_in(monkeypatch)
    with an_engine(captured=captured) as engine:
        for size in (2, 5, 13):
            check_same(answers(engine, streams, batch_size=size, **asked)[0], expected)


def test_weights_go_with_their_questions(small_steps):
    streams = [logit_streams(q, len(PREFIX)) for q in some_questions(11)]
    asked = {
        "reduce": LOGIT_METHODS.get("weighted_avg").reduce,
        "weights": torch.rand(11, 5, generator=torch.Generator().manual_seed(1)),
        "steps": 9,
        **drawn(11),
    }
    with an_engine() as engine:
        expected = alone(engine, streams, **asked)
        for size in (1, 3, 11):
            check_same(answers(engine, streams, batch_size=size, **asked)[0], expected)
        asked["weights"] = asked["weights"].flip(0)
        changed, _ = answers(engine, streams, **asked)
        assert [a.token_ids for a in changed] != [a.token_ids for a in expected]


@pytest.mark.parametrize("captured", [False, True], ids=["plain", "captured"])
@pytest.mark.parametrize("name", FUSIONS)
def test_questions_with_fewer_paraphrases_share_a_batch(name, captured, small_steps, monkeypatch):
    """Those that a batch lacks count for nothing, weights are those of the first ones."""
    fusion = FUSIONS[name]
    positions = "exact" if fusion.rope_offsets else "left"
    questions = some_questions(12, most=8, fewest=1)
    streams = [attention_streams(q, len(PREFIX), positions) for q in questions]
    with an_engine("gemma3") as engine:
        asked = {"fusion": fusion, "steps": 8, **drawn(12)}
        expected = alone(engine, streams, **asked)
    if captured:
        stand_in(monkeypatch)
    with an_engine("gemma3", captured=captured) as engine:
        for size in (3, 12):
            check_same(answers(engine, streams, batch_size=size, **asked)[0], expected)


@pytest.mark.parametrize("kind", ["concat", "logits"])
def test_questions_with_fewer_paraphrases_in_other_layouts(kind, small_steps):
    reduce, of = STREAMS[kind]
    streams = [of(q) for q in some_questions(10, most=4, fewest=1)]
    with an_engine() as engine:
        expected = alone(engine, streams, reduce=reduce, steps=7)
        for size in (3, 10):
            check_same(
                answers(engine, streams, batch_size=size, reduce=reduce, steps=7)[0], expected
            )


def test_a_registered_fusion_and_method_never_see_padding():
    """What a user registers gets the paraphrases that a question has, and no others."""
    seen = set()

    def counting_fusion(prefix, segments, fused, fusion):
        seen.add(segments.shape[2])
        return mean_of_partitions(prefix, segments, fused, Fusion())

    def counting_reduction(logits, weights):
        seen.add(logits.shape[1])
        return logits.mean(1)

    questions = some_questions(9, most=4, fewest=2)
    register_fusion("counting")(counting_fusion)
    try:
        with an_engine() as engine:
            fused = [attention_streams(q, len(PREFIX), "left") for q in questions]
            answers(engine, fused, fusion=Fusion("counting"), steps=3)
            assert seen == {2, 3, 4}
            seen.clear()
            apart = [logit_streams(q, len(PREFIX)) for q in questions]
            answers(engine, apart, reduce=counting_reduction, steps=3)
            assert seen == {2, 3, 4}
    finally:
        REGISTERED.remove("counting")


def test_answers_of_500_tokens():
    """Eight paraphrases; batched as alone, in any order; one paraphrase as `generate` has it."""
    positions = {"max_position_embeddings": 1024}
    questions = some_questions(3, most=8)
    model = shallow_model("llama", **positions)
    with FlexAttentionWrapper(model, "sdpa") as wrapper:
        engine = make_engine(wrapper)
        streams = [attention_streams(q, len(PREFIX), "exact") for q in questions]
        asked = {"steps": 500}
        expected = alone(engine, streams, **asked)
        found, stats = answers(engine, streams, batch_size=2, **asked)
        check_same(found, expected)
        assert stats.decoded_tokens == stats.decode_rows == 3 * 500
        backwards, _ = answers(engine, streams[::-1], **asked)
        check_same(backwards[::-1], expected)

        one = question(lengths=(12,))
        [answer], _ = answers(engine, [attention_streams(one, len(PREFIX), "exact")], steps=500)
    prompt = torch.tensor([[*PREFIX, *one.segments[0], *one.tail]])
    stock = model.generate(
        prompt, max_new_tokens=500, min_new_tokens=500, do_sample=False, eos_token_id=None
    )
    assert list(answer.token_ids) == stock[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize("kind", ["exact", "logits"])
def test_nine_tenths_of_the_rows_are_of_use(kind):
    """Where answers have 1 to 200 tokens, twelve at a time."""
    reduce, of = STREAMS[kind]
    streams = [of(q) for q in some_questions(48, most=3)]
    with an_engine() as engine:
        found, stats = answers(
            engine, streams, batch_size=12, reduce=reduce, steps=200, **drawn(48, stops=1)
        )
    lengths = [len(answer.token_ids) for answer in found]
    assert min(lengths) < 20 and max(lengths) == 200
    assert stats.decoded_tokens * len(streams[0]) >= 0.9 * stats.decode_rows


def test_memory_that_runs_out_while_answers_grow_costs_no_finished_answer(monkeypatch, caplog):
    """Places are halved, who has an answer keeps it, and the others begin again."""
    from self_ensemble.attention.kv_state import DecodeState

    streams = [attention_streams(q, len(PREFIX), "exact") for q in some_questions(9)]
    with an_engine() as engine:
        asked = {"steps": 30, **drawn(9, stops=3)}
        expected = alone(engine, streams, **asked)
        monkeypatch.setattr(passes, "FIRST_SLOTS", 8)
        grow = DecodeState._make_room

        def make_room(state, queries):
            if len(state.begun) > 2:
                raise torch.OutOfMemoryError("injected")
            grow(state, queries)

        monkeypatch.setattr(DecodeState, "_make_room", make_room)
        found, stats = answers(engine, streams, batch_size=6, **asked)
        check_same(found, expected)
        assert stats.out_of_memory == 2 and stats.largest_batch == 2
    assert [r.getMessage() for r in caplog.records] == [
        "out of memory with 6 questions at a time: halved"
    ]


def test_progress_is_told_within_a_batch():
    streams = [attention_streams(q, len(PREFIX), "exact") for q in some_questions(5)]
    told = []
    with an_engine() as engine:
        generation = engine.generate(
            make_request(streams, steps=6),
            batch_size=2,
            on_progress=lambda finished, tokens: told.append((finished, tokens)),
        )
        assert len(list(generation)) == 1
    assert told == sorted(told) and told[0] == (0, 2)
    assert {finished for finished, _ in told} >= {0, 2, 4}
    assert told[-1][1] <= generation.stats.decoded_tokens == 30
