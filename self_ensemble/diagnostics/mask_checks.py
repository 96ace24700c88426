"""Measured masks against what the method says in words, cell by cell.

Legend: ``K`` segments of a row, ``M`` the longest of them; the tensors of one row's fused tokens,
or of one packed forward, are [rows, keys].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.segments import SplitQuestion
from self_ensemble.diagnostics.items import MASK_ITEMS, Item, checked
from self_ensemble.diagnostics.measured_masks import EncodedForward, FusedForward
from self_ensemble.diagnostics.probes import STEPS
from self_ensemble.generation.streams import Stream
from self_ensemble.system.console import quoted

# How far a share of the attention may be off, as a part of it: rounding of the kernels.
SHARE_TOLERANCE = 0.03
# The fusions whose shares under equal scores are known here.
KNOWN_FUSIONS = ("mean", "joint")


@dataclass(frozen=True)
class Probed:
    """What was asked of the engine in one batch, and the forwards that it ran.

    prefix: token ids. streams: each question's only one. order: the questions as they were packed.
    encoded: the forwards of the prefix where there is one, and of the segments. fused: those of the
        tails, and of a later step.
    """

    prefix: tuple[int, ...]
    split: Sequence[SplitQuestion]
    streams: Sequence[Sequence[Stream]]
    order: Sequence[int]
    encoded: Sequence[EncodedForward]
    fused: Sequence[FusedForward]


def check_masks(tokenizer: Any, probed: Probed, fusion: Fusion) -> Iterator[Item]:
    """An item for each of `MASK_ITEMS`."""
    findings = Findings()

    def text(token: int) -> str:
        return tokenizer.decode([token])

    prefix = [Token("prefix", at, text(token)) for at, token in enumerate(probed.prefix)]
    packed = [
        Token("segment", start + at, text(token), (index, number))
        for index in probed.order
        for number, start in enumerate(probed.streams[index][0].positions.starts)
        for at, token in enumerate(probed.split[index].segments[number])
    ]
    if prefix:
        _check_encoded(findings, probed.encoded[0], [], prefix)
    _check_encoded(findings, probed.encoded[-1], prefix, packed)
    for forward in probed.fused:
        for row, index in enumerate(probed.order):
            layout = FusedLayout.of(probed, forward, prefix, index, text)
            _check_fused(findings, forward, row, layout, fusion)
    yield from _mask_items(findings, len(prefix), fusion)


def _mask_items(findings: Findings, prefix_length: int, fusion: Fusion) -> Iterator[Item]:
    equal = fusion.kind == "mean" and fusion.tau == 0 and fusion.weights is None
    shares = "equal shares" if equal else "the shares that the fusion gives them"
    right = {
        "segments_apart": "every segment attends to nothing of any other, its own question's or "
        "another's",
        "prefix_seen": f"every segment attends to all of the prefix ({prefix_length} tokens)"
        if prefix_length
        else "there is no prefix",
        "causal_order": "every token attends to its own earlier ones, and to none behind it",
        "fused_sees_all": f"every fused token attends to the prefix, all segments in {shares}, "
        "and the fused tokens before it",
        "no_empty_row": f"each of {findings.rows} rows attends to something, none to padding",
    }
    for name in MASK_ITEMS:
        count = findings.counts[name]
        others = f" ({count} such cells in all)" if count > 1 else ""
        reason = findings.first[name] + others if count else right[name]
        yield checked(name, not count, count, reason)


class Findings:
    """What is wrong with the measured masks, by item: how many cells, and the first in words."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(MASK_ITEMS, 0)
        self.first: dict[str, str] = {}
        self.rows = 0

    def add(self, item: str, cells: torch.Tensor, tell: Callable[[int, int], str]) -> None:
        """cells: [rows, keys] bool; tell: (row, key) → a sentence."""
        where = cells.nonzero()
        if len(where):
            self.counts[item] += len(where)
            self.first.setdefault(item, tell(*where[0].tolist()))

    def no_empty(self, highest: torch.Tensor, name: Callable[[int], object]) -> torch.Tensor:
        """Which rows attend to nothing, [rows, 1]; noted. name: row → what it is."""
        self.rows += len(highest)
        empty = ~(highest.sum(1, keepdim=True) > 0.5)  # also where it is NaN
        self.add("no_empty_row", empty, lambda row, _: f"{name(row)} attends to nothing")
        return empty


@dataclass(frozen=True)
class Token:
    """What a row or a column of a measured mask stands for.

    part: ``prefix``, ``segment``, ``fused`` or ``padding``. position: where it stands. text: of the
    token. owner: the segment it is of, as (question, segment), counted from 0.
    """

    part: str
    position: int
    text: str = ""
    owner: tuple[int, int] = (-1, -1)

    def __str__(self) -> str:
        question, segment = self.owner
        place = {
            "prefix": "the prefix",
            "segment": f"segment {segment} of question {question + 1}",
            "fused": "the fused tokens",
        }
        if self.part not in place:
            return "a padding token"
        return f"{quoted(self.text)} of {place[self.part]}"


class Tokens:
    """`Token`s as tensors: whose they are, where they stand, and which belong to a part."""

    def __init__(self, tokens: Sequence[Token]):
        self.tokens = tokens
        self.owner = torch.tensor([_code(token.owner) for token in tokens])
        self.position = torch.tensor([token.position for token in tokens])

    def of(self, part: str) -> torch.Tensor:
        return torch.tensor([token.part == part for token in self.tokens])


def _code(owner: tuple[int, int]) -> int:
    return owner[0] * 10**6 + owner[1]


def _check_encoded(
    findings: Findings, forward: EncodedForward, prefix: Sequence[Token], packed: Sequence[Token]
) -> None:
    """``prefix`` and ``packed``: every column's; padding stands behind them."""
    padding = forward.ids.shape[0] - len(packed)
    rows = [*packed, *(Token("padding", 0, owner=(-2, at)) for at in range(padding))]
    keys = [*prefix, *rows]
    query, key = Tokens(rows), Tokens(keys)
    order = torch.arange(len(rows))[:, None] + len(prefix) >= torch.arange(len(keys))
    same = query.owner[:, None] == key.owner
    shared = torch.arange(len(keys)) < len(prefix)  # padding sees it too, and nobody reads that
    for window, (lowest, highest) in forward.shares.items():
        visible = (same & order) | shared
        if window is not None:
            visible = visible & (query.position[:, None] - key.position < window)
        expected = visible / visible.sum(1, keepdim=True)
        _compare(findings, query, key, window, expected, lowest, highest)


@dataclass(frozen=True)
class FusedLayout:
    """What one row's fused tokens may attend to.

    keys: prefix, the K times M cells of the segments, the slots of fused tokens. first_slot: the
    column of the first of these. padding: slots that pad a shorter tail. index: the question.
    rope_offsets: by how many positions a fused token is nearer to each segment than it stands.
    """

    keys: list[Token]
    first_slot: int
    padding: int
    index: int
    rope_offsets: tuple[int, ...]

    @classmethod
    def of(
        cls,
        probed: Probed,
        forward: FusedForward,
        prefix: Sequence[Token],
        index: int,
        text: Callable[[int], str],
    ) -> FusedLayout:
        [stream] = probed.streams[index]
        positions, segments = stream.positions, probed.split[index].segments
        _, M = forward.state.segment_mask.shape[1:]
        slots = forward.state.own_mask.shape[1]
        padding = slots - STEPS - len(stream.tail)  # on the left of tails, to the longest
        keys = list(prefix)
        for number, start in enumerate(positions.starts):
            for at in range(M):
                real = at < len(segments[number])
                part, shown = ("segment", text(segments[number][at])) if real else ("padding", "")
                keys.append(Token(part, start + at, shown, (index, number)))
        first_slot = len(keys)
        for slot in range(slots):
            at = slot - padding
            part = "fused" if at >= 0 else "padding"
            shown = text(stream.tail[at]) if 0 <= at < len(stream.tail) else "the answer"
            keys.append(Token(part, positions.fused_start + at, shown, (-3, slot)))
        return cls(keys, first_slot, padding, index, positions.rope_offsets)

    def visible(self, rows: Sequence[int], window: int | None) -> list[torch.Tensor]:
        """Of each partition what these slots attend to, bool [rows, keys] each."""
        key, slots = Tokens(self.keys), torch.tensor(rows)
        query = Tokens([self.keys[self.first_slot + slot] for slot in rows])
        columns = torch.arange(len(self.keys)) - self.first_slot
        fused = key.of("fused") & (columns <= slots[:, None])
        distance = query.position[:, None] - key.position
        partitions = []
        for segment, offset in enumerate(self.rope_offsets):
            before = (key.of("prefix") | self.is_of(segment)).expand(len(rows), -1)
            if window is None:
                partitions.append(fused | before)
            else:
                near = fused & (distance < window)
                partitions.append(near | (before & (distance - offset < window)))
        return partitions

    def is_of(self, segment: int) -> torch.Tensor:
        """Which keys are of this segment, bool [keys]."""
        return torch.tensor(
            [key.part == "segment" and key.owner == (self.index, segment) for key in self.keys]
        )


def _check_fused(
    findings: Findings, forward: FusedForward, row: int, layout: FusedLayout, fusion: Fusion
) -> None:
    """One row's fused tokens: what the fusion makes of what each partition attends to."""
    real = [at for at, slot in enumerate(forward.slots) if slot >= layout.padding]
    padding = [at for at, slot in enumerate(forward.slots) if slot < layout.padding]
    slots = [forward.slots[at] for at in real]
    query = Tokens([layout.keys[layout.first_slot + slot] for slot in slots])
    key = Tokens(layout.keys)
    own = [layout.is_of(segment) for segment in range(len(layout.rope_offsets))]
    for window, (lowest, highest) in forward.shares.items():
        expected = fused_shares_of(layout.visible(slots, window), own, fusion)
        low, high = lowest[row][real], highest[row][real]
        _compare(findings, query, key, window, expected, low, high, fusion.kind in KNOWN_FUSIONS)
        # What pads the shorter tails: NaN in its states would spread to all of the row.
        findings.no_empty(highest[row][padding], lambda _: "a padding token among the fused tokens")


def fused_shares_of(
    partitions: Sequence[torch.Tensor], own: Sequence[torch.Tensor], fusion: Fusion
) -> torch.Tensor:
    """The share of each key in a fused token's attention, if all scores are equal: [rows, keys].

    Then the attention mass of a partition is how many keys it has.

    Args:
        partitions: what a fused token sees of each, bool [rows, keys].
        own: which keys are a segment's own, bool [keys].
        fusion: of a kind that is not known here, the shares are those of ``mean``.
    """
    K = len(partitions)
    weights = torch.full((K,), 1 / K) if fusion.weights is None else fusion.weights.float().cpu()
    if fusion.kind == "joint":
        shared = torch.stack([seen & ~mine for seen, mine in zip(partitions, own, strict=True)])
        mass = shared.any(0).float()
        for seen, mine, weight in zip(partitions, own, weights, strict=True):
            mass += K * weight * (seen & mine)
        return mass / mass.sum(1, keepdim=True)
    counts = torch.stack([seen.sum(1, keepdim=True) for seen in partitions])  # [K, rows, 1]
    shares = (weights.log()[:, None, None] + fusion.tau * counts.log()).softmax(0)
    return (shares * torch.stack(list(partitions)) / counts).sum(0)


def _compare(
    findings: Findings,
    query: Tokens,
    key: Tokens,
    window: int | None,
    expected: torch.Tensor,
    lowest: torch.Tensor,
    highest: torch.Tensor,
    shares_known: bool = True,
) -> None:
    """Put every cell that is not as expected under the item it breaks.

    query, key: of the rows and of the keys; the tensors are [rows, keys].
    shares_known: whether more is known than what is seen and what is not.
    """
    rows, keys = query.tokens, key.tokens
    empty = findings.no_empty(highest, lambda q: rows[q])
    # Written so that NaN is what is wrong.
    seen = ~empty & ~(highest <= 0) & (expected == 0)
    hidden = ~empty & ~(lowest > 0) & (expected > 0) & shares_known
    # Where something is seen or hidden that should not be, all shares of the row are off.
    clean = ~empty & ~(seen | hidden).any(1, keepdim=True)
    off = torch.maximum(highest - expected, expected - lowest)
    uneven = clean & ~(off <= SHARE_TOLERANCE * expected) & shares_known

    fused = query.of("fused")[:, None]
    own = (query.owner[:, None] == key.owner) & ~fused
    foreign = key.of("segment") & ~own & ~fused
    prefix, padding = key.of("prefix") & ~own & ~fused, key.of("padding") & ~own
    behind = ~foreign & ~prefix & ~padding & ~(fused & ~key.of("fused"))

    def sees(q: int, kv: int) -> str:
        within = "" if window is None else f", where it sees {window} positions back"
        return f"{rows[q]} attends to {keys[kv]}{within}"

    def misses(q: int, kv: int) -> str:
        return f"{rows[q]} does not attend to {keys[kv]}"

    def unequal(q: int, kv: int) -> str:
        share = highest if highest[q, kv] - expected[q, kv] == off[q, kv] else lowest
        found, wanted = share[q, kv].item(), expected[q, kv].item()
        return f"{rows[q]} gives {keys[kv]} {found:.3g} of its attention, not {wanted:.3g}"

    findings.add("no_empty_row", seen & padding, sees)
    findings.add("no_empty_row", uneven & ~fused, unequal)
    findings.add("segments_apart", seen & foreign, sees)
    findings.add("prefix_seen", hidden & prefix, misses)
    findings.add("prefix_seen", seen & prefix, sees)
    findings.add("causal_order", seen & behind, sees)
    findings.add("causal_order", hidden & own, misses)
    findings.add("fused_sees_all", hidden & fused, misses)
    findings.add("fused_sees_all", seen & fused & ~behind & ~padding, sees)
    findings.add("fused_sees_all", uneven & fused, unequal)
