"""Likelihoods of given continuations against stock forwards and written-out oracles."""

import pytest
import torch
from fused import PREFIX, attending, backends, ids, make_engine, question
from oracle import joint_oracle, mean_oracle
from tiny import ARCHITECTURES, ROTARY, tiny_model

from self_ensemble.attention.continuations import Continuation
from self_ensemble.attention.fusion import Fusion
from self_ensemble.generation.likelihood import ScoringRequest
from self_ensemble.generation.streams import attention_streams, logit_streams

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
    model, q = tiny_model(name), question(lengths=(8,))
    choices = [tuple(ids(count, seed=100 + count)) for count in range(1, 31)]
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
    model, q = tiny_model(name), question()
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
    model, q = tiny_model(name), question()
    with attending(model, backends(model)[1]) as wrapper:
        [found] = score(
            make_engine(wrapper),
            [attention_streams(q, len(PREFIX), "left")],
            [whole(*CHOICES)],
            fusion=Fusion("joint"),
        )
    for choice, each in zip(CHOICES, found, strict=True):
        check(each, oracle_of(model, joint_oracle, q, choice, "left"))
