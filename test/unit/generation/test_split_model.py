"""A model whose layers are on two devices answers what it answers on one.

The devices are simulated, see two_devices.py: a tensor beside the wrong layer is an error there.
"""

import pytest
import torch
from fused import PREFIX, make_engine
from test_likelihood import CHOICES, score, whole
from test_places import FUSIONS, STREAMS, answers, check_same, drawn, some_questions
from tiny import TinyTokenizer, tiny_model
from two_devices import FIRST, SECOND, Simulated, spread_model, two_devices

from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.generation import passes
from self_ensemble.generation.attaching import make_engine as attach
from self_ensemble.generation.streams import attention_streams
from self_ensemble.methods.registries import LOGIT_METHODS
from self_ensemble.methods.weighting import parse_weighting
from self_ensemble.models.devices import check_devices
from self_ensemble.system.errors import UserError

HALVES = (0, 0, 1, 1)


def on_one(name, ask, backend="eager"):
    with FlexAttentionWrapper(tiny_model(name), backend, compiled=False) as wrapper:
        return ask(make_engine(wrapper))


def on_two(name, ask, backend="eager", gpus=HALVES):
    with two_devices():
        model = spread_model(tiny_model(name), gpus)
        with FlexAttentionWrapper(model, backend, compiled=False) as wrapper:
            return ask(make_engine(wrapper))


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """Fused tokens have room for two at first."""
    monkeypatch.setattr(passes, "FIRST_SLOTS", 2)


def check_answers(name, streams, gpus=HALVES, backend="eager", **asked):
    """Where questions of unlike length, end and number of paraphrases take each other's places."""
    asked = {"steps": 8, **drawn(len(streams)), **asked}

    def ask(engine):
        return answers(engine, streams, batch_size=3, **asked)[0]

    expected = on_one(name, ask, backend)
    assert len({len(answer.token_ids) for answer in expected}) > 1
    check_same(on_two(name, ask, backend, gpus), expected)


@pytest.mark.parametrize("kind", STREAMS)
def test_every_kind_of_stream(kind):
    reduce, streams_of = STREAMS[kind]
    streams = [streams_of(each) for each in some_questions(8, fewest=1)]
    check_answers("llama", streams, backend="sdpa", reduce=reduce)


@pytest.mark.parametrize(
    ("name", "gpus"),
    [
        ("gemma2", HALVES),
        ("gemma2", (1, 0, 1, 0)),  # windows on one, no windows on the other
        ("gemma3", (0, 1, 1, 1)),
        ("gemma3", (1, 1, 1, 1)),
        ("phi3", (1, 0, 1, 0)),
        ("gpt2", HALVES),
        ("gpt2", (1, 1, 1, 1)),
    ],
)
def test_architectures_and_places(name, gpus):
    """Windows, caps, partial and learned positions; also where no layer is beside the embeddings,
    and where layers go back and forth. Each has layers on both devices, or none beside its
    embeddings: that is what can go wrong in a way of its own."""
    positions = "left" if name == "gpt2" else "exact"
    questions = some_questions(7, fewest=2)
    check_answers(name, [attention_streams(q, len(PREFIX), positions) for q in questions], gpus)


@pytest.mark.parametrize("name", FUSIONS)
def test_fusions(name):
    fusion = FUSIONS[name]
    positions = "exact" if fusion.rope_offsets else "left"
    streams = [attention_streams(q, len(PREFIX), positions) for q in some_questions(7, most=8)]

    def ask(engine):
        weights = None if fusion.weights is None else fusion.weights.to(engine.device)
        there = Fusion(fusion.kind, fusion.tau, weights)
        return answers(engine, streams, batch_size=3, fusion=there, **drawn(7))[0]

    check_same(on_two("gemma3", ask), on_one("gemma3", ask))


def test_weights_of_each_question():
    """Those that its paraphrases say, and for logits those that are given."""
    streams = [attention_streams(q, len(PREFIX), "exact") for q in some_questions(7, fewest=2)]
    check_answers("llama", streams, weigh=parse_weighting("entropy:3").weigh)
    _, streams_of = STREAMS["logits"]
    streams = [streams_of(q) for q in some_questions(7)]
    weights = torch.rand(7, 5, generator=torch.Generator().manual_seed(1))
    check_answers(
        "llama", streams, reduce=LOGIT_METHODS.get("weighted_avg").reduce, weights=weights
    )


@pytest.mark.parametrize("kind", ["exact", "logits"])
def test_likelihoods(kind):
    reduce, streams_of = STREAMS[kind]
    streams = [streams_of(each) for each in some_questions(3)]

    def ask(engine):
        return score(engine, streams, [whole(*CHOICES)] * 3, batch_size=2, reduce=reduce)

    for found, expected in zip(on_two("gemma3", ask), on_one("gemma3", ask), strict=True):
        for one, other in zip(found, expected, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
            assert one.greedy == other.greedy


def test_an_engine_of_two_devices():
    """Its checks run, it captures nothing, and its manifest names the devices."""
    with two_devices():
        model = spread_model(tiny_model("llama"), HALVES)
        engine = attach(model, TinyTokenizer(), attention="sdpa")
        with engine.wrapper:
            told = engine.environment(Fusion(), asked="auto")
    assert engine.devices == [FIRST, SECOND] and not engine.captures
    assert told["attention"]["decode"] == "split softmax"
    assert told["device"].startswith("2 GPUs: ")
    assert "(layers 0-1)" in told["device"] and told["device"].endswith("(layers 2-3)")


def test_a_model_that_is_spread_otherwise():
    """As transformers' own device maps have it, with the last norm beside the last layer."""
    with two_devices():
        model = spread_model(tiny_model("llama"), HALVES)
        check_devices(model)
        norm = model.model.norm
        norm.weight = torch.nn.Parameter(Simulated(norm.weight.held, SECOND), requires_grad=False)
        with pytest.raises(UserError, match=r"meta:0, meta:1 .* let Ensemble\.from_pretrained"):
            attach(model, TinyTokenizer(), attention="sdpa")


def test_the_simulation_can_fail():
    """Tensors of two devices do not meet, nor do they meet the CPU's, in place or otherwise."""
    with two_devices():
        one, other = torch.ones(3, device=FIRST), torch.ones(3, device=SECOND)
        with pytest.raises(RuntimeError, match="meta:0"):
            one + other
        with pytest.raises(RuntimeError, match="meta:1"):
            other.add_(torch.ones(3))
        with pytest.raises(RuntimeError, match="index"):
            one[torch.zeros(1, dtype=torch.long, device=SECOND)]
        assert (one + other.to(FIRST)).tolist() == [2, 2, 2]
