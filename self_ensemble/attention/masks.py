"""Who sees whom: masks as ``mask_mod`` of FlexAttention, and as dense tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

# (batch entry, head, query, key) → whether the query sees the key, all of them index tensors.
MaskMod = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def create_segment_isolation_mask(
    segment_positions: Sequence[tuple[int, int]],
    original_length: int,
    *,
    prefix_length: int = 0,
    device: str | torch.device = "cpu",
) -> MaskMod:
    """A ``mask_mod`` that keeps segments apart and lets every fused token see all of them.

    ``causal & (same segment | kv in prefix | q is fused)``; every token sees itself, so that no
    row is empty. Tokens from ``original_length`` on are fused. Tokens before it that are in no
    segment and not in the prefix are separators: they see themselves (and the prefix), and fused
    tokens see them.

    Example, ``segment_positions=[(1, 3), (4, 6)]``, ``original_length=6``, ``prefix_length=1``::

              kv  p a a | b b f f
        q  p      x
           a      x x
           a      x x x
           |      x     x
           b      x       x
           b      x       x x
           f      x x x x x x x
           f      x x x x x x x x

    Args:
        segment_positions: half-open ``(start, end)`` token ranges, in order, not overlapping.
        original_length: the tokens before the first fused one.
        prefix_length: the tokens every segment sees.
        device: where the mask will be evaluated.

    Returns:
        ``mask_mod(b, h, q_idx, kv_idx) -> bool``, for ``create_block_mask`` or plain indexing.
    """
    assert 0 <= prefix_length <= original_length, (prefix_length, original_length)
    owner = torch.full((max(original_length, 1),), -1, dtype=torch.int32)
    reached = prefix_length
    for index, (start, end) in enumerate(segment_positions):
        assert reached <= start < end <= original_length, (index, start, end, original_length)
        owner[start:end] = index
        reached = end
    owner = owner.to(device)
    last = owner.shape[0] - 1

    def segment_isolation_mask(
        b: torch.Tensor, h: torch.Tensor, q_idx: torch.Tensor, kv_idx: torch.Tensor
    ) -> torch.Tensor:
        q_owner = owner[q_idx.clamp(max=last)]
        kv_owner = owner[kv_idx.clamp(max=last)]
        same_segment = (q_owner == kv_owner) & (q_owner >= 0)
        visible = same_segment | (kv_idx < prefix_length) | (q_idx >= original_length)
        return (q_idx >= kv_idx) & (visible | (q_idx == kv_idx))

    return segment_isolation_mask


def packed_segment_mask(
    segment_ids: torch.Tensor,
    position_ids: torch.Tensor,
    prefix_length: int,
    window: int | None,
) -> MaskMod:
    """A ``mask_mod`` for segments of many questions packed behind each other, prefix in front.

    Queries are the packed tokens, keys are ``prefix + packed tokens``. Within a segment the order
    of the indices is the order of the tokens. A window counts positions, not indices.

    Args:
        segment_ids: whose each packed token is, [T]; each padding token has an id of its own.
        position_ids: the packed tokens' positions, [T].
        prefix_length: P; the prefix stands at positions 0..P-1.
        window: how many positions back a layer sees, itself included; None for all.
    """
    total = segment_ids.shape[0]

    def packed_mask(
        b: torch.Tensor, h: torch.Tensor, q_idx: torch.Tensor, kv_idx: torch.Tensor
    ) -> torch.Tensor:
        own = (kv_idx - prefix_length).clamp(0, total - 1)
        in_prefix = kv_idx < prefix_length
        same_segment = (segment_ids[q_idx] == segment_ids[own]) & (q_idx >= own)
        visible = in_prefix | same_segment
        if window is not None:
            kv_position = torch.where(in_prefix, kv_idx, position_ids[own])
            visible = visible & (position_ids[q_idx] - kv_position < window)
        return visible

    return packed_mask


def dense_mask(
    mask_mod: MaskMod, q_length: int, kv_length: int, device: str | torch.device = "cpu"
) -> torch.Tensor:
    """A ``mask_mod`` written out, [q_length, kv_length] bool."""
    q_idx = torch.arange(q_length, device=device)[:, None]
    kv_idx = torch.arange(kv_length, device=device)[None, :]
    zero = torch.zeros((), dtype=torch.long, device=device)
    return mask_mod(zero, zero, q_idx, kv_idx).expand(q_length, kv_length)


@dataclass(frozen=True)
class Visible:
    """Which keys a fused token sees: bool masks over [J, R, K, G*S, keys]; None for all."""

    prefix: torch.Tensor | None
    segments: torch.Tensor
    fused: torch.Tensor

    def of_rows(self, rows: torch.Tensor | slice, K: int) -> Visible:
        """Of these rows, with their first K partitions."""
        prefix = self.prefix
        if prefix is not None:
            prefix = prefix[:, rows, : K if prefix.shape[2] > 1 else 1]
        return Visible(prefix, self.segments[:, rows, :K], self.fused[:, rows])

    def to(self, device: torch.device) -> Visible:
        prefix = None if self.prefix is None else self.prefix.to(device)
        return Visible(prefix, self.segments.to(device), self.fused.to(device))


def spread_over_group(mask: torch.Tensor, group: int) -> torch.Tensor:
    """[R, K, S, keys] → [R, K, G*S, keys]: the query heads of a kv head see the same."""
    return mask.repeat(1, 1, group, 1) if mask.shape[2] > 1 else mask
