"""Draw paraphrases from a model until enough pass the gate, and keep what was drawn on disk."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from self_ensemble.data import Dataset, PromptTemplate, Record, prompt_template
from self_ensemble.data.names import PARAPHRASE_FILE
from self_ensemble.data.result_files import (
    fingerprint,
    identity_differences,
    manifest_bytes,
    read_manifest,
    replace_files,
    result_file,
    safe_name,
)
from self_ensemble.experiment.journal import Journal
from self_ensemble.experiment.run import describe_device, state_of, versions
from self_ensemble.paraphrasing.prompts import (
    QUESTION_EXAMPLES,
    QUESTION_INSTRUCTION,
    SENTENCE_EXAMPLES,
    SENTENCE_INSTRUCTION,
)
from self_ensemble.paraphrasing.quality_filter import (
    MASK,
    casing_file,
    key,
    load_casing,
    reasons,
    report_csv,
)
from self_ensemble.system.console import progress, say
from self_ensemble.system.errors import UserError
from self_ensemble.system.files import remove_leftovers
from self_ensemble.system.interrupts import advise
from self_ensemble.system.lock import held

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
        self.asked = [Asked(record) for record in dataset.records[: args.max_samples]]
        self.stem = output_stem(args, dataset, source.name)
        self.templates = plain_templates()
        if args.chat_template:
            from self_ensemble.data import chat_prompt_template
            from self_ensemble.models.loading import load_tokenizer

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
            "names": "capitals" if casing_file() is None else "capitals and a table of words",
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
        self.casing = load_casing()
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
        from self_ensemble.attention.segments import split_prompts
        from self_ensemble.generation.legacy import logit_streams

        questions = [[asked.question] for asked in group]
        prefix, split = split_prompts(self.engine.tokenizer, template, questions)
        return prefix, [logit_streams(question, len(prefix))[0] for question in split]

    def _draw(self, name: str, draws: list[tuple[str, int]], groups) -> list[tuple[str, bool]]:
        """One pass: the first line of each draw, and whether it ran into the token limit."""
        from self_ensemble.attention.fusion import Fusion
        from self_ensemble.data.answers import first_line
        from self_ensemble.generation.legacy import Counts, fresh_state, sampler

        engine, size = self.engine, self.args.batch_size
        if name in self.journal.answers:  # by an interrupted run
            engine.counts = Counts(**self.journal.state["counts"])
            engine.fitting = self.journal.state["fitting"]
        batches = self.journal.batches(
            name,
            len(groups),
            size,
            lambda indices: engine.plan(groups, size, indices),
            questions=len(self.asked),
        )
        found = dict(self.journal.answers.get(name, {}))
        for index, (*drawn, _, _) in found.items():
            if index >= len(draws) or draws[index] != tuple(drawn):
                # What is drawn again hangs on the gate: another version of it, another plan.
                raise UserError(
                    f"{self.journal.path} does not fit what is to be drawn: was it left by another "
                    "version of this toolkit? --overwrite begins anew"
                )
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
                rows = {
                    index: (*draws[index], first_line(self._text(answer)), answer.truncated)
                    for index, answer in batch
                }
                self.journal.add(
                    name, list(rows), list(rows.values()), state_of(engine, self.begun)
                )
                found |= rows
                advance(len(batch))
        return [tuple(found[index][2:]) for index in range(len(groups))]

    def _text(self, answer) -> str:
        return self.engine.tokenizer.decode(answer.token_ids, skip_special_tokens=True)

    @property
    def judged(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """All draws: uuid, text, and what is wrong with it."""
        return [(a.record.uuid, text, wrong) for a in self.asked for text, wrong in a.draws]

    def write(self) -> None:
        """The three files, and what was done on stderr."""
        judged = self.judged
        rows = [(a.record, a.question, a.paraphrases(drop=self.args.drop)) for a in self.asked]
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
            **state_of(self.engine, self.begun),
        }
        write_files(self.stem, rows, judged, manifest)
        self.journal.remove()
        say(f"wrote {result_file(self.stem, '.jsonl')} (_report.csv and .json beside it)")


def output_stem(args, dataset: Dataset, model_name: str) -> Path:
    """Where the files go, without suffix."""
    if args.output is not None:
        return args.output.with_name(args.output.name.removesuffix(".jsonl"))
    folder = args.output_dir / safe_name(dataset.name) / safe_name(model_name)
    return folder / PARAPHRASE_FILE.removesuffix(".jsonl")


def written_files(stem: Path) -> tuple[Path, Path, Path]:
    """The paraphrases, the gate's report, and the manifest, which comes last."""
    return tuple(result_file(stem, suffix) for suffix in (".jsonl", "_report.csv", ".json"))


Row = tuple[Record, str | None, list[str]]  # the question's record, its wording, its paraphrases


def refuse_foreign(stem: Path) -> None:
    """Raises UserError where a file of one of the three names is there, which would be replaced."""
    for path in written_files(stem):
        if path.exists():
            raise UserError(
                f"{path} is there already, and this run did not make it; --overwrite replaces it, "
                "or give another --output"
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
    lines = "".join(row_line(row) + "\n" for row in rows)
    contents = (lines.encode(), report_csv(judged).encode(), manifest_bytes(manifest))
    paths = written_files(stem)
    replace_files(dict(zip(paths, contents, strict=True)), seal=paths[-1], keep_seal=False)
