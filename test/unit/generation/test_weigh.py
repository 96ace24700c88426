"""Paraphrases weighted by what each says alone, held against stock forwards and given weights."""

import pytest
import torch
from fused import (
    PREFIX,
    Recorder,
    StopAt,
    attending,
    backends,
    distance,
    ids,
    make_engine,
    make_request,
    question,
    tokens_of,
)
from stand_in import StandIn, stand_in
from tiny import tiny_model

from self_ensemble.attention.continuations import Continuation
from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.generation.likelihood import ScoringRequest
from self_ensemble.generation.streams import attention_streams, logit_streams, weigh_paraphrases
from self_ensemble.methods.logit_fusion import weighted_average_logits
from self_ensemble.methods.weighting import entropy, parse_weighting
from self_ensemble.system.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

TOLERANCE = 1e-4
STRENGTH = 3.0  # tiny models waver all alike: told apart all the same
WEIGH = parse_weighting(f"entropy:{STRENGTH}").weigh
QUESTIONS = [question(N=5, seed=seed) for seed in (2, 3)]
QUESTIONS.append(question(seed=4, lengths=(2, 9, 4)))  # fewer paraphrases than the others
CHOICES = [[Continuation(tuple(ids(2, seed=s)), 2) for s in (50, 51)]] * 3
ROTARY_AND_LEARNED = ("llama", "gemma3", "gpt2")


@torch.no_grad()
def stock_weights(model, q):
    """Of one question, written out: a stock forward a paraphrase, entropies, a softmax."""
    found = []
    for segment in q.segments:
        tokens = torch.tensor([[*PREFIX, *segment, *q.tail]])
        p = model(input_ids=tokens).logits[0, -1].double().softmax(-1)
        found.append((-STRENGTH * -(p * p.log()).sum()).item())
    return torch.tensor(found).softmax(0)


def own_streams(q, model):
    positions = "left" if model.config.model_type == "gpt2" else "exact"
    return attention_streams(q, len(PREFIX), positions)


def alone(engine, streams, weights, **settings):
    """The answer of one question whose weights are given."""
    fusion = Fusion(tau=settings.pop("tau", 0.0), weights=weights)
    request = make_request([streams], fusion, **settings)
    return tokens_of(engine.generate(request))[0]


@pytest.mark.parametrize("name", ROTARY_AND_LEARNED)
@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_attention_is_weighted_as_if_the_weights_were_given(name, tau):
    model = tiny_model(name)
    weights = [stock_weights(model, q) for q in QUESTIONS]
    assert all(float(w.max() / w.min()) > 1.05 for w in weights), "nothing to tell apart"
    streams = [own_streams(q, model) for q in QUESTIONS]
    together = {"batch_size": 3, "batches": [[0, 1, 2]]}
    given, plain = [Recorder() for _ in QUESTIONS], Recorder()
    with attending(model, "eager") as wrapper:
        engine = make_engine(wrapper, keep_prefix=True)
        expected = [
            alone(engine, own, u, tau=tau, reduce=reduce)
            for own, u, reduce in zip(streams, weights, given, strict=True)
        ]
        unweighted = make_request(streams, Fusion(tau=tau), plain, steps=1)
        tokens_of(engine.generate(unweighted, **together))
    for backend in backends(model):
        seen = Recorder()
        with attending(model, backend) as wrapper:
            request = make_request(streams, Fusion(tau=tau), seen, weigh=WEIGH)
            found = tokens_of(make_engine(wrapper).generate(request, **together))
        assert found == expected
        for k, first in enumerate(seen.logits[0]):
            assert distance(first, given[k].logits[0][0]) < TOLERANCE
            assert distance(first, plain.logits[0][k]) > TOLERANCE, "weights move nothing"


def test_logits_are_weighted_as_if_the_weights_were_given():
    model = tiny_model("llama")
    weights = torch.zeros(3, 5)
    for k, q in enumerate(QUESTIONS):
        weights[k, : len(q.segments)] = stock_weights(model, q)
    streams = [logit_streams(q, len(PREFIX)) for q in QUESTIONS]
    with attending(model, "sdpa") as wrapper:
        engine = make_engine(wrapper)
        by_given, by_found = Recorder(weighted_average_logits), Recorder(weighted_average_logits)
        given = make_request(streams, reduce=by_given, weights=weights)
        expected = tokens_of(engine.generate(given, batch_size=3, batches=[[0, 1, 2]]))
        request = make_request(streams, reduce=by_found, weigh=WEIGH)
        assert tokens_of(engine.generate(request, batch_size=3, batches=[[0, 1, 2]])) == expected
        for a, b in zip(by_given.logits, by_found.logits, strict=True):
            assert distance(a, b) < TOLERANCE
        # Whoever comes in later is weighted by its own first token too.
        for batch_size in (1, 2):
            late = make_request(streams, reduce=weighted_average_logits, weigh=WEIGH)
            batches = engine.generate(late, batch_size=batch_size, batches=[[2, 0, 1]])
            assert tokens_of(batches) == expected


@pytest.mark.parametrize("depth", ["attention", "logits"])
def test_choices_are_scored_under_the_same_weights(depth):
    model = tiny_model("llama")
    make = own_streams if depth == "attention" else lambda q, model: logit_streams(q, len(PREFIX))
    streams = [make(q, model) for q in QUESTIONS]
    reduce = {} if depth == "attention" else {"reduce": weighted_average_logits}
    with attending(model, "sdpa") as wrapper:
        engine = make_engine(wrapper)

        def scores(asked, choices, **settings):
            request = ScoringRequest(PREFIX, asked, continuations=choices, **reduce, **settings)
            found = dict(pair for batch in engine.score(request) for pair in batch)
            return [[c.logprobs for c in found[k]] for k in range(len(asked))]

        found = scores(streams, CHOICES, weigh=WEIGH)
        for k, q in enumerate(QUESTIONS):
            u = stock_weights(model, q)
            by = {"fusion": Fusion(weights=u)} if depth == "attention" else {"weights": u[None]}
            [expected] = scores([streams[k]], CHOICES[:1], **by)
            assert torch.tensor(found[k]) == pytest.approx(torch.tensor(expected), abs=TOLERANCE)


@pytest.mark.parametrize("kind", ["mean", "joint"])
def test_captured_steps_read_each_rows_own_weights(kind, monkeypatch):
    """Batches that become smaller, and questions that come in late, on the captured path."""
    stand_in(monkeypatch)
    model = tiny_model("llama")
    positions = "exact" if kind == "mean" else "left"
    asked = [question(N=5, seed=seed) for seed in range(2, 9)]
    asked.append(QUESTIONS[2])
    streams = [attention_streams(q, len(PREFIX), positions) for q in asked]
    fusion = Fusion(kind, tau=1.0 if kind == "mean" else 0.0)
    stop = StopAt(range(2, 40, 2))  # they end at unlike times
    with FlexAttentionWrapper(model, "flex", compiled=False) as wrapper:
        plain = make_engine(wrapper)
        request = make_request(streams, fusion, weigh=WEIGH, stop=stop, steps=8)
        expected = tokens_of(plain.generate(request, batch_size=8))
        assert len({len(tokens) for tokens in expected}) > 1
        captured = make_engine(wrapper, capture=True)
        before = StandIn.replays
        for batches in ([[*range(8)]], [[5, 7, 0, 1, 6, 2, 4, 3]]):
            for batch_size in (3, 8):
                found = captured.generate(request, batch_size=batch_size, batches=batches)
                assert tokens_of(found) == expected
        assert StandIn.replays > before


def test_entropy_is_that_of_the_written_formula():
    logits = torch.tensor([[[0.0, 0.0], [5.0, -torch.inf]]])
    found = entropy(logits, 2.0)
    assert found.tolist() == [[pytest.approx(-2 * torch.tensor(2.0).log().item()), 0.0]]


def test_logits_that_are_no_numbers_are_told_of():
    """One paraphrase of one question; the others do not hide it."""
    logits = torch.randn(4, 7)
    logits[2, 3] = torch.nan
    with pytest.raises(UserError, match="--dtype float32"):
        weigh_paraphrases(WEIGH, logits, [2, 2])


def test_weights_sum_to_one_and_padding_has_none():
    logits = torch.randn(5, 7)
    weights = weigh_paraphrases(WEIGH, logits, [2, 3])
    assert weights.sum(1).tolist() == pytest.approx([1.0, 1.0])
    assert weights[0, 2] == 0 and (weights[1] > 0).all()


def test_many_logits_are_weighed_in_parts(monkeypatch):
    logits = torch.randn(12, 7)
    whole = weigh_paraphrases(WEIGH, logits, [3, 2, 3, 1, 3])
    monkeypatch.setattr("self_ensemble.generation.streams.WEIGHED_LOGITS", 1)
    assert torch.equal(weigh_paraphrases(WEIGH, logits, [3, 2, 3, 1, 3]), whole)


@pytest.mark.parametrize(
    ("weigh", "words"),
    [
        (lambda logits: logits[:, 0], "a weighting must return"),
        (lambda logits: logits[..., 0] * torch.nan, "is not a number"),
        (lambda logits: torch.full(logits.shape[:2], -torch.inf), "leaves no paraphrase"),
    ],
)
def test_a_weighting_that_says_nothing_is_refused(weigh, words):
    with pytest.raises(UserError, match=words):
        weigh_paraphrases(weigh, torch.randn(4, 7), [2, 2])


@pytest.mark.parametrize(
    "text", ["entropy", "entropy:", "entropy:x", "entropy:-1", "entropy:inf", "entropy:nan", "e:1"]
)
def test_what_is_no_weighting_is_refused(text):
    with pytest.raises(UserError):
        parse_weighting(text)
