"""Scores predictions: several matchers with intervals, and the paired comparison with a baseline.

    python score.py results/demo/demo/*.feather
    python score.py results/demo/demo/*.feather --baseline results/demo/demo/avg-5.feather
    python score.py results/demo/demo/*.feather --plot scores.png --html scores.html

A file is .feather, .parquet, .csv or .jsonl with the columns `prediction` and `answers`; comparing
needs `uuid` too. Lemmas are matched where the columns `predict_lemma` and `answer_lemmas` are, or
with --lemmas recompute. A file of the method per_prompt (a row a paraphrase, with a column
`paraphrase`) also gets the accuracy of each paraphrase, the fraction of questions that any of them
got right, and how often they agree. No language model is loaded.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from self_ensemble.cli.parser import Parser, run
from self_ensemble.cli.spacy_import import import_spacy_without_torch
from self_ensemble.evaluation.page import render_page
from self_ensemble.evaluation.plots import draw, picture_format
from self_ensemble.evaluation.report import report_on
from self_ensemble.evaluation.scored import MATCHERS, score_predictions
from self_ensemble.evaluation.tables import render_csv, render_report
from self_ensemble.system.console import say
from self_ensemble.system.errors import UserError
from self_ensemble.system.files import replace_synced


def main(args: argparse.Namespace) -> None:
    if args.spacy_model and args.lemmas != "recompute":
        raise UserError("--spacy_model is for --lemmas recompute")
    form = picture_format(args.plot) if args.plot else None
    if args.lemmas == "recompute":
        import_spacy_without_torch(args.spacy_model)
    how = {"match": args.match, "lemmas": args.lemmas, "spacy_model": args.spacy_model}
    files = [score_predictions(path, by=args.by, **how) for path in args.files]
    baseline = score_predictions(args.baseline, **how) if args.baseline else None
    report = report_on(files, baseline, by=args.by)
    if form is not None:
        write_file(args.plot, draw(report, form))
    if args.html:
        page = render_page(files, baseline, report)
        write_file(args.html, page.encode(errors="replace"))
    if args.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    elif args.csv:
        print(render_csv(report), end="")
    else:
        print(render_report(report))


def write_file(path: str, content: bytes) -> None:
    """Half a picture never stands under the name that was asked for."""
    try:
        if Path(path).is_dir():
            raise IsADirectoryError(None, "it is a folder")
        replace_synced(Path(path), content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    say(f"wrote {path}")


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
        "--json", action="store_true", help="print everything as JSON; fractions are from 0 to 1"
    )
    form.add_argument(
        "--csv", action="store_true", help="print a row a file (with --by, also a row a value)"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main, parse_args())
