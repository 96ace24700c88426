"""The run that both generating scripts share: claim the result, answer, write the table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from self_ensemble.data import Record
from self_ensemble.data.identities import identity_differences
from self_ensemble.data.result_files import (
    RESULT_SUFFIXES,
    count_finished,
    even_parts,
    has_table,
    read_manifest,
    remove_unlisted,
    result_file,
    result_path,
    table_files,
    write_result_tables,
)
from self_ensemble.data.result_tables import (
    LEMMA_COLUMNS,
    in_schema,
    read_tables,
    schema_with,
    table_of,
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
from self_ensemble.experiment.rows import (
    ANSWER_COLUMNS,
    CHOICE_COLUMNS,
    Cells,
    ResultRows,
    answer_cells,
    choices_cells,
    count_ties,
)
from self_ensemble.system.console import say
from self_ensemble.system.errors import UserError
from self_ensemble.system.interrupts import advise

if TYPE_CHECKING:  # torch takes seconds to import: mistakes on the command line come first
    import pyarrow

    from self_ensemble.attention.fusion import Fusion
    from self_ensemble.generation.answering import AnyEngine
    from self_ensemble.generation.engine import Batch
    from self_ensemble.generation.likelihood import ScoredBatch, ScoringRequest
    from self_ensemble.generation.request import Request
    from self_ensemble.methods.base import Method
    from self_ensemble.models.loading import ModelSource

# Rows are made of so many records at a time.
RECORDS_AT_ONCE = 1 << 14
# Of so many it takes a quarter of a minute and more until the first one is answered.
MANY_RECORDS = 50_000


class Run(ResumableRun):
    """One run of a generating script, from its configuration to its files.

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
        self._earlier: _FinishedPart | None = None

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
    def finished_file(self) -> Path:
        return result_path(self.stem)

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
        remove_unlisted(self.stem)
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

    def _finished_part(self, count: int) -> _FinishedPart:
        """Of the finished file that this run extends, what it holds; all of it is read once.

        Raises UserError where it is damaged, or not what its manifest says.
        """
        manifest = read_manifest(self.stem) or {}
        paths = table_files(self.stem, manifest)
        expected = {record.uuid: None for record in self.questions.records[:count]}
        found: dict[str, None] = {}
        rows, schema = 0, None
        for table in read_tables(paths):
            uuids = table["uuid"].to_pylist() if "uuid" in table.column_names else []
            found |= dict.fromkeys(uuids)
            rows += sum(uuid in expected for uuid in uuids)
            schema = schema or table.schema
        # More than the manifest tells of are there if a run was killed as it wrote both anew.
        if schema is None or list(islice(found, count)) != list(expected):
            raise UserError(
                f"{result_path(self.stem)} does not hold the {count} questions that its manifest "
                "says; --overwrite makes it again"
            )
        for name in ("identity", "parts"):
            manifest.pop(name, None)
        lemmas = [name for name in LEMMA_COLUMNS if name in schema.names]
        if lemmas:
            manifest.pop("lemmatizer", None)
            say("the lemmas that were there will go: --lemmaize adds them to all questions")
        for name in lemmas:
            schema = schema.remove(schema.get_field_index(name))
        given: dict[str, Record] = {}
        if self.questions.give_choices and "choices" not in schema.names:  # an earlier release's
            given = {record.uuid: record for record in self.questions.records[:count]}
        return _FinishedPart(paths, schema, rows, manifest, given)

    def load(self, engine: AnyEngine, fusion: Fusion) -> None:
        """The model is there, and the fusion is known: see `begin`."""
        weighed = self.config.method.weights_by is not None
        computes = engine.environment(fusion, asked=self.config.model.attention, weighed=weighed)
        versions = computes.pop("versions")  # they come last, as in every manifest
        batch_size = self.config.generation.batch_size or "auto"
        self.begin(engine, {**computes, "batch_size": batch_size, "versions": versions})

    def answer(self, method: Method, *, each_paraphrase: bool = False) -> ResultRows:
        """Have a method answer `records`, or score their choices: the table's rows.

        each_paraphrase: a row a paraphrase, with the column `paraphrase`; else a row a question.
        """
        is_scored = self.config.task.name == "choices"
        if len(self.records) >= MANY_RECORDS:
            say(f"the prompts of {len(self.records)} questions are split into tokens first")
        found: list[Sequence[Cells]] = [()] * len(self.records)
        for question, rows in (self._score_choices if is_scored else self._generate)(method):
            assert each_paraphrase or len(rows) == 1, (question, len(rows))
            found[question] = rows
        columns = CHOICE_COLUMNS if is_scored else ANSWER_COLUMNS
        # A choice's scores stand behind the choices.
        give_choices = is_scored or self.questions.give_choices
        assert all(found), found.index(())
        return ResultRows(self.records, found, columns, give_choices, each_paraphrase)

    def _generate(self, method: Method) -> Iterator[tuple[int, Sequence[Cells]]]:
        """Of each record its index, and what the rows of its answers hold; as they are finished."""
        from self_ensemble.methods.base import Asked

        config, records = self.config, self.records
        extract, tokenizer = config.task.extract, self.engine.tokenizer
        extract.check_shown(tokenizer)
        asked = Asked(
            engine=self.engine,
            template=self.template,
            questions=[record.paraphrases for record in records],
            uuids=[record.uuid for record in records],
            ask=self.ask,
            config=config.generation,
            extract=extract,
        )
        for outcome in method.answer(asked):
            cells = tuple(answer_cells(answer, tokenizer, extract) for answer in outcome.answers)
            yield outcome.question, cells

    def _score_choices(self, method: Method) -> Iterator[tuple[int, Sequence[Cells]]]:
        """Of each record its index, and what the rows of its scored choices hold."""
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
        for outcome in method.score(asked):
            record = records[outcome.question]
            cells = tuple(choices_cells(record, each, norm) for each in outcome.likelihoods)
            yield outcome.question, cells

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

    def write(self, rows: ResultRows) -> None:
        """Write the table and its manifest, and say what was done.

        rows: of `records`; those of a finished file that this run extends come before them.
        """
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
        earlier = self._earlier
        if earlier is not None:
            manifest["extends"] = earlier.manifest
        done, ties = "decoded", ""
        if self.config.task.name == "choices":
            norm = self.config.task.choice_norm
            manifest["ties"] = rows.count_ties(norm)
            if earlier is not None:
                manifest["ties"] += earlier.count_ties(norm)
            done, ties = "scored", f"; ties that went to the earlier choice: {manifest['ties']}"
        count, tables = len(rows), rows.tables(RECORDS_AT_ONCE)
        schema = schema_with(earlier and earlier.schema, rows.names)
        if earlier is not None:
            count, tables = earlier.rows + count, chain(earlier.tables(), tables)
        part_rows = self.config.output.part_rows
        write_result_tables(
            self.stem,
            (in_schema(table, schema) for table in tables),
            schema,
            manifest,
            part_rows=None if part_rows is None else even_parts(count, part_rows),
            same_answers=earlier is not None,
        )
        advise(None)
        self.journal.remove()
        beside = ".csv and .json beside it" if part_rows is None else "it names the parts"
        say(f"wrote {result_path(self.stem)} ({beside})")
        count = len(self.records)
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


@dataclass(frozen=True)
class _FinishedPart:
    """A finished file that a run extends.

    paths: its table's. schema: of the columns that stay. rows: that stay, the first ones.
    manifest: what the new manifest says of it.
    given: of an earlier release's file, which lacks the choices, the questions that give them.
    """

    paths: Sequence[Path]
    schema: pyarrow.Schema
    rows: int
    manifest: dict[str, Any]
    given: Mapping[str, Record]

    def tables(self) -> Iterator[pyarrow.Table]:
        left = self.rows
        for table in read_tables(self.paths):
            table = in_schema(table, self.schema).slice(0, left)
            left -= len(table)
            if self.given:
                choices = [self.given[uuid].choices for uuid in table["uuid"].to_pylist()]
                table = table.append_column("choices", table_of({"choices": choices})["choices"])
            yield table

    def count_ties(self, norm: str) -> int:
        return sum(count_ties(table[f"choice_{norm}"].to_pylist()) for table in self.tables())


def _identity_at(stem: Path) -> dict[str, Any] | None:
    """Of the run that is interrupted or finished there; None where nothing of the kind is."""
    with suppress(UserError):  # what cannot be read is not gone on with
        journal = Journal.read(stem)
        if journal is not None:
            return dict(journal.identity)
        manifest = read_manifest(stem)
        if manifest is not None and has_table(stem, manifest):
            return dict(manifest["identity"])
    return None
