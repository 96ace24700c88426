"""Debugging as one page that loads nothing, with its pictures.

The page is HTML without a script; pictures stand in it as data, texts are escaped, and its own
policy forbids everything else.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from html import escape
from importlib.util import find_spec
from pathlib import Path

from self_ensemble.diagnostics.inspection import Inspection
from self_ensemble.diagnostics.pictures import PICTURES, draw_pictures
from self_ensemble.diagnostics.tables import (
    PREFIX_TOKENS,
    attention_table,
    attention_title,
    candidate_table,
    choice_line,
    isolation_lines,
    paraphrase_table,
    saving,
    settings_line,
    split_table,
    step_title,
    summary_lines,
    summary_table,
)
from self_ensemble.system.errors import UserError
from self_ensemble.system.files import (
    missing_folders,
    nearest_existing,
    sync_folder,
    temporary_path,
    write_synced,
)
from self_ensemble.system.html import html_page, html_picture, html_table


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


def check_folder(folder: Path) -> None:
    """Whether the page could be drawn and written there, told before anything is computed.

    Raises:
        UserError: it could not, or would overwrite what is there.
    """
    folder = folder.resolve()
    if find_spec("matplotlib") is None:
        raise UserError(
            "--save: the pictures are drawn by matplotlib, which is not installed: pip install "
            "matplotlib, or leave --save out"
        )
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"--save: {folder} is there already; name a new or an empty folder")
    # Nothing is made above it yet: the run may fail, or be quit.
    above = nearest_existing(folder.parent)
    trial = temporary_path(above / folder.name)
    try:
        trial.mkdir()
        trial.rmdir()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--save: cannot write to {above}: {reason}") from None


def render_page(inspections: Sequence[Inspection], pictures: Sequence[Mapping[str, bytes]]) -> str:
    """The page as HTML: a section a question, its steps to be unfolded."""
    questions = [
        _question(number, inspection, drawn)
        for number, (inspection, drawn) in enumerate(
            zip(inspections, pictures, strict=True), start=1
        )
    ]
    return html_page("Attention fusion, step by step", "\n".join(questions), style=STYLE)


def _question(number: int, inspection: Inspection, pictures: Mapping[str, bytes]) -> str:
    words, trace, record = inspection.words, inspection.trace, inspection.record
    parts = split_table(words, inspection.prefix, inspection.question, PREFIX_TOKENS)
    isolation = inspection.isolation
    verdict = "passed" if isolation.passed else "failed"
    images = {
        name: f"<figure>{html_picture(pictures[name], 'png', caption)}"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for name, caption in PICTURES.items()
    }
    shown = [
        f"<h2>{number}. {escape(inspection.title)}</h2>",
        _lines([settings_line(inspection.method), *summary_lines(words, trace, record.answers)]),
        html_table(summary_table(words, trace, record.answers)),
        "<h3>Prompts</h3>",
        html_table(parts),
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
    return "<section>" + "\n".join(shown) + "</section>"


def _step(inspection: Inspection, number: int) -> str:
    words, trace = inspection.words, inspection.trace
    step = trace.steps[number]
    title = f"step {number + 1}, {step_title(words, trace, number, inspection.question.tail)}"
    return "\n".join(
        [
            f"<details{' open' if step.decisive else ''}>",
            f"<summary>{escape(title)}: {escape(choice_line(words, trace, number))}</summary>",
            html_table(candidate_table(words, step, inspection.candidates)),
            html_table(paraphrase_table(words, step, inspection.trace.weights)),
            _lines([attention_title(words, trace, number, inspection.question.tail)]),
            html_table(attention_table(words, step, by_layer=True)),
            "</details>",
        ]
    )


def _lines(lines: Sequence[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


STYLE = """
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
