"""The run that both generating scripts share: read the questions, answer them, write the table."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from self_ensemble.data import (
    Dataset,
    DatasetOptions,
    PromptTemplate,
    Record,
    chat_prompt_template,
    choose_template,
    open_dataset,
    select_paraphrases,
)
from self_ensemble.data.answers import first_line
from self_ensemble.data.result_files import (
    REQUIRED_COLUMNS,
    count_finished,
    read_manifest,
    read_results,
    result_file,
    result_stem,
    run_name,
    write_results,
)
from self_ensemble.experiment.journal import JOURNAL_SUFFIX, Journal
from self_ensemble.system.console import progress, say
from self_ensemble.system.errors import UserError
from self_ensemble.system.files import remove_leftovers
from self_ensemble.system.interrupts import advise
from self_ensemble.system.lock import held, sweep

if TYPE_CHECKING:  # torch takes seconds to import: mistakes on the command line come first
    from self_ensemble.generation.legacy import Answer, Engine


@dataclass(frozen=True)
class Questions:
    """What a run asks: the dataset, its records with the paraphrases chosen, and the prompt."""

    dataset: Dataset
    records: list[Record]
    template: PromptTemplate

    @cached_property
    def asked_examples(self) -> int:
        """How many questions the prompt shows with an answer."""
        wordings = ((*record.paraphrases, record.question) for record in self.records)
        head = self.template.head
        return sum(any(text and f"Q: {text}\nA: " in head for text in each) for each in wordings)


def read_questions(args, *, original: bool = False) -> Questions:
    """The questions of a command line.

    ``original`` takes one wording each: the column `question`, else paraphrase 0.
    """
    dataset = open_dataset(args.dataset, dataset_options(args, original=original))
    template = choose_template(
        dataset,
        instruction=args.instruction,
        few_shot_file=args.few_shot,
        num_few_shot=args.num_few_shot,
    )
    if original:
        records = [
            replace(record, paraphrases=(record.question or record.paraphrases[0],))
            for record in dataset.records
        ]
    else:
        records = select_paraphrases(
            dataset.records, num_paraphrases=args.num_paraphrases, indexs=args.indexs
        )
    questions = Questions(dataset, records, template)
    if questions.asked_examples:
        say(
            f"{questions.asked_examples} of the questions are among the solved examples: "
            "their answers are in the prompt"
        )
    return questions


def dataset_options(args, *, original: bool) -> DatasetOptions:
    """What a command line asks of its dataset."""
    names = (field.name for field in fields(DatasetOptions))
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    needs_few_shot = args.few_shot is None and args.num_few_shot != 0
    return DatasetOptions(**given | {"original": original, "needs_few_shot": needs_few_shot})


def check_weights(args, questions: Questions) -> None:
    """Raises UserError where --weights has not one for each paraphrase."""
    count = len(questions.records[0].paraphrases)
    if args.weights is not None and len(args.weights) != count:
        raise UserError(f"--weights: {len(args.weights)} weights for {count} paraphrases")


class Run:
    """One run of a generating script, from its command line to its three files.

    Args:
        args: of the command line, see `cli.add_common_arguments`.
        questions: from `read_questions`.
        source: a `loading.ModelSource`.
        method: what names the file, see `results.run_name`.
        settings: of the method, part of the run's identity; JSON types.
    """

    def __init__(self, args, questions: Questions, source, method: str, settings: dict[str, Any]):
        self.args = args
        self.questions = questions
        self.source = source
        self.template, rendered = questions.template, {}
        if args.chat_template:
            from self_ensemble.models.loading import load_tokenizer

            self.template = chat_prompt_template(load_tokenizer(source), questions.template)
            # A chat template may print what changes from day to day, such as the date.
            rendered = {"rendered_head": self.template.head, "rendered_tail": self.template.tail}
        count = len(questions.records[0].paraphrases)
        self.stem = result_stem(
            args.output_dir,
            questions.dataset.name,
            source.name,
            run_name(method, num_paraphrases=count, indexs=args.indexs),
            indexs=args.indexs,
        )
        self.identity = {
            "data": questions.dataset.fingerprint,
            # Not its name: a folder has as many names as there are paths to it.
            "model": source.fingerprint,
            "prompt": prompt_identity(args, questions) | rendered,
            "paraphrases": list(args.indexs) if args.indexs else count,
            "method": settings,
            "dtype": str(source.dtype).removeprefix("torch."),
            "max_new_tokens": args.max_new_tokens,
        }

    @contextmanager
    def claimed(self) -> Iterator[bool]:
        """Whether there is anything to do; if so, the result is this process' own inside.

        Yields:
            False where the file is finished already, which is said. Else `answer` and `write` can
            be called, and `records` are the questions that no finished file has answered.

        Raises:
            UserError: another process holds the result, it or its journal belongs to another run,
                or its folder cannot be written.
        """
        finished = self._is_finished()
        if not finished:
            with held(self.stem):
                remove_leftovers(self.stem)
                journal = self._open_journal()
                finished = journal is None  # by the time that the lock was free
                if journal is not None:
                    self.journal = journal
                    self.records = self.questions.records[journal.after :]
                    advise(self._how_to_go_on)
                    yield True
                    advise(None)  # not after an error: Ctrl-C is one, its advice still to be told
        if finished:
            sweep(self.stem)
            path = result_file(self.stem, ".feather")
            say(f"{path} is finished already; --overwrite makes it again")
            yield False

    def _is_finished(self) -> bool:
        """Whether there is nothing to do. What is amiss is told once the lock is held."""
        if self.args.overwrite or result_file(self.stem, JOURNAL_SUFFIX).exists():
            return False
        with suppress(UserError):
            return count_finished(self.stem, self.identity) >= len(self.questions.records)
        return False

    def _open_journal(self) -> Journal | None:
        """The journal of an interrupted run of the same, or a new one; None: all is finished."""
        count = len(self.questions.records)
        if self.args.overwrite:
            with suppress(UserError):  # whatever else lies there is to be overwritten
                journal = Journal.read(self.stem)
                if journal is not None and journal.remake and journal.questions <= count:
                    journal.check_same_run(self.identity)
                    return journal
            return Journal(self.stem, self.identity, remake=True)
        journal = Journal.read(self.stem)
        if journal is not None:
            journal.check_same_run(self.identity)
        # A file that is being made again does not count.
        remake = journal is not None and journal.remake
        finished = 0 if remake else count_finished(self.stem, self.identity)
        if journal is not None and journal.questions <= finished:
            journal.remove()  # all of it is in the file: the run was killed just before this
            journal = None
        if journal is None:
            if finished >= count:
                return None
            journal = Journal(self.stem, self.identity, after=finished)
        if journal.after != finished:
            raise UserError(
                f"{journal.path} goes on after {journal.after} finished questions, and there are "
                f"{finished}; --overwrite answers everything again"
            )
        if journal.questions > count:
            raise UserError(
                f"{journal.path} was left by a run over {journal.questions} questions, and here "
                f"are {count}; ask for as many with --max_samples, or remove it to begin anew"
            )
        if journal.cut_short:
            say(f"{journal.path} ends in the middle of a batch, which is answered again")
        if finished:
            self.earlier = self._finished_part(finished)
        return journal

    def _finished_part(self, count: int) -> tuple[list[dict], dict]:
        """The rows of the finished file that this run extends, and what its manifest says."""
        path = result_file(self.stem, ".feather")
        frame = read_results(path)
        expected = [record.uuid for record in self.questions.records[:count]]
        # More than the manifest tells of are there if a run was killed as it wrote both anew.
        if list(dict.fromkeys(frame.get("uuid", ())))[:count] != expected:
            raise UserError(
                f"{path} does not hold the {count} questions that its manifest says; "
                "--overwrite makes it again"
            )
        frame = frame[frame["uuid"].isin(expected)]
        manifest = {k: v for k, v in read_manifest(self.stem).items() if k != "identity"}
        lemmas = [name for name in ("predict_lemma", "answer_lemmas") if name in frame]
        if lemmas:
            manifest.pop("lemmatizer", None)
            frame = frame.drop(columns=lemmas)
            say("the lemmas that were there will go: --lemmaize adds them to all questions")
        return frame.to_dict("records"), manifest

    def _how_to_go_on(self) -> str:
        if self.journal.size == 0:
            return "nothing was answered yet; the same command begins again"
        return f"what was answered is kept in {self.journal.path}; the same command goes on"

    def begin(self, engine: Engine) -> None:
        """The model is there: note what computes, start the clock where it was stopped."""
        self.environment = {
            "device": describe_device(self.source.device),
            "attention": {
                "asked": self.args.attention,
                "encode": engine.wrapper.backend,
                "fallback": engine.wrapper.fallback,
                "decode": "one kernel, recorded" if engine.recording else "split softmax",
            },
            "batch_size": self.args.batch_size,
            "versions": versions(),
        }
        state = self.journal.state or {"seconds": 0.0, "fitting": None}
        if self.journal.environment == self.environment:
            engine.fitting = state["fitting"]
        self.journal.begin(self.environment)
        self.engine = engine
        self.begun = time.monotonic() - state["seconds"]

    def answer(self, what: str, groups, *, batch_size, unit: str = "questions", **settings) -> list:
        """One pass: an answer for each of `groups`, with progress on stderr; every batch is kept.

        Args:
            what: names the pass.
            groups: each one's streams, as `Engine.generate` takes them.
            batch_size: of `groups`; None chooses.
            unit: what a group is.
            settings: further ones of `Engine.generate`.

        Returns:
            Answers in the order of `groups`.
        """
        from self_ensemble.generation.legacy import Answer, Counts

        engine = self.engine
        if self.journal.state is not None:  # the prefix, encoded again, is counted once
            engine.counts = Counts(**self.journal.state["counts"])
        batches = self.journal.batches(
            what,
            len(groups),
            batch_size,
            lambda indices: engine.plan(groups, batch_size, indices),
            questions=len(self.questions.records),
        )
        kept = self.journal.answers.get(what, {})
        if kept:
            say(f"{what}: {len(kept)} of {len(groups)} {unit} were answered before")
        answers = {i: Answer(tuple(t), tuple(p), cut) for i, (t, p, cut) in kept.items()}
        with progress(len(groups), what, unit, begin=len(answers)) as advance:
            for batch in engine.generate(groups, batches=batches, **settings):
                answers.update(batch)
                self.journal.add(
                    what,
                    [index for index, _ in batch],
                    [[a.token_ids, a.logprobs, a.truncated] for _, a in batch],
                    state_of(engine, self.begun),
                )
                advance(len(batch))
        return [answers[index] for index in range(len(groups))]

    def write(self, rows: list[dict]) -> None:
        """Write the table and its manifest, and say what was done.

        rows: of `records`; those of a finished file that this run extends come before them.
        """
        import pandas as pd

        count = len(self.records)
        seconds = time.monotonic() - self.begun
        manifest = {
            "identity": self.identity,
            "num_questions": len(self.questions.records),
            "dataset": self.questions.dataset.name,
            "model": {"name": self.source.name, "revision": self.source.revision},
            **self.environment,
            "counts": asdict(self.engine.counts),
            "seconds": round(seconds, 3),
        }
        if self.questions.asked_examples:
            manifest["asked_examples"] = self.questions.asked_examples
        others = [e for e in self.journal.environments if e != self.environment]
        if others:  # who publishes must see that not all was computed alike
            manifest["begun_with"] = others
        if self.journal.after:
            earlier, manifest["extends"] = self.earlier
            rows = earlier + rows
        extends = self.journal.after > 0
        write_results(self.stem, pd.DataFrame(rows), manifest, same_answers=extends)
        advise(None)
        self.journal.remove()
        say(f"wrote {result_file(self.stem, '.feather')} (.csv and .json beside it)")
        counts = self.engine.counts
        say(
            f"{count} questions in {seconds:.1f} s, {count / seconds:.1f} questions/s; "
            f"{counts.encoded_tokens:,} tokens encoded, "
            f"{counts.decoded_tokens:,} decoded in {counts.decode_rows:,} rows"
        )


def lemmatize_finished(
    args, questions: Questions, methods: Sequence[str], settings: dict[str, Any]
) -> Path:
    """Add lemmas to the finished result of a command line. No model is loaded, nor even torch.

    Args:
        args, questions: as of `Run`.
        methods: what may name the file.
        settings: of the method, as far as they are known without the model.

    Returns:
        The result's path without its suffix.

    Raises:
        UserError: there is no finished result, it belongs to another run, or nothing lemmatises.
    """
    from self_ensemble.evaluation.lemmatizer import init_spacy

    count = len(questions.records[0].paraphrases)
    stems = [
        result_stem(
            args.output_dir,
            questions.dataset.name,
            args.model,
            run_name(method, num_paraphrases=count, indexs=args.indexs),
            indexs=args.indexs,
        )
        for method in methods
    ]
    stem, manifest = _finished_result(stems, settings)
    there = manifest["identity"]
    known = {
        "data": questions.dataset.fingerprint,
        # What a chat template makes of it is not known without the tokenizer.
        "prompt": _identity_part(manifest, "prompt") | prompt_identity(args, questions),
        "paraphrases": list(args.indexs) if args.indexs else count,
        "method": _identity_part(manifest, "method") | settings,
        "max_new_tokens": args.max_new_tokens,
    }
    if args.dtype != "auto":
        known["dtype"] = args.dtype
    count_finished(stem, there | known)
    nlp = init_spacy(args.spacy_model)
    with held(stem):
        remove_leftovers(stem)
        _, manifest = _finished_result([stem], settings)  # as it is now that nobody else writes it
        count_finished(stem, there)
        _add_lemmas(stem, manifest, nlp)
    return stem


def _add_lemmas(stem: Path, manifest: dict, nlp) -> None:
    from self_ensemble.evaluation.lemmatizer import append_lemmas, lemmaize_chunk, lemmatizer_of

    path = result_file(stem, ".feather")
    frame = read_results(path)
    missing = [f"`{name}`" for name in REQUIRED_COLUMNS if name not in frame.columns]
    if missing:
        raise UserError(
            f"{path} lacks the column {' and '.join(missing)}; "
            "--overwrite without --lemmaize makes it again"
        )
    frame = append_lemmas(frame, [lemmaize_chunk(frame, nlp)])
    manifest = manifest | {"lemmatizer": lemmatizer_of(nlp)}
    write_results(stem, frame, manifest, same_answers=True)
    say(
        f"added predict_lemma and answer_lemmas to {path} "
        f"({len(frame)} rows, {manifest['lemmatizer']['model']})"
    )


def _finished_result(stems: Sequence[Path], settings: dict[str, Any]) -> tuple[Path, dict]:
    for stem in stems:
        manifest = read_manifest(stem)
        if manifest is None or not result_file(stem, ".feather").exists():
            continue
        positions = _identity_part(manifest, "method").get("positions")
        if settings.get("positions", positions) == positions:
            return stem, manifest
    raise UserError(
        f"--lemmaize: {result_file(stems[0], '.feather')} is not there or not finished; "
        "run without --lemmaize first"
    )


def _identity_part(manifest: dict, name: str) -> dict[str, Any]:
    part = manifest["identity"].get(name)
    return part if isinstance(part, dict) else {}


def prompt_identity(args, questions: Questions) -> dict[str, Any]:
    template = questions.template
    return {
        "head": template.head,
        "tail": template.tail,
        "chat_template": args.chat_template,
    }


def result_row(record: Record, answer: Answer, tokenizer, **columns) -> dict:
    """One row of the result table."""
    generation = tokenizer.decode(answer.token_ids, skip_special_tokens=True)
    row = {
        "uuid": record.uuid,
        "paraphrases": list(record.paraphrases),
        **columns,
        "answers": list(record.answers),
        "prediction": first_line(generation),
        "generation": generation,
        "logprob": sum(answer.logprobs),
        "truncated": answer.truncated,
    }
    if record.relation is not None:
        row["relation"] = record.relation
    return row


def set_up_logging(verbose: bool) -> None:
    """Our warnings as plain lines; the libraries' bars and remarks only with --verbose."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")
    if not verbose:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()


def state_of(engine: Engine, begun: float) -> dict[str, Any]:
    """What a run goes on from: begun is its start on the monotonic clock, as if never stopped."""
    return {
        "counts": asdict(engine.counts),
        "fitting": engine.fitting,
        "seconds": round(time.monotonic() - begun, 3),
    }


def describe_device(device) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    # Sums are split among the threads: their number moves the last digits of a logprob.
    capability = torch.backends.cpu.get_cpu_capability()
    return f"cpu, {capability}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    import torch

    packages = ("transformers", "tokenizers", "numpy", "pandas", "pyarrow")
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,  # says what CUDA it was built for, too
        **{name: version(name) for name in packages},
    }
