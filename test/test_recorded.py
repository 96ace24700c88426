"""The recorded path's bookkeeping without a GPU: packed rows, one room for all plans, replays.

A recording is stood in for by a forward under the very plan that it was made under, so that a
replay sees what later plans wrote only if they wrote it to the same addresses. What needs a GPU,
kernels, compilation and graphs, is in test_gpu.py.
"""

import sys
from types import SimpleNamespace

import pytest
import torch
from test_fusion import PREFIX, QUESTIONS, answer, make_engine
from tiny import tiny_model

import attention
import engine as engine_module
from attention import FlexAttentionWrapper, Fusion, Room
from engine import attention_streams, logit_streams, only_stream, recorded_size
from reductions import average_logits


class StandIn:
    replays = 0

    def __init__(self, engine, plan, ids, positions):
        self.engine, self.plan = engine, plan
        self.segments, self.own = dict(plan.segments), dict(plan.own)
        self.mask, self.at = plan.own_mask, plan.at

    def __call__(self, ids, positions):
        StandIn.replays += 1
        now, then = self.engine.wrapper.plan, self.plan
        assert now.shape == then.shape and now.at.data_ptr() == self.at.data_ptr()
        then.segments, then.own, then.own_mask, then.at = (
            *(self.segments, self.own),
            *(self.mask, self.at),
        )
        then.queries = 1
        then._masks.clear()
        with self.engine.wrapper.planned(then):
            then.mark(positions, torch.ones_like(positions, dtype=torch.bool))
            return self.engine.forward(ids, positions)


@pytest.fixture
def without_a_gpu(monkeypatch):
    monkeypatch.setattr(engine_module, "RecordedStep", StandIn)
    monkeypatch.setattr(attention, "compile_with_room", lambda function, **settings: function)
    monkeypatch.setattr(attention, "compiled_split_attention", lambda: attention.split_attention)
    never = SimpleNamespace(can_fuse=lambda *args: False)
    monkeypatch.setitem(sys.modules, "gpu_kernels", never)


@pytest.mark.parametrize("streams_of", ["attention", "logits"])
def test_recorded_batches_answer_as_plain_ones(without_a_gpu, streams_of):
    """Questions that stop at different steps; shapes that come again, in room that has grown."""
    model = tiny_model("gemma3")  # windows, whose masks are built anew at each step
    if streams_of == "attention":
        combine, streams = only_stream, [attention_streams(q, 9, "exact") for q in QUESTIONS]
    else:
        combine, streams = average_logits, [logit_streams(q, 9) for q in QUESTIONS]

    def run(recorded, sizes):
        with FlexAttentionWrapper(model, "eager") as wrapper:
            engine = make_engine(wrapper)
            engine.recording, engine.room = recorded, Room() if recorded else None
            engine.set_prefix(PREFIX)
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


def test_sizes_that_steps_are_recorded_for():
    assert [recorded_size(n) for n in (1, 2, 5, 8, 9, 17, 300, 512, 513)] == [
        *(1, 2, 5, 8, 10, 20, 320, 512, 640),
    ]
    assert all(recorded_size(n) >= n for n in range(1, 3000))


def test_a_room_moves_only_to_grow():
    room = Room()
    first = room.keep("keys", torch.arange(6.0).view(2, 3))
    smaller = room.keep("keys", torch.zeros(4))
    assert smaller.data_ptr() == first.data_ptr() and room.version == 1
    room.take("keys", (7,), first)
    assert room.version == 2
