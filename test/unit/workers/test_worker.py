"""What a worker does with what it is sent, without Ray: a driver's registry and a worker's."""

import logging
from types import SimpleNamespace

import pytest
import torch
from fused import PREFIX, make_engine, make_request, question
from tiny import tiny_model

from self_ensemble.attention.fusion import (
    FUSIONS,
    Fusion,
    partition_scores,
    register_fusion,
    weighted_partitions,
)
from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.generation.streams import attention_streams
from self_ensemble.models.config import ModelConfig
from self_ensemble.workers import worker as workers
from self_ensemble.workers.parts import Broken, open_with, part_of
from self_ensemble.workers.worker import Assignment, Worker, code_fingerprint

STREAMS = [attention_streams(question(3, 2, (4, 2, 5)), len(PREFIX), "left") for _ in range(2)]
WEIGHTS = torch.tensor([0.2, 0.3, 0.5])


def only(number):
    """A user's own fusion: one partition of all."""

    def fuse(prefix, segments, fused, fusion):
        scores = partition_scores(prefix, segments, fused)
        weights = torch.zeros_like(scores[..., :1])
        weights[:, :, number] = 1
        return weighted_partitions(scores, weights, prefix, segments)

    return fuse


@pytest.fixture
def worker():
    found = Worker(lambda opening: opening)
    found._engine = make_engine(FlexAttentionWrapper(tiny_model("llama"), "eager"))
    return found


@pytest.fixture
def elsewhere(monkeypatch):
    """Calls a function where another registry is, as in another process."""
    theirs = dict(FUSIONS._entries)
    monkeypatch.setattr(FUSIONS, "_entries", dict(FUSIONS._entries))

    def call(function, *args, **settings):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FUSIONS, "_entries", theirs)
            return function(*args, **settings)

    return call


def begun(request):
    """What its two batches are sent with."""
    batches = [[0], [1]]
    opening = open_with(request, batches, 1, 4096)
    return [([opening], part_of(request, batch), None) for batch in batches]


def logprobs(reply):
    return [answer.logprobs for answer in reply.answers]


def test_a_fusion_that_is_registered_anew(worker, elsewhere):
    """As in a notebook: a worker computes what the name stood for when the pass began."""
    expected, sent = {}, {}
    for number in (0, 2):
        register_fusion("mine")(only(number))
        request = make_request(STREAMS, Fusion("mine"))
        [(_, answer), *_] = next(worker._engine.generate(request, batch_size=1))
        expected[number], sent[number] = [answer.logprobs], begun(request)
        FUSIONS.remove("mine")
    assert expected[0] != expected[2]
    for batch in (0, 1):  # side by side
        for number in (0, 2):
            reply = elsewhere(worker.answer, f"pass {number}", *sent[number][batch])
            assert logprobs(reply) == expected[number], (batch, number)


def test_a_fusion_of_the_users_own_with_weights(worker, elsewhere):
    @register_fusion("weighing", weights=True)
    def weighing(prefix, segments, fused, fusion):
        scores = partition_scores(prefix, segments, fused)
        weights = fusion.weights[None, None, :, None, None].expand_as(scores[..., :1])
        return weighted_partitions(scores, weights, prefix, segments)

    fusion = Fusion("weighing", weights=WEIGHTS)
    request = make_request(STREAMS, fusion)
    [(_, answer), *_] = next(worker._engine.generate(request, batch_size=1))
    kind = FUSIONS.get("weighing")
    said = elsewhere(worker.environment, fusion, kind, asked="eager", weighed=False)
    assert said["attention"]["asked"] == "eager"
    reply = elsewhere(worker.answer, "pass", *begun(request)[0])
    assert logprobs(reply) == [answer.logprobs]
    FUSIONS.remove("weighing")


def test_a_device_that_fails_as_the_model_is_loaded(monkeypatch):
    """The worker is started again, as after every fault of its device."""

    def load(source):
        raise torch.AcceleratorError("CUDA error: uncorrectable ECC error\nmore of it")

    monkeypatch.setattr(workers, "find_model", lambda model: SimpleNamespace(fingerprint="f"))
    monkeypatch.setattr(workers, "load_model", load)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(logging.getLogger("self_ensemble"), "handlers", [])
    assignment = Assignment(ModelConfig(), "f", code_fingerprint(), threads=1)
    assert Worker(lambda opening: opening).load(assignment) == Broken(
        "CUDA error: uncorrectable ECC error"
    )
