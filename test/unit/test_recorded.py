"""The recorded path's bookkeeping without a GPU: packed rows, one room for all plans, replays.

A recording is stood in for by a forward under the very plan that it was made under, so that a
replay sees what later plans wrote only if they wrote it to the same addresses, and the kernels by
plain math. What needs a GPU, kernels, compilation and graphs, is in test_gpu.py; the kernels also
run in Triton's interpreter, in test_gpu_kernels.py.
"""

import copy
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from fused import PREFIX, QUESTIONS, STREAMS, answer, make_engine
from tiny import tiny_model

import self_ensemble.attention
from self_ensemble.attention import cuda_graphs as recorded
from self_ensemble.attention.buffers import BufferPool
from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.kv_state import DecodeState
from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.attention.rotary import RotaryTables
from self_ensemble.attention.scoring import KeyValues
from self_ensemble.generation import legacy as engine_module
from self_ensemble.generation.legacy import recorded_size
from self_ensemble.system.errors import UserError


class StandIn:
    replays = 0

    def __init__(self, plan, forward, ids, positions, others):
        self.plan, self.forward = copy.copy(plan), forward
        self.plan.segments, self.plan.own = dict(plan.segments), dict(plan.own)

    def __call__(self, ids, positions):
        StandIn.replays += 1
        wrapper = self.forward.__self__.wrapper
        assert wrapper.state.shape == self.plan.shape
        assert addresses(wrapper.state) == addresses(self.plan)
        with wrapper.using(self.plan):
            self.plan.mark(positions, torch.ones_like(positions, dtype=torch.bool))
            return self.forward(ids, positions)


def addresses(plan):
    layers = (kv for kind in (plan.segments, plan.own) for kv in kind.values())
    tensors = [tensor for kv in layers for tensor in (kv.keys, kv.values)]
    tensors += [plan.own_mask, plan.own_positions, plan.at, plan.starts, plan.lengths]
    tensors += [plan.segment_positions, *([] if plan.rope_offsets is None else [plan.rope_offsets])]
    return [(tensor.data_ptr(), tensor.stride()) for tensor in tensors]


def plain_fuse(
    query, prefix, segments, starts, lengths, longest, segment_positions,
    own, own_mask, own_positions, new, at, turns, angles, scoring, fusion,
):  # fmt: skip
    """What `gpu_kernels.fuse` promises, by the plain plan."""
    assert lengths.max() <= longest
    index = torch.minimum(torch.arange(longest), lengths[:, :, None] - 1)
    cells = starts[:, :, None] + index

    def found(packed):  # by address, as the kernel finds them: a later batch may have more tokens
        J, _, D = packed.shape
        reaching = (J, int(cells.max()) + 1, D)
        return packed.as_strided(reaching, packed.stride(), packed.storage_offset())[:, cells]

    tables, interleaved = {}, {}
    if angles is not None:
        tables[0], interleaved[0] = angles[:2], angles[2]
    plan = DecodeState(
        prefix={} if prefix is None else {0: prefix},
        segments={0: KeyValues(found(segments.keys), found(segments.values))},
        segment_mask=torch.arange(longest) < lengths[:, :, None],
        segment_positions=segment_positions[:, :, None] + index,
        rope_offsets=turns,
        rotary=RotaryTables(tables, interleaved),
        slots=own_mask.shape[1],
        fusion=fusion,
    )
    plan.own, plan.own_mask, plan.own_positions = {0: own}, own_mask, own_positions
    plan.at, plan.filled, plan.queries = at, int(at[0]), len(at)
    return plan.attend(0, query, new.keys, new.values, scoring)


@pytest.fixture
def without_a_gpu(monkeypatch):
    monkeypatch.setattr(engine_module, "CapturedStep", StandIn)
    monkeypatch.setattr(engine_module, "FLEX_BUCKET", 32)
    monkeypatch.setattr(torch, "compile", lambda function, **settings: function)
    kernels = SimpleNamespace(fuse=plain_fuse)
    name = "self_ensemble.attention.triton_kernels"
    monkeypatch.setitem(sys.modules, name, kernels)
    monkeypatch.setattr(self_ensemble.attention, "triton_kernels", kernels, raising=False)


@contextmanager
def an_engine(recorded):
    with FlexAttentionWrapper(tiny_model("gemma3"), "flex", compiled=False) as wrapper:
        engine = make_engine(wrapper)
        engine.recording, engine.room = recorded, BufferPool() if recorded else None
        engine.set_prefix(PREFIX)
        yield engine


@pytest.mark.parametrize("kind", STREAMS)
def test_recorded_batches_answer_as_plain_ones(without_a_gpu, kind):
    """Questions that stop at different steps; shapes that come again, in room that has grown.

    Gemma 3 has windows, full layers, and rotary tables of its own for each.
    """
    combine, of = STREAMS[kind]
    streams = [of(question) for question in QUESTIONS]

    def run(recorded, sizes):
        with an_engine(recorded) as engine:
            endless = answer(engine, streams, combine=combine, steps=8)
            stops = {tokens[1 + index % 4] for index, tokens in enumerate(endless)}
            engine.eos_ids = frozenset(stops)
            engine.stop.eos[list(stops)] = True
            found = [
                answer(engine, streams, Fusion(), combine, batch_size=size, steps=8)
                for size in sizes
            ]
            return endless, found, StandIn.replays

    StandIn.replays = 0
    endless, [expected], replays = run(False, [None])
    assert replays == 0
    found, again, replays = run(True, [None, 2, 3, 1, None])
    assert found == endless and again == [expected] * 5
    assert replays > 5


def test_what_memory_ran_out_for_is_not_asked_for_again(without_a_gpu, monkeypatch):
    """Half a batch takes half the room, and what was recorded in the room that was is forgotten."""
    streams = [STREAMS["attention"][1](question) for question in QUESTIONS]
    with an_engine(False) as engine:
        expected = answer(engine, streams, steps=4)
    with an_engine(True) as engine:
        assert answer(engine, streams, steps=4) == expected
        before, taken = engine.room, []
        reserve, encode = BufferPool.reserve, engine._encode_streams

        def small_memory(asked):
            if len(asked) > 2:
                raise torch.OutOfMemoryError("injected")
            return encode(asked)

        def watched(room, name, size, like):
            taken.append((name, size))
            reserve(room, name, size, like)

        monkeypatch.setattr(engine, "_encode_streams", small_memory)
        monkeypatch.setattr(BufferPool, "reserve", watched)
        assert answer(engine, streams, steps=4) == expected
        assert engine.room is not before and engine.counts.out_of_memory > 0
        largest = max(size for name, size in taken if name == (0, "keys"))
        assert largest < before._flat[0, "keys"].numel()


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


def test_sizes_that_batches_begin_with():
    assert [recorded_size(n) for n in (1, 2, 5, 8, 9, 17, 300, 512, 513)] == [
        *(1, 2, 5, 8, 10, 20, 320, 512, 640),
    ]
    assert all(recorded_size(n) >= n for n in range(1, 3000))


def test_batches_of_a_size_come_down_by_the_same_sizes(without_a_gpu):
    with an_engine(True) as engine:
        for size, lowest in ((20, 2), (7, 3), (3, 3)):
            chain = {size}
            for running in range(1, size + 1):
                places = engine._thinned(list(range(running)), size)
                assert places is None or (places[:running], set(places)) == (
                    list(range(running)),
                    set(range(running)),
                )
                left = size if places is None else len(places)
                assert left >= running and (left == lowest or left // 2 < running)
                chain.add(left)
            assert chain == {size >> k for k in range(5) if size >> k >= lowest}
        engine.alone = True
        assert engine._thinned([0], 1) is None


def test_padding_on_a_gpu_is_to_a_block():
    cuda = torch.device("cuda")
    assert [engine_module.bucketed(n, cuda) for n in (1, 128, 129, 71680)] == [128, 128, 256, 71680]


def test_a_prefix_takes_none_of_the_room(without_a_gpu):
    streams = [STREAMS["attention"][1](question) for question in QUESTIONS]
    with an_engine(True) as engine:
        assert engine.room._flat == {}
        expected = answer(engine, streams, steps=4)
        assert engine.room._flat and engine.recorded_steps
        engine.set_prefix(PREFIX)
        assert engine.room._flat == {} == engine.recorded_steps
        assert answer(engine, streams, steps=4) == expected
        engine.release()
        assert engine.room._flat == {} == engine.recorded_steps
        assert answer(engine, streams, steps=4) == expected


def test_decoded_rows_are_counted_with_those_that_fill_a_batch(without_a_gpu):
    streams = [STREAMS["attention"][1](question) for question in (QUESTIONS * 2)[:9]]
    with an_engine(True) as engine:
        answer(engine, streams, steps=4)
        assert engine.counts.decoded_tokens == 4 * 9
        assert engine.counts.decode_rows == 4 * 10


def test_memory_that_runs_out_with_the_prefix_alone(without_a_gpu, monkeypatch):
    with an_engine(True) as engine:

        def fails(*inputs, **settings):
            raise torch.OutOfMemoryError("injected")

        monkeypatch.setattr(engine, "_encode", fails)
        with pytest.raises(UserError, match="out of memory with the 9 tokens that all prompts"):
            engine.set_prefix(PREFIX)
        assert engine.prefix_ids == ()
        assert engine.recording_problem() == "OutOfMemoryError: injected"


def test_a_room_moves_only_to_grow():
    room = BufferPool()
    first = room.keep("keys", torch.arange(6.0).view(2, 3))
    smaller = room.keep("keys", torch.zeros(4))
    assert smaller.data_ptr() == first.data_ptr() and room.version == 1
    room.take("keys", (7,), first)
    assert room.version == 2
