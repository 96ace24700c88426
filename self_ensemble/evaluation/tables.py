"""The report on scores as plain text, differences in percentage points, and as CSV."""

import csv
import io
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from self_ensemble.data.choices import NORMS
from self_ensemble.evaluation.calibration import BINS
from self_ensemble.evaluation.statistics import RESAMPLES

WIDTH = 100
LABEL_WIDTH = 40  # leaves the widest table, an interval of [-100.00, +100.00], in WIDTH columns
SHORT_LABEL_WIDTH = 30  # where a table has more figures
POINTS = "% points"

# How the matchers are named above columns.
SHORT = {
    "exact": "exact",
    "first_token": "first",
    "f1": "F1",
    "one_way": "1-way",
    "two_way": "2-way",
}
# Shown where it applies: after the columns that every report has.
NUMBER = {"number": "number"}


def render_report(report: Mapping[str, Any]) -> str:
    """The report as plain text: tables of at most 100 columns, fractions with four decimals."""
    blocks = [
        *text_tables(report).values(),
        [line for note in report["notes"] for line in _wrapped(note)],
        [line for sentence in legend(report) for line in _wrapped(sentence)],
    ]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines)


def report_tables(report: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """Title to rows of cells, the header first: what --html shows, and the text is made of."""
    baseline, files = report["baseline"], report["files"]
    names = labels([f["file"] for f in [*files, *([baseline] if baseline else [])]])
    tables = {
        "Accuracy": _accuracy_table(report, names),
        "Sensitivity to the matcher": _sensitivity_table(report, names),
        "Choices by every norm": _choices_table(report, names),
        "Spread over paraphrases": _spread_table(report, names),
        "Paired difference": _comparison_table(report, names),
        "Difference by matcher": _conclusion_table(report, names, SHORT | NUMBER, "matcher"),
        "Difference by norm": _conclusion_table(report, names, _same(NORMS), "norm"),
        "Bootstrap of the difference": _bootstrap_table(report, names),
    }
    for file in files:
        if file["per_prompt"]:
            tables[f"{names[file['file']]}: each paraphrase"] = _per_prompt_table(file)
    if report["by"]:
        tables[f"By {report['by']}"] = _by_table(report, names)
    return {title: rows for title, rows in tables.items() if len(rows) > 1}


def text_tables(report: Mapping[str, Any]) -> dict[str, list[str]]:
    tables = {title: _aligned(rows) for title, rows in report_tables(report).items()}
    for title, lines in tables.items():
        if title.endswith(": each paraphrase"):
            lines.insert(0, title)
    return tables


def _accuracy_table(report: Mapping[str, Any], names: Mapping[str, str]) -> list[list[str]]:
    baseline = report["baseline"]
    rows = []
    for file in report["files"]:
        is_baseline = baseline is not None and file["comparison"] is None
        remark = " (baseline)" if is_baseline else ""
        if file["paraphrases"] > 1:
            remark = f" (mean of {_number_of_paraphrases(file)})"
        rows.append(_accuracy_row(_cut(names[file["file"]], remark), file))
    if baseline and all(file["comparison"] for file in report["files"]):
        rows.insert(0, _accuracy_row(_cut(names[baseline["file"]], " (baseline)"), baseline))
    return [["file", "questions", "right", _how_right(report), "95% interval"], *rows]


def _how_right(report: Mapping[str, Any]) -> str:
    """What the accuracy is by, where it is by one matcher or norm alone."""
    matches = {file["match"] for file in report["files"]}
    if len(matches) > 1:
        return "accuracy"
    [match] = matches
    if match in NORMS:
        return f"accuracy by {match}"
    return f"{match.replace('_', '-').replace('-token', ' token')} match"


def _number_of_paraphrases(file: Mapping[str, Any]) -> str:
    fewest = file["per_prompt"]["fewest"]
    return str(fewest) if fewest == file["paraphrases"] else f"{fewest} to {file['paraphrases']}"


def _accuracy_row(label: str, figures: Mapping[str, Any]) -> list[str]:
    return [label, str(figures["questions"]), _count(figures["right"]), *_fraction(figures)]


def _fraction(figures: Mapping[str, Any]) -> list[str]:
    low, high = figures["interval"]
    return [f"{figures['accuracy']:.4f}", f"[{low:.4f}, {high:.4f}]"]


def _sensitivity_table(report: Mapping[str, Any], names: Mapping[str, str]) -> list[list[str]]:
    shown = [file for file in _with_baseline(report) if "choices" not in file]
    matchers = SHORT | {k: v for k, v in NUMBER.items() if any(k in f["scores"] for f in shown)}
    width = SHORT_LABEL_WIDTH - 8 * (len(matchers) - len(SHORT))
    header = ["by every matcher", *matchers.values(), "empty", "truncated", "only 2-way"]
    rows = []
    for file in shown:
        scores = [file["scores"].get(name) for name in matchers]
        rows.append(
            [
                _cut(names[file["file"]], "", width),
                *("-" if score is None else f"{score:.4f}" for score in scores),
                *(_count(file["counts"][k]) for k in ("empty", "truncated", "only_two_way")),
            ]
        )
    return [header, *rows]


def _with_baseline(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The files, and before them the baseline where it is none of them."""
    baseline, files = report["baseline"], report["files"]
    alone = baseline and all(file["comparison"] for file in files)
    return [*([baseline] if alone else []), *files]


def _choices_table(report: Mapping[str, Any], names: Mapping[str, str]) -> list[list[str]]:
    rows = []
    for file in _with_baseline(report):
        if "choices" not in file:
            continue
        label = _cut(names[file["file"]], "", SHORT_LABEL_WIDTH - 2)
        for norm, found in file["choices"]["by_norm"].items():
            taken = " *" if norm == file["choices"]["norm"] else ""
            figures = [f"{found[key]:.4f}" for key in CALIBRATION]
            rows.append([label, norm + taken, *figures, str(found["tied"])])
    return [["choices", "by", *CALIBRATION.values(), "tied"], *rows]


# A calibration's figures, as they are named above columns.
CALIBRATION = {
    "accuracy": "accuracy",
    "confidence": "confid.",
    "ece": "ECE",
    "adaptive_ece": "ad. ECE",
    "brier": "Brier",
    "nll": "NLL",
}


def _spread_table(report: Mapping[str, Any], names: Mapping[str, str]) -> list[list[str]]:
    rows = []
    for file in report["files"]:
        found = file["per_prompt"]
        if not found or found["worst"] is None:
            continue
        ends = [f"{e['accuracy']:.4f} ({e['paraphrase']})" for e in (found["worst"], found["best"])]
        rest = [found[key] for key in ("spread", "sd", "pairs_agree", "all_agree")]
        label = _cut(names[file["file"]], "", SHORT_LABEL_WIDTH - 2)
        rows.append([label, *ends, *("-" if f is None else f"{f:.4f}" for f in rest)])
    header = ["over paraphrases", "worst", "best", "spread", "SD", "consistency", "all agree"]
    return [header, *rows]


def _count(count: int | None) -> str:
    return "-" if count is None else str(count)


def _comparison_table(report: Mapping[str, Any], names: Mapping[str, str]) -> list[list[str]]:
    rows = []
    for file in report["files"]:
        if (found := file["comparison"]) is None:
            continue
        label = _cut(names[file["file"]], "", SHORT_LABEL_WIDTH)
        rows.append([label, str(found["pairs"]), *_difference_cells(found)])
    header = ["against the baseline", "pairs", "won", "lost", POINTS, "95% interval"]
    header += ["McNemar p", "Holm p"]
    if all(row[-1] == "-" for row in rows):  # one test needs no adjustment
        return [row[:-1] for row in [header, *rows]]
    return [header, *rows]


def _difference_cells(found: Mapping[str, Any]) -> list[str]:
    counts = [_count(found[key]) for key in ("won", "lost")]
    difference = _points(found["difference"])
    p_values = [_p(found[key]) for key in ("mcnemar_p", "holm_p")]
    return [*counts, difference, _signed(found["interval"]), *p_values]


def _signed(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"[{_points(interval[0])}, {_points(interval[1])}]"


def _points(difference: float) -> str:
    """A difference of fractions in percentage points."""
    return f"{100 * difference:+.2f}"


def _p(p: float | None) -> str:
    if p is None:
        return "-"
    return f"{p:.4f}" if p >= 0.00005 else "<0.0001"


def _same(names: Sequence[str]) -> dict[str, str]:
    return {name: name for name in names}


def _conclusion_table(
    report: Mapping[str, Any], names: Mapping[str, str], short: Mapping[str, str], what: str
) -> list[list[str]]:
    """Whether the difference would be another one by another matcher, or norm."""
    compared = [file for file in report["files"] if file["comparison"]]
    compared = [f for f in compared if set(short) & set(f["comparison"]["by_match"])]
    matchers = [m for m in short if any(m in f["comparison"]["by_match"] for f in compared)]
    header = [f"{POINTS} by {what}"]
    for name in matchers:
        header += [short[name], "p"]
    rows = []
    width = min(SHORT_LABEL_WIDTH - 2, WIDTH - 17 * len(matchers))
    for file in compared:
        row = [_cut(names[file["file"]], "", width)]
        for name in matchers:
            found = file["comparison"]["by_match"].get(name)
            row += [_points(found["difference"]), _p(found["mcnemar_p"])] if found else ["-", "-"]
        rows.append(row)
    return [header, *rows]


def _bootstrap_table(report: Mapping[str, Any], names: Mapping[str, str]) -> list[list[str]]:
    rows = [
        [
            _cut(names[file["file"]], "", SHORT_LABEL_WIDTH),
            _points(found["difference"]),
            _signed(found["bootstrap"]),
            _count(found["relations"]),
            _signed(found["relation_bootstrap"]),
        ]
        for file in report["files"]
        if (found := file["comparison"])
    ]
    header = ["bootstrap", POINTS, "of questions", "relations", "of relations"]
    if all(row[3] == "-" for row in rows):
        return [row[:3] for row in [header, *rows]]
    return [header, *rows]


def _per_prompt_table(file: Mapping[str, Any]) -> list[list[str]]:
    found = file["per_prompt"]
    rows = [[str(s["paraphrase"]), str(s["right"]), *_fraction(s)] for s in found["each"]]
    rows.append(["any of them", str(found["any"]["right"]), *_fraction(found["any"])])
    table = [["paraphrase", "right", "accuracy", "95% interval"], *rows]
    if found["fewest"] < file["paraphrases"]:
        counts = [*(str(each["questions"]) for each in found["each"]), str(file["questions"])]
        pairs = zip(table, ["questions", *counts], strict=True)
        table = [[row[0], count, *row[1:]] for row, count in pairs]
    return table


def _by_table(report: Mapping[str, Any], names: Mapping[str, str]) -> list[list[str]]:
    header = ["file", report["by"][:20], "questions", "accuracy", "95% interval", POINTS, "p"]
    rows = []
    for file in report["files"]:
        label = _cut(names[file["file"]], "", SHORT_LABEL_WIDTH)
        for part in file["by"]:
            row = [label, _cut(part["value"], "", 20), str(part["questions"]), *_fraction(part)]
            found = part["comparison"]
            row += [_points(found["difference"]), _p(found["mcnemar_p"])] if found else ["-", "-"]
            rows.append(row)
    if all(row[-2] == "-" for row in rows):
        return [row[:-2] for row in [header, *rows]]
    return [header, *rows]


def legend(report: Mapping[str, Any]) -> list[str]:
    """What the figures are, a sentence each."""
    files = report["files"]
    lines = ["Intervals of accuracy: Wilson."]
    if report.get("extract"):
        lines.append(f"Predictions: made anew of the generations by --extract {report['extract']}.")
    for file in files:
        if (found := file["per_prompt"]) and found["pairs_agree"] is not None:
            lines.append(
                f"{file['file']}: pairs of paraphrases with the same answer "
                f"{found['pairs_agree']:.4f}, questions on which all agree "
                f"{found['all_agree']:.4f}."
            )
            if found["fewest"] < file["paraphrases"]:
                lines.append(_on_fewer(file))
    if any(file["scores"].get("two_way") is not None for file in files):
        lines.append(
            "1-way: an answer's lemmas are a contiguous run of the prediction's; 2-way: or the "
            "reverse; only 2-way: predictions right by the second alone."
        )
    if any("number" in file["scores"] for file in files):
        lines.append("Number: the prediction's last number is an answer's, exactly.")
    if any("choices" in file for file in _with_baseline(report)):
        lines += LEGEND_OF_CHOICES
    if any(file["per_prompt"] and file["per_prompt"]["worst"] for file in files):
        lines.append(
            "Worst, best: the accuracy of one paraphrase (and its number, from 0); spread: best "
            "minus worst; SD: the standard deviation over paraphrases; consistency: how often a "
            "pair of a question's paraphrases has the same answer."
        )
    if any(file["paraphrases"] > 1 for file in files):
        lines.append(
            f"Intervals of a mean over paraphrases: bootstrap of questions, {RESAMPLES} resamples."
        )
    if any(file["comparison"] for file in files):
        lines += [
            "% points: percentage points, file minus baseline, over the questions that both have; "
            "interval: Tango 1998.",
            "Won: right where the baseline is wrong; lost: the reverse; p: exact, two-sided.",
            f"Bootstrap: percentiles of {RESAMPLES} resamples of whole questions (of relations).",
        ]
    if any(file["comparison"] and file["comparison"]["holm_p"] is not None for file in files):
        lines.append("Holm p: adjusted for the number of tests in its table.")
    return lines


LEGEND_OF_CHOICES = (
    "By: the norm for the length of a choice, * that of the other tables; tied: answers whose "
    "highest log-likelihood several choices have, of which the first is taken.",
    "Probabilities are the softmax of the log-likelihoods by the norm over a question's choices; "
    "confid.: the mean one of the choice taken.",
    f"ECE: expected calibration error, {BINS} bins of equal width (Guo et al. 2017); ad. ECE: of "
    "equal mass (Nguyen and O'Connor 2015); Brier: 0 to 2; NLL: in nats. Of several right choices "
    "the probabilities are summed.",
)


def _on_fewer(file: Mapping[str, Any]) -> str:
    found, most = file["per_prompt"], file["paraphrases"]
    return (
        f"{file['file']} has {_number_of_paraphrases(file)} paraphrases a question: its accuracy "
        "is the mean over questions of the mean over their paraphrases; worst, best, spread and SD "
        f"are of the {found['complete']} questions that have all {most}, consistency of the "
        f"{found['paired']} that have two or more."
    )


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_long_words=False)


def labels(paths: Sequence[str]) -> dict[str, str]:
    """Each path without what all figures: the folders, and the suffix where it is the same."""
    shared = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    suffixes = {os.path.splitext(path)[1] for path in paths}
    shown = {path: os.path.relpath(os.path.abspath(path), shared) for path in paths}
    if len(suffixes) > 1:
        return shown
    return {path: os.path.splitext(label)[0] for path, label in shown.items()}


def _cut(label: str, remark: str, width: int = LABEL_WIDTH) -> str:
    """Label and remark within the width; of a label too long the end tells most."""
    most = width - len(remark)
    return (label if len(label) <= most else "..." + label[3 - most :]) + remark


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned lines: the first column to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def render_csv(report: Mapping[str, Any]) -> str:
    """A row a file and, with --by, a row a value below it; fractions with four decimals.

    Columns that apply to some files only, such as those of choices, come last, where there is one.
    """
    parts = [part for file in report["files"] for part in (file, *file["by"])]
    further = [_further_cells(part, report) for part in parts]
    columns = dict.fromkeys(name for cells in further for name in cells)
    rows = [
        _csv_row(part, report) | {name: _cell(cells.get(name)) for name in columns}
        for part, cells in zip(parts, further, strict=True)
    ]
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _further_cells(file: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    """Cells of the columns that apply to this file, and not to every one."""
    cells: dict[str, Any] = {"extract": report["extract"]} if report.get("extract") else {}
    if "number" in file["scores"]:
        cells["number"] = file["scores"]["number"]
    if (found := file["per_prompt"]) and found["worst"]:
        for end in ("worst", "best"):
            cells |= {end: found[end]["accuracy"], f"{end}_paraphrase": found[end]["paraphrase"]}
        cells |= {"spread": found["spread"], "sd": found["sd"], "complete": found["complete"]}
        cells |= {"consistency": found["pairs_agree"], "all_agree": found["all_agree"]}
    if "choices" in file:
        for norm, by_norm in file["choices"]["by_norm"].items():
            cells |= {f"{norm}_{key}": by_norm[key] for key in (*CALIBRATION, "tied")}
    return cells


def _csv_row(file: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, str]:
    found = file["comparison"] or {}
    row = {
        "file": file["file"],
        "by": report["by"] if "value" in file else None,
        "value": file.get("value"),
        **{key: file[key] for key in ("questions", "paraphrases", "prompts", "match", "right")},
        "accuracy": file["accuracy"],
        **_limits("", file["interval"]),
        **{name: file["scores"].get(name) for name in SHORT},
        **file["counts"],
        "baseline": report["baseline"]["file"] if found else None,
        **{key: found.get(key) for key in ("pairs", "won", "lost", "difference")},
        **_limits("difference_", found.get("interval")),
        **_limits("bootstrap_", found.get("bootstrap")),
        **_limits("relation_bootstrap_", found.get("relation_bootstrap")),
        # A p value keeps its digits: four decimals of 1e-9 would be nothing.
        **{key: _digits(found.get(key)) for key in ("mcnemar_p", "holm_p")},
    }
    return {key: _cell(value) for key, value in row.items()}


def _limits(name: str, interval: Sequence[float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{name}low": low, f"{name}high": high}


def _digits(p: float | None) -> str | None:
    return None if p is None else f"{p:.4g}"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)
