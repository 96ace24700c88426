"""Scores predictions: several matchers with intervals, and the paired comparison with a baseline.

    python score.py results/demo/demo/*.feather
    python score.py results/demo/demo/*.feather --baseline results/demo/demo/avg-5.feather
    python score.py results/demo/demo/*.feather --plot scores.png --html scores.html

A file is .feather, .parquet, .csv or .jsonl with the columns `prediction` and `answers`; comparing
needs `uuid` too. Lemmas are matched where the columns `predict_lemma` and `answer_lemmas` are, or
with --lemmas recompute. A file of the method per_prompt (a row a paraphrase, with a column
`paraphrase`) also gets the accuracy of each paraphrase, the share of questions that any of them got
right, and how often they agree. No language model is loaded.
"""

import argparse
import contextlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from self_ensemble.cli.parser import Parser, run
from self_ensemble.data.answers import normalize_answer
from self_ensemble.evaluation.page import render_page
from self_ensemble.evaluation.plots import draw, picture_format
from self_ensemble.evaluation.scored import MATCHERS, Scored, load_scored
from self_ensemble.evaluation.statistics import (
    bootstrap_interval,
    cluster_bootstrap_interval,
    holm,
    mcnemar_p,
    tango_interval,
    wilson_interval,
)
from self_ensemble.evaluation.tables import render_csv, render_report
from self_ensemble.system.console import say
from self_ensemble.system.errors import UserError

if TYPE_CHECKING:  # numpy comes after parsing: --help stays quick
    import numpy as np


def pair_agreement(predictions: Sequence[str]) -> float:
    """Share of the pairs among a question's normalised predictions that are equal."""
    n = len(predictions)
    equal = sum(count * (count - 1) for count in Counter(predictions).values())
    return equal / (n * (n - 1))


def summarize(scored: Scored) -> dict[str, Any]:
    """A file's figures; shares are between 0 and 1. Of several paraphrases it is the mean."""
    num_questions, num_paraphrases = scored.right.shape
    summary = {"file": scored.path, "questions": num_questions, "paraphrases": num_paraphrases}
    summary |= {"prompts": scored.num_prompts, "match": scored.match}
    if num_paraphrases == 1:
        summary |= _share(scored.right[:, 0])
    else:
        shares = scored.right.mean(axis=1)  # [Q]
        summary |= {
            "right": None,
            "accuracy": float(shares.mean()),
            "interval": bootstrap_interval(shares),
        }
    summary |= {"scores": _scores(scored), "counts": _counts(scored)}
    return summary | {"per_prompt": _per_prompt(scored) if scored.per_prompt else None}


def _share(right: "np.ndarray") -> dict[str, Any]:
    """right: [Q] bool"""
    count = int(right.sum())
    return {
        "right": count,
        "accuracy": count / len(right),
        "interval": wilson_interval(count, len(right)),
    }


def _scores(scored: Scored) -> dict[str, float | None]:
    """The mean by each matcher; None by those of lemmas where there are none."""
    means = {name: float(each.mean()) for name, each in scored.matches.items()}
    return {name: means.get(name) for name in (*MATCHERS, "f1")}


def _counts(scored: Scored) -> dict[str, int | None]:
    """How many predictions may hang on the matcher."""
    matches, truncated = scored.matches, scored.truncated
    surplus = matches["two_way"] & ~matches["one_way"] if "two_way" in matches else None
    return {
        "empty": sum(not p.strip() for group in scored.predictions for p in group),
        "truncated": None if truncated is None else int(truncated.sum()),
        "only_two_way": None if surplus is None else int(surplus.sum()),
    }


def _per_prompt(scored: Scored) -> dict[str, Any]:
    num_questions, num_paraphrases = scored.right.shape
    several = num_paraphrases > 1
    predictions = [list(map(normalize_answer, group)) for group in scored.predictions]
    alike = sum(len(set(group)) == 1 for group in predictions)
    pairs = sum(map(pair_agreement, predictions)) if several else None
    return {
        "each": [_share(scored.right[:, n]) for n in range(num_paraphrases)],
        "any": _share(scored.right.any(axis=1)),
        "pairs_agree": pairs / num_questions if several else None,
        "all_agree": alike / num_questions if several else None,
    }


def compare(scored: Scored, baseline: Scored) -> dict[str, Any]:
    """The paired difference `scored` minus `baseline` over the questions that both have.

    Of a per_prompt baseline the first paraphrase counts; of a per_prompt file the mean over its
    paraphrases, question by question. `by_match` holds the same difference by every matcher that
    both files have, `bootstrap` its interval over resampled questions, `relation_bootstrap` that
    over resampled relations (None where rows carry none, or one only).

    Raises:
        UserError: a file has no uuids, or they have none in common, or one stands for different
            questions.
    """
    for each in (scored, baseline):
        if each.uuids is None:
            raise UserError(f"{each.path} has no column `uuid`, which a comparison needs")
    places = {uuid: i for i, uuid in enumerate(baseline.uuids)}
    pairs = [(i, places[uuid]) for i, uuid in enumerate(scored.uuids) if uuid in places]
    if not pairs:
        raise UserError(f"{scored.path} and the baseline {baseline.path} share no uuid")
    for i, j in pairs:
        if sorted(scored.answers[i]) != sorted(baseline.answers[j]):
            raise UserError(
                f"uuid {scored.uuids[i]} is another question in {scored.path} than in the baseline "
                f"{baseline.path}: its answers differ; compare files of the same dataset"
            )
    here, there = map(list, zip(*pairs, strict=True))
    by_match = {
        name: _difference(scored.matches[name][here], baseline.matches[name][there, 0])
        for name in MATCHERS
        if name in scored.matches and name in baseline.matches
    }
    right, reference = scored.right[here], baseline.right[there, 0]  # [pairs, N], [pairs]
    differences = right.mean(axis=1) - reference
    relations = None
    if scored.relations or baseline.relations:
        known, places = (scored, here) if scored.relations else (baseline, there)
        relations = [known.relations[i] for i in places]
    return {
        "pairs": len(pairs),
        "only_in_file": len(scored.uuids) - len(pairs),
        "only_in_baseline": len(baseline.uuids) - len(pairs),
        **by_match[scored.match],
        "bootstrap": bootstrap_interval(differences),
        "relations": len(set(relations)) if relations else None,
        "relation_bootstrap": (
            cluster_bootstrap_interval(differences, relations) if relations else None
        ),
        "by_match": by_match,
    }


def _difference(right: "np.ndarray", reference: "np.ndarray") -> dict[str, Any]:
    """right: [pairs, N], reference: [pairs]"""
    if right.shape[1] > 1:
        differences = right.mean(axis=1) - reference
        return {
            "won": None,
            "lost": None,
            "difference": float(differences.mean()),
            "interval": bootstrap_interval(differences),
            "mcnemar_p": None,  # a test of pairs, and a mean over paraphrases makes no pairs
        }
    won = int((right[:, 0] & ~reference).sum())
    lost = int((~right[:, 0] & reference).sum())
    return {
        "won": won,
        "lost": lost,
        "difference": (won - lost) / len(reference),
        "interval": tango_interval(won, lost, len(reference)),
        "mcnemar_p": mcnemar_p(won, lost),
    }


def make_report(
    paths: Sequence[str], baseline_path: str | None, *, by: str | None = None, **reading: Any
) -> dict[str, Any]:
    """Everything that is printed, in JSON types: what --json shows and the tables are made of.

    Args:
        by: a column whose values split every file once more.
        reading: match, lemmas and spacy_model, for `load_scored`.
    """
    files = [load_scored(path, by=by, **reading) for path in paths]
    baseline = load_scored(baseline_path, **reading) if baseline_path is not None else None
    return report_on(files, baseline, by=by)


def report_on(
    files: Sequence[Scored], baseline: Scored | None, *, by: str | None = None
) -> dict[str, Any]:
    """The report on files that are read already."""
    report = {"baseline": None, "by": by, "files": [], "notes": []}
    for scored in files:
        found = summarize(scored) | {"comparison": _comparison(scored, baseline)}
        found["by"] = [
            {"value": value, **summarize(part), "comparison": _part_comparison(part, baseline)}
            for value, part in _parts(scored)
        ]
        report["files"].append(found)
        report["notes"] += _coverage_notes(found)
    if baseline is not None:
        if baseline.per_prompt:
            note = f"{baseline.path} has a row a paraphrase: the baseline is its paraphrase 0"
            report["notes"].insert(0, note)
        report["baseline"] = {"file": baseline.path, "questions": len(baseline.right)}
        report["baseline"] |= {"paraphrase": 0 if baseline.per_prompt else None}
        first = baseline.first_paraphrase() if baseline.per_prompt else baseline
        report["baseline"] |= _share(first.right[:, 0])
        report["baseline"] |= {"scores": _scores(first), "counts": _counts(first)}
    _adjust([found["comparison"] for found in report["files"]])
    _adjust([part["comparison"] for found in report["files"] for part in found["by"]])
    return report


def _comparison(scored: Scored, baseline: Scored | None) -> dict[str, Any] | None:
    """None where there is no baseline, and where the file is the baseline itself."""
    if baseline is None:
        return None
    is_baseline = os.path.realpath(scored.path) == os.path.realpath(baseline.path)
    return None if is_baseline and not baseline.per_prompt else compare(scored, baseline)


def _part_comparison(part: Scored, baseline: Scored | None) -> dict[str, Any] | None:
    """As `_comparison`, but a part may well have no question that the baseline has."""
    shared = baseline is not None and set(part.uuids or ()) & set(baseline.uuids or ())
    return _comparison(part, baseline) if shared else None


def _parts(scored: Scored) -> list[tuple[str, Scored]]:
    """The questions of each value of the column, by value."""
    places: dict[str, list[int]] = {}
    for i, value in enumerate(scored.groups or ()):
        places.setdefault(value, []).append(i)
    return [(value, scored.take(places[value])) for value in sorted(places)]


def _adjust(comparisons: Sequence[dict[str, Any] | None]) -> None:
    """Adds `holm_p`: p among all the tests that the table shows; None where there is one only."""
    tested = [c for c in comparisons if c is not None and c["mcnemar_p"] is not None]
    adjusted = holm([c["mcnemar_p"] for c in tested])
    for comparison in filter(None, comparisons):
        comparison["holm_p"] = None
    for comparison, p in zip(tested, adjusted, strict=True):
        comparison["holm_p"] = p if len(tested) > 1 else None


def _coverage_notes(found: dict[str, Any]) -> list[str]:
    if (comparison := found["comparison"]) is None:
        return []
    path, pairs = found["file"], comparison["pairs"]
    lacking, surplus = comparison["only_in_baseline"], comparison["only_in_file"]
    notes = []
    if lacking:
        notes.append(f"{path} lacks {lacking} of the baseline's {pairs + lacking} uuids")
    if surplus:
        notes.append(f"the baseline lacks {surplus} of the {pairs + surplus} uuids of {path}")
    return [f"{note}: compared over the {pairs} that both have" for note in notes]


def write_file(path: str, content: bytes) -> None:
    """Raises UserError where the file cannot be written."""
    temporary = f"{path}.{os.getpid()}.tmp"  # half a picture never stands under the asked name
    try:
        with open(temporary, "wb") as handle:
            handle.write(content)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def main(args: argparse.Namespace) -> None:
    if args.spacy_model and args.lemmas != "recompute":
        raise UserError("--spacy_model is for --lemmas recompute")
    form = picture_format(args.plot) if args.plot else None
    reading = {"match": args.match, "lemmas": args.lemmas, "spacy_model": args.spacy_model}
    files = [load_scored(path, by=args.by, **reading) for path in args.files]
    baseline = load_scored(args.baseline, **reading) if args.baseline else None
    report = report_on(files, baseline, by=args.by)
    if args.plot:
        write_file(args.plot, draw(report, form))
        say(f"wrote {args.plot}")
    if args.html:
        write_file(args.html, render_page(files, baseline, report).encode(errors="replace"))
        say(f"wrote {args.html}")
    if args.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    elif args.csv:
        print(render_csv(report), end="")
    else:
        print(render_report(report))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="predictions and answers")
    parser.add_argument("--baseline", metavar="FILE", help="compare every FILE with this one")
    parser.add_argument(
        "--match",
        choices=MATCHERS,
        default="exact",
        help="what counts as right: exact (normalised as SQuAD does), first_token, one_way (an "
        "answer's lemmas are a contiguous run of the prediction's), two_way (or the reverse); "
        "a table shows all of them side by side (default: exact)",
    )
    parser.add_argument(
        "--lemmas",
        choices=("file", "recompute"),
        help="take the columns predict_lemma and answer_lemmas, or make lemmas anew "
        "(default: file, where the columns are)",
    )
    parser.add_argument(
        "--spacy_model",
        metavar="NAME",
        help="what recomputes: a spaCy model, or lookup (default: en_core_web_lg where it is "
        "installed, else lookup)",
    )
    parser.add_argument("--by", metavar="COLUMN", help="also split by the values of this column")
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="draw accuracies, accuracy over N and the spread of single paraphrases (.png, .svg, "
        ".pdf)",
    )
    parser.add_argument(
        "--html",
        metavar="FILE",
        help="write one page with tables, pictures and every question with all files' answers",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--json", action="store_true", help="print everything as JSON; shares are from 0 to 1"
    )
    form.add_argument(
        "--csv", action="store_true", help="print a row a file (with --by, also a row a value)"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main, parse_args())
