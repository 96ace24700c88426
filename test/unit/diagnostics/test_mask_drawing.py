"""The drawing of the mask: cells stand for tokens, and say what these see."""

from itertools import accumulate, pairwise

import pytest
import torch

from self_ensemble.attention.masks import create_segment_isolation_mask, dense_mask
from self_ensemble.diagnostics.mask_drawing import (
    ALL,
    CELLS,
    NONE,
    SOME,
    Part,
    draw_text,
    mask_cells,
)

PREFIX = Part("P", ("p",), most=4)
LABELS = "abcdefgh"


def parts_of(*lengths, most):
    segments = [Part(str(i), tuple(LABELS[:n]), most) for i, n in enumerate(lengths)]
    return [PREFIX, *segments, Part("T", ("t", "u"), most=2)]


def mask_of(*lengths):
    ends = list(accumulate(lengths, initial=1))
    ranges = list(pairwise(ends))
    mask_mod = create_segment_isolation_mask(ranges, ends[-1], prefix_length=1)
    return dense_mask(mask_mod, ends[-1] + 2, ends[-1] + 2)


def test_a_mask_of_a_token_a_cell():
    drawn = draw_text(mask_cells(mask_of(2, 3), parts_of(2, 3, most=9)), width=1)
    assert drawn[:9] == [
        "     P00111TT",
        "P  p #.......",
        "0  a ##......",
        "0  b ###.....",
        "1  a #..#....",
        "1  b #..##...",
        "1  c #..###..",
        "T  t #######.",
        "T  u ########",
    ]


def test_the_middle_of_a_long_part_is_one_cell():
    drawing = mask_cells(mask_of(6, 2), parts_of(6, 2, most=3))
    assert [cell.label for cell in drawing.cells] == [*"pa", "... 4 tokens", *"fabtu"]
    assert [list(cell.tokens) for cell in drawing.cells][1:4] == [[1], [2, 3, 4, 5], [6]]
    middle = drawing.seen[2]
    assert middle[:4] == [ALL, ALL, SOME, NONE]  # of itself each token sees the earlier ones
    assert drawing.borders == [1, 4, 6]


@pytest.mark.parametrize("most, seen", [(9, ALL), (3, SOME)])
def test_a_leak_is_drawn(most, seen):
    mask, parts = mask_of(6, 2), parts_of(6, 2, most=most)
    before = mask_cells(mask, parts).seen
    mask[8, 3] = True  # the last token of segment 1 sees the third of segment 0
    drawing = mask_cells(mask, parts)
    changed = [
        (row, column)
        for row, cells in enumerate(drawing.seen)
        for column, cell in enumerate(cells)
        if cell != before[row][column]
    ]
    [(row, column)] = changed
    assert drawing.seen[row][column] == seen
    assert 8 in drawing.cells[row].tokens and 3 in drawing.cells[column].tokens


def test_a_mask_of_another_size_is_a_fault_of_the_program():
    with pytest.raises(AssertionError):
        mask_cells(torch.zeros(4, 4, dtype=torch.bool), parts_of(2, 3, most=CELLS))
