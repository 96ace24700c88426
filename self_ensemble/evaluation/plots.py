"""Pictures of a report on scores: accuracy, over the number of paraphrases, spread, reliability.

Drawn on a figure of its own, without pyplot: no window, no state that another plot could figures.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from self_ensemble.data.choices import NORMS
from self_ensemble.evaluation.tables import labels
from self_ensemble.system.errors import UserError

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.axes import Axes

FORMATS = ("png", "svg", "pdf")
WIDTH = 8.0  # inches
LINE_HEIGHT = 0.32  # inches a method
# Okabe and Ito: told apart with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"
LONGEST_LABEL = 48


def picture_format(path: str) -> str:
    """png, svg or pdf, by the suffix.

    Raises:
        UserError: another suffix.
    """
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise UserError(f"--plot {path}: its suffix is none of .{', .'.join(FORMATS)}")
    return suffix


def draw(report: Mapping[str, Any], form: str) -> bytes:
    """The pictures that the report has figures for, above each other in one file."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    files = report["files"]
    names = {path: _shortened(label) for path, label in _names(report).items()}
    spread = [file for file in files if file["per_prompt"] and file["paraphrases"] > 1]
    curves = _curves(files, names)
    panels: list[tuple[Callable[..., None], float, tuple[Any, ...]]] = [
        (_draw_accuracy, 1.1 + LINE_HEIGHT * len(files), (report, names))
    ]
    if curves:
        panels.append((_draw_curves, 3.4 + 0.1 * len(curves), (curves,)))
    chosen = [file for file in files if "choices" in file]
    if spread:
        panels.append((_draw_spread, 1.4 + 0.4 * len(spread), (spread, names)))
    if chosen:
        panels.append((_draw_reliability, 4.2 + 0.1 * len(chosen), (chosen, names)))
    heights = [height for _, height, _ in panels]
    # A fixed salt and no date: the same scores give the same picture, to the last digits of what
    # the layout's solver finds.
    with rc_context({"svg.hashsalt": "scores", "font.size": 9, "axes.axisbelow": True}):
        figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        FigureCanvasAgg(figure)
        # Each with margins of its own: long names of one panel do not narrow the others.
        parts = figure.subfigures(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, (draw_panel, _, figures) in zip(parts, panels, strict=True):
            axis = part.subplots()
            draw_panel(axis, *figures)
            axis.grid(color="#dddddd", linewidth=0.6)
            axis.spines[["top", "right"]].set_visible(False)
        buffer = io.BytesIO()
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
        figure.savefig(buffer, format=form, dpi=150, metadata=metadata)
    return buffer.getvalue()


def _names(report: Mapping[str, Any]) -> dict[str, str]:
    baseline = [report["baseline"]] if report["baseline"] else []
    return labels([file["file"] for file in [*report["files"], *baseline]])


def _shortened(label: str) -> str:
    # A dollar sign would begin a formula.
    label = label if len(label) <= LONGEST_LABEL else "..." + label[3 - LONGEST_LABEL :]
    return label.replace("$", r"\$")


def _number_of_questions(
    shown: Sequence[Mapping[str, Any]], files: Sequence[Mapping[str, Any]]
) -> str:
    """` (60 questions)`, where not all files have as many: their accuracies are not comparable."""
    if len({file["questions"] for file in files}) == 1:
        return ""
    counts = [file["questions"] for file in shown]
    least, most = min(counts), max(counts)
    return f" ({least} questions)" if least == most else f" ({least} to {most} questions)"


def _draw_accuracy(axis: "Axes", report: Mapping[str, Any], names: Mapping[str, str]) -> None:
    baseline = report["baseline"]
    for place, file in enumerate(report["files"]):
        is_baseline = baseline is not None and file["comparison"] is None
        _errorbar(axis, file, place, COLOURS[1] if is_baseline else COLOURS[0], "o")
    if baseline is not None:
        axis.axvline(baseline["accuracy"], color=COLOURS[1], linestyle=":", linewidth=1.2)
    rows = [
        _row_name(file, names) + _number_of_questions([file], report["files"])
        for file in report["files"]
    ]
    axis.set_yticks(range(len(rows)), rows)
    axis.set_ylim(len(report["files"]) - 0.5, -0.5)
    dotted = "; dotted: the baseline" if baseline is not None else ""
    axis.set_title(f"Accuracy with 95% interval{dotted}", loc="left")
    matches = {file["match"] for file in report["files"]}
    by = [f" (by {match})" if match in NORMS else f" ({match} match)" for match in matches]
    axis.set_xlabel("accuracy" + (by[0] if len(by) == 1 else ""))


def _row_name(file: Mapping[str, Any], names: Mapping[str, str]) -> str:
    mean = f" (mean of {file['paraphrases']})" if file["paraphrases"] > 1 else ""
    return names[file["file"]] + mean


def _errorbar(
    axis: "Axes", figures: Mapping[str, Any], place: float, colour: str, mark: str
) -> None:
    low, high = figures["interval"]
    accuracy = figures["accuracy"]
    # Rounding may leave a limit a hair on the wrong side, which matplotlib refuses.
    error = [[max(0.0, accuracy - low)], [max(0.0, high - accuracy)]]
    axis.errorbar(accuracy, place, xerr=error, fmt=mark, color=colour, capsize=3, markersize=5)


def _curves(
    files: Sequence[Mapping[str, Any]], names: Mapping[str, str]
) -> dict[str, list[tuple[int, Mapping[str, Any]]]]:
    """Method to (N, figures) in the order of N, where files of one method differ in N.

    A method is a file's name without the number at its end.
    """
    curves: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for file in files:
        name = names[file["file"]]
        if name.endswith(str(file["prompts"])):
            name = re.sub(r"[-_]?\d+$", "", name)
        curves.setdefault(name, []).append((file["prompts"], file))
    by_number = {name: sorted(points, key=lambda p: p[0]) for name, points in curves.items()}
    return {name: points for name, points in by_number.items() if len({n for n, _ in points}) > 1}


def _draw_curves(
    axis: "Axes", curves: Mapping[str, Sequence[tuple[int, Mapping[str, Any]]]]
) -> None:
    files = [file for points in curves.values() for _, file in points]
    for i, (name, points) in enumerate(curves.items()):
        label = name + _number_of_questions([file for _, file in points], files)
        # Slightly beside each other, so that intervals at the same N can be told apart.
        numbers = [n + 0.06 * (i - (len(curves) - 1) / 2) for n, _ in points]
        accuracies = [file["accuracy"] for _, file in points]
        limits = [file["interval"] for _, file in points]
        error = [
            [max(0.0, a - low) for a, (low, _) in zip(accuracies, limits, strict=True)],
            [max(0.0, high - a) for a, (_, high) in zip(accuracies, limits, strict=True)],
        ]
        style: dict[str, Any] = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
        }
        axis.errorbar(
            numbers, accuracies, yerr=error, capsize=3, markersize=5, label=label, **style
        )
    axis.set_xticks(sorted({n for points in curves.values() for n, _ in points}))
    axis.set_title("Accuracy over the number of paraphrases", loc="left")
    axis.set_xlabel("paraphrases (N)")
    axis.set_ylabel("accuracy")
    _legend_below(axis, columns=2)


def _draw_spread(
    axis: "Axes", spread: Sequence[Mapping[str, Any]], names: Mapping[str, str]
) -> None:
    for place, file in enumerate(spread):
        accuracies = [each["accuracy"] for each in file["per_prompt"]["each"]]
        axis.plot([min(accuracies), max(accuracies)], [place] * 2, color="#bbbbbb", linewidth=2)
        style: dict[str, Any] = {"color": COLOURS[0], "s": 36, "alpha": 0.75, "zorder": 3}
        labelled = "each paraphrase" if place == 0 else None
        axis.scatter(accuracies, [place] * len(accuracies), label=labelled, **style)
        for mark, value, label in (
            ("|", file["accuracy"], "their mean"),
            ("*", file["per_prompt"]["any"]["accuracy"], "any of them right"),
        ):
            style = {"color": COLOURS[1], "marker": mark, "s": 90, "zorder": 4}
            axis.scatter(value, place, label=label if place == 0 else None, **style)
    rows = [names[file["file"]] + _number_of_questions([file], spread) for file in spread]
    axis.set_yticks(range(len(rows)), rows)
    axis.set_ylim(len(spread) - 0.5, -0.5)
    axis.set_title("Spread over single paraphrases", loc="left")
    axis.set_xlabel("accuracy")
    _legend_below(axis, columns=3)


def _draw_reliability(
    axis: "Axes", files: Sequence[Mapping[str, Any]], names: Mapping[str, str]
) -> None:
    """Accuracy over confidence (DeGroot and Fienberg 1983), a point a bin of equal width."""
    axis.plot([0, 1], [0, 1], color="#bbbbbb", linestyle=":", linewidth=1.2)
    for i, file in enumerate(files):
        found = file["choices"]["by_norm"][file["choices"]["norm"]]
        bins, total = found["bins"], sum(each["count"] for each in found["bins"])
        confidences = [each["confidence"] for each in bins]
        accuracies = [each["accuracy"] for each in bins]
        colour = COLOURS[i % len(COLOURS)]
        label = f"{names[file['file']]} (by {file['choices']['norm']}, ECE {found['ece']:.3f})"
        axis.plot(confidences, accuracies, color=colour, linewidth=0.8, alpha=0.6)
        # As large as what the bin holds, so that a point of three answers is not taken for many.
        sizes = [12 + 240 * each["count"] / total for each in bins]
        style: dict[str, Any] = {"color": colour, "marker": MARKERS[i % len(MARKERS)], "alpha": 0.7}
        axis.scatter(confidences, accuracies, s=sizes, label=label, zorder=3, **style)
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.05, 1.05)
    axis.set_title("Reliability of choices (dotted: accuracy is confidence)", loc="left")
    axis.set_xlabel("confidence: the probability of the choice taken, mean of a bin")
    axis.set_ylabel("accuracy of the bin")
    _legend_below(axis, columns=1)


def _legend_below(axis: "Axes", *, columns: int) -> None:
    axis.figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=columns)
