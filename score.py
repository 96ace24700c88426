"""Scores predictions: exact match with intervals, and the paired comparison with a baseline.

    python score.py results/demo/demo/*.feather
    python score.py results/demo/demo/*.feather --baseline results/demo/demo/avg-5.feather

A file is .feather, .parquet, .csv or .jsonl with the columns `prediction` and `answers`; comparing
needs `uuid` too. A file of the method per_prompt (a row a paraphrase, with a column `paraphrase`)
also gets the accuracy of each paraphrase, the share of questions that any of them got right, and
how often they agree. No model is loaded.
"""

import argparse
import json
import os
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from answers import is_right, normalize_answer
from cli import Parser, run
from constants import UserError
from results import read_results

if TYPE_CHECKING:  # numpy, pandas and scipy come after parsing: --help stays quick
    import numpy as np

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
RESAMPLES = 10_000
SEED = 0

LABEL_WIDTH = 40  # leaves the widest table, an interval of [-100.00, +100.00], in 100 columns


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """95% score interval of a proportion, right of n (Wilson 1927)."""
    assert 0 <= right <= n and n > 0, (right, n)
    share = right / n
    centre = share + Z**2 / (2 * n)
    margin = Z * (share * (1 - share) / n + Z**2 / (4 * n**2)) ** 0.5
    low, high = ((centre + side) / (1 + Z**2 / n) for side in (-margin, margin))
    return (0.0 if right == 0 else low, 1.0 if right == n else high)


def tango_interval(won: int, lost: int, n: int) -> tuple[float, float]:
    """95% score interval of the difference of two paired proportions, (won - lost) / n.

    It holds the differences that the score test does not refuse. At a difference of 0 that test is
    McNemar's without correction, so interval and p value tell one story, and the interval has a
    width where the files never differ. Tango 1998, "Equivalence test and confidence interval for
    the difference in proportions for the paired-sample design", Statistics in Medicine 17, 891-908.

    Args:
        won: pairs that only the first of the two got right.
        lost: pairs that only the second got right.
        n: all pairs.
    """
    from scipy.optimize import brentq

    assert won >= 0 and lost >= 0 and n >= max(1, won + lost), (won, lost, n)

    def excess(delta: float, side: int) -> float:
        # Zero where the observed difference lies Z standard deviations above (side +1) or below
        # (-1) delta. `share` is the most likely probability of a loss, given delta.
        b = (2 * n - won + lost) * delta - won - lost
        c = -lost * delta * (1 - delta)
        share = ((max(b * b - 8 * n * c, 0.0)) ** 0.5 - b) / (4 * n)
        variance = max(n * (2 * share + delta * (1 - delta)), 0.0)
        return won - lost - n * delta - side * Z * variance**0.5

    observed = (won - lost) / n
    # Where the files never (or always) differ, the observed difference is a second root, of width
    # zero: a step away from it leaves only the limit.
    step = 1e-9
    low = -1.0 if lost == n else brentq(excess, -1.0, observed - step, args=(1,))
    high = 1.0 if won == n else brentq(excess, observed + step, 1.0, args=(-1,))
    return low, high


def mcnemar_p(won: int, lost: int) -> float:
    """Exact two-sided McNemar test: the pairs that differ fall either way like a fair coin."""
    from scipy.stats import binomtest

    return float(binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0


def bootstrap_interval(values: "np.ndarray", *, resamples: int, seed: int) -> tuple[float, float]:
    """95% percentile interval of a mean, one value a question, resampling the questions.

    Answers to wordings of one question go together, so what is drawn is whole questions: 5
    paraphrases that always agree are worth one (Efron and Tibshirani 1993, chapter 8).

    Args:
        values: [Q], such as the share of a question's paraphrases that were right.
    """
    import numpy as np

    # A resample is told by how often it has each distinct value: a multinomial draw.
    distinct, counts = np.unique(values, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(
        len(values), counts / len(values), size=resamples
    )  # [resamples, distinct]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws @ distinct / len(values), [tail, 1 - tail])
    return float(low), float(high)


def pair_agreement(predictions: Sequence[str]) -> float:
    """Share of the pairs among a question's normalised predictions that are equal."""
    n = len(predictions)
    equal = sum(count * (count - 1) for count in Counter(predictions).values())
    return equal / (n * (n - 1))


@dataclass(frozen=True)
class Scored:
    """A file's predictions, judged: Q questions, N paraphrases (1 where a row is a question)."""

    path: str
    per_prompt: bool
    uuids: list[str] | None  # [Q]
    right: "np.ndarray"  # [Q, N] bool
    predictions: list[list[str]]  # [Q][N], normalised


def load_scored(path: str) -> Scored:
    """Reads and judges a file; raises UserError with the path and the offending value."""
    import numpy as np

    frame = read_results(path)
    missing = [f"`{name}`" for name in ("prediction", "answers") if name not in frame.columns]
    if missing:
        found = ", ".join(map(str, frame.columns))
        raise UserError(f"{path} lacks the column {' and '.join(missing)}; it has {found}")
    if frame.empty:
        raise UserError(f"{path} has no rows")
    uuids = _uuids(frame["uuid"].tolist(), path) if "uuid" in frame.columns else None
    predictions = [_prediction(cell, f"{path}, row {i}") for i, cell in _rows(frame["prediction"])]
    answers = [_answers(cell, f"{path}, row {i}") for i, cell in _rows(frame["answers"])]
    right = [is_right(p, a) for p, a in zip(predictions, answers, strict=True)]

    # A column `paraphrase` in a file without uuids says nothing about which rows belong together.
    per_prompt = uuids is not None and "paraphrase" in frame.columns
    rows = _rows_of_questions(uuids, path, per_prompt=per_prompt) if uuids else _each(right)
    return Scored(
        path=path,
        per_prompt=per_prompt,
        uuids=list(dict.fromkeys(uuids)) if uuids else None,
        right=np.array([[right[i] for i in group] for group in rows]),
        predictions=[[normalize_answer(predictions[i]) for i in group] for group in rows],
    )


def _rows(column) -> list[tuple[int, Any]]:
    return list(enumerate(column.tolist(), 1))


def _each(values: Sequence) -> list[list[int]]:
    return [[i] for i in range(len(values))]


def _uuids(cells: Sequence[Any], path: str) -> list[str]:
    for i, cell in enumerate(cells, 1):
        if cell is None or cell != cell or cell == "":  # NaN differs from itself
            raise UserError(f"{path}, row {i}: no uuid")
    return [str(cell) for cell in cells]


def _prediction(cell: Any, where: str) -> str:
    if cell is None or cell != cell:
        return ""
    if not isinstance(cell, str):
        raise UserError(f"{where}: prediction is not a text: {cell!r}")
    return cell


def _answers(cell: Any, where: str) -> list[str]:
    answers = [cell] if isinstance(cell, str) else cell
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise UserError(f"{where}: answers is not a list of texts: {cell!r}")
    if not answers:
        raise UserError(f"{where}: no answers")
    return answers


def _rows_of_questions(uuids: Sequence[str], path: str, *, per_prompt: bool) -> list[list[int]]:
    """[Q][N] row numbers: the rows of a question are its paraphrases in the order of the file."""
    rows: dict[str, list[int]] = {}
    for i, uuid in enumerate(uuids):
        rows.setdefault(uuid, []).append(i)
    first, expected = next(iter(rows.items()))
    for uuid, group in rows.items():
        if not per_prompt and len(group) > 1:
            numbers = f"{group[0] + 1} and {group[1] + 1}"
            raise UserError(f"{path}: uuid {uuid} stands twice, in rows {numbers}")
        if len(group) != len(expected):
            raise UserError(
                f"{path}: uuid {uuid} has {len(group)} rows, {first} has {len(expected)}"
            )
    return list(rows.values())


def summarize(scored: Scored) -> dict[str, Any]:
    """A file's figures; shares are between 0 and 1. Of several paraphrases it is the mean."""
    num_questions, num_paraphrases = scored.right.shape
    summary = {"file": scored.path, "questions": num_questions, "paraphrases": num_paraphrases}
    if num_paraphrases == 1:
        summary |= _share(scored.right[:, 0])
    else:
        shares = scored.right.mean(axis=1)  # [Q]
        summary |= {
            "right": None,
            "exact_match": float(shares.mean()),
            "interval": bootstrap_interval(shares, resamples=RESAMPLES, seed=SEED),
        }
    return summary | {"per_prompt": _per_prompt(scored) if scored.per_prompt else None}


def _share(right: "np.ndarray") -> dict[str, Any]:
    """right: [Q] bool"""
    count = int(right.sum())
    return {
        "right": count,
        "exact_match": count / len(right),
        "interval": wilson_interval(count, len(right)),
    }


def _per_prompt(scored: Scored) -> dict[str, Any]:
    num_questions, num_paraphrases = scored.right.shape
    several = num_paraphrases > 1
    alike = sum(len(set(predictions)) == 1 for predictions in scored.predictions)
    pairs = sum(map(pair_agreement, scored.predictions)) if several else None
    return {
        "each": [_share(scored.right[:, n]) for n in range(num_paraphrases)],
        "any": _share(scored.right.any(axis=1)),
        "pairs_agree": pairs / num_questions if several else None,
        "all_agree": alike / num_questions if several else None,
    }


def compare(scored: Scored, baseline: Scored) -> dict[str, Any]:
    """The paired difference `scored` minus `baseline` over the questions that both have.

    Of a per_prompt baseline the first paraphrase counts; of a per_prompt file the mean over its
    paraphrases, question by question.

    Raises:
        UserError: a file has no uuids, or they have none in common.
    """
    for each in (scored, baseline):
        if each.uuids is None:
            raise UserError(f"{each.path} has no column `uuid`, which a comparison needs")
    places = {uuid: i for i, uuid in enumerate(baseline.uuids)}
    pairs = [(i, places[uuid]) for i, uuid in enumerate(scored.uuids) if uuid in places]
    if not pairs:
        raise UserError(f"{scored.path} and the baseline {baseline.path} share no uuid")
    here, there = map(list, zip(*pairs, strict=True))
    right, reference = scored.right[here], baseline.right[there, 0]  # [pairs, N], [pairs]
    return {
        "pairs": len(pairs),
        "only_in_file": len(scored.uuids) - len(pairs),
        "only_in_baseline": len(baseline.uuids) - len(pairs),
        **(_binary_difference if right.shape[1] == 1 else _mean_difference)(right, reference),
    }


def _binary_difference(right: "np.ndarray", reference: "np.ndarray") -> dict[str, Any]:
    """right: [pairs, 1], reference: [pairs]"""
    won = int((right[:, 0] & ~reference).sum())
    lost = int((~right[:, 0] & reference).sum())
    return {
        "won": won,
        "lost": lost,
        "difference": (won - lost) / len(reference),
        "interval": tango_interval(won, lost, len(reference)),
        "mcnemar_p": mcnemar_p(won, lost),
    }


def _mean_difference(right: "np.ndarray", reference: "np.ndarray") -> dict[str, Any]:
    """right: [pairs, N], reference: [pairs]"""
    differences = right.mean(axis=1) - reference
    return {
        "won": None,
        "lost": None,
        "difference": float(differences.mean()),
        "interval": bootstrap_interval(differences, resamples=RESAMPLES, seed=SEED),
        "mcnemar_p": None,  # a test of pairs, and a mean over paraphrases makes no pairs
    }


def make_report(paths: Sequence[str], baseline_path: str | None) -> dict[str, Any]:
    """Everything that is printed, in JSON types: what --json shows and the tables are made of."""
    if baseline_path is None:
        files = [summarize(load_scored(path)) | {"comparison": None} for path in paths]
        return {"baseline": None, "files": files, "notes": []}
    baseline = load_scored(baseline_path)
    files, notes = [], []
    if baseline.per_prompt:
        notes.append(f"{baseline_path} has a row a paraphrase: the baseline is its paraphrase 0")
    for path in paths:
        scored = load_scored(path)
        is_baseline = os.path.realpath(path) == os.path.realpath(baseline_path)
        plain = is_baseline and not baseline.per_prompt
        comparison = None if plain else compare(scored, baseline)
        files.append(summarize(scored) | {"comparison": comparison})
        notes += _coverage_notes(path, comparison) if comparison else []
    reference = {"file": baseline_path, "questions": len(baseline.right)}
    reference |= {"paraphrase": 0 if baseline.per_prompt else None, **_share(baseline.right[:, 0])}
    return {"baseline": reference, "files": files, "notes": notes}


def _coverage_notes(path: str, comparison: dict[str, Any]) -> list[str]:
    pairs, lacking = comparison["pairs"], comparison["only_in_baseline"]
    surplus = comparison["only_in_file"]
    notes = []
    if lacking:
        notes.append(f"{path} lacks {lacking} of the baseline's {pairs + lacking} uuids")
    if surplus:
        notes.append(f"the baseline lacks {surplus} of the {pairs + surplus} uuids of {path}")
    return [f"{note}: compared over the {pairs} that both have" for note in notes]


def render_report(report: dict[str, Any]) -> str:
    """The report as plain text: tables of at most 100 columns, percentages with two decimals."""
    baseline, files = report["baseline"], report["files"]
    labels = _labels([f["file"] for f in [*files, *([baseline] if baseline else [])]])
    blocks = [_accuracy_table(report, labels), _comparison_table(report, labels)]
    blocks += [_per_prompt_table(f, labels) for f in files if f["per_prompt"]]
    blocks += [_wrapped(report["notes"]), _legend(report)]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines)


def _accuracy_table(report: dict[str, Any], labels: dict[str, str]) -> list[str]:
    baseline = report["baseline"]
    rows = []
    for file in report["files"]:
        is_baseline = baseline is not None and file["comparison"] is None
        remark = " (baseline)" if is_baseline else ""
        if file["paraphrases"] > 1:
            remark = f" (mean of {file['paraphrases']})"
        rows.append(_accuracy_row(_cut(labels[file["file"]], remark), file))
    if baseline and all(file["comparison"] for file in report["files"]):
        rows.insert(0, _accuracy_row(_cut(labels[baseline["file"]], " (baseline)"), baseline))
    return _table(["file", "questions", "right", "exact match %", "95% interval"], rows)


def _accuracy_row(label: str, share: dict[str, Any]) -> list[str]:
    right = "-" if share["right"] is None else str(share["right"])
    return [label, str(share["questions"]), right, *_percentages(share)]


def _percentages(share: dict[str, Any]) -> list[str]:
    low, high = share["interval"]
    return [f"{100 * share['exact_match']:.2f}", f"[{100 * low:.2f}, {100 * high:.2f}]"]


def _comparison_table(report: dict[str, Any], labels: dict[str, str]) -> list[str]:
    rows = []
    for file in report["files"]:
        if (found := file["comparison"]) is None:
            continue
        low, high = found["interval"]
        counts = ["-" if found[key] is None else str(found[key]) for key in ("won", "lost")]
        difference = f"{100 * found['difference']:+.2f}"
        interval = f"[{100 * low:+.2f}, {100 * high:+.2f}]"
        label = _cut(labels[file["file"]], "")
        rows.append(
            [label, str(found["pairs"]), *counts, difference, interval, _p(found["mcnemar_p"])]
        )
    header = ["against the baseline", "pairs", "won", "lost", "points", "95% interval", "McNemar p"]
    return _table(header, rows) if rows else []


def _p(p: float | None) -> str:
    if p is None:
        return "-"
    return f"{p:.4f}" if p >= 0.00005 else "<0.0001"


def _per_prompt_table(file: dict[str, Any], labels: dict[str, str]) -> list[str]:
    found = file["per_prompt"]
    title = f"{labels[file['file']]}: each paraphrase over {file['questions']} questions"
    rows = [[str(i), str(s["right"]), *_percentages(s)] for i, s in enumerate(found["each"])]
    rows.append(["any of them", str(found["any"]["right"]), *_percentages(found["any"])])
    lines = [title, *_table(["paraphrase", "right", "exact match %", "95% interval"], rows)]
    if found["pairs_agree"] is not None:
        lines.append(
            f"pairs of paraphrases with the same answer: {100 * found['pairs_agree']:.2f}%; "
            f"questions on which all agree: {100 * found['all_agree']:.2f}%"
        )
    return lines


def _legend(report: dict[str, Any]) -> list[str]:
    files = report["files"]
    lines = ["Intervals of accuracy: Wilson."]
    if any(file["paraphrases"] > 1 for file in files):
        lines.append(
            f"Intervals of a mean over paraphrases: bootstrap of questions, {RESAMPLES} resamples."
        )
    if any(file["comparison"] for file in files):
        lines.append(
            "Points: file minus baseline, over the questions that both have; interval: Tango 1998."
        )
        lines.append(
            "Won: right where the baseline is wrong; lost: the reverse; p: exact, two-sided."
        )
    return lines


def _wrapped(notes: Sequence[str]) -> list[str]:
    return [textwrap.fill(note, 100, break_long_words=False) for note in notes]


def _labels(paths: Sequence[str]) -> dict[str, str]:
    """Each path without what all share: the folders, and the suffix where it is the same."""
    shared = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    suffixes = {os.path.splitext(path)[1] for path in paths}
    shown = {path: os.path.relpath(os.path.abspath(path), shared) for path in paths}
    if len(suffixes) > 1:
        return shown
    return {path: os.path.splitext(label)[0] for path, label in shown.items()}


def _cut(label: str, remark: str) -> str:
    """Label and remark within LABEL_WIDTH; of a label too long the end tells most."""
    room = LABEL_WIDTH - len(remark)
    return (label if len(label) <= room else "..." + label[3 - room :]) + remark


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned lines: the first column to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for first, *rest in [header, *rows]:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def main(args: argparse.Namespace) -> None:
    report = make_report(args.files, args.baseline)
    if args.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        print(render_report(report))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="predictions and answers")
    parser.add_argument("--baseline", metavar="FILE", help="compare every FILE with this one")
    parser.add_argument(
        "--json", action="store_true", help="print everything as JSON; shares are from 0 to 1"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main, parse_args())
