"""The run that both generating scripts share: claim the result, answer, write the table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from self_ensemble.data import Record
from self_ensemble.data.answers import first_line
from self_ensemble.data.result_files import (
    count_finished,
    read_manifest,
    read_results,
    result_file,
    write_results,
)
from self_ensemble.experiment.config import ExperimentConfig
from self_ensemble.experiment.environment import describe_device, versions
from self_ensemble.experiment.identity import run_identity, run_template, stem_of
from self_ensemble.experiment.journal import JOURNAL_SUFFIX, Journal
from self_ensemble.experiment.questions import Questions
from self_ensemble.experiment.resumable import Entries, ResumableRun
from self_ensemble.system.console import say
from self_ensemble.system.errors import UserError
from self_ensemble.system.interrupts import advise

if TYPE_CHECKING:  # torch takes seconds to import: mistakes on the command line come first
    from self_ensemble.attention.fusion import Fusion
    from self_ensemble.generation.decode import Answer
    from self_ensemble.generation.engine import Batch, Engine
    from self_ensemble.generation.request import Request
    from self_ensemble.methods.base import Method
    from self_ensemble.models.loading import ModelSource


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
        super().__init__(
            stem_of(config, questions, method_name),
            run_identity(config, questions, source, self.template, method),
            num_questions=len(questions.records),
            overwrite=config.output.overwrite,
        )

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
        lemmas = [name for name in ("predict_lemma", "answer_lemmas") if name in frame]
        if lemmas:
            manifest.pop("lemmatizer", None)
            frame = frame.drop(columns=lemmas)
            say("the lemmas that were there will go: --lemmaize adds them to all questions")
        return frame.to_dict("records"), manifest

    def load(self, engine: Engine, fusion: Fusion) -> None:
        """The model is there, and the fusion is known: see `begin`."""
        environment = {
            "device": describe_device(self.source.device),
            "attention": {
                "asked": self.config.model.attention,
                "encode": engine.wrapper.backend,
                "fallback": engine.wrapper.fallback,
                "decode": engine.decode_path(fusion),
            },
            "batch_size": self.config.generation.batch_size or "auto",
            "versions": versions(),
        }
        self.begin(engine, environment)

    def answer(self, method: Method) -> list[tuple[Answer, ...]]:
        """What the method says of each of `records`: one answer, or one of each paraphrase."""
        from self_ensemble.methods.base import Asked

        asked = Asked(
            engine=self.engine,
            template=self.template,
            questions=[record.paraphrases for record in self.records],
            uuids=[record.uuid for record in self.records],
            ask=self.ask,
            config=self.config.generation,
        )
        outcomes = method.answer(asked)
        answers = {outcome.question: outcome.answers for outcome in outcomes}
        return [answers[index] for index in range(len(self.records))]

    def ask(
        self, name: str, request: Request, *, batch_size: int | None, unit: str = "questions"
    ) -> Iterator[Batch]:
        """One pass of a method, with the journal: see `methods.base.Ask`."""
        entries = Entries(_write_answer, _read_answer)
        return self.answer_pass(name, request, entries, batch_size=batch_size, unit=unit)

    def rows(
        self, answers: Sequence[tuple[Answer, ...]], *, each_paraphrase: bool = False
    ) -> list[dict[str, Any]]:
        """The table's rows.

        answers: from `answer`.
        each_paraphrase: a row a paraphrase, with the column `paraphrase`; else a row a question.
        """
        rows = []
        tokenizer = self.engine.tokenizer
        for record, given in zip(self.records, answers, strict=True):
            if not each_paraphrase:
                [answer] = given
                rows.append(result_row(record, answer, tokenizer))
                continue
            for paraphrase, answer in zip(record.paraphrases, given, strict=True):
                rows.append(result_row(record, answer, tokenizer, paraphrase=paraphrase))
        return rows

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
        if self.questions.asked_examples:
            manifest["asked_examples"] = self.questions.asked_examples
        manifest |= self.begun_with()
        extends = self.journal.after > 0
        if extends:
            earlier, manifest["extends"] = self._earlier
            rows = earlier + rows
        count = len(self.records)
        write_results(self.stem, pd.DataFrame(rows), manifest, same_answers=extends)
        advise(None)
        self.journal.remove()
        say(f"wrote {result_file(self.stem, '.feather')} (.csv and .json beside it)")
        say(
            f"{count} questions in {seconds:.1f} s, {count / seconds:.1f} questions/s; "
            f"{stats.encoded_tokens:,} tokens encoded, "
            f"{stats.decoded_tokens:,} decoded in {stats.decode_rows:,} rows"
        )


def _write_answer(index: int, answer: Answer) -> list[Any]:
    return [answer.token_ids, answer.logprobs, answer.truncated]


def _read_answer(index: int, entry: list[Any]) -> Answer:
    from self_ensemble.generation.decode import Answer

    token_ids, logprobs, truncated = entry
    return Answer(tuple(token_ids), tuple(logprobs), truncated)


def result_row(record: Record, answer: Answer, tokenizer: Any, **columns: Any) -> dict[str, Any]:
    """One row of the result table; ``columns`` are further ones."""
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
