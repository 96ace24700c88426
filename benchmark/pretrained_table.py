"""The table of pretrained.py: what every method gets right, and its paired difference to one.

A row is a prompt, a set, a model, N and a method. Percentages are of questions; of `per_prompt`
they are the mean over its paraphrases. Accuracy and difference are by exact match, intervals are of
95%; the p values of McNemar's test are adjusted (Holm) over all the differences of a set. The same
difference by looser matchers says how much of it is format: by the first word, by an answer that
stands anywhere in the prediction, by lemmas.

`result` is the name of the result files, which says the method whatever the defaults are.
`right_of_first` says of each of a set's first questions whether it was answered right, as a
hexadecimal number: what a run of those questions alone can be held against.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from self_ensemble.data.answers import normalize_answer
from self_ensemble.data.result_files import read_manifest
from self_ensemble.evaluation.comparison import adjust_p_values, compare
from self_ensemble.evaluation.matchers import contains_run
from self_ensemble.evaluation.scored import ScoredPredictions, score_predictions
from self_ensemble.evaluation.statistics import bootstrap_interval, wilson_interval
from self_ensemble.system.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIRST = 200  # questions of `right_of_first`, and of --quick
# Matchers beside exact match, by the names of their columns.
LOOSER = {"first_token": "first_token", "contains": "contains", "lemmas": "one_way"}
COLUMNS = (
    *("prompt", "set", "model", "N", "method", "result", "questions"),
    *("exact", "exact_low", "exact_high", *LOOSER),
    *("rows_per_token", "rows_per_question"),
    *("baseline", "difference", "low", "high", "relations_low", "relations_high"),
    *("won", "lost", "mcnemar_p", "holm_p"),
    *(f"{name}_{what}" for name in LOOSER for what in ("difference", "low", "high")),
    "right_of_first",
)
# What tells a table's rows apart.
KEY = ("prompt", "set", "model", "result")


@dataclass(frozen=True)
class Result:
    """A finished job, by what the table calls it. stem: of its files."""

    prompt: str
    set: str
    model: str
    count: int
    method: str
    stem: Path


Row = dict[str, Any]


def make_rows(results: Iterable[Result], baseline: str, *, lemmas: bool = False) -> list[Row]:
    """The table.

    Args:
        results: those of a prompt and set together, and in it those of a model and N.
        baseline: the method that others are compared with; where it is not among a model's and N's
            results, nothing is compared there.
        lemmas: whether lemmas are made of what was generated, which needs spaCy.
    """
    rows: list[Row] = []
    for _, of_set in groupby(results, lambda result: (result.prompt, result.set)):
        found, comparisons = [], []
        for _, group in groupby(of_set, lambda result: (result.model, result.count)):
            for row, comparison in _compared(list(group), baseline, lemmas):
                found.append(row)
                comparisons.append(comparison)
        adjust_p_values(comparisons)
        for row, comparison in zip(found, comparisons, strict=True):
            rows.append(row | _difference(comparison, baseline))
    return rows


def _compared(
    results: Sequence[Result], baseline: str, lemmas: bool
) -> Iterable[tuple[Row, dict[str, Any] | None]]:
    source = "recompute" if lemmas else None
    scored = {
        r: with_contains(score_predictions(f"{r.stem}.feather", lemmas=source)) for r in results
    }
    reference = next((scored[r] for r in results if r.method == baseline), None)
    for result in results:
        is_compared = reference is not None and result.method != baseline
        row, comparison = _row(result, scored[result]), None
        if is_compared:
            comparison = compare(scored[result], reference)
            row |= _looser_differences(scored[result], reference)
        yield row, comparison


def _looser_differences(scored: ScoredPredictions, reference: ScoredPredictions) -> Row:
    found: Row = {}
    for name, match in LOOSER.items():
        if match in scored.matches:
            by_match = (replace(each, match=match) for each in (scored, reference))
            comparison = compare(*by_match)
            low, high = comparison["interval"]
            figures = comparison["difference"], low, high
            names = (f"{name}_{what}" for what in ("difference", "low", "high"))
            found |= dict(zip(names, map(_percent, figures), strict=True))
    return found


def _row(result: Result, scored: ScoredPredictions) -> Row:
    manifest = read_manifest(result.stem)
    assert manifest is not None, result.stem
    fractions = scored.fractions("exact")
    right, count = scored.matches["exact"], len(fractions)
    low, high = bootstrap_interval(fractions)
    if right.shape[1] == 1:
        low, high = wilson_interval(int(right.sum()), count)
    return {
        "prompt": result.prompt,
        "set": result.set,
        "model": result.model,
        "N": result.count,
        "method": result.method,
        "result": result.stem.name,
        "questions": count,
        "exact": _percent(fractions.mean()),
        "exact_low": _percent(low),
        "exact_high": _percent(high),
        **{
            name: _percent(scored.fractions(match).mean())
            for name, match in LOOSER.items()
            if match in scored.matches
        },
        "rows_per_token": round(manifest["decode_rows"] / manifest["decoded_tokens"], 2),
        "rows_per_question": round(manifest["decode_rows"] / count, 2),
        "right_of_first": _as_bits(right[:FIRST].ravel()),
    }


def _difference(comparison: Mapping[str, Any] | None, baseline: str) -> Row:
    if comparison is None:
        return {}
    relations = comparison["relation_bootstrap"] or (None, None)
    low, high = comparison["interval"]
    return {
        "baseline": baseline,
        "difference": _percent(comparison["difference"]),
        "low": _percent(low),
        "high": _percent(high),
        "relations_low": _percent(relations[0]),
        "relations_high": _percent(relations[1]),
        "won": comparison["won"],
        "lost": comparison["lost"],
        "mcnemar_p": _digits(comparison["mcnemar_p"]),
        "holm_p": _digits(comparison["holm_p"]),
    }


def with_contains(scored: ScoredPredictions) -> ScoredPredictions:
    """With the matcher `contains`: an answer's words stand in the prediction without a gap.

    Both are normalised.
    """
    import numpy as np

    found = np.zeros_like(scored.present)
    for q, (group, answers) in enumerate(zip(scored.predictions, scored.answers, strict=True)):
        expected = [normalize_answer(answer).split() for answer in answers]
        for k, prediction in enumerate(group):
            words = normalize_answer(prediction).split()
            found[q, k] = any(contains_run(words, answer) for answer in expected)
    return replace(scored, matches={**scored.matches, "contains": found})


def _as_bits(right: Sequence[bool]) -> str:
    """`[True, False, False, True, True]` -> `5:13`: how many, and they as one number in hex."""
    bits = "".join(str(int(each)) for each in right)
    return f"{len(bits)}:{int(bits, 2):x}"


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else round(100 * float(fraction), 2)


def _digits(p: float | None) -> str | None:
    return None if p is None else f"{p:.2g}"


# ---- as text, CSV and a picture -----------------------------------------------------------------


def render(rows: Sequence[Row]) -> str:
    """A table each set, model and N."""
    blocks = []
    parts = ("prompt", "set", "model", "N")
    for key, group in groupby(rows, lambda row: tuple(row[name] for name in parts)):
        group = list(group)
        header = ["", "exact", "95%", "first", "contains", "lemmas", "rows", "difference", "95%"]
        cells = [[*header, "won:lost", "p", "Holm"], *map(_cells, group)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        lines = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
            for line in cells
        ]
        prompt, of_set, model, count = key
        title = f"{of_set}, {model}, {prompt}, N = {count}: {group[0]['questions']} questions"
        blocks.append("\n".join([title, *lines]))
    return "\n\n".join(blocks)


def _cells(row: Row) -> list[str]:
    def shown(name: str, form: str = ".2f") -> str:
        value = row.get(name)
        return "" if value is None else format(value, form)

    difference, interval, pairs = "", "", ""
    if row.get("difference") is not None:
        difference, interval = shown("difference", "+.2f"), f"{row['low']:+.2f} {row['high']:+.2f}"
    if row.get("won") is not None:
        pairs = f"{row['won']}:{row['lost']}"
    return [
        row["method"],
        shown("exact"),
        f"{row['exact_low']:.2f} {row['exact_high']:.2f}",
        *map(shown, ("first_token", "contains", "lemmas", "rows_per_token")),
        difference,
        interval,
        pairs,
        row.get("mcnemar_p") or "",
        row.get("holm_p") or "",
    ]


def merged(rows: Sequence[Row], table: Iterable[Mapping[str, str]]) -> list[Mapping[str, Any]]:
    """A table with its rows of the same prompts and sets replaced: p values are over a set."""
    made = {(row["prompt"], row["set"]) for row in rows}
    return [*(row for row in table if (row["prompt"], row["set"]) not in made), *rows]


def as_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """As text, in the order of prompts and sets."""
    rows = sorted(rows, key=lambda row: (row["prompt"], row["set"]))
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table that was written, as texts.

    Raises:
        UserError: it is not there, or no such table.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except OSError as error:
        raise UserError(f"cannot read the table {path}: {error.strerror}") from None
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise UserError(f"{path} is not a table that pretrained.py has written")
    return rows


def held_against(rows: Iterable[Row], table: Iterable[Mapping[str, str]]) -> list[str]:
    """A line for each row of a table's first questions: how many have another outcome there."""

    def key(row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(row[name] for name in KEY)

    known = {key(row): row["right_of_first"] for row in table}
    lines = []
    for row in rows:
        what = ", ".join(key(row))
        if key(row) not in known:
            lines.append(f"{what}: not in the table")
            continue
        (count, ours), (there, theirs) = (
            bits.split(":") for bits in (row["right_of_first"], known[key(row)])
        )
        if count != there:
            lines.append(f"{what}: {count} answers, and {there} in the table")
            continue
        other = (int(ours, 16) ^ int(theirs, 16)).bit_count()
        lines.append(f"{what}: {other} of {count} answers differ from the table's in being right")
    return lines


def draw(rows: Sequence[Row], form: str) -> bytes:
    """Exact match over N: a row of panels a set, a panel a model, a curve a method.

    rows: of one prompt.

    form: png, svg or pdf.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sets, models = (list(dict.fromkeys(row[name] for row in rows)) for name in ("set", "model"))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    size = (5.0 * len(models), 3.6 * len(sets) + 0.25 * len(methods))
    with rc_context({"svg.hashsalt": "pretrained", "font.size": 9, "axes.axisbelow": True}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(sets), len(models), squeeze=False)
        for line, name in zip(panels, sets, strict=True):
            for axis, model in zip(line, models, strict=True):
                of_panel = [row for row in rows if (row["set"], row["model"]) == (name, model)]
                _draw_panel(axis, of_panel, methods)
                axis.set_title(f"{model}, {name}")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        buffer = io.BytesIO()
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
        figure.savefig(buffer, format=form, dpi=150, metadata=metadata)
    return buffer.getvalue()


def _draw_panel(axis: "Axes", rows: Sequence[Row], methods: Sequence[str]) -> None:
    from self_ensemble.evaluation.plots import COLOURS, MARKERS

    for number, method in enumerate(methods):
        own = sorted((row for row in rows if row["method"] == method), key=lambda row: row["N"])
        axis.plot(
            [row["N"] for row in own],
            [row["exact"] for row in own],
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number // len(COLOURS) % len(MARKERS)],
            label=method,
        )
    counts = sorted({row["N"] for row in rows})
    axis.set_xscale("log")
    axis.set_xticks(counts, [str(count) for count in counts], minor=False)
    axis.set_xticks([], minor=True)
    axis.set_xlabel("paraphrases")
    axis.set_ylabel("exact match, %")
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
