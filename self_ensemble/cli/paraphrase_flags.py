"""The flags of paraphrase.py, and the configurations made of them."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from self_ensemble.cli.flags import (
    add_chat_template_argument,
    add_model_arguments,
    add_source_arguments,
    add_workers_arguments,
    check_dataset_arguments,
    check_workers_arguments,
    columns_config,
    model_config,
    workers_config,
)
from self_ensemble.cli.parser import Parser
from self_ensemble.cli.types import (
    jsonl_path,
    non_negative_int,
    positive_float,
    positive_fraction,
    positive_int,
)
from self_ensemble.data import dataset_names
from self_ensemble.data.registry import COLUMN_OPTIONS, HUB_OPTIONS
from self_ensemble.experiment.config import (
    ParaphraseCheckConfig,
    ParaphraseRunConfig,
    TemplateConfig,
)
from self_ensemble.generation.config import GenerationConfig, SamplingConfig
from self_ensemble.paraphrasing.config import ParaphraseConfig

# What --check has a use for with --model alone.
JUDGE_FLAGS = ("revision", "device", "dtype", "attention", "batch_size")
# What --check has no use for.
SAMPLING_FLAGS = (
    *("dataset", "data_dir", *HUB_OPTIONS),
    "chat_template",
    *("temperature", "top_p", "seed", "max_new_tokens", "max_attempts"),
    *("workers", "ray_address", "gpus_per_worker", "verbose"),
)


def add_paraphrase_arguments(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("questions")
    data.add_argument(
        "--dataset",
        default=ParaphraseRunConfig.dataset,
        metavar="NAME|FILE|ID",
        help=f"{', '.join(dataset_names())}, or a .parquet, .feather, .jsonl or .csv file, or a "
        "hub id: of each question the column question, else paraphrase 0, is put in other words "
        "(default: %(default)s)",
    )
    add_source_arguments(data)
    data.add_argument(
        "--max_samples",
        type=positive_int,
        metavar="N",
        help="the first N questions (default: all)",
    )
    data.add_argument(
        "--method",
        nargs=2,
        metavar=("templates", "FILE"),
        help="templates FILE: fill in the templates of this table ([X], [Y]) instead, for the "
        "facts of --dataset FILE; no model is loaded",
    )
    data.add_argument(
        "--check",
        metavar="FILE",
        help="look through the paraphrases of this file instead; with --model that model judges "
        "them as well, else none is loaded",
    )

    quality = parser.add_argument_group("paraphrases")
    quality.add_argument(
        "--num_paraphrases",
        type=positive_int,
        default=ParaphraseConfig.num_paraphrases,
        metavar="N",
        help="of each question; with --check --drop how many must be left (default: %(default)s; "
        f"with --check {ParaphraseCheckConfig.num_paraphrases})",
    )
    quality.add_argument(
        "--drop",
        action="store_true",
        help="take out what the quality filter rejects, and draw again; status 1 where too few "
        "are left",
    )
    quality.add_argument(
        "--max_attempts",
        type=positive_int,
        default=ParaphraseConfig.max_attempts,
        metavar="N",
        help="with --drop: how often each paraphrase is drawn at most (default: %(default)s)",
    )

    add_model_arguments(parser)

    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--temperature",
        type=positive_float,
        default=ParaphraseConfig.sampling.temperature,
        metavar="T",
        help="above 0; lower keeps to the likelier tokens (default: %(default)s)",
    )
    sampling.add_argument(
        "--top_p",
        type=positive_fraction,
        default=ParaphraseConfig.sampling.top_p,
        metavar="P",
        help="from the likeliest tokens that together have this probability (default: %(default)s)",
    )
    sampling.add_argument(
        "--seed",
        type=non_negative_int,
        default=ParaphraseConfig.sampling.seed,
        metavar="N",
        help="what the draws depend on, with question and attempt (default: %(default)s)",
    )
    add_chat_template_argument(sampling)
    sampling.add_argument(
        "--max_new_tokens",
        type=positive_int,
        default=ParaphraseConfig.generation.max_new_tokens,
        metavar="N",
        help="longest paraphrase, in tokens (default: %(default)s)",
    )
    sampling.add_argument(
        "--batch_size",
        type=positive_int,
        default=ParaphraseConfig.generation.batch_size,
        metavar="N",
        help="paraphrases drawn at a time (default: 128 on a CPU, 1024 on a GPU)",
    )

    add_workers_arguments(sampling)

    writing = parser.add_argument_group("files")
    writing.add_argument(
        "--output_dir",
        type=Path,
        default=ParaphraseRunConfig.output_dir,
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


def parse_paraphrase_args(
    parser: Parser, argv: Sequence[str] | None
) -> ParaphraseRunConfig | ParaphraseCheckConfig | TemplateConfig:
    """The command line of `add_paraphrase_arguments`, checked."""
    told = ("num_paraphrases", "output_dir", "model", *JUDGE_FLAGS, *SAMPLING_FLAGS)
    args = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(told)))  # None: not given
    judged = args.model is not None
    num_templates = args.num_paraphrases
    if args.method is not None:
        _check_flags_of_templates(parser, args)
    if args.check is not None:
        _check_flags_of_check(parser, args)
        if args.num_paraphrases is None:
            args.num_paraphrases = ParaphraseCheckConfig.num_paraphrases
    if args.max_attempts is not None and not args.drop:
        parser.error("--max_attempts: without --drop nothing is drawn again")
    if args.output is not None and args.output_dir is not None:
        parser.error("--output_dir: --output names the file already, with its folder")
    for name in told:
        if getattr(args, name) is None:
            setattr(args, name, parser.get_default(name))
    if args.method is not None:
        return _template_config(args, num_templates)
    check_workers_arguments(parser, args)
    check_dataset_arguments(parser, args, name=args.check or args.dataset)
    if args.output is not None and _is_same_file(args.output, args.check or args.dataset):
        parser.error(f"--output: {args.output} is the file that the questions are read from")
    return _run_config(args) if args.check is None else _check_config(args, judged=judged)


def _check_flags_of_templates(parser: Parser, args: argparse.Namespace) -> None:
    """What the user gave, before defaults are put in."""
    if args.method[0] != "templates":
        parser.error(f"--method: {args.method[0]} is no method; there is: templates FILE")
    if args.check is not None:
        parser.error("--check: --method templates makes paraphrases, --check looks through some")
    for name in ("model", *SAMPLING_FLAGS, *JUDGE_FLAGS):
        if name != "dataset" and getattr(args, name) is not None:
            parser.error(f"--{name}: --method templates draws nothing and does not use it")
    if args.drop:
        parser.error("--drop: --method templates draws nothing again")
    for name in COLUMN_OPTIONS:
        if getattr(args, name) is not None:
            parser.error(f"--{name}: --method templates reads facts by the names of their columns")
    if args.dataset is None or args.dataset in dataset_names():
        parser.error("--method templates: --dataset FILE must be the table of the facts")
    if args.output is not None and any(_is_same_file(args.output, each) for each in _read(args)):
        parser.error(f"--output: {args.output} is a file that is read")


def _read(args: argparse.Namespace) -> tuple[str, str]:
    return args.dataset, args.method[1]


def _template_config(args: argparse.Namespace, num_templates: int | None) -> TemplateConfig:
    return TemplateConfig(
        dataset=args.dataset,
        templates=Path(args.method[1]),
        max_samples=args.max_samples,
        num_paraphrases=num_templates,
        output_dir=args.output_dir,
        output=args.output,
        overwrite=args.overwrite,
    )


def _check_flags_of_check(parser: Parser, args: argparse.Namespace) -> None:
    for name in SAMPLING_FLAGS:
        if getattr(args, name) is not None:
            parser.error(f"--{name}: --check draws nothing and does not use it")
    for name in JUDGE_FLAGS:
        if getattr(args, name) is not None and args.model is None:
            parser.error(f"--{name}: --check loads no model without --model")
    if args.check in dataset_names():
        parser.error(f"--check: {args.check} names a dataset; give the path of a file")
    if args.drop and args.output is None:
        parser.error("--drop: --check needs --output FILE.jsonl for what is left")
    if not args.drop and (args.output is not None or args.overwrite):
        parser.error("--output, --overwrite: --check writes what is left only with --drop")
    if not args.drop and args.num_paraphrases is not None:
        parser.error("--num_paraphrases: --check counts what is left only with --drop")


def _is_same_file(path: Path, other: str) -> bool:
    return Path(other).exists() and path.resolve() == Path(other).resolve()


def _run_config(args: argparse.Namespace) -> ParaphraseRunConfig:
    return ParaphraseRunConfig(
        dataset=args.dataset,
        data_dir=args.data_dir,
        dataset_revision=args.dataset_revision,
        split=args.split,
        columns=columns_config(args),
        max_samples=args.max_samples,
        paraphrases=ParaphraseConfig(
            num_paraphrases=args.num_paraphrases,
            drop=args.drop,
            max_attempts=args.max_attempts,
            chat_template=args.chat_template,
            sampling=SamplingConfig(temperature=args.temperature, top_p=args.top_p, seed=args.seed),
            generation=GenerationConfig(
                max_new_tokens=args.max_new_tokens, batch_size=args.batch_size
            ),
        ),
        model=model_config(args, args.gpus_per_worker),
        workers=workers_config(args),
        output_dir=args.output_dir,
        output=args.output,
        overwrite=args.overwrite,
        verbose=args.verbose,
    )


def _check_config(args: argparse.Namespace, *, judged: bool) -> ParaphraseCheckConfig:
    """judged: whether a model was named."""
    return ParaphraseCheckConfig(
        file=args.check,
        columns=columns_config(args),
        max_samples=args.max_samples,
        drop=args.drop,
        num_paraphrases=args.num_paraphrases,
        model=model_config(args, None) if judged else None,
        batch_size=args.batch_size if judged else None,
        output_dir=args.output_dir,
        output=args.output,
        overwrite=args.overwrite,
    )
