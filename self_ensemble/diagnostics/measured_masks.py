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
from typing import Any

import torch

from self_ensemble.attention.checks import head_shape
from self_ensemble.attention.kv_state import DecodeState, EncodeState
from self_ensemble.attention.scoring import KeyValues, Scoring
from self_ensemble.generation.engine import Engine

# The lowest and the highest share, over the heads, of each query's attention that each key gets
# under equal scores: [queries, keys] both (of fused tokens [R, S, keys]).
Shares = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class EncodedForward:
    """One forward of packed segments, or of a prefix: its state, what it was fed, what came out.

    ids: [T]. hidden: the last hidden states, [T, hidden size]. shares: by the layers' window.
    """

    state: EncodeState
    ids: torch.Tensor
    hidden: torch.Tensor
    shares: dict[int | None, Shares]


@dataclass(frozen=True)
class FusedForward:
    """One forward of fused tokens, the tails or a later step.

    ids: [R, S]. shares: by the layers' window. slots: which ones of each row it filled.
    """

    state: DecodeState
    ids: torch.Tensor
    shares: dict[int | None, Shares]
    slots: range


@dataclass(frozen=True)
class Forwards:
    """What an engine ran, in order."""

    encoded: list[EncodedForward]
    fused: list[FusedForward]

    @property
    def packed(self) -> EncodedForward:
        """That of the segments; a prefix, where one was encoded too, comes before."""
        return self.encoded[-1]


@contextmanager
def watched(engine: Engine) -> Iterator[Forwards]:
    """Every forward that encodes or fuses inside, with the attention that its state gives."""
    forwards = Forwards([], [])
    heads, _, _ = head_shape(engine.config)

    def layers() -> dict[int | None, tuple[int, Scoring]]:
        """Layers of one window share their masks."""
        found = engine.wrapper.layers.items()
        return {scoring.window: (index, scoring) for index, (_, scoring) in found}

    def keep(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        state = engine.wrapper.state
        ids = (kwargs["input_ids"] if "input_ids" in kwargs else args[0]).clone()
        if isinstance(state, EncodeState):
            shares = {
                window: encoded_shares(state, layer, scoring, heads)
                for window, (layer, scoring) in layers().items()
            }
            hidden = output.last_hidden_state[0]
            forwards.encoded.append(EncodedForward(state, ids[0], hidden, shares))
        elif isinstance(state, DecodeState):
            shares = {
                window: fused_shares(state, layer, scoring, heads)
                for window, (layer, scoring) in layers().items()
            }
            slots = range(state.filled, state.filled + state.queries)
            forwards.fused.append(FusedForward(state, ids, shares, slots))

    hook = engine.model.base_model.register_forward_hook(keep, with_kwargs=True)
    try:
        yield forwards
    finally:
        hook.remove()


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


def measured_mask(
    of_prefix: Sequence[EncodedForward],
    packed: EncodedForward,
    fused: Sequence[FusedForward],
    lengths: Sequence[int],
) -> torch.Tensor:
    """The one mask that the forwards of one question had, in any layer and any head.

    Args:
        of_prefix: the forward of the prefix; none where there is none.
        packed: that of the segments.
        fused: those of the fused tokens.
        lengths: of the segments.

    Returns:
        [S, S] bool over prefix, segments and fused tokens: rows attend to columns.
    """
    T, P = sum(lengths), packed.state.prefix_length
    S = P + T + sum(len(each.slots) for each in fused)
    mask = torch.zeros(S, S, dtype=torch.bool)
    for forward in of_prefix:
        mask[:P, :P] = _visible(forward.shares)[:P, :P]  # without a bucket's padding
    mask[P : P + T, : P + T] = _visible(packed.shares)[:T, : P + T]
    K, M = fused[0].state.segment_mask.shape[1:]
    cells = [P + k * M + at for k in range(K) for at in range(lengths[k])]
    own = [P + K * M + slot for slot in range(S - P - T)]
    rows = torch.cat([_visible(each.shares)[0] for each in fused])
    mask[P + T :] = rows[:, [*range(P), *cells, *own]]
    return mask


def _visible(shares: dict[int | None, Shares]) -> torch.Tensor:
    return torch.stack([highest > 0 for _, highest in shares.values()]).any(0)
