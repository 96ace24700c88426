"""Rows that take the places of others in a state of fused tokens."""

import torch

from self_ensemble.attention.buffers import BufferPool
from self_ensemble.attention.cuda_graphs import CapturedDecodeState
from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.kv_state import DecodeState
from self_ensemble.attention.scoring import KeyValues


def state_of(rows, tokens, value):
    """One layer, head and number a token; all fused tokens have this value."""
    cells = torch.zeros(1, rows, 1, 2, 1)
    state = DecodeState(
        segments={0: KeyValues(cells, cells)},
        segment_mask=torch.ones(rows, 1, 2, dtype=torch.bool),
        segment_positions=torch.zeros(rows, 1, 2, dtype=torch.long),
        prefix={},
        rope_offsets=None,
        rotary=None,
        slots=8,
        fusion=Fusion(),
    )
    own = torch.full((1, rows, tokens, 1), value)
    positions = torch.arange(tokens).expand(rows, -1)
    state.put({0: KeyValues(own, own)}, positions, torch.ones_like(positions, dtype=torch.bool))
    return state


def test_nothing_of_a_row_that_left_reaches_the_one_in_its_place():
    """0 times infinity is no number: what the mask hides must be finite."""
    state = state_of(rows=2, tokens=5, value=torch.inf)
    state.leave([0])
    state.put_rows([0], state_of(rows=1, tokens=2, value=3.0))
    assert state.own[0].values[0, 0, :5, 0].tolist() == [0, 0, 0, 3, 3]
    assert state.own_mask[0, :5].tolist() == [False, False, False, True, True]
    assert state.own[0].values[0, 1, :5].isinf().all()


def test_slots_in_front_are_finite():
    """Rows whose tails are longer than all that the others have come to: slots are put in front."""
    state = state_of(rows=2, tokens=2, value=1.0)
    for kv in state.own.values():
        kv.values[:, :, 2:] = torch.nan  # as memory that nobody wrote may hold
    take = state.buffers.take
    state.buffers.take = lambda *given: take(*given).fill_(1)
    state.leave([0])
    state.put_rows([0], state_of(rows=1, tokens=5, value=3.0))
    assert state.own[0].values[0, 1, :5, 0].tolist() == [0, 0, 0, 1, 1]
    assert state.own_mask[1, :5].tolist() == [False, False, False, True, True]


def test_weights_of_captured_rows_follow_them():
    """Rows with unlike numbers of partitions, of which some leave, and a place is taken."""

    def captured(counts):
        tokens = torch.zeros(1, 12, 1)
        rows = len(counts)
        return CapturedDecodeState(
            segments={0: KeyValues(tokens, tokens)},
            starts=torch.zeros(rows, 2, dtype=torch.long),
            lengths=torch.tensor([[2, 2 if count == 2 else 0] for count in counts]),
            segment_positions=torch.zeros(rows, 2, dtype=torch.long),
            counts=counts,
            longest=2,
            room=4,
            prefix={},
            rope_offsets=None,
            rotary=None,
            slots=4,
            fusion=Fusion(),
            buffers=BufferPool(),
        )

    def weights(state):
        return state.log_weights.exp2().tolist()

    state = captured([1, 2, 1])
    assert weights(state) == [[1, 0], [0.5, 0.5], [1, 0]]
    state.expect_rows()
    state.leave([0])
    state.put_rows([0], captured([2]))
    assert weights(state) == [[0.5, 0.5], [0.5, 0.5], [1, 0]]
    state.keep_rows(torch.tensor([2, 0]))
    assert weights(state) == [[1, 0], [0.5, 0.5]]
    assert state.lengths.tolist() == [[2, 0], [2, 2]]
