"""Make paraphrases of questions with a model, or look through paraphrases that are there.

    python paraphrase.py --dataset webqa --model llama3.2_3b_it --num_paraphrases 5 --drop
    python paraphrase.py --dataset questions.jsonl --output reworded.jsonl
    python paraphrase.py --check questions.jsonl

Every paraphrase passes a gate (gate.py): copies, leaked answers, lost names and masks, runaway text
are reported, and with --drop taken out and drawn again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from self_ensemble.cli.parser import (
    Parser,
    add_chat_template_argument,
    add_model_arguments,
    add_source_arguments,
    check_dataset_arguments,
    finite_float,
    non_negative_int,
    positive_int,
    run,
)
from self_ensemble.data import Dataset, DatasetOptions, load_dataset, open_dataset
from self_ensemble.data.names import DATA_ROOT
from self_ensemble.data.registry import dataset_names
from self_ensemble.data.result_files import read_manifest, replace_files, result_file, safe_name
from self_ensemble.paraphrasing.drawing import (
    Making,
    output_stem,
    refuse_foreign,
    too_few,
    write_files,
)
from self_ensemble.paraphrasing.quality_filter import (
    load_casing,
    report_csv,
    report_lines,
    verdicts,
)
from self_ensemble.system.console import say
from self_ensemble.system.lock import held

# Of the process, where a question ends up with too few paraphrases; so many are named.
SHORT_STATUS, SHOWN_SHORT = 1, 20


def tell(judged, casing) -> None:
    """The gate's report, on stdout."""
    print("\n".join(report_lines(judged)))
    if casing is None:
        say(
            "lost names: known by their capitals alone, so questions in lower case were not looked "
            "through; pip install spacy-lookups-data brings the table of words that can"
        )


def end_if_short(stem: Path, wanted: int, *, max_attempts: int | None) -> None:
    """A file with too few paraphrases is no success: the questions are named, and the status 1.

    max_attempts: how often each was drawn; None where nothing is.
    """
    short = read_manifest(stem)["short"]
    for uuid, count in list(short.items())[:SHOWN_SHORT]:
        say(f"question {uuid} has {count} of {wanted} paraphrases")
    if short:
        say(f"{len(short)} questions have too few: `short` in {result_file(stem, '.json')}")
        if max_attempts is not None:
            say(
                "the same command draws nothing more; with --overwrite and a larger "
                f"--max_attempts, such as {2 * max_attempts}, it draws more often, and with "
                "--overwrite and without --drop it keeps all that it draws"
            )
        raise SystemExit(SHORT_STATUS)


def read_questions(args) -> Dataset:
    """The questions to be put in other words; of a hub's dataset without its paraphrases."""
    where = {"data_dir": args.data_dir, "dataset_revision": args.dataset_revision}
    return open_dataset(args.dataset, DatasetOptions(original=True, needs_few_shot=False, **where))


def make(args) -> Path:
    """Draw paraphrases of a dataset's questions. Returns the path without its suffix."""
    dataset = read_questions(args)
    from self_ensemble.experiment.run import set_up_logging

    set_up_logging(args.verbose)
    from self_ensemble.generation.legacy import loaded_engine
    from self_ensemble.models.loading import find_model

    source = find_model(args.model, revision=args.revision, device=args.device, dtype=args.dtype)
    this = Making(args, dataset, source)
    with this.claimed() as unfinished:
        if unfinished:
            with loaded_engine(source, attention=args.attention) as engine:
                this.begin(engine)
                this.draw_all()
            tell(this.judged, this.casing)
            this.write()
    end_if_short(this.stem, args.num_paraphrases, max_attempts=args.max_attempts)
    return this.stem


def check(args) -> Path:
    """Look through a file's own paraphrases. Returns the path of the report without its suffix."""
    dataset = load_dataset(args.check, max_samples=args.max_samples)
    casing = load_casing()
    judged, rows = [], []
    for record in dataset.records:
        found = verdicts(
            record.paraphrases, question=record.question, answers=record.answers, casing=casing
        )
        told = list(zip(record.paraphrases, found, strict=True))
        judged += [(record.uuid, text, wrong) for text, wrong in told]
        rows.append((record, record.question, [text for text, wrong in told if not wrong]))
    tell(judged, casing)
    if not args.drop:
        stem = args.output_dir / safe_name(dataset.name) / "check"
        path = result_file(stem, "_report.csv")
        replace_files({path: report_csv(judged).encode()}, seal=path, keep_seal=True)
        say(f"wrote {path}")
        return stem
    stem = output_stem(args, dataset, "")
    if not args.overwrite:
        refuse_foreign(stem)
    manifest = {
        "identity": {"data": dataset.fingerprint, "drop": True},
        "num_questions": len(rows),
        "dataset": dataset.name,
        "short": too_few(rows, args.num_paraphrases),
    }
    with held(stem):
        write_files(stem, rows, judged, manifest)
    say(f"wrote {result_file(stem, '.jsonl')} (_report.csv and .json beside it)")
    end_if_short(stem, args.num_paraphrases, max_attempts=None)
    return stem


def main(args) -> Path:
    """Run a command line. Returns the path of what it wrote, without suffix."""
    return make(args) if args.check is None else check(args)


def parse_args(argv: Sequence[str] | None = None):
    parser = Parser(description=__doc__)
    add_paraphrase_arguments(parser)
    told = ("num_paraphrases", "output_dir", *DRAWING)
    args = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(told)))  # None: not given
    if args.check is not None:
        for name in DRAWING:
            if getattr(args, name) is not None:
                parser.error(f"--{name}: --check draws nothing and does not use it")
        if args.check in dataset_names():
            parser.error(f"--check: {args.check} names a dataset; give the path of a file")
        if args.drop and args.output is None:
            parser.error("--drop: --check needs --output FILE.jsonl for what is left")
        if not args.drop and (args.output is not None or args.overwrite):
            parser.error("--output, --overwrite: --check writes what is left only with --drop")
        if not args.drop and args.num_paraphrases is not None:
            parser.error("--num_paraphrases: --check counts what is left only with --drop")
        if args.num_paraphrases is None:
            args.num_paraphrases = 1
    if args.max_attempts is not None and not args.drop:
        parser.error("--max_attempts: without --drop nothing is drawn again")
    if args.output is not None and args.output_dir is not None:
        parser.error("--output_dir: --output names the file already, with its folder")
    for name in told:
        if getattr(args, name) is None:
            setattr(args, name, parser.get_default(name))
    check_dataset_arguments(parser, args)
    if args.output is not None and _is_same_file(args.output, args.check or args.dataset):
        parser.error(f"--output: {args.output} is the file that the questions are read from")
    return args


def _is_same_file(path: Path, other: str) -> bool:
    return Path(other).exists() and path.resolve() == Path(other).resolve()


def add_paraphrase_arguments(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("questions")
    data.add_argument(
        "--dataset",
        default="demo",
        metavar="NAME|FILE",
        help=f"{', '.join(dataset_names())}, or a .parquet, .feather, .jsonl or .csv file: of each "
        "row the column question, else paraphrase 0, is put in other words (default: demo)",
    )
    add_source_arguments(data)
    data.add_argument(
        "--max_samples",
        type=positive_int,
        metavar="N",
        help="the first N questions (default: all)",
    )
    data.add_argument(
        "--check",
        metavar="FILE",
        help="look through the paraphrases of this file instead; no model is loaded",
    )

    gate = parser.add_argument_group("paraphrases")
    gate.add_argument(
        "--num_paraphrases",
        type=positive_int,
        default=5,
        metavar="N",
        help="of each question; with --check --drop how many must be left (default: %(default)s; "
        "with --check 1)",
    )
    gate.add_argument(
        "--drop",
        action="store_true",
        help="take out what the gate finds, and draw again; status 1 where too few are left",
    )
    gate.add_argument(
        "--max_attempts",
        type=positive_int,
        default=5,
        metavar="N",
        help="with --drop: how often each paraphrase is drawn at most (default: %(default)s)",
    )

    add_model_arguments(parser)

    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--temperature",
        type=positive_float,
        default=1.0,
        metavar="T",
        help="above 0; lower keeps to the likelier tokens (default: %(default)s)",
    )
    sampling.add_argument(
        "--top_p",
        type=share,
        default=0.95,
        metavar="P",
        help="from the likeliest tokens that together have this probability (default: %(default)s)",
    )
    sampling.add_argument(
        "--seed",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="what the draws depend on, with question and attempt (default: %(default)s)",
    )
    add_chat_template_argument(sampling)
    sampling.add_argument(
        "--max_new_tokens",
        type=positive_int,
        default=64,
        metavar="N",
        help="longest paraphrase, in tokens (default: %(default)s)",
    )
    sampling.add_argument(
        "--batch_size",
        type=positive_int,
        default=128,
        metavar="N",
        help="paraphrases drawn at a time (default: %(default)s)",
    )

    writing = parser.add_argument_group("files")
    writing.add_argument(
        "--output_dir",
        type=Path,
        default=DATA_ROOT,
        metavar="FOLDER",
        help="in which <dataset>/<model>/paraphrases.jsonl is made (default: %(default)s)",
    )
    writing.add_argument(
        "--output",
        type=jsonl_path,
        metavar="FILE.jsonl",
        help="this file instead, its report and manifest beside it",
    )
    writing.add_argument("--overwrite", action="store_true", help="make finished files again")
    writing.add_argument("--verbose", action="store_true", help="say more while running")


# What --check has no use for.
DRAWING = (
    *("dataset", "data_dir", "dataset_revision"),
    *("model", "revision", "device", "dtype", "attention", "chat_template"),
    *("temperature", "top_p", "seed", "max_new_tokens", "batch_size", "max_attempts"),
    "verbose",
)


def positive_float(text: str) -> float:
    number = finite_float(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def share(text: str) -> float:
    number = finite_float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and at most 1")
    return number


def jsonl_path(text: str) -> Path:
    if not text.endswith(".jsonl") or text.endswith("/.jsonl") or text == ".jsonl":
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .jsonl")
    return Path(text)


if __name__ == "__main__":
    run(main, parse_args())
