"""The mask, drawn: which tokens attend to which, a cell for each token or for several of one part.

`mask_cells` says what every cell is and what it sees; `draw_text` here, the pictures of the debug
page and the picture in the docs show what it says.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from self_ensemble.attention.segments import SplitQuestion
from self_ensemble.diagnostics.words import Words, shortened

# The marks of the parts.
PREFIX, TAIL, ANSWER = "P", "T", "A"
SEGMENT_MARKS = string.digits + string.ascii_lowercase
# What the tokens of a row see of those of a column.
ALL, SOME, NONE = 1.0, 0.5, 0.0
SIGNS = {ALL: "#", SOME: "\\", NONE: "."}
# Tokens of a prefix that are drawn one by one, at its ends.
PREFIX_CELLS = 4
# Most rows and columns of the drawing, and characters of a row's label.
CELLS, VERBOSE_CELLS, LABEL_WIDTH = 44, 120, 14


@dataclass(frozen=True)
class Part:
    """Consecutive tokens of the one sequence that holds a question: their mark and their labels.

    most: how many cells they are drawn with, at most.
    """

    mark: str
    labels: tuple[str, ...]
    most: int


@dataclass(frozen=True)
class Cell:
    """A row, and a column, of the drawing: some tokens of one part, under one label."""

    part: int
    mark: str
    label: str
    tokens: range


@dataclass(frozen=True)
class MaskCells:
    """The drawing: its cells, and row by column what each sees, `ALL`, `SOME` or `NONE`."""

    cells: list[Cell]
    seen: list[list[float]]

    @property
    def borders(self) -> list[int]:
        """The cells that begin a part, but the first."""
        parts = [cell.part for cell in self.cells]
        return [i for i in range(1, len(parts)) if parts[i] != parts[i - 1]]


def mask_cells(mask: torch.Tensor, parts: Sequence[Part]) -> MaskCells:
    """A mask in cells.

    Args:
        mask: which token attends to which, [S, S] bool.
        parts: of the S tokens, in order.
    """
    cells: list[Cell] = []
    start = 0
    for number, part in enumerate(parts):
        for own in _cut_middle(range(len(part.labels)), part.most):
            label = part.labels[own[0]] if len(own) == 1 else f"... {len(own)} tokens"
            tokens = range(start + own.start, start + own.stop)
            cells.append(Cell(number, part.mark, label, tokens))
        start += len(part.labels)
    assert mask.shape == (start, start), (mask.shape, start)
    return MaskCells(cells, _seen(mask, cells))


def _cut_middle(tokens: range, most: int) -> list[range]:
    """One range a token; a longer one in the middle where there are more than ``most``."""
    ends = [range(t, t + 1) for t in tokens]
    if len(tokens) <= most:
        return ends
    first, last = most // 2, (most - 1) // 2
    middle = range(tokens[first], tokens[len(tokens) - last - 1] + 1)
    return [*ends[:first], middle, *ends[len(ends) - last :]]


def _seen(mask: torch.Tensor, cells: Sequence[Cell]) -> list[list[float]]:
    own = torch.zeros(len(cells), mask.shape[0], dtype=torch.float64)
    for number, cell in enumerate(cells):
        own[number, cell.tokens.start : cell.tokens.stop] = 1
    pairs = own.sum(1)[:, None] * own.sum(1)[None, :]
    count = own @ mask.double() @ own.T
    return ((count > 0).double() * SOME + (count == pairs).double() * (ALL - SOME)).tolist()


def question_parts(
    words: Words,
    prefix: Sequence[int],
    question: SplitQuestion,
    answer_tokens: int,
    most: int = CELLS,
) -> list[Part]:
    """Prefix, segments, tail and answer of a question, in about ``most`` cells.

    Long segments lose cells in their middle until all fit.
    """
    fixed = min(len(prefix), PREFIX_CELLS) + len(question.tail) + answer_tokens
    longest = max(question.lengths)
    while longest > 1 and fixed + sum(min(n, longest) for n in question.lengths) > most:
        longest -= 1

    def labels(ids: Sequence[int]) -> tuple[str, ...]:
        return tuple(words.token(token) for token in ids)

    answer = tuple(f"answer {number + 1}" for number in range(answer_tokens))
    return [
        Part(PREFIX, labels(prefix), PREFIX_CELLS),
        *(
            Part(segment_mark(words.number(i)), labels(segment), longest)
            for i, segment in enumerate(question.segments)
        ),
        Part(TAIL, labels(question.tail), len(question.tail)),
        Part(ANSWER, answer, answer_tokens),
    ]


def segment_mark(number: int) -> str:
    """Of the segment of a paraphrase with this number."""
    return SEGMENT_MARKS[number % len(SEGMENT_MARKS)]


def draw_text(drawing: MaskCells, width: int = LABEL_WIDTH) -> list[str]:
    """Plain characters, a row a cell; labels are cut to ``width``."""
    lines = [" " * (width + 4) + "".join(cell.mark for cell in drawing.cells)]
    for row, seen in zip(drawing.cells, drawing.seen, strict=True):
        drawn = "".join(SIGNS[each] for each in seen)
        lines.append(f"{row.mark}  {shortened(row.label, width):<{width}} {drawn}")
    return [
        *lines,
        f"{SIGNS[ALL]} attends to   {SIGNS[SOME]} to some of them   {SIGNS[NONE]} does not;   "
        "columns are the tokens of the rows, in the same order",
        f"{PREFIX} prefix   {SEGMENT_MARKS[0]}, {SEGMENT_MARKS[1]}, ... segments   {TAIL} tail   "
        f"{ANSWER} answer: tail and answer are fused tokens",
    ]
