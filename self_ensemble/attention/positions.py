"""Which position ids a question's tokens get.

Legend: ``N`` segments of a question, ``n_i`` tokens of segment i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from self_ensemble.attention.segments import SplitQuestion

POSITIONS = ("exact", "left", "right", "sequential")


@dataclass(frozen=True)
class PositionIds:
    """The position ids of a question's tokens.

    starts: the position of each segment's first token, [N].
    fused_start: the position of the first fused token.
    rope_offsets: by how many positions a fused token is nearer to segment i and the prefix than
        ``fused_start`` says, [N]; all zero but under ``exact``.
    separators: the position of each separator token; none but in the layout ``concat``.
    """

    starts: tuple[int, ...]
    fused_start: int
    rope_offsets: tuple[int, ...]
    separators: tuple[int, ...] = ()


def default_positions(config: Any, *, rope_offsets: bool) -> str:
    """``exact`` where a text model's positions are rotary and the fusion allows it, else ``left``.

    rope_offsets: whether the fusion can do with queries that differ from partition to partition.
    """
    return "exact" if getattr(config, "rope_parameters", None) and rope_offsets else "left"


def assign_positions(lengths: Sequence[int], prefix_length: int, positions: str) -> PositionIds:
    """Position ids for segments of the given lengths behind a prefix.

    Example, ``lengths=[2, 4]``, ``prefix_length=3``::

        exact        starts 3 3    fused from 7    rope_offsets 2 0
        left         starts 3 3    fused from 7    rope_offsets 0 0
        right        starts 5 3    fused from 7    rope_offsets 0 0
        sequential   starts 3 5    fused from 9    rope_offsets 0 0
    """
    assert positions in POSITIONS, positions
    longest = max(lengths)
    starts = [prefix_length] * len(lengths)
    fused_start = prefix_length + longest
    rope_offsets = [0] * len(lengths)
    if positions == "exact":
        rope_offsets = [longest - n for n in lengths]
    elif positions == "right":
        starts = [prefix_length + longest - n for n in lengths]
    elif positions == "sequential":
        starts = list(accumulate(lengths, initial=prefix_length))[:-1]
        fused_start = prefix_length + sum(lengths)
    return PositionIds(tuple(starts), fused_start, tuple(rope_offsets))


def assign_question_positions(
    question: SplitQuestion, prefix_length: int, positions: str
) -> PositionIds:
    """`assign_positions` for a question that may have separators.

    Under ``sequential`` every token of the layout ``concat`` stands where the joined text has it,
    behind the prefix; otherwise the separators stand between the segments and the fused tokens.
    """
    found = assign_positions(question.lengths, prefix_length, positions)
    count = len(question.separators)
    if count == 0:
        return found
    if positions != "sequential":
        first = found.fused_start
        offset = count if positions == "exact" else 0  # nor do separators make a gap
        return replace(
            found,
            fused_start=first + count,
            rope_offsets=tuple(n + offset for n in found.rope_offsets),
            separators=tuple(range(first, first + count)),
        )
    taken = [prefix_length + index for index, _ in question.separators]
    end = found.fused_start + count
    free = sorted(set(range(prefix_length, end)) - set(taken))
    starts = tuple(free[start - prefix_length] for start in found.starts)
    return PositionIds(starts, end, found.rope_offsets, tuple(taken))
