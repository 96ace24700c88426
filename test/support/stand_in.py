"""The captured path without a GPU: a stand-in for CUDA graphs, and for the kernels plain math.

A CUDA graph is stood in for by a forward under the very state that it was captured under, so that a
replay sees what later states wrote only if they wrote it to the same addresses.
"""

import copy
import sys
from dataclasses import replace
from types import SimpleNamespace

import torch

from self_ensemble.attention.kv_state import DecodeState
from self_ensemble.attention.rotary import RotaryTables
from self_ensemble.attention.scoring import KeyValues

LAUNCH = "self_ensemble.attention.kernels.launch"


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
    tensors += [plan.log_weights]
    tensors += [plan.segment_positions, *([] if plan.rope_offsets is None else [plan.rope_offsets])]
    return [(tensor.data_ptr(), tensor.stride()) for tensor in tensors]


def weights_of(log_weights, lengths, kind):
    """The number of each row's partitions, and their weights, [R, K].

    As a kernel finds them, whatever those of the state that was captured under.
    """
    counts = (lengths > 0).sum(1)
    weights = log_weights.exp2() / (counts[:, None] if kind == "joint" else 1)
    return counts.tolist(), weights


def plain_fuse(
    query, prefix, segments, starts, lengths, longest, segment_positions,
    own, own_mask, own_positions, new, at, rope_offsets, angles, scoring, fusion, log_weights,
):  # fmt: skip
    """What `kernels.launch.fuse` promises, by the plain state."""
    assert lengths.max() <= longest
    index = torch.minimum(torch.arange(longest), (lengths[:, :, None] - 1).clamp(min=0))
    cells = starts[:, :, None] + index

    def found(packed):  # by address, as the kernel finds them: a later batch may have more tokens
        J, _, D = packed.shape
        reaching = (J, int(cells.max()) + 1, D)
        return packed.as_strided(reaching, packed.stride(), packed.storage_offset())[:, cells]

    tables, interleaved = {}, {}
    if angles is not None:
        tables[0], interleaved[0] = angles[:2], angles[2]
    counts, weights = weights_of(log_weights, lengths, fusion.kind)
    plan = DecodeState(
        prefix={} if prefix is None else {0: prefix},
        segments={0: KeyValues(found(segments.keys), found(segments.values))},
        segment_mask=torch.arange(longest) < lengths[:, :, None],
        segment_positions=segment_positions[:, :, None] + index,
        rope_offsets=rope_offsets,
        rotary=RotaryTables(tables, interleaved),
        slots=own_mask.shape[1],
        fusion=replace(fusion, weights=None),
        counts=counts,
        weights=weights,
    )
    plan.own, plan.own_mask, plan.own_positions = {0: own}, own_mask, own_positions
    plan.at, plan.filled, plan.queries = at, int(at[0]), len(at)
    return plan.attend(0, query, new.keys, new.values, scoring)


def stand_in(monkeypatch):
    """From here on."""
    monkeypatch.setattr("self_ensemble.generation.captured.CapturedStep", StandIn)
    monkeypatch.setattr("self_ensemble.generation.batching.FLEX_BUCKET", 32)
    monkeypatch.setattr(torch, "compile", lambda function, **settings: function)
    monkeypatch.setitem(sys.modules, LAUNCH, SimpleNamespace(fuse=plain_fuse))
