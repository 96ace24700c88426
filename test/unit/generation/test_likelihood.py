"""Likelihoods of given continuations against stock forwards and written-out oracles."""

from dataclasses import replace

import pytest
import torch
from fused import (
    PREFIX,
    QUESTIONS,
    attending,
    backends,
    ids,
    joined,
    make_engine,
    make_request,
    question,
    small_memory,
)
from oracle import joint_oracle, mean_oracle
from tiny import ARCHITECTURES, ROTARY, VOCABULARY, shallow_model

from self_ensemble.attention.continuations import Continuation
from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.attention.segments import SplitQuestion
from self_ensemble.generation import likelihood
from self_ensemble.generation.likelihood import (
    RowLimits,
    ScoringRequest,
    group_rows,
    plan_rows,
    read_rows,
)
from self_ensemble.generation.streams import attention_streams, logit_streams, only_stream
from self_ensemble.methods.logit_fusion import LOGIT_METHODS, average_logits
from self_ensemble.system.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

TOLERANCE = 1e-4
# Of unlike lengths; the third begins the fourth, and the fifth is the first again.
CHOICES = [
    tuple(ids(3, seed=50)),
    (7,),
    tuple(ids(2, seed=51)),
    (*ids(2, seed=51), 9, 11, 13),
    tuple(ids(3, seed=50)),
    (40,),
]


def whole(*choices):
    return [Continuation(tuple(choice), len(choice)) for choice in choices]


def score(engine, streams, continuations, batch_size=None, prefix=PREFIX, **settings):
    """The likelihoods of each question, in order."""
    request = ScoringRequest(tuple(prefix), streams, continuations=continuations, **settings)
    found = dict(pair for batch in engine.score(request, batch_size=batch_size) for pair in batch)
    assert sorted(found) == list(range(len(streams)))
    return [found[index] for index in range(len(streams))]


@torch.no_grad()
def stock(model, tokens, scored):
    """(log-probabilities, whether greedy) of the last tokens of a stock forward."""
    logits = model(input_ids=torch.tensor([tokens])).logits[0, :-1].double()
    return of_logits(logits[-scored:], tokens[-scored:])


def of_logits(logits, targets):
    logits, targets = logits.double(), torch.tensor(targets)
    values = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    return values.tolist(), (logits.argmax(-1) == targets).tolist()


def check(found, expected, tolerance=TOLERANCE):
    values, greedy = expected
    assert found.logprobs == pytest.approx(values, abs=tolerance)
    assert list(found.greedy) == greedy


def oracle_of(model, oracle, q, choice, positions, prefix=PREFIX, **settings):
    logits = oracle(model, prefix, q.segments, [*q.tail, *choice[:-1]], positions, **settings)
    return of_logits(logits[len(q.tail) - 1 :], choice)


# ---- one paraphrase -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_paraphrase_is_a_stock_forward(name):
    """Choices of 1 to 30 tokens, by either depth of fusion and every backend."""
    model, q = shallow_model(name), question(lengths=(8,))
    counts = (1, 2, 3, 4, 8, 15, 16, 17, 30)
    choices = [tuple(ids(count, seed=100 + count)) for count in counts]
    # What the model itself would say is among them, so that some tokens are greedy.
    choices += [greedy_continuation(model, [*PREFIX, *q.segments[0], *q.tail], 5)]
    expected = [stock(model, [*PREFIX, *q.segments[0], *q.tail, *c], len(c)) for c in choices]
    assert all(expected[-1][1])
    for backend in backends(model):
        with attending(model, backend) as wrapper:
            engine = make_engine(wrapper)
            positions = "exact" if name in ROTARY else "left"
            for streams in (
                attention_streams(q, len(PREFIX), positions),
                logit_streams(q, len(PREFIX)),
            ):
                [found] = score(engine, [streams], [whole(*choices)])
                for each, wanted in zip(found, expected, strict=True):
                    check(each, wanted)


@torch.no_grad()
def greedy_continuation(model, tokens, count):
    for _ in range(count):
        tokens = [*tokens, int(model(torch.tensor([tokens])).logits[0, -1].argmax())]
    return tuple(tokens[-count:])


# ---- fusion in the attention ----------------------------------------------------------------


@pytest.mark.parametrize(
    "tau, weights", [(0.0, None), (1.0, None), (0.5, (3.0, 0.0, 1.0, 1.0, 2.0))]
)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_fused_likelihoods_equal_the_oracle(name, tau, weights):
    model, q = shallow_model(name), question()
    positions = "exact" if name in ROTARY else "left"
    with attending(model, backends(model)[1]) as wrapper:
        [found] = score(
            make_engine(wrapper),
            [attention_streams(q, len(PREFIX), positions)],
            [whole(*CHOICES)],
            fusion=Fusion.of("mean", tau, weights, "cpu"),
        )
    for choice, each in zip(CHOICES, found, strict=True):
        check(each, oracle_of(model, mean_oracle, q, choice, positions, tau=tau, weights=weights))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_joint_likelihoods_equal_the_oracle(name):
    model, q = shallow_model(name), question()
    with attending(model, backends(model)[1]) as wrapper:
        [found] = score(
            make_engine(wrapper),
            [attention_streams(q, len(PREFIX), "left")],
            [whole(*CHOICES)],
            fusion=Fusion("joint"),
        )
    for choice, each in zip(CHOICES, found, strict=True):
        check(each, oracle_of(model, joint_oracle, q, choice, "left"))


def likelihoods(model, q, choices=CHOICES, positions="left", **settings):
    with attending(model, backends(model)[1]) as wrapper:
        streams = [attention_streams(q, len(PREFIX), positions)]
        [found] = score(make_engine(wrapper), streams, [whole(*choices)], **settings)
    return found


def same(found, expected, tolerance=TOLERANCE):
    for each, other in zip(found, expected, strict=True):
        check(each, (other.logprobs, list(other.greedy)), tolerance)


def test_joint_weights_reach_the_likelihoods():
    model, q, weights = shallow_model("llama"), question(), (3.0, 0.0, 1.0, 1.0, 0.5)
    found = likelihoods(model, q, fusion=Fusion.of("joint", 0.0, weights, "cpu"))
    for choice, each in zip(CHOICES, found, strict=True):
        check(each, oracle_of(model, joint_oracle, q, choice, "left", weights=weights))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_five_copies_are_one_and_their_order_is_none(name):
    model, q = shallow_model(name), question()
    positions = "exact" if name in ROTARY else "left"
    copies = SplitQuestion(q.segments[:1] * 5, q.tail)
    alone = SplitQuestion(q.segments[:1], q.tail)
    same(
        likelihoods(model, copies, positions=positions),
        likelihoods(model, alone, positions=positions),
    )
    shuffled = SplitQuestion(tuple(q.segments[i] for i in (3, 1, 4, 0, 2)), q.tail)
    for tau in (0.0, 1.0):
        fusion = Fusion("mean", tau)
        same(
            likelihoods(model, shuffled, positions=positions, fusion=fusion),
            likelihoods(model, q, positions=positions, fusion=fusion),
        )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layout_concat_is_one_stock_forward_without_isolation(name):
    """Joined under `sequential` with one paraphrase is that prompt: read off its last token."""
    model, tokens = shallow_model(name), tuple(ids(8, seed=3))
    alone = SplitQuestion((tokens,), ())
    with attending(model, backends(model)[1]) as wrapper:
        streams = [attention_streams(alone, 0, "sequential")]
        [found] = score(make_engine(wrapper), streams, [whole(*CHOICES)], prefix=())
    for choice, each in zip(CHOICES, found, strict=True):
        check(each, stock(model, [*tokens, *choice], len(choice)))


def test_layout_concat_sees_segments_and_separators():
    """Against generation: what is said of the tokens that it takes."""
    model, q = shallow_model("llama"), joined(question())
    with attending(model, "sdpa") as wrapper:
        engine = make_engine(wrapper)
        streams = [attention_streams(q, len(PREFIX), "sequential")]
        [answer] = generated(engine, streams)
        one = answer.token_ids[:1]  # read off the segments alone
        [found] = score(engine, streams, [whole(answer.token_ids, one)])
    assert found[0].logprobs == pytest.approx(answer.logprobs, abs=TOLERANCE)
    assert found[1].logprobs == pytest.approx(answer.logprobs[:1], abs=TOLERANCE)
    assert all(found[0].greedy) and found[1].greedy == (True,)


def generated(engine, streams, **settings):
    request = make_request(streams, **settings)
    found = dict(pair for batch in engine.generate(request) for pair in batch)
    return [found[index] for index in range(len(streams))]


# ---- fusion at the logits -------------------------------------------------------------------


@torch.no_grad()
def stock_fused(model, q, choice, method, weights):
    """A stock forward of each prompt with the choice, combined place by place."""
    logits = [
        model(torch.tensor([[*PREFIX, *segment, *q.tail, *choice]])).logits[0, :-1]
        for segment in q.segments
    ]
    places = torch.stack([each[-len(choice) :] for each in logits], dim=1)  # [places, N, V]
    given = None if weights is None else torch.tensor([weights]).expand(len(choice), -1)
    return of_logits(method.reduce(places, given), choice)


@pytest.mark.parametrize("method", list(LOGIT_METHODS))
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_fused_logits_equal_stock_forwards_combined(name, method):
    model, kind = shallow_model(name), LOGIT_METHODS.get(method)
    weights = (0.2, 0.9, 0.1, 0.5, 0.3)
    others = torch.tensor([weights, weights[::-1]]) if kind.weighted else None
    questions = [question(), question(seed=6)]
    with attending(model, backends(model)[1]) as wrapper:
        found = score(
            make_engine(wrapper),
            [logit_streams(q, len(PREFIX)) for q in questions],
            [whole(*CHOICES), whole(*CHOICES[::-1])],
            reduce=kind.reduce,
            weights=others,
        )
    for q, each, choices, given in zip(
        questions, found, (CHOICES, CHOICES[::-1]), (weights, weights[::-1]), strict=True
    ):
        for choice, got in zip(choices, each, strict=True):
            check(got, stock_fused(model, q, choice, kind, given if kind.weighted else None))


# ---- batches, rows and memory ---------------------------------------------------------------

MANY = [
    whole(*CHOICES),
    whole((5,), (6,), (7,), (8,)),
    whole(tuple(ids(17, seed=60)), (9, 10)),
    whole((11, 12, 13)),
    whole((5,), (5,), (6, 7)),
    whole(*CHOICES[::-1]),
    whole((50, 51), (52, 53), (50, 53)),
]
REDUCED = {
    "attention": (only_stream, lambda q: attention_streams(q, len(PREFIX), "exact")),
    "concat": (only_stream, lambda q: attention_streams(joined(q), len(PREFIX), "sequential")),
    "logits": (average_logits, lambda q: logit_streams(q, len(PREFIX))),
}


@pytest.mark.parametrize("kind", list(REDUCED))
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_what_a_question_gets_does_not_depend_on_its_batch(name, kind, monkeypatch):
    model, (reduce, streams_of) = shallow_model(name), REDUCED[kind]
    if name == "gpt2" and kind == "attention":
        streams_of = lambda q: attention_streams(q, len(PREFIX), "left")  # noqa: E731
    streams = [streams_of(q) for q in QUESTIONS]
    with attending(model, backends(model)[1]) as wrapper:
        engine = make_engine(wrapper)
        alone = [
            score(engine, [own], [choices], reduce=reduce)[0]
            for own, choices in zip(streams, MANY, strict=True)
        ]
        together = score(engine, streams, MANY, reduce=reduce)
        small = score(engine, streams, MANY, reduce=reduce, batch_size=2)
        backwards = score(engine, streams[::-1], MANY[::-1], reduce=reduce)[::-1]
        # A row a forward, a place at a time.
        monkeypatch.setattr("self_ensemble.generation.likelihood_pass.SEGMENT_TOKENS", 1)
        monkeypatch.setattr("self_ensemble.generation.likelihood_pass.CPU_LOGITS", 1)
        monkeypatch.setattr(likelihood, "FLOAT_LOGITS", 1)
        apart = score(engine, streams, MANY, reduce=reduce)
    for found in (together, small, backwards, apart):
        for each, expected in zip(found, alone, strict=True):
            same(each, expected)


@pytest.mark.parametrize("kind", list(REDUCED))
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_unlike_numbers_of_paraphrases_in_a_batch(name, kind):
    """Each question is what it is alone: nothing is fused with padding."""
    model, (reduce, streams_of) = shallow_model(name), REDUCED[kind]
    questions = [
        SplitQuestion(q.segments[:count], q.tail)
        for q, count in zip(QUESTIONS, (5, 1, 3, 2, 5, 4, 3), strict=True)
    ]
    streams = [streams_of(q) for q in questions]
    with attending(model, backends(model)[1]) as wrapper:
        engine = make_engine(wrapper)
        together = score(engine, streams, MANY, reduce=reduce)
        for own, choices, found in zip(streams, MANY, together, strict=True):
            same(found, score(engine, [own], [choices], reduce=reduce)[0])


def test_out_of_memory_halves_the_batch(monkeypatch):
    model = shallow_model("llama")
    streams = [attention_streams(q, len(PREFIX), "exact") for q in QUESTIONS]
    with attending(model, "sdpa") as wrapper:
        engine = make_engine(wrapper)
        expected = score(engine, streams, MANY)
        monkeypatch.setattr(
            "self_ensemble.generation.likelihood_pass.encode_streams", small_memory(2)
        )
        request = ScoringRequest(PREFIX, streams, continuations=MANY)
        scoring = engine.score(request, batch_size=7)
        found = dict(pair for batch in scoring for pair in batch)
    assert scoring.max_batch_size == 2 and scoring.stats.out_of_memory == 2
    for index, each in found.items():
        same(each, expected[index])


def test_what_is_computed_is_counted():
    model = shallow_model("llama")
    streams = [logit_streams(q, len(PREFIX)) for q in QUESTIONS[:2]]
    choices = [whole((5,), (6,), (5, 7), (5, 7, 9)), whole((5, 6))]
    with attending(model, "sdpa") as wrapper:
        request = ScoringRequest(PREFIX, streams, continuations=choices, reduce=average_logits)
        scoring = make_engine(wrapper).score(request)
        list(scoring)
    stats = scoring.stats
    assert stats.encoded_tokens == sum(sum(q.lengths) for q in QUESTIONS[:2])
    assert stats.decoded_tokens == 1 + 1 + 2 + 3 + 2
    assert (stats.decode_forwards, stats.decode_rows) == (1, 2 * 5)  # one row a question, 5 streams
    assert stats.largest_batch == 2


def test_choices_of_which_one_begins_another_share_a_row():
    rows = plan_rows(3, range(4, 6), (1, 2), whole((7,), (8,), (7, 9), (7, 9, 11), (8, 9)))
    assert [row.token_ids for row in rows] == [(1, 2, 7, 9), (1, 2, 8)]
    assert [[read.continuation for read in row.reads] for row in rows] == [[3, 2, 0, 1], [4]]
    assert [row.wanted for row in rows] == [3, 2]
    [three, two, one, other] = rows[0].reads
    assert (three.outputs, two.outputs, one.outputs) == (range(2, 5), range(2, 4), range(2, 3))
    assert other.outputs == range(2, 3) and other.targets == (8,)
    # One token each: what is read is the tail.
    [row] = plan_rows(0, range(1), (1, 2), whole(*[(token,) for token in range(40)]))
    assert row.token_ids == (1, 2) and row.wanted == 1
    # The first of these two tokens is the prompt's.
    [row] = plan_rows(0, range(1), (1,), [Continuation((2, 7), 1)])
    assert row.token_ids == (1, 2) and row.reads[0].outputs == range(2, 3)


def test_rows_of_a_forward_are_alike():
    groups = [logit_streams(question(seed=i), 0) for i in range(4)]
    groups[2] = groups[2][:3]  # fewer paraphrases
    choices = [whole((5,)), whole((5,), tuple(range(20))), whole((6, 7)), whole((6, 7), (8, 9))]
    rows = [
        row
        for i, own in enumerate(choices)
        for row in plan_rows(i, range(len(groups[i])), (1,), own)
    ]
    free = RowLimits(10**6, 10**6, 10**9, prefix=7)
    chunks = list(group_rows(rows, groups, free))
    assert [len({len(row.streams) for row in chunk}) for chunk in chunks] == [1, 1]
    assert sorted(map(id, rows)) == sorted(id(row) for chunk in chunks for row in chunk)
    for limits in (
        replace(free, distributions=11),
        replace(free, segment_tokens=80),
        replace(free, scores=1500),
        replace(free, distributions=0, scores=0),
    ):
        held = list(group_rows(rows, groups, limits))
        assert sorted(map(id, rows)) == sorted(id(row) for chunk in held for row in chunk)
        assert len(held) > len(chunks)
        for chunk in held:
            R = sum(len(row.streams) for row in chunk)
            S = max(len(row.token_ids) for row in chunk)
            within = (
                R * max(row.wanted for row in chunk) <= limits.distributions
                and sum(sum(map(len, s.segments)) for row in chunk for s in groups[row.question])
                <= limits.segment_tokens
                and limits.scores >= R * S * (7 + 16 + S)
            )
            assert within or len(chunk) == 1
    assert [len(chunk) for chunk in held] == [1] * len(rows)
    assert list(group_rows([], groups, free)) == []


def test_equal_choices_are_equally_likely_to_the_last_bit():
    model = shallow_model("llama")
    [first, *_, fifth, _] = likelihoods(model, question())
    assert first == fifth


# ---- tokens that no choice is scored by -----------------------------------------------------


def test_the_prompts_own_tokens_are_not_scored():
    model, q = shallow_model("llama"), question(lengths=(8,))
    with attending(model, "sdpa") as wrapper:
        streams = [attention_streams(q, len(PREFIX), "exact")]
        given = [Continuation((20, 21, 7, 8), 2), Continuation((20, 22, 7), 1), *whole((7,))]
        [found] = score(make_engine(wrapper), streams, [given])
    for continuation, each in zip(given, found, strict=True):
        tokens = [*PREFIX, *q.segments[0], *q.tail, *continuation.token_ids]
        check(each, stock(model, tokens, continuation.scored))


# ---- numbers --------------------------------------------------------------------------------


def test_half_precision_logits_are_normalised_in_float32():
    """In bfloat16 the log-probabilities of many tokens would be equal."""
    torch.manual_seed(0)
    logits = torch.randn(1, 1, 5000).bfloat16()
    continuations = whole(*[(token,) for token in range(0, 5000, 7)])
    rows = plan_rows(0, range(1), (1,), continuations)
    found = [each for _, _, each in read_rows(rows, logits, only_stream, None)]
    expected = logits[0, 0].double().log_softmax(-1)[::7]
    assert [each.logprobs[0] for each in found] == pytest.approx(expected.tolist(), abs=1e-5)


def test_ties_are_greedy_for_the_lowest_id_alone():
    logits = torch.zeros(1, 1, 9)
    logits[..., [4, 6]] = 1.0
    rows = plan_rows(0, range(1), (1,), whole((4,), (6,), (7,)))
    found = [each.greedy for _, _, each in read_rows(rows, logits, only_stream, None)]
    assert found == [(True,), (False,), (False,)]


def test_logits_that_are_no_numbers_are_told():
    model = shallow_model("llama")
    with FlexAttentionWrapper(model, "sdpa") as wrapper:
        streams = [attention_streams(question(), len(PREFIX), "exact")]

        def broken(logits, weights):
            return logits[:, 0] * float("nan")

        with pytest.raises(UserError, match="not numbers"):
            score(make_engine(wrapper), streams, [whole((5,))], reduce=broken)
        with pytest.raises(UserError, match=r"shape \[questions, vocabulary\]"):
            score(make_engine(wrapper), streams, [whole((5,))], reduce=lambda x, w: x)


def test_a_token_beyond_the_vocabulary_and_too_long_a_choice_are_refused():
    model = shallow_model("llama")
    with FlexAttentionWrapper(model, "sdpa") as wrapper:
        engine = make_engine(wrapper)
        streams = [attention_streams(question(), len(PREFIX), "exact")]
        with pytest.raises(
            UserError,
            match=f"the choices hold the token.*beyond the model's vocabulary of {VOCABULARY}",
        ):
            score(engine, streams, [whole((5, VOCABULARY))])
        fits = 256 - len(PREFIX) - 16 - 3
        score(engine, streams, [whole((5,) * fits)])
        with pytest.raises(UserError, match="needs 257 positions"):
            score(engine, streams, [whole((5,) * (fits + 1))])


def test_an_open_generation_and_a_scoring_do_not_disturb_each_other():
    model = shallow_model("llama")
    streams = [attention_streams(q, len(PREFIX), "exact") for q in QUESTIONS]
    with attending(model, "sdpa") as wrapper:
        engine = make_engine(wrapper)
        expected = score(engine, streams, MANY)
        answers = generated(engine, streams)
        asked = engine.generate(make_request(streams), batch_size=2)
        request = ScoringRequest(PREFIX, streams, continuations=MANY)
        scoring, got, said = engine.score(request, batch_size=2), {}, {}
        for batch, scored in zip(asked, scoring, strict=True):
            got |= dict(batch)
            said |= dict(scored)
    assert [got[i].token_ids for i in range(7)] == [each.token_ids for each in answers]
    for index, each in said.items():
        same(each, expected[index])


def test_a_request_keeps_its_other_settings():
    streams = [attention_streams(q, len(PREFIX), "exact") for q in QUESTIONS]
    request = ScoringRequest(PREFIX, streams, continuations=MANY)
    assert request.max_new_tokens == 17
    other = replace(request, reduce=average_logits, continuations=MANY[:3] * 2 + MANY[3:4])
    assert other.reduce is average_logits and other.prefix == PREFIX
    assert ScoringRequest((), [], continuations=[]).max_new_tokens == 1
