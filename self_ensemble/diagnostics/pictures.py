"""One question's mask, attention and candidates as pictures."""

from __future__ import annotations

import io
import warnings
from typing import Any, Literal

from self_ensemble.diagnostics.inspection import Inspection
from self_ensemble.diagnostics.mask_drawing import (
    ALL,
    NONE,
    PREFIX,
    SEGMENT_MARKS,
    SOME,
    VERBOSE_CELLS,
    segment_mark,
)
from self_ensemble.diagnostics.tables import best, shares
from self_ensemble.diagnostics.words import shortened
from self_ensemble.evaluation.plots import COLOURS

GREY, DARK = "#8c8c8c", "#333333"
SHADES = {NONE: 0.0, SOME: 0.45, ALL: 1.0}
# Name → caption.
PICTURES = {
    "mask": "Which tokens attend to which",
    "attention": "How the attention was shared at each step",
    "candidates": "The most probable tokens at each step",
}
LONGEST_LABEL = 18
# Of the picture of the mask, in inches.
CELL_SIZE, LABEL_ROOM, MARGIN = 0.13, 1.15, 0.25
STEP_COLUMNS, SHOWN_CANDIDATES = 4, 6


def draw_pictures(inspection: Inspection) -> dict[str, bytes]:
    """The pictures of a question as PNG, by name."""
    return {
        "mask": _draw_mask(inspection),
        "attention": _draw_attention(inspection),
        "candidates": _draw_candidates(inspection),
    }


def _figure(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> Any:
    """A figure of its own, without pyplot: no window, no state. Width and height in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A script that the font lacks is drawn as boxes; the page has it as text.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def _label(text: str) -> str:
    text = shortened(text, LONGEST_LABEL)
    return text.replace("$", r"\$")  # a dollar sign would begin a formula


def _colour(mark: str) -> str:
    if mark == PREFIX:
        return GREY
    if mark in SEGMENT_MARKS:
        return COLOURS[SEGMENT_MARKS.index(mark) % (len(COLOURS) - 1)]
    return DARK


def _draw_mask(inspection: Inspection) -> bytes:
    from matplotlib.colors import to_rgb

    drawing = inspection.drawing(VERBOSE_CELLS)
    cells = drawing.cells

    def mix(seen: float, mark: str) -> list[float]:
        return [1 - SHADES[seen] * (1 - part) for part in to_rgb(_colour(mark))]

    marks = [cell.mark for cell in cells]
    image = [[mix(*pair) for pair in zip(row, marks, strict=True)] for row in drawing.seen]

    side = CELL_SIZE * len(cells)
    size = side + LABEL_ROOM + MARGIN
    # Placed by hand: labels are cut to a length, and fitting hundreds of them takes seconds.
    figure = _figure(size, size, layout=None)
    axis = figure.add_axes((LABEL_ROOM / size, LABEL_ROOM / size, side / size, side / size))
    axis.imshow(image, interpolation="nearest")
    labels = [_label(cell.label) for cell in cells]
    axis.set_xticks(range(len(cells)), labels, rotation=90, fontsize=6)
    axis.set_yticks(range(len(cells)), labels, fontsize=6)
    for ticks in (axis.get_xticklabels(), axis.get_yticklabels()):
        for tick, cell in zip(ticks, cells, strict=True):
            tick.set_color(_colour(cell.mark))
    for border in drawing.borders:
        axis.axhline(border - 0.5, color="#cccccc", linewidth=0.5)
        axis.axvline(border - 0.5, color="#cccccc", linewidth=0.5)
    axis.set_title("Rows attend to columns; pale: to some of these tokens", fontsize=9, loc="left")
    return _png(figure)


def _draw_attention(inspection: Inspection) -> bytes:
    steps = inspection.trace.steps
    count = len(inspection.question.segments)
    paraphrases = [f"paraphrase {inspection.words.paraphrase(i)}" for i in range(count)]
    names = ["prefix", *paraphrases, "own text"]
    numbers = map(inspection.words.number, range(count))
    colours = [GREY, *(_colour(segment_mark(number)) for number in numbers), DARK]
    figure = _figure(max(5.5, 2.5 + 0.75 * len(steps)), 3.6)
    axis = figure.subplots()
    bottom = [0.0] * len(steps)
    parts = zip(*map(shares, steps), strict=True)
    for name, colour, heights in zip(names, colours, parts, strict=True):
        style = {"color": colour, "edgecolor": "white", "linewidth": 0.5, "label": name}
        axis.bar(range(len(steps)), heights, 0.8, bottom=bottom, **style)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    chosen = [_label(inspection.words.token(step.token)) for step in steps]
    axis.set_xticks(range(len(steps)), chosen, rotation=30, ha="right", fontsize=8)
    axis.set_ylim(0, 1)
    axis.set_ylabel("share of the attention")
    axis.set_xlabel("token that was chosen")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=7, loc="outside right upper", reverse=True)
    return _png(figure)


def _draw_candidates(inspection: Inspection) -> bytes:
    steps = inspection.trace.steps
    columns = min(STEP_COLUMNS, len(steps))
    rows = -(-len(steps) // columns)
    figure = _figure(2.6 * columns + 0.4, 1.9 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(steps) :]:
        axis.set_visible(False)
    for number, (axis, step) in enumerate(zip(axes, steps, strict=False)):
        found = best(step.logits, SHOWN_CANDIDATES)
        colours = [COLOURS[1] if token == step.token else COLOURS[0] for token, _ in found]
        axis.barh(range(len(found)), [probability for _, probability in found], color=colours)
        names = [_label(inspection.words.token(token)) for token, _ in found]
        axis.set_yticks(range(len(found)), names, fontsize=7)
        axis.invert_yaxis()
        axis.set_xlim(0, 1)
        axis.tick_params(axis="x", labelsize=6)
        moved = f"; moved by {inspection.words.paraphrases(step.decisive)}" if step.decisive else ""
        axis.set_title(f"step {number + 1}{moved}", fontsize=8, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    return _png(figure)
