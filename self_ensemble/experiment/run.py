"""The run that both generating scripts share: claim the result, answer, write the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from self_ensemble.data import Record
from self_ensemble.data.identities import identity_differences
from self_ensemble.data.result_files import (
    RESULT_SUFFIXES,
    count_finished,
    read_manifest,
    read_results,
    result_file,
    write_results,
)
from self_ensemble.experiment.config import ExperimentConfig
from self_ensemble.experiment.entries import ANSWERS, LIKELIHOODS
from self_ensemble.experiment.identity import run_identity, run_template, stem_of
from self_ensemble.experiment.journal import JOURNAL_SUFFIX, Journal
from self_ensemble.experiment.names import (
    EARLIER_DEFAULT,
    earlier_method_name,
    is_earlier_default,
)
from self_ensemble.experiment.questions import Questions
from self_ensemble.experiment.resumable import ResumableRun
from self_ensemble.experiment.rows import answer_row, choices_row, count_ties
from self_ensemble.system.console import say
from self_ensemble.system.errors import UserError
from self_ensemble.system.interrupts import advise

if TYPE_CHECKING:  # torch takes seconds to import: mistakes on the command line come first
    from self_ensemble.attention.fusion import Fusion
    from self_ensemble.generation.answering import AnyEngine
    from self_ensemble.generation.engine import Batch
    from self_ensemble.generation.likelihood import ScoredBatch, ScoringRequest
    from self_ensemble.generation.request import Request
    from self_ensemble.methods.base import Method
    from self_ensemble.models.loading import ModelSource

# Makes a row of the table; its arguments are further columns.
MakeRow = Callable[..., dict[str, Any]]


class Run(ResumableRun):
    """One run of a generating script, from its configuration to its three files.

    Args:
        config: what is asked for.
        questions: from `read_questions`.
        source: the model, found and not yet loaded.
        method_name: names the file, see `names.run_name`.
        method: the method's part of the run's identity; JSON types.

    Attributes:
        template: the prompt as the model gets it.
        records: inside `claimed`, the questions that no finished file has answered.
    """

    result_suffix = ".feather"
    verb = "answered"

    def __init__(
        self,
        config: ExperimentConfig,
        questions: Questions,
        source: ModelSource,
        method_name: str,
        method: dict[str, Any],
    ):
        self.config = config
        self.questions = questions
        self.source = source
        self.template = run_template(config, questions, source)
        identity = run_identity(config, questions, source, self.template, method)
        super().__init__(
            self._stem(method_name, identity),
            identity,
            num_questions=len(questions.records),
            overwrite=config.output.overwrite,
        )

    def _stem(self, method_name: str, identity: dict[str, Any]) -> Path:
        """Where the result lies: under its own name, or where an earlier release began it."""
        stem = stem_of(self.config, self.questions, method_name)
        earlier_name = earlier_method_name(method_name, self.config.method)
        earlier = stem_of(self.config, self.questions, earlier_name)
        if earlier == stem or any(
            result_file(stem, suffix).exists() for suffix in (*RESULT_SUFFIXES, JOURNAL_SUFFIX)
        ):
            return stem
        there = _identity_at(earlier)
        if there is None:
            return stem
        if not identity_differences(there, identity):
            return earlier
        if is_earlier_default(there, identity, self.config.method):
            say(f"{earlier} has {EARLIER_DEFAULT}")
        return stem

    @property
    def records(self) -> list[Record]:
        return self.questions.records[self.journal.after :]

    def is_finished(self) -> bool:
        # What is amiss is told once the lock is held.
        if self.overwrite or result_file(self.stem, JOURNAL_SUFFIX).exists():
            return False
        with suppress(UserError):
            return count_finished(self.stem, self.identity) >= self.num_questions
        return False

    def open_journal(self) -> Journal | None:
        if self.overwrite:
            return self._journal_of_remake()
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
            if finished >= self.num_questions:
                return None
            journal = Journal(self.stem, self.identity, after=finished)
        self._check_fits(journal, finished)
        if journal.cut_short:
            say(f"{journal.path} ends in the middle of a batch, which is answered again")
        if finished:
            self._earlier = self._finished_part(finished)
        return journal

    def _journal_of_remake(self) -> Journal:
        with suppress(UserError):  # whatever else lies there is to be overwritten
            journal = Journal.read(self.stem)
            if journal is not None and journal.remake and journal.questions <= self.num_questions:
                journal.check_same_run(self.identity)
                return journal
        return Journal(self.stem, self.identity, remake=True)

    def _check_fits(self, journal: Journal, finished: int) -> None:
        """Raises UserError where a journal goes with another finished file or more questions."""
        if journal.after != finished:
            raise UserError(
                f"{journal.path} goes on after {journal.after} finished questions, and there are "
                f"{finished}; --overwrite answers everything again"
            )
        if journal.questions > self.num_questions:
            raise UserError(
                f"{journal.path} was left by a run over {journal.questions} questions, and here "
                f"are {self.num_questions}; ask for as many with --max_samples, or remove it to "
                "begin anew"
            )

    def _finished_part(self, count: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
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
        manifest = read_manifest(self.stem) or {}
        manifest.pop("identity", None)
        if self.questions.give_choices and "choices" not in frame:  # an earlier release's
            given = {record.uuid: list(record.choices) for record in self.questions.records}
            frame = frame.assign(choices=[given[uuid] for uuid in frame["uuid"]])
        lemmas = [name for name in ("predict_lemma", "answer_lemmas") if name in frame]
        if lemmas:
            manifest.pop("lemmatizer", None)
            frame = frame.drop(columns=lemmas)
            say("the lemmas that were there will go: --lemmaize adds them to all questions")
        return frame.to_dict("records"), manifest

    def load(self, engine: AnyEngine, fusion: Fusion) -> None:
        """The model is there, and the fusion is known: see `begin`."""
        weighed = self.config.method.weights_by is not None
        computes = engine.environment(fusion, asked=self.config.model.attention, weighed=weighed)
        self.begin(engine, computes | {"batch_size": self.config.generation.batch_size or "auto"})

    def answer(self, method: Method, *, each_paraphrase: bool = False) -> list[dict[str, Any]]:
        """Have a method answer `records`, or score their choices: the table's rows.

        each_paraphrase: a row a paraphrase, with the column `paraphrase`; else a row a question.
        """
        task = self._score_choices if self.config.task.name == "choices" else self._generate
        rows = []
        for record, make_rows in zip(self.records, task(method), strict=True):
            if each_paraphrase:
                pairs = zip(make_rows, record.paraphrases, strict=True)
                rows += [make_row(paraphrase=paraphrase) for make_row, paraphrase in pairs]
            else:
                [make_row] = make_rows
                rows.append(make_row())
        return rows

    def _generate(self, method: Method) -> Iterator[list[MakeRow]]:
        """Of each record the rows of its answers, which take further columns."""
        from self_ensemble.methods.base import Asked

        config, records = self.config, self.records
        config.task.extract.check_shown(self.engine.tokenizer)
        asked = Asked(
            engine=self.engine,
            template=self.template,
            questions=[record.paraphrases for record in records],
            uuids=[record.uuid for record in records],
            ask=self.ask,
            config=config.generation,
            extract=config.task.extract,
        )
        answers = {outcome.question: outcome.answers for outcome in method.answer(asked)}
        for index, record in enumerate(records):
            yield [
                partial(
                    answer_row,
                    record,
                    answer,
                    self.engine.tokenizer,
                    config.task.extract,
                    choices=self.questions.give_choices,
                )
                for answer in answers[index]
            ]

    def _score_choices(self, method: Method) -> Iterator[list[MakeRow]]:
        """Of each record the rows of its scored choices, which take further columns."""
        from self_ensemble.methods.base import AskedChoices, ScoringMethod

        if not isinstance(method, ScoringMethod):
            raise UserError("--task choices: this method cannot score given choices")
        norm, records = self.config.task.choice_norm, self.records
        asked = AskedChoices(
            engine=self.engine,
            template=self.template,
            questions=[record.paraphrases for record in records],
            choices=[record.choices for record in records],
            ask=self.ask_likelihood,
            batch_size=self.config.generation.batch_size,
            norm=norm,
        )
        scored = {outcome.question: outcome.likelihoods for outcome in method.score(asked)}
        for index, record in enumerate(records):
            yield [partial(choices_row, record, each, norm) for each in scored[index]]

    def ask(
        self, name: str, request: Request, *, batch_size: int | None, unit: str = "questions"
    ) -> Iterator[Batch]:
        """One pass of a method, with the journal: see `methods.base.Ask`."""
        compute = self.engine.generate
        return self.answer_pass(
            name, request, ANSWERS, compute=compute, batch_size=batch_size, unit=unit
        )

    def ask_likelihood(
        self, name: str, request: ScoringRequest, *, batch_size: int | None, unit: str = "questions"
    ) -> Iterator[ScoredBatch]:
        """The same for `methods.base.AskLikelihood`."""

        def compute(request: ScoringRequest, *, on_progress: Any, **settings: Any) -> Any:
            return self.engine.score(request, **settings)

        return self.answer_pass(
            name, request, LIKELIHOODS, compute=compute, batch_size=batch_size, unit=unit
        )

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Write the table and its manifest, and say what was done.

        rows: of `records`; those of a finished file that this run extends come before them.
        """
        import pandas as pd

        seconds, stats = self.seconds, self.stats
        manifest = {
            "identity": self.identity,
            "num_questions": self.num_questions,
            "dataset": self.questions.dataset.name,
            "model": {"name": self.source.name, "revision": self.source.revision},
            **self.environment,
            "counts": asdict(stats),
            "seconds": round(seconds, 3),
        }
        manifest |= self.told_of_workers() | self._counted_questions() | self.begun_with()
        extends = self.journal.after > 0
        if extends:
            earlier, manifest["extends"] = self._earlier
            rows = earlier + rows
        count, done, ties = len(self.records), "decoded", ""
        if self.config.task.name == "choices":
            manifest["ties"] = count_ties(rows, self.config.task.choice_norm)
            done, ties = "scored", f"; ties that went to the earlier choice: {manifest['ties']}"
        write_results(self.stem, pd.DataFrame(rows), manifest, same_answers=extends)
        advise(None)
        self.journal.remove()
        say(f"wrote {result_file(self.stem, '.feather')} (.csv and .json beside it)")
        say(
            f"{count} questions in {seconds:.1f} s, {count / seconds:.1f} questions/s; "
            f"{stats.encoded_tokens:,} tokens encoded, "
            f"{stats.decoded_tokens:,} {done} in {stats.decode_rows:,} rows{ties}"
        )

    def _counted_questions(self) -> dict[str, int]:
        """For the manifest: what is out of the ordinary with the questions."""
        questions = self.questions
        counts = {
            "asked_examples": questions.asked_examples,
            "left_out": questions.left_out,
            "with_fewer": len(questions.with_fewer),
        }
        return {name: count for name, count in counts.items() if count}


def _identity_at(stem: Path) -> dict[str, Any] | None:
    """Of the run that is interrupted or finished there; None where nothing of the kind is."""
    with suppress(UserError):  # what cannot be read is not gone on with
        journal = Journal.read(stem)
        if journal is not None:
            return dict(journal.identity)
        manifest = read_manifest(stem)
        if manifest is not None and result_file(stem, ".feather").exists():
            return dict(manifest["identity"])
    return None
