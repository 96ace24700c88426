"""Debugging as pictures and as one page that loads nothing.

The page is HTML without a script; pictures stand in it as data, texts are escaped, and its own
policy forbids everything else.
"""

from __future__ import annotations

import base64
import io
import shutil
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path

from self_ensemble.diagnostics.view import (
    PREFIX,
    PREFIX_TOKENS,
    SEGMENT_MARKS,
    VERBOSE_CELLS,
    Inspection,
    attention_table,
    attention_title,
    best,
    candidate_table,
    choice_line,
    cut_table,
    isolation_lines,
    mask_cells,
    paraphrase_table,
    saving,
    seen,
    segment_mark,
    settings_line,
    shares,
    shortened,
    step_title,
    summary_lines,
    summary_table,
)
from self_ensemble.evaluation.page import STYLE, html_table
from self_ensemble.evaluation.plots import COLOURS
from self_ensemble.system.errors import UserError
from self_ensemble.system.files import missing_folders, sync_folder, temporary_path, write_synced

GREY, DARK, PALE = "#8c8c8c", "#333333", 0.45
PICTURES = {
    "mask": "Which tokens attend to which",
    "attention": "How the attention was shared at each step",
    "candidates": "The most probable tokens at each step",
}
LONGEST_LABEL = 18
# Of the picture of the mask, in inches.
CELL_SIZE, LABEL_ROOM, MARGIN = 0.13, 1.15, 0.25
STEP_COLUMNS, SHOWN_CANDIDATES = 4, 6


def save_pages(folder: Path, inspections: Sequence[Inspection]) -> None:
    """Write ``index.html`` and the pictures as PNG into a new or empty folder, all or nothing.

    Raises:
        UserError: it cannot be written.
    """
    pictures = [draw_pictures(each) for each in inspections]
    files = {"index.html": render_page(inspections, pictures).encode()}
    for number, drawn in enumerate(pictures, start=1):
        files |= {f"question{number}-{name}.png": content for name, content in drawn.items()}
    folder = folder.resolve()
    temporary, above = temporary_path(folder), missing_folders(folder.parent)
    try:
        temporary.mkdir(parents=True)
        for name, content in files.items():
            write_synced(temporary / name, content)
        temporary.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise UserError(f"--save: cannot write {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for made in above:
            with suppress(OSError):  # it was never made, or holds the page
                made.rmdir()


# ---- pictures -----------------------------------------------------------------------------------


def draw_pictures(inspection: Inspection) -> dict[str, bytes]:
    """The pictures of a question as PNG, by name."""
    return {
        "mask": _draw_mask(inspection),
        "attention": _draw_attention(inspection),
        "candidates": _draw_candidates(inspection),
    }


def _figure(width: float, height: float, layout: str | None = "constrained"):
    """A figure of its own, without pyplot: no window, no state. Width and height in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _png(figure) -> bytes:
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

    cells = mask_cells(inspection.words, inspection.prefix, inspection.question, VERBOSE_CELLS)
    mask = inspection.isolation.mask
    shades = {0.0: 0.0, 0.5: PALE, 1.0: 1.0}

    def mix(share: float, mark: str) -> list[float]:
        return [1 - shades[share] * (1 - part) for part in to_rgb(_colour(mark))]

    marks = [cell.mark for cell in cells]
    image = [[mix(*pair) for pair in zip(row, marks, strict=True)] for row in seen(mask, cells)]

    drawing = CELL_SIZE * len(cells)
    size = drawing + LABEL_ROOM + MARGIN
    # Placed by hand: labels are cut to a length, and fitting hundreds of them takes seconds.
    figure = _figure(size, size, layout=None)
    axis = figure.add_axes((LABEL_ROOM / size, LABEL_ROOM / size, drawing / size, drawing / size))
    axis.imshow(image, interpolation="nearest")
    labels = [_label(cell.label) for cell in cells]
    axis.set_xticks(range(len(cells)), labels, rotation=90, fontsize=6)
    axis.set_yticks(range(len(cells)), labels, fontsize=6)
    for ticks in (axis.get_xticklabels(), axis.get_yticklabels()):
        for tick, cell in zip(ticks, cells, strict=True):
            tick.set_color(_colour(cell.mark))
    borders = [i for i in range(1, len(cells)) if cells[i].mark != cells[i - 1].mark]
    for border in borders:
        axis.axhline(border - 0.5, color="#cccccc", linewidth=0.5)
        axis.axvline(border - 0.5, color="#cccccc", linewidth=0.5)
    axis.set_title("Rows attend to columns; pale: to some of these tokens", fontsize=9, loc="left")
    return _png(figure)


def _draw_attention(inspection: Inspection) -> bytes:
    steps = inspection.trace.steps
    count = len(inspection.question.segments)
    paraphrases = [f"paraphrase {inspection.words.paraphrase(i)}" for i in range(count)]
    names = ["prefix", *paraphrases, "own text"]
    colours = [GREY, *(_colour(segment_mark(i)) for i in range(count)), DARK]
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


# ---- the page -----------------------------------------------------------------------------------


def render_page(inspections: Sequence[Inspection], pictures: Sequence[Mapping[str, bytes]]) -> str:
    """The page as HTML: a section a question, its steps to be unfolded."""
    questions = [
        _question(number, inspection, drawn)
        for number, (inspection, drawn) in enumerate(
            zip(inspections, pictures, strict=True), start=1
        )
    ]
    return PAGE.format(style=STYLE + OWN_STYLE, questions="\n".join(questions))


def _question(number: int, inspection: Inspection, pictures: Mapping[str, bytes]) -> str:
    words, trace, record = inspection.words, inspection.trace, inspection.record
    cuts = cut_table(words, inspection.prefix, inspection.question, PREFIX_TOKENS)
    isolation = inspection.isolation
    verdict = "passed" if isolation.passed else "failed"
    images = {
        name: f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,'
        f'{base64.b64encode(pictures[name]).decode()}"><figcaption>{escape(caption)}</figcaption>'
        "</figure>"
        for name, caption in PICTURES.items()
    }
    parts = [
        f"<h2>{number}. {escape(inspection.title)}</h2>",
        _lines([settings_line(inspection.settings), *summary_lines(words, trace, record.answers)]),
        html_table(summary_table(words, trace, record.answers)),
        "<h3>Prompts</h3>",
        html_table(cuts),
        _lines([saving(inspection.prefix, inspection.question)]),
        f'<h3>Isolation</h3><div class="{verdict}">',
        _lines(isolation_lines(words, isolation)),
        "</div>",
        images["mask"],
        _lines(inspection.mask_notes()),
        "<h3>Steps</h3>",
        images["attention"],
        images["candidates"],
        *(_step(inspection, at) for at in range(len(trace.steps))),
    ]
    return "<section>" + "\n".join(parts) + "</section>"


def _step(inspection: Inspection, number: int) -> str:
    words, trace = inspection.words, inspection.trace
    step = trace.steps[number]
    title = f"step {number + 1}, {step_title(words, trace, number, inspection.question.tail)}"
    return "\n".join(
        [
            f"<details{' open' if step.decisive else ''}>",
            f"<summary>{escape(title)}: {escape(choice_line(words, trace, number))}</summary>",
            html_table(candidate_table(words, step, inspection.candidates)),
            html_table(paraphrase_table(words, step)),
            _lines([attention_title(words, trace, number, inspection.question.tail)]),
            html_table(attention_table(words, step, by_layer=True)),
            "</details>",
        ]
    )


def _lines(lines: Sequence[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; base-uri 'none'; \
form-action 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Attention fusion, step by step</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<h1>Attention fusion, step by step</h1>
{questions}
</body>
</html>
"""

OWN_STYLE = """
section { border-top: 2px solid; margin-top: 2rem; }
section p { margin: .2rem 0; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
th, td { text-align: left; }
td { white-space: pre-wrap; }
details { border-top: 1px solid #8888; padding: .5rem 0; }
details .wide { margin: .7rem 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
figcaption { font-size: .85rem; opacity: .7; }
.failed { border-left: .4rem solid #d04a00; padding-left: .8rem; font-weight: 600; }
"""
