"""Scores predictions: several matchers with intervals, and the paired comparison with a baseline.

    python score.py results/demo/demo/*.feather
    python score.py results/demo/demo/*.feather --baseline results/demo/demo/avg-5.feather
    python score.py results/demo/demo/*.feather --plot scores.png --html scores.html
    python score.py results/math/demo/*.feather --extract 'after:####' --match number

A file is .feather, .parquet, .csv or .jsonl with the columns `prediction` and `answers`, or .json,
the manifest of a result, whose table may be in parts (--part_rows); comparing needs `uuid` too.
Lemmas are matched where the columns `predict_lemma` and `answer_lemmas` are, or with --lemmas
recompute. A file of the method per_prompt (a row a paraphrase, with a column `paraphrase`) also
gets the accuracy of each paraphrase, their spread, the fraction of questions that any of them got
right, and how often they agree. A file of --task choices gets the accuracy by every norm for the
length of a choice, and how far its probabilities can be believed. No language model is loaded.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from self_ensemble.cli.parser import Parser, run
from self_ensemble.cli.spacy_import import import_spacy_without_torch
from self_ensemble.cli.types import extraction
from self_ensemble.data.choices import NORMS
from self_ensemble.evaluation.page import render_page
from self_ensemble.evaluation.plots import draw, picture_format
from self_ensemble.evaluation.report import report_on
from self_ensemble.evaluation.scored import MATCHERS, ScoredPredictions, score_predictions
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
    how = {
        "match": args.match or MATCHERS[0],
        "extract": args.extract,
        "choice_norm": args.choice_norm,
        "lemmas": args.lemmas,
        "spacy_model": args.spacy_model,
    }
    files = [score_predictions(path, by=args.by, **how) for path in args.files]
    baseline = score_predictions(args.baseline, **how) if args.baseline else None
    check_flags_apply(args, [*files, *([baseline] if baseline else [])])
    report = report_on(files, baseline, by=args.by, extract=args.extract)
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


def check_flags_apply(args: argparse.Namespace, files: Sequence[ScoredPredictions]) -> None:
    """A flag that no file has a use for is a mistake."""
    of_choices = [file.choices is not None for file in files]
    if args.choice_norm and not any(of_choices):
        raise UserError("--choice_norm is for files of --task choices, and none of these is one")
    for flag in ("match", "lemmas"):
        if getattr(args, flag) and all(of_choices):
            raise UserError(
                f"--{flag} is for generated answers, and these files hold chosen ones, which are "
                "right by --choice_norm"
            )


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
        help="what counts as right: exact (normalised as SQuAD does), first_token, number (the "
        "prediction's last number is an answer's), one_way (an answer's lemmas are a contiguous "
        "run of the prediction's), two_way (or the reverse); a table shows all of them side by "
        "side (default: exact)",
    )
    parser.add_argument(
        "--extract",
        type=extraction,
        metavar="{line,all,after:TEXT,last_number,regex:PATTERN}",
        help="make predictions anew of the column generation: its first line, all, what follows "
        "the last TEXT, the last number, or the first group of the first match (default: the "
        "column prediction)",
    )
    parser.add_argument(
        "--choice_norm",
        choices=NORMS,
        help="files of --task choices: by what a choice is taken, its log-likelihood (sum), the "
        "same a token (mean) or a byte (bytes); a table shows all of them side by side (default: "
        "that by which the column prediction was taken)",
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
        help="draw accuracies, accuracy over N, the spread of single paraphrases and how reliable "
        "the probabilities of choices are (.png, .svg, .pdf)",
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
