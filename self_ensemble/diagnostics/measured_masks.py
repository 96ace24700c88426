"""Masks as the kernel that runs has them: not read, but measured.

With all queries and keys zero, attention is the plain mean of the values it may see, and with a
one for each key in turn as the values its output says which keys those are: the same state, mask
and kernel answer that the model has just run with.

Legend: ``P`` prefix tokens, ``T`` packed tokens, ``R`` rows, ``K`` segments of a row, ``M`` the
longest of them, ``S`` fused tokens of a forward, ``H`` query heads, ``J`` key/value heads, ``D``
head size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from self_ensemble.attention.checks import head_shape
from self_ensemble.attention.kv_state import DecodeState, EncodeState
from self_ensemble.attention.scoring import KeyValues, Scoring
from self_ensemble.generation.legacy import Engine

# The lowest and the highest share, over the heads, of each query's attention that each key gets
# under equal scores: [queries, keys] both (of fused tokens [R, S, keys]).
Shares = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Forward:
    """One forward of the engine: its state, what it was fed, and what came out.

    ids: [rows, tokens]. hidden: the last hidden states, [rows, tokens, hidden size].
    shares: by the layers' window.
    slots: of fused tokens, which slots this forward filled.
    """

    state: EncodeState | DecodeState
    ids: torch.Tensor
    hidden: torch.Tensor
    shares: dict[int | None, Shares]
    slots: range


@contextmanager
def watched(engine: Engine) -> Iterator[list[Forward]]:
    """Every forward that encodes or fuses inside, with the attention that its state gives."""
    forwards: list[Forward] = []

    def keep(module, args, kwargs, output) -> None:
        state = engine.wrapper.state
        if isinstance(state, EncodeState | DecodeState):
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            forwards.append(_measured(engine, state, ids.clone(), output.last_hidden_state))

    hook = engine.model.base_model.register_forward_hook(keep, with_kwargs=True)
    try:
        yield forwards
    finally:
        hook.remove()


def _measured(engine: Engine, state: EncodeState | DecodeState, ids, hidden) -> Forward:
    # Layers of one window share their masks.
    layers = {
        scoring.window: (index, scoring) for index, (_, scoring) in engine.wrapper.layers.items()
    }
    heads, _, _ = head_shape(engine.config)
    fuses = isinstance(state, DecodeState)
    measure = fused_shares if fuses else encoded_shares
    shares = {
        window: measure(state, layer, scoring, heads) for window, (layer, scoring) in layers.items()
    }
    slots = range(state.filled, state.filled + state.queries) if fuses else range(0)
    return Forward(state, ids, hidden, shares, slots)


def encoded_shares(state: EncodeState, layer: int, scoring: Scoring, heads: int) -> Shares:
    """What each packed token attends to in a state that has run: [T, P + T].

    Columns are the prefix's tokens, then the packed ones.
    """
    own = state.layers[layer]
    J, T, D = own.keys.shape
    P, width = state.prefix_length, own.values.shape[-1]
    look = copy.copy(state)
    look.layers = {}
    query = own.keys.new_zeros(1, T, heads, D).transpose(1, 2)
    key = own.keys.new_zeros(1, T, J, D).transpose(1, 2)
    columns = []
    for ones in _ones(own.values, P + T, width):
        if P:
            zero = torch.zeros_like(state.prefix[layer].keys)
            look.prefix = {layer: KeyValues(zero, ones[:P].expand(J, P, width))}
        # Laid out as the model's own: kernels are compiled for a layout.
        value = ones[P:, None].expand(T, J, width).contiguous().transpose(0, 1)[None]
        columns.append(look.attend(layer, query, key, value, scoring)[0].float())  # [H, T, width]
    return _over_heads(torch.cat(columns, dim=-1), P + T, dim=0)


def fused_shares(state: DecodeState, layer: int, scoring: Scoring, heads: int) -> Shares:
    """What each fused token of the state's last forward attends to: [R, S, keys].

    Columns are the prefix's tokens, the K times M cells of the segments, then the slots of fused
    tokens.
    """
    segments, own = state.segments[layer], state.own[layer]
    J, R, K, M, D = segments.keys.shape
    P, slots, width = state.prefix_length, own.keys.shape[2], own.values.shape[-1]
    S = state.queries
    look = copy.copy(state)
    query = own.keys.new_zeros(R, S, heads, D).transpose(1, 2)
    key = own.keys.new_zeros(R, S, J, D).transpose(1, 2)
    columns = []
    for ones in _ones(own.values, P + K * M + slots, width):
        of_prefix, of_segments, of_own = ones.split([P, K * M, slots])
        if P:
            zero = torch.zeros_like(state.prefix[layer].keys)
            look.prefix = {layer: KeyValues(zero, of_prefix.expand(J, P, width))}
        look.segments = {
            layer: KeyValues(
                torch.zeros_like(segments.keys),
                of_segments.view(K, M, width).expand(J, R, K, M, width),
            )
        }
        values = of_own.expand(J, R, slots, width)
        look.own = {layer: KeyValues(torch.zeros_like(own.keys), values.clone())}
        value = values[:, :, state.at].transpose(0, 1)
        columns.append(look.attend(layer, query, key, value, scoring).float())  # [R, H, S, width]
    return _over_heads(torch.cat(columns, dim=-1), P + K * M + slots, dim=1)


def _ones(like: torch.Tensor, keys: int, width: int) -> Iterator[torch.Tensor]:
    """Values that tell keys apart, as many at a time as a value is wide: [keys, width] each."""
    for start in range(0, keys, width):
        ones = like.new_zeros(keys, width)
        count = min(width, keys - start)
        ones[start : start + count, :count] = torch.eye(count, dtype=like.dtype, device=like.device)
        yield ones


def _over_heads(shares: torch.Tensor, keys: int, dim: int) -> Shares:
    shares = shares[..., :keys].cpu()
    return shares.amin(dim), shares.amax(dim)


def measured_mask(forwards: Sequence[Forward], P: int, lengths: Sequence[int]) -> torch.Tensor:
    """The one mask that the forwards of one question had, in any layer and any head.

    Args:
        forwards: of the prefix where there is one, of the segments, and of the fused tokens.
        P: tokens of the prefix.
        lengths: of the segments.

    Returns:
        [S, S] bool over prefix, segments and fused tokens: rows attend to columns.
    """
    fused = [forward for forward in forwards if isinstance(forward.state, DecodeState)]
    *of_prefix, packed = forwards[: len(forwards) - len(fused)]
    T = sum(lengths)
    S = P + T + sum(len(forward.slots) for forward in fused)
    mask = torch.zeros(S, S, dtype=torch.bool)
    if P:
        mask[:P, :P] = _visible(of_prefix[0])[:P, :P]  # without a bucket's padding
    mask[P : P + T, : P + T] = _visible(packed)[:T, : P + T]
    K, M = fused[0].state.segment_mask.shape[1:]
    cells = [P + k * M + at for k in range(K) for at in range(lengths[k])]
    own = [P + K * M + slot for slot in range(S - P - T)]
    rows = torch.cat([_visible(forward)[0] for forward in fused])
    mask[P + T :] = rows[:, [*range(P), *cells, *own]]
    return mask


def _visible(forward: Forward) -> torch.Tensor:
    return torch.stack([highest > 0 for _, highest in forward.shares.values()]).any(0)
