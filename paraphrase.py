"""Make paraphrases of questions with a model, or look through paraphrases that are there.

    python paraphrase.py --dataset webqa --model llama3.2_3b_it --num_paraphrases 5 --drop
    python paraphrase.py --dataset questions.jsonl --output reworded.jsonl
    python paraphrase.py --check questions.jsonl

Every paraphrase passes a gate (gate.py): copies, leaked answers, lost names and masks, runaway text
are reported, and with --drop taken out and drawn again.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cli import (
    Parser,
    add_model_arguments,
    finite_float,
    non_negative_int,
    positive_int,
    run,
)
from constants import DATASET_NAMES, UserError
from dataset import Dataset, PromptTemplate, Record, load_dataset, prompt_template
from files import remove_leftovers
from gate import MASK, key, load_casing, reasons, report_csv, report_lines, verdicts
from interrupts import advise
from journal import Journal
from lock import held
from progress import progress, say
from results import (
    fingerprint,
    identity_differences,
    read_manifest,
    replace_files,
    result_file,
    safe_name,
)
from rewording import (
    QUESTION_EXAMPLES,
    QUESTION_INSTRUCTION,
    SENTENCE_EXAMPLES,
    SENTENCE_INSTRUCTION,
)

PROMPTS = {
    "questions": (QUESTION_INSTRUCTION, QUESTION_EXAMPLES),
    "sentences": (SENTENCE_INSTRUCTION, SENTENCE_EXAMPLES),
}
ECHOES = frozenset(
    key(text)
    for _, examples in PROMPTS.values()
    for shot in examples
    for text in (shot.question, shot.answer)
)
# A question that ends up with too few paraphrases.
SHORT_STATUS, SHOWN_SHORT = 1, 20


@dataclass
class Asked:
    """A question and what was drawn for it so far: texts, each with what is wrong with it."""

    record: Record
    draws: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)

    @property
    def question(self) -> str:
        return self.record.question or self.record.paraphrases[0]

    @property
    def kind(self) -> str:
        """Which prompt it goes into."""
        return "sentences" if MASK in self.question else "questions"

    def judge(self, text: str, *, truncated: bool, casing) -> None:
        wrong = reasons(
            text,
            question=self.question,
            answers=self.record.answers,
            casing=casing,
            earlier=self.draws,
            echoes=ECHOES - {key(self.question)},
            truncated=truncated,
        )
        self.draws.append((text, wrong))

    def paraphrases(self, *, drop: bool) -> list[str]:
        return [text for text, wrong in self.draws if not (drop and wrong)]


def plain_templates() -> dict[str, PromptTemplate]:
    return {kind: prompt_template(*prompt) for kind, prompt in PROMPTS.items()}


class Making:
    """One run: from the questions of a dataset to the file of their paraphrases.

    Beside `<stem>.jsonl` are `<stem>_report.csv` and the manifest `<stem>.json`, which comes last:
    where it stands the file is whole.
    """

    def __init__(self, args, dataset: Dataset, source):
        self.args = args
        self.dataset = dataset
        self.source = source
        self.casing = load_casing()
        self.asked = [Asked(record) for record in dataset.records[: args.max_samples]]
        self.stem = output_stem(args, dataset, source.name)
        self.templates = plain_templates()
        if args.chat_template:
            from dataset import chat_prompt_template
            from loading import load_tokenizer

            tokenizer = load_tokenizer(source)
            self.templates = {
                kind: chat_prompt_template(tokenizer, template)
                for kind, template in self.templates.items()
            }
        # Not the dataset's own: that knows paraphrases, which this very run may make.
        records = [[r.uuid, Asked(r).question, r.answers] for r in dataset.records]
        self.identity = {
            "data": fingerprint(records),
            "model": source.fingerprint,
            "prompt": {k: [t.head, t.tail] for k, t in self.templates.items()},
            "chat_template": args.chat_template,
            "num_paraphrases": args.num_paraphrases,
            "sampling": {name: getattr(args, name) for name in ("temperature", "top_p", "seed")},
            "max_new_tokens": args.max_new_tokens,
            "drop": args.drop,
            "max_attempts": args.max_attempts if args.drop else 1,
            "names": "capitals" if self.casing is None else "capitals and a table of words",
            "dtype": str(source.dtype).removeprefix("torch."),
        }

    @contextmanager
    def claimed(self) -> Iterator[bool]:
        """Whether there is anything to do; if so, the file is this process' own inside."""
        finished = self._is_finished()
        if not finished:
            with held(self.stem):
                remove_leftovers(self.stem)
                finished = self._is_finished()  # perhaps by the time that the lock was free
                if not finished:
                    self.journal = self._open_journal()
                    advise(self._how_to_go_on)
                    yield True
                    advise(None)  # not after an error: Ctrl-C is one, its advice still to be told
        if finished:
            path = result_file(self.stem, ".jsonl")
            say(f"{path} is finished already; --overwrite makes it again")
            yield False

    def _is_finished(self) -> bool:
        if self.args.overwrite or Journal.read(self.stem) is not None:
            return False
        try:
            manifest = read_manifest(self.stem)
        except UserError as error:
            raise UserError(f"{error}; --overwrite or another --output") from None
        if manifest is None or not result_file(self.stem, ".jsonl").exists():
            refuse_foreign(self.stem)
            return False
        differences = identity_differences(manifest["identity"], self.identity)
        if differences:
            raise UserError(
                f"{result_file(self.stem, '.json')} belongs to another run: "
                f"{'; '.join(differences)}; --overwrite or another --output"
            )
        # With fewer questions than asked for now, all are drawn again, and come out the same.
        return manifest["num_questions"] >= len(self.asked)

    def _open_journal(self) -> Journal:
        # The draws of a round are numbered over all questions.
        identity = self.identity | {"num_questions": len(self.asked)}
        journal = None if self.args.overwrite else Journal.read(self.stem)
        if journal is None:
            return Journal(self.stem, identity, remake=True)
        journal.check_same_run(identity)
        if journal.cut_short:
            say(f"{journal.path} ends in the middle of a batch, which is drawn again")
        return journal

    def _how_to_go_on(self) -> str:
        if self.journal.size == 0:
            return "nothing was drawn yet; the same command begins again"
        flag = "without --overwrite " if self.args.overwrite else ""
        return f"what was drawn is kept in {self.journal.path}; the same command {flag}goes on"

    def begin(self, engine) -> None:
        """The model is there: note what computes, start the clock where it was stopped."""
        from pipeline import describe_device, versions

        self.environment = {"device": describe_device(self.source.device), "versions": versions()}
        self.journal.begin(self.environment)
        self.engine = engine
        self.begun = time.monotonic()
        if self.journal.state is not None:
            self.begun -= self.journal.state["seconds"]

    def draw_all(self) -> None:
        """Draw what is missing, judge it, and with --drop again, until enough have passed."""
        for kind, template in self.templates.items():
            group = [asked for asked in self.asked if asked.kind == kind]
            if not group:
                continue
            prefix, streams = self._streams(group, template)
            self.engine.set_prefix(prefix)
            for attempt in range(self.identity["max_attempts"]):
                wanted = [
                    (place, len(asked.draws) + k)
                    for place, asked in enumerate(group)
                    for k in range(self._missing(asked))
                ]
                if not wanted:
                    break
                name = f"{kind}, attempt {attempt + 1}"
                draws = [(group[place].record.uuid, number) for place, number in wanted]
                texts = self._draw(name, draws, [[streams[place]] for place, _ in wanted])
                for (place, _), (text, truncated) in zip(wanted, texts, strict=True):
                    group[place].judge(text, truncated=truncated, casing=self.casing)

    def _missing(self, asked: Asked) -> int:
        return self.args.num_paraphrases - len(asked.paraphrases(drop=self.args.drop))

    def _streams(self, group: list[Asked], template: PromptTemplate):
        from engine import logit_streams
        from segments import split_prompts

        questions = [[asked.question] for asked in group]
        prefix, split = split_prompts(self.engine.tokenizer, template, questions)
        return prefix, [logit_streams(question, len(prefix))[0] for question in split]

    def _draw(self, name: str, draws: list[tuple[str, int]], groups) -> list[tuple[str, bool]]:
        """One pass: the first line of each draw, and whether it ran into the token limit."""
        from answers import first_line
        from attention import Fusion
        from engine import Counts
        from sampling import fresh_state, sampler

        engine, size = self.engine, self.args.batch_size
        if name in self.journal.answers:  # by an interrupted run
            engine.counts = Counts(**self.journal.state["counts"])
            engine.fitting = self.journal.state["fitting"]
        batches = self.journal.batches(
            name,
            len(groups),
            size,
            lambda indices: [
                [indices[at] for at in batch]
                for batch in engine.plan([groups[index] for index in indices], size)
            ],
            questions=len(self.asked),
        )
        found = dict(self.journal.answers.get(name, {}))
        generated = engine.generate(
            groups,
            fusion=Fusion(),
            combine=sampler(draws, **self.identity["sampling"]),
            max_new_tokens=self.args.max_new_tokens,
            batches=batches,
            weights=fresh_state(len(groups)),
        )
        with progress(len(groups), name, "paraphrases", begin=len(found)) as advance:
            for batch in generated:
                texts = [
                    [
                        first_line(engine.tokenizer.decode(a.token_ids, skip_special_tokens=True)),
                        a.truncated,
                    ]
                    for _, a in batch
                ]
                indices = [index for index, _ in batch]
                self.journal.add(name, indices, texts, self._state())
                found.update(zip(indices, texts, strict=True))
                advance(len(batch))
        return [tuple(found[index]) for index in range(len(groups))]

    def _state(self) -> dict[str, Any]:
        return {
            "counts": asdict(self.engine.counts),
            "fitting": self.engine.fitting,
            "seconds": round(time.monotonic() - self.begun, 3),
        }

    def write(self) -> None:
        """The three files, the table on stdout, and what was done on stderr."""
        drop = self.args.drop
        judged = [
            (asked.record.uuid, text, wrong) for asked in self.asked for text, wrong in asked.draws
        ]
        rows = [
            (asked.record, asked.question, asked.paraphrases(drop=drop)) for asked in self.asked
        ]
        others = [e for e in self.journal.environments if e != self.environment]
        manifest = {
            "identity": self.identity,
            "num_questions": len(rows),
            "dataset": self.dataset.name,
            "model": {"name": self.source.name, "revision": self.source.revision},
            **self.environment,
            **({"begun_with": others} if others else {}),
            "batch_size": self.args.batch_size,
            "paraphrases": sum(len(kept) for *_, kept in rows),
            "draws": len(judged),
            "flagged": sum(1 for *_, wrong in judged if wrong),
            "short": too_few(rows, self.args.num_paraphrases),
            **self._state(),
        }
        write_files(self.stem, rows, judged, manifest)
        self.journal.remove()
        tell(judged, self.casing)
        say(f"wrote {result_file(self.stem, '.jsonl')} (_report.csv and .json beside it)")


def output_stem(args, dataset: Dataset, model_name: str) -> Path:
    """Where the files go, without suffix."""
    if args.output is not None:
        return args.output.with_name(args.output.name.removesuffix(".jsonl"))
    return args.output_dir / safe_name(dataset.name) / safe_name(model_name) / "paraphrases"


Row = tuple[Record, str | None, list[str]]  # the question's record, its wording, its paraphrases


def refuse_foreign(stem: Path) -> None:
    """Raises UserError where a file of that name is there that no manifest speaks of."""
    path = result_file(stem, ".jsonl")
    if path.exists():
        raise UserError(
            f"{path} is there and was not made by this script; --overwrite or another --output"
        )


def too_few(rows: Sequence[Row], wanted: int) -> dict[str, int]:
    """How many paraphrases each question has that has fewer than it should."""
    return {record.uuid: len(kept) for record, _, kept in rows if len(kept) < wanted}


def row_line(row: Row) -> str:
    """A line of the file, which --dataset also takes as it is."""
    record, question, paraphrases = row
    fields = {"uuid": record.uuid, "question": question, "paraphrases": paraphrases}
    fields["answers"] = list(record.answers)
    fields["relation"] = record.relation
    return json.dumps({k: v for k, v in fields.items() if v is not None}, ensure_ascii=False)


def write_files(stem: Path, rows: Sequence[Row], judged, manifest: dict) -> None:
    """All of them, whole or not at all.

    Raises:
        UserError: the disk is full, the folder cannot be written and the like.
    """
    manifest_path = result_file(stem, ".json")
    contents = {
        result_file(stem, ".jsonl"): "".join(row_line(row) + "\n" for row in rows),
        result_file(stem, "_report.csv"): report_csv(judged),
        manifest_path: json.dumps(manifest, indent=2, ensure_ascii=False) + "\n",
    }
    encoded = {path: text.encode() for path, text in contents.items()}
    replace_files(encoded, seal=manifest_path, keep_seal=False)


def tell(judged, casing) -> None:
    """The gate's report, on stdout."""
    print("\n".join(report_lines(judged)))
    if casing is None:
        say(
            "lost names: known by their capitals alone, so questions in lower case were not looked "
            "through; pip install spacy-lookups-data brings the table of words that can"
        )


def end_if_short(stem: Path, wanted: int) -> None:
    """A file with too few paraphrases is no success: the questions are named, and the status 1."""
    short = read_manifest(stem)["short"]
    for uuid, count in list(short.items())[:SHOWN_SHORT]:
        say(f"question {uuid} has {count} of {wanted} paraphrases")
    if short:
        say(f"{len(short)} questions have too few: `short` in {result_file(stem, '.json')}")
        raise SystemExit(SHORT_STATUS)


def make(args) -> Path:
    """Draw paraphrases of a dataset's questions. Returns the path without its suffix."""
    dataset = load_dataset(args.dataset, max_samples=None)
    from pipeline import set_up_logging

    set_up_logging(args.verbose)
    from loading import find_model, loaded_engine

    source = find_model(args.model, revision=args.revision, device=args.device, dtype=args.dtype)
    this = Making(args, dataset, source)
    with this.claimed() as unfinished:
        if unfinished:
            with loaded_engine(source, attention=args.attention) as engine:
                this.begin(engine)
                this.draw_all()
            this.write()
    end_if_short(this.stem, args.num_paraphrases)
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
    if not args.overwrite and result_file(stem, ".jsonl").exists():
        raise UserError(f"{args.output} is there already; --overwrite or another --output")
    manifest = {
        "identity": {"data": dataset.fingerprint, "drop": True},
        "num_questions": len(rows),
        "dataset": dataset.name,
        "short": too_few(rows, args.num_paraphrases),
    }
    with held(stem):
        write_files(stem, rows, judged, manifest)
    say(f"wrote {result_file(stem, '.jsonl')} (_report.csv and .json beside it)")
    end_if_short(stem, args.num_paraphrases)
    return stem


def main(args) -> Path:
    """Run a command line. Returns the path of what it wrote, without suffix."""
    return make(args) if args.check is None else check(args)


def parse_args(argv: Sequence[str] | None = None):
    parser = Parser(description=__doc__)
    add_paraphrase_arguments(parser)
    drawing = dict.fromkeys(DRAWING)  # None where it is not given
    args = parser.parse_args(argv, argparse.Namespace(num_paraphrases=None, **drawing))
    if args.check is not None:
        for name in DRAWING:
            if getattr(args, name) is not None:
                parser.error(f"--{name}: --check draws nothing and does not use it")
        if args.drop and args.output is None:
            parser.error("--drop: --check needs --output FILE.jsonl for what is left")
        if not args.drop and (args.output is not None or args.overwrite):
            parser.error("--output, --overwrite: --check writes what is left only with --drop")
        if args.num_paraphrases is None:
            args.num_paraphrases = 1
    if args.max_attempts is not None and not args.drop:
        parser.error("--max_attempts: without --drop nothing is drawn again")
    for name in ("num_paraphrases", *DRAWING):
        if getattr(args, name) is None:
            setattr(args, name, parser.get_default(name))
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
        help=f"{', '.join(DATASET_NAMES)}, or a .parquet, .feather, .jsonl or .csv file: of each "
        "row the column question, else paraphrase 0, is put in other words (default: demo)",
    )
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
        help="of each question; with --check how many must be left (default: %(default)s; "
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
        "--seed", type=non_negative_int, default=0, metavar="N", help="(default: %(default)s)"
    )
    sampling.add_argument(
        "--chat_template",
        action="store_true",
        help="put the prompt into the model's own chat format (for instruct models)",
    )
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
        default=Path("data"),
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
    *("dataset", "model", "revision", "device", "dtype", "attention", "chat_template"),
    *("temperature", "top_p", "seed", "max_new_tokens", "batch_size", "max_attempts"),
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
