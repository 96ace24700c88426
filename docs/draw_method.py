"""Draw docs/method.svg, the picture of the method: the parts of a question, and its mask.

    python docs/draw_method.py

The tokens on the left are the rows and columns of the mask on the right, which is the one that
`create_segment_isolation_mask` makes of them.
"""

import sys
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).resolve().parent
# As a script, Python looks for modules in this folder and not in the project's.
sys.path.insert(0, str(HERE.parent))

from self_ensemble.attention.masks import create_segment_isolation_mask, dense_mask
from self_ensemble.diagnostics import mask_drawing

PICTURE = HERE / "method.svg"
WIDTH, HEIGHT = 900, 518
INK, FAINT, HIDDEN = "#24292f", "#6e7781", "#eef0f2"


@dataclass(frozen=True)
class Part:
    """A part of the sequence: its name, its tokens, and the colours of its cells and its words."""

    name: str
    tokens: tuple[str, ...]
    colour: str
    tint: str


PREFIX = Part("prefix", ("Answer", "briefly", ".", "Q:"), "#8c959f", "#eaeef2")
SEGMENTS = (
    Part("segment 0", ("Capital", "of", "Peru", "?"), "#e16f4c", "#fdebe5"),
    Part("segment 1", ("Which", "city", "leads", "Peru", "?"), "#2f9e8f", "#def3f0"),
    Part("segment 2", ("Peru", "'s", "capital"), "#e0a526", "#fbf1d9"),
)
TAIL = Part("tail", ("A", ":"), "#8b84d7", "#eeecfb")
GENERATED = Part("generated", ("Li", "ma", "\\n"), "#5a50c0", "#e3e0f8")
PARTS = (PREFIX, *SEGMENTS, TAIL, GENERATED)

LEFT, PANEL = 64, 340  # where the left picture begins, and how wide it is
GRID_X, GRID_Y, CELL, GAP = 508, 84, 16, 3
CHIP = 22


# ---- shapes -------------------------------------------------------------------------------------


def box(x: float, y: float, width: float, height: float, fill: str, *, r=2, line="") -> str:
    stroke = line and f' stroke="{line}"'
    size = f'width="{width:g}" height="{height:g}" rx="{r}"'
    return f'<rect x="{x:g}" y="{y:g}" {size} fill="{fill}"{stroke}/>'


def write(x: float, y: float, text: str, *, size=12, colour=INK, anchor="start", more="") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"'
        f"{more}>{escape(text)}</text>"
    )


BOLD = ' font-weight="600"'


def arrow_up(x: float, y: float, to: float, colour: str) -> str:
    return (
        f'<path d="M{x:g} {y:g}V{to + 5:g}" stroke="{colour}" stroke-width="1.5" fill="none"/>'
        f'<path d="M{x:g} {to:g}l-4 7h8z" fill="{colour}"/>'
    )


def upright(x: float, y: float, text: str) -> str:
    """Text that reads upwards, centred on y."""
    turned = f' transform="rotate(-90 {x:g} {y:g})"'
    return write(x, y, text, colour=FAINT, anchor="middle", more=turned)


# ---- left: the parts ----------------------------------------------------------------------------


def chips(part: Part, x: float, y: float, width: float, step_x: float, step_y: float) -> list[str]:
    """A part's tokens, each in a box of its own."""
    shapes = []
    for token in part.tokens:
        shapes.append(box(x, y, width, CHIP, "white", r=4, line=part.colour))
        shapes.append(write(x + width / 2, y + 15, token, anchor="middle"))
        x, y = x + step_x, y + step_y
    return shapes


def draw_parts() -> list[str]:
    """The prefix above, the segments side by side under it, tail and generated tokens below."""
    top, under, bottom = 60, 166, 378  # of the three storeys
    width, gap = 104, 14  # of a segment
    shapes = [
        box(LEFT, top, PANEL, 62, PREFIX.tint, r=8, line=PREFIX.colour),
        write(LEFT + 14, top + 20, PREFIX.name, more=BOLD),
        write(LEFT + PANEL - 14, top + 20, "once a run", size=11, colour=FAINT, anchor="end"),
        *chips(PREFIX, LEFT + 14, top + 30, 72, 80, 0),
    ]
    for index, part in enumerate(SEGMENTS):
        x = LEFT + index * (width + gap)
        height = 40 + 26 * len(part.tokens)
        shapes += [
            box(x, under, width, height, part.tint, r=8, line=part.colour),
            write(x + 12, under + 20, part.name, more=BOLD),
            *chips(part, x + 12, under + 30, width - 24, 0, 26),
            arrow_up(x + width / 2, under, top + 62, FAINT),
            arrow_up(x + width / 2, bottom, under + height, GENERATED.colour),
        ]
    between = LEFT + width + gap / 2
    shapes += [
        write(
            LEFT + PANEL - width / 2 - 8,
            under - 16,
            "attends to",
            size=11,
            colour=FAINT,
            anchor="end",
        ),
        arrow_up(between, bottom, top + 62, GENERATED.colour),
        box(LEFT, bottom, PANEL, 62, GENERATED.tint, r=8, line=GENERATED.colour),
        write(LEFT + 14, bottom + 20, TAIL.name, more=BOLD),
        *chips(TAIL, LEFT + 14, bottom + 30, 52, 60, 0),
        write(LEFT + 154, bottom + 20, GENERATED.name, more=BOLD),
        write(LEFT + PANEL - 14, bottom + 20, "fused tokens", size=11, colour=FAINT, anchor="end"),
        *chips(GENERATED, LEFT + 154, bottom + 30, 52, 60, 0),
    ]
    for start, end, text in ((top, bottom - 44, "encode"), (bottom, bottom + 62, "decode")):
        shapes.append(f'<path d="M50 {start}h-6v{end - start}h6" stroke="{FAINT}" fill="none"/>')
        shapes.append(upright(36, (start + end) / 2, text))
    return shapes


# ---- right: the mask ----------------------------------------------------------------------------


def real_mask():
    """Over all tokens of the picture, [S, S] bool."""
    ends = list(accumulate(len(part.tokens) for part in PARTS))
    segments = list(pairwise(ends))[: len(SEGMENTS)]
    mask_mod = create_segment_isolation_mask(segments, segments[-1][1], prefix_length=ends[0])
    return dense_mask(mask_mod, ends[-1], ends[-1])


def draw_mask() -> list[str]:
    """Rows attend, columns are attended to; a cell has the colour of what is attended to."""
    parts = [mask_drawing.Part(p.name, p.tokens, most=len(p.tokens)) for p in PARTS]
    drawing = mask_drawing.mask_cells(real_mask(), parts)
    at = [number * CELL + cell.part * GAP for number, cell in enumerate(drawing.cells)]
    shapes = []
    for row, seen in enumerate(drawing.seen):
        for column, cell in enumerate(drawing.cells):
            visible = seen[column] == mask_drawing.ALL
            colour = PARTS[cell.part].colour if visible else HIDDEN
            shapes.append(box(GRID_X + at[column], GRID_Y + at[row], CELL - 1, CELL - 1, colour))
    first = 0
    for part in PARTS:
        middle = at[first] + len(part.tokens) * CELL / 2
        shapes.append(write(GRID_X + middle, GRID_Y - 7, part.name, size=10, anchor="middle"))
        shapes.append(write(GRID_X - 8, GRID_Y + middle + 4, part.name, size=11, anchor="end"))
        first += len(part.tokens)
    right = GRID_X + at[-1] + CELL + 5
    first_fused = len(at) - len(TAIL.tokens) - len(GENERATED.tokens)
    start, end = GRID_Y + at[first_fused], GRID_Y + at[-1] + CELL
    shapes.append(f'<path d="M{right} {start}h6v{end - start}h-6" stroke="{FAINT}" fill="none"/>')
    shapes.append(upright(right + 18, (start + end) / 2, "fused tokens"))
    return shapes


# ---- below: the fusion --------------------------------------------------------------------------


def draw_fusion() -> list[str]:
    """A fused token's attention as the mean over partitions, each drawn as its three parts."""
    y, x = 482, LEFT + 380
    shapes = [
        write(LEFT, y, "A fused token’s attention is the mean over partitions:", size=13),
        write(x - 4, y, "(", size=15, anchor="end"),
    ]
    for number, segment in enumerate(SEGMENTS):
        if number > 0:
            shapes.append(write(x + 14, y, "+", size=15, anchor="middle"))
            x += 28
        label = f"partition {number}"
        shapes.append(write(x + 40, y + 16, label, size=10, colour=FAINT, anchor="middle"))
        for part, width in ((PREFIX, 22), (segment, 32), (TAIL, 10), (GENERATED, 16)):
            shapes.append(box(x, y - 12, width - 1, 15, part.colour))
            x += width
    return [*shapes, write(x + 4, y, f") / {len(SEGMENTS)}", size=15)]


def draw() -> str:
    """The whole picture as the text of an SVG file."""
    shapes = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" font-family="Helvetica, Arial, sans-serif" role="img">',
        f"<title>Attention fusion of {len(SEGMENTS)} paraphrases</title>",
        "<desc>Segments attend to the prefix and themselves, fused tokens to everything.</desc>",
        box(0.5, 0.5, WIDTH - 1, HEIGHT - 1, "#ffffff", r=14, line="#d0d7de"),
        write(LEFT, 36, f"One stream for {len(SEGMENTS)} paraphrases", size=15, more=BOLD),
        write(GRID_X, 36, "Isolation mask", size=15, more=BOLD),
        write(GRID_X + 130, 36, "a row attends to its coloured columns", colour=FAINT),
        *draw_parts(),
        *draw_mask(),
        *draw_fusion(),
        "</svg>",
    ]
    return "\n".join(shapes) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
