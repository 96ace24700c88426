"""The captured path's bookkeeping without a GPU: packed rows, static buffers, replays.

A CUDA graph is stood in for by a forward under the very state that it was captured under, so that a
replay sees what later states wrote only if they wrote it to the same addresses, and the kernels by
plain math. What needs a GPU, kernels, compilation and graphs, is in test_gpu.py; the kernels also
run in Triton's interpreter, in test_gpu_kernels.py, alone and with all of this.
"""

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from fused import (
    PREFIX,
    QUESTIONS,
    STREAMS,
    answer,
    make_engine,
    make_request,
    small_memory,
    tokens_of,
)
from stand_in import LAUNCH, StandIn, plain_fuse, stand_in
from tiny import tiny_model

from self_ensemble.attention import cuda_graphs as recorded
from self_ensemble.attention.buffers import BufferPool
from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.generation.streams import attention_streams
from self_ensemble.system.errors import UserError


@pytest.fixture
def without_a_gpu(monkeypatch):
    stand_in(monkeypatch)


@contextmanager
def an_engine(captured):
    """One that trusts its fusions: that they are checked first has tests of its own."""
    with FlexAttentionWrapper(tiny_model("gemma3"), "flex", compiled=False) as wrapper:
        engine = make_engine(wrapper, capture=captured)
        engine.capture_problem = lambda fusion: None
        yield engine


@pytest.mark.parametrize("kind", STREAMS)
def test_captured_batches_answer_as_plain_ones(without_a_gpu, kind):
    """Questions that stop at different steps; shapes that come again, in buffers that have grown.

    Gemma 3 has windows, full layers, and rotary tables of its own for each.
    """
    reduce, of = STREAMS[kind]
    streams = [of(question) for question in QUESTIONS]

    def run(captured, sizes):
        with an_engine(captured) as engine:
            endless = answer(engine, streams, reduce=reduce, steps=8)
            stops = {tokens[1 + index % 4] for index, tokens in enumerate(endless)}
            found = [
                answer(engine, streams, reduce=reduce, batch_size=size, steps=8, stop=stops)
                for size in sizes
            ]
            return endless, found, StandIn.replays

    StandIn.replays = 0
    endless, [expected], replays = run(False, [None])
    assert replays == 0
    found, again, replays = run(True, [None, 2, 3, 1, None])
    assert found == endless and again == [expected] * 5
    assert replays > 5


def test_two_open_requests_share_the_buffers(without_a_gpu):
    """Their steps have the same shapes, and read different prefixes."""
    other = tuple(reversed(PREFIX))
    streams = [STREAMS["attention"][1](question) for question in QUESTIONS]

    def run(captured):
        with an_engine(captured) as engine:
            StandIn.replays = 0
            both = [
                engine.generate(
                    make_request(streams, steps=6, prefix=prefix),
                    batches=[[0, 1], [2, 3], [4, 5], [6]],
                )
                for prefix in (PREFIX, other)
            ]
            found = [[], []]
            for _ in range(4):
                for which in (0, 1):
                    found[which].append(next(both[which]))
            return [tokens_of(batches) for batches in found], StandIn.replays

    plain, _ = run(False)
    captured, replays = run(True)
    assert captured == plain and plain[0] != plain[1] and replays > 5


def test_what_memory_ran_out_for_is_not_asked_for_again(without_a_gpu, monkeypatch):
    """Half a batch takes half the buffers; what was captured in the larger ones is forgotten."""
    streams = [STREAMS["attention"][1](question) for question in QUESTIONS]
    with an_engine(False) as engine:
        expected = answer(engine, streams, steps=4)
    with an_engine(True) as engine:
        reserve, taken = BufferPool.reserve, []

        def watched(pool, name, size, like):
            if name == (0, "keys"):
                taken.append(size)
            reserve(pool, name, size, like)

        monkeypatch.setattr(BufferPool, "reserve", watched)
        assert answer(engine, streams, steps=4) == expected
        whole = max(taken)
        taken.clear()
        monkeypatch.setattr("self_ensemble.generation.passes.encode_streams", small_memory(2))
        generation = engine.generate(make_request(streams, steps=4))
        assert tokens_of(generation) == expected
        assert generation.stats.out_of_memory > 0 and max(taken) < whole


def test_memory_that_runs_out_while_a_step_is_recorded(monkeypatch):
    """What ends the recording fails then, and must not hide why."""

    @contextmanager
    def recording(graph, pool):
        try:
            yield
        finally:
            raise RuntimeError("the recording was invalidated")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    plan = SimpleNamespace(fusion=None, mark=lambda positions, mask: None)
    ids = torch.zeros(1, 1, dtype=torch.long)

    def fails(error):
        def forward(ids, positions):
            raise error

        return forward

    with pytest.raises(torch.OutOfMemoryError, match="injected"):
        recorded.CapturedStep(plan, fails(torch.OutOfMemoryError("injected")), ids, ids, [])
    with pytest.raises(RuntimeError, match="invalidated"):
        recorded.CapturedStep(plan, fails(ValueError("other")), ids, ids, [])


def test_a_prefix_takes_none_of_the_buffers(without_a_gpu, monkeypatch):
    """With them a long prefix would run out of memory where a batch would have been halved."""
    names = set()
    reserve = BufferPool.reserve

    def watched(pool, name, size, like):
        names.add(name)
        reserve(pool, name, size, like)

    monkeypatch.setattr(BufferPool, "reserve", watched)
    streams = [STREAMS["attention"][1](question) for question in QUESTIONS]
    with an_engine(True) as engine:
        generation = engine.generate(make_request(streams, steps=4))
        assert not names
        expected = tokens_of(generation)
        assert names
        for prefix in (PREFIX[:4], PREFIX):
            answer(engine, streams, steps=4, prefix=prefix)
        engine.release()
        assert answer(engine, streams, steps=4) == expected


def test_decoded_rows_are_counted_with_those_that_fill_a_batch(without_a_gpu):
    streams = [STREAMS["attention"][1](question) for question in (QUESTIONS * 2)[:9]]
    with an_engine(True) as engine:
        generation = engine.generate(make_request(streams, steps=4))
        tokens_of(generation)
        assert generation.stats.decoded_tokens == 4 * 9
        assert generation.stats.decode_rows == 4 * 10


def test_memory_that_runs_out_with_the_prefix_alone(without_a_gpu, monkeypatch):
    def fails(*inputs, **settings):
        raise torch.OutOfMemoryError("injected")

    with FlexAttentionWrapper(tiny_model("gemma3"), "flex", compiled=False) as wrapper:
        engine = make_engine(wrapper, capture=True)
        with monkeypatch.context() as patch:
            patch.setattr("self_ensemble.generation.engine.encode_prefix", fails)
            assert engine.capture_problem(Fusion()) == "OutOfMemoryError: injected"
            with pytest.raises(UserError, match="out of memory with the 9 tokens that all prompts"):
                engine.generate(make_request([STREAMS["attention"][1](QUESTIONS[0])]))
        assert len(answer(engine, [STREAMS["attention"][1](QUESTIONS[0])])) == 1


FUSIONS_ASKED = {
    "mean": Fusion(),
    "tau": Fusion("mean", 0.5),
    "weights": Fusion.of("mean", 0.0, (3, 0, 1, 1, 2), "cpu"),
    "joint": Fusion("joint"),
}


@pytest.mark.parametrize("name", FUSIONS_ASKED)
def test_every_fusion_is_held_against_the_plain_path_before_it_is_captured(
    without_a_gpu, monkeypatch, caplog, name
):
    """A kernel that computes `mean` whatever it is asked for is found, for each but `mean`."""
    fusion = FUSIONS_ASKED[name]
    streams = [STREAMS["attention"][1](question) for question in QUESTIONS]
    if not fusion.rope_offsets:
        streams = [attention_streams(question, len(PREFIX), "left") for question in QUESTIONS]
    with an_engine(False) as engine:
        expected = answer(engine, streams, fusion)

    def only_mean(*args):
        *others, _, log_weights = args
        return plain_fuse(*others, Fusion(), torch.zeros_like(log_weights))

    kernels = SimpleNamespace(fuse=only_mean)
    monkeypatch.setitem(sys.modules, LAUNCH, kernels)
    with FlexAttentionWrapper(tiny_model("gemma3"), "flex", compiled=False) as wrapper:
        engine = make_engine(wrapper, capture=True)
        StandIn.replays = 0
        problem = engine.capture_problem(fusion)
        assert (problem is None) == (name == "mean"), problem
        assert StandIn.replays > 0  # of the check
        StandIn.replays = 0
        assert answer(engine, streams, fusion) == expected
        assert (StandIn.replays > 0) == (name == "mean")
        assert engine.decode_path(fusion) == (
            "one kernel, recorded" if name == "mean" else "split softmax"
        )
    said = [r.getMessage() for r in caplog.records if "cannot be compiled" in r.getMessage()]
    assert len(said) == (name != "mean")


def test_kernels_that_compute_nan_are_found(without_a_gpu, monkeypatch):
    kernels = SimpleNamespace(fuse=lambda *args: plain_fuse(*args) * torch.nan)
    monkeypatch.setitem(sys.modules, LAUNCH, kernels)
    with FlexAttentionWrapper(tiny_model("llama"), "flex", compiled=False) as wrapper:
        assert "off by nan" in make_engine(wrapper, capture=True).capture_problem(Fusion())


def test_a_room_moves_only_to_grow():
    room = BufferPool()
    first = room.keep("keys", torch.arange(6.0).view(2, 3))
    smaller = room.keep("keys", torch.zeros(4))
    assert smaller.data_ptr() == first.data_ptr() and room.version == 1
    room.take("keys", (7,), first)
    assert room.version == 2
