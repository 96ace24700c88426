"""Rotary positions: a query re-rotated to an earlier position, as the model itself has it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from self_ensemble.attention.patching import FlexAttentionWrapper, MaskedState, not_numbers
from self_ensemble.attention.scoring import Scoring
from self_ensemble.system.errors import UserError


class RotaryTables:
    """The angles that re-rotate a query to an earlier position, from the model's own module.

    tables: layer → (cos, sin), each [max offset + 1, rotated size], of the angles of positions
        0, -1, -2, …; a layer without rotary positions is missing: its queries stay as they are.
    interleaved: layer → whether neighbouring values form the rotated pairs (else the two halves).
    """

    def __init__(
        self,
        tables: dict[int, tuple[torch.Tensor, torch.Tensor]],
        interleaved: dict[int, bool],
    ) -> None:
        self.tables = tables
        self.interleaved = interleaved

    @property
    def furthest(self) -> float:
        """The largest offset that the tables hold."""
        return min((len(cos) - 1 for cos, _ in self.tables.values()), default=math.inf)


def rotate(
    query: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
) -> torch.Tensor:
    """The query by these angles on. cos, sin: [..., rotated size], of a head's first values.

    RoPE (Su et al., 2021); what ``interleaved`` says of pairs, see `RotaryTables`.
    """
    size = cos.shape[-1]
    head, rest = query[..., :size].float(), query[..., size:]
    if interleaved:
        other = torch.stack([-head[..., 1::2], head[..., ::2]], dim=-1).flatten(-2)
    else:
        other = torch.cat([-head[..., size // 2 :], head[..., : size // 2]], dim=-1)
    rotated = (head * cos + other * sin).to(query.dtype)
    rest = rest.expand(*rotated.shape[:-1], -1)
    return torch.cat([rotated, rest], dim=-1)


class _QueryState(MaskedState):
    """Causal attention that keeps every layer's queries."""

    def __init__(self) -> None:
        super().__init__(backend="eager")
        self.queries: dict[int, torch.Tensor] = {}

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scoring: Scoring,
    ) -> torch.Tensor:
        self.queries[layer] = query
        return super().attend(layer, query, key, value, scoring)


@torch.inference_mode()
def read_rotary(
    wrapper: FlexAttentionWrapper, max_offset: int, last_position: int
) -> RotaryTables | None:
    """Read off a patched model how its queries rotate, and prove it on every layer.

    A token alone in its sequence has the same hidden states wherever it stands, so its queries at
    two positions differ by the rotation between them and by nothing else. The rotation is built
    from the cosines and sines that the model hands to its own layers and must take the query at
    ``last_position`` to the one ``max_offset`` positions earlier.

    Args:
        wrapper: around a patched model.
        max_offset: the largest offset that will be asked for, at least 1.
        last_position: the largest position that will be fed.

    Returns:
        A `RotaryTables`, or None where the model's queries cannot be re-rotated (learned
        positions, or a rotation of another kind).

    Raises:
        UserError: the model's values are not numbers.
    """
    wrapper.meet_layers()
    state = _QueryState()
    with wrapper.using(state):
        angles = _forward_with_angles(wrapper, [[last_position], [last_position - max_offset]])
    queries = state.queries
    if not angles:
        return None
    # The first token keeps length-dependent rotations at the scale of the run.
    behind = [last_position, *(-offset for offset in range(max_offset + 1))]
    with wrapper.using(_QueryState()):
        angles = _forward_with_angles(wrapper, [behind])

    if any(query.isnan().any() for query in queries.values()):
        raise UserError(not_numbers(wrapper.model))
    rotary = RotaryTables({}, {})
    for layer, query in queries.items():
        there, wanted = query[0, :, 0], query[1, :, 0]  # [H, D]
        tolerance = 1e-4 if query.dtype == torch.float32 else 2e-2
        close = lambda got: (got - wanted).abs().max() <= tolerance * wanted.abs().max()  # noqa: B023, E731
        if not wanted.any():  # zeros would prove anything
            return None
        if close(there):
            continue
        if layer not in angles:
            return None
        cos, sin = (table[0, 1:].float() for table in angles[layer])
        length = (cos.square() + sin.square()).sqrt()  # some models scale attention through these
        tables = (cos / length, sin / length)
        for interleaved in (False, True):
            if close(rotate(there, tables[0][-1], tables[1][-1], interleaved)):
                rotary.tables[layer], rotary.interleaved[layer] = tables, interleaved
                break
        else:
            return None
    return rotary


def _forward_with_angles(
    wrapper: FlexAttentionWrapper, positions: list[list[int]]
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """One forward of a token at these positions; the (cos, sin) each attention layer was given.

    The token is one whose embedding is not zero, as a padding token's may be.
    """
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, tuple) and len(value) == 2 and torch.is_tensor(value[0]):
                assert isinstance(module.layer_idx, int)
                found[module.layer_idx] = value

    hooks = [
        module.register_forward_pre_hook(keep, with_kwargs=True)
        for module, _ in wrapper.layers.values()
    ]
    try:
        position_ids = torch.tensor(positions, device=wrapper.model.device)
        weight = wrapper.model.get_input_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        some = weight[:64]
        ids = torch.full_like(position_ids, some.norm(dim=1).argmax().item())
        wrapper.model.base_model(input_ids=ids, position_ids=position_ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found
