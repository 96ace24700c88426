"""Sample paraphrases from a model until enough pass the quality filter; a killed run goes on."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from self_ensemble.data import (
    Dataset,
    DatasetOptions,
    PromptTemplate,
    chat_prompt_template,
    open_dataset,
)
from self_ensemble.data.answers import first_line
from self_ensemble.data.identities import identity_differences
from self_ensemble.data.result_files import (
    fingerprint,
    read_manifest,
    result_file,
)
from self_ensemble.experiment.config import ParaphraseRunConfig
from self_ensemble.experiment.entries import LIKELIHOODS, Entries
from self_ensemble.experiment.journal import JOURNAL_SUFFIX, Journal
from self_ensemble.experiment.paraphrase_files import (
    output_stem,
    refuse_foreign,
    too_few,
    write_files,
)
from self_ensemble.experiment.resumable import ResumableRun
from self_ensemble.paraphrasing.candidates import HOPELESS_DRAWS, Candidates
from self_ensemble.paraphrasing.judge import Pair, judge_request, read_judgements
from self_ensemble.paraphrasing.prompts import ALONE, demonstration_messages, plain_templates
from self_ensemble.paraphrasing.quality_filter import FILTER_VERSION
from self_ensemble.paraphrasing.rejections import Judgement
from self_ensemble.paraphrasing.report import Filtered
from self_ensemble.system.console import say
from self_ensemble.system.errors import UserError

if TYPE_CHECKING:  # torch takes seconds to import
    from self_ensemble.generation.answering import AnyEngine
    from self_ensemble.generation.decode import Answer
    from self_ensemble.generation.likelihood import ScoringRequest
    from self_ensemble.generation.request import Request
    from self_ensemble.generation.streams import Stream
    from self_ensemble.models.loading import ModelSource

# Of a draw: so many times the question's tokens and so many more. The longest of the 85 good ones
# among the judgements of docs/paraphrases.md has one less than twice the question's.
LENGTH_FACTOR, LENGTH_SLACK = 2, 16

# Draws at a time where no --batch_size is given. A batch, four times as many, is what an
# interrupted run draws again: on a CPU that is minutes.
CPU_BATCH_SIZE, GPU_BATCH_SIZE = 128, 1024
# Of a round with --drop: where less passes, what is missing is not drawn again.
LEAST_PASSED = 0.02

Sampled = tuple[str, bool]  # its text, and whether it ran into the token limit


def questions_to_paraphrase(config: ParaphraseRunConfig) -> Dataset:
    """The questions to be put in other words, each in the wording that it has."""
    options = DatasetOptions(
        original=True,
        needs_few_shot=False,
        data_dir=config.data_dir,
        dataset_revision=config.dataset_revision,
        split=config.split,
        **asdict(config.columns),
    )
    return open_dataset(config.dataset, options)


class ParaphraseRun(ResumableRun):
    """One run: from the questions of a dataset to the file of their paraphrases.

    Args:
        config: what is asked for.
        dataset: whose questions are put in other words.
        source: the model, found and not yet loaded.
    """

    verb = "drawn"

    def __init__(self, config: ParaphraseRunConfig, dataset: Dataset, source: ModelSource):
        self.config = config
        self.dataset = dataset
        self.source = source
        records = dataset.records[: config.max_samples]
        self.candidates = [Candidates(record) for record in records]
        self.templates = _templates(config, source)
        super().__init__(
            output_stem(config.output, config.output_dir, dataset.name, source.name),
            _identity(config, dataset, source, self.templates),
            num_questions=len(records),
            overwrite=config.overwrite,
        )

    @property
    def finished_file(self) -> Path:
        return result_file(self.stem, ".jsonl")

    @property
    def have_answers(self) -> bool:
        """All questions, or none: see `records.check_all_or_none_answered`."""
        return bool(self.candidates[0].record.answers)

    @property
    def next_command(self) -> str:
        return "the same command without --overwrite" if self.overwrite else "the same command"

    def is_finished(self) -> bool:
        if self.overwrite or result_file(self.stem, JOURNAL_SUFFIX).exists():
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
        # With fewer questions than asked for now, all are sampled again, and come out the same.
        return bool(manifest["num_questions"] >= self.num_questions)

    def open_journal(self) -> Journal | None:
        if self.is_finished():
            return None
        # The candidates of a round are numbered over all questions.
        identity = self.identity | {"num_questions": self.num_questions}
        journal = None if self.overwrite else Journal.read(self.stem)
        if journal is None:
            return Journal(self.stem, identity, remake=True)
        journal.check_same_run(identity)
        if journal.cut_short:
            say(f"{journal.path} ends in the middle of a batch, which is drawn again")
        return journal

    def load(self, engine: AnyEngine) -> None:
        """The model is there: see `begin`."""
        from self_ensemble.attention.fusion import Fusion

        computes = engine.environment(Fusion(), asked=self.config.model.attention)
        del computes["attention"]  # of a single prompt: nothing is fused
        self.begin(engine, computes)

    def sample_all(self) -> None:
        """Sample what is missing, filter it, and with --drop again, until enough have passed.

        A question whose first `HOPELESS_DRAWS` draws all fail is given up; where next to nothing
        of a round passes, all are.
        """
        for kind, template in self.templates.items():
            group = [each for each in self.candidates if each.kind == kind]
            if not group:
                continue
            prefix, streams = self._streams(group, template)
            for attempt in range(self.identity["max_attempts"]):
                going_on = [at for at, each in enumerate(group) if not each.is_hopeless]
                places = [at for at in going_on for _ in range(self._missing(group[at]))]
                if not places:
                    break
                name = f"{kind}, attempt {attempt + 1}"
                before = self._passed(group)
                self._sample_round(name, group, places, prefix, streams)
                share = (self._passed(group) - before) / len(places)
                last = attempt + 1 == self.identity["max_attempts"]
                if self.config.paraphrases.drop and share < LEAST_PASSED and not last:
                    self._say_hopeless(f"{name}: {share:.1%} of {len(places)} draws passed")
                    break
            given_up = sum(each.is_hopeless for each in group)
            if given_up and self.config.paraphrases.drop:
                say(f"{kind}: of {given_up} none of {HOPELESS_DRAWS} draws or more passed")

    def _say_hopeless(self, told: str) -> None:
        say(
            f"{told}, so no more are drawn: a larger model, or one that was trained to follow "
            "instructions with --chat_template, may do better"
        )

    def _passed(self, group: list[Candidates]) -> int:
        return sum(not rejected for each in group for _, rejected in each.texts)

    def _sample_round(
        self,
        name: str,
        group: list[Candidates],
        places: list[int],
        prefix: tuple[int, ...],
        streams: list[Stream],
    ) -> None:
        """One draw more of the question in each of these places, of which some stand repeatedly."""
        from self_ensemble.generation.request import Request
        from self_ensemble.generation.sampling import Sampling

        config = self.config.paraphrases
        most = config.generation.max_new_tokens
        numbers, count = [], Counter({at: len(group[at].texts) for at in places})
        for at in places:
            numbers.append(count[at])
            count[at] += 1
        request = Request(
            prefix,
            [[streams[at]] for at in places],
            max_new_tokens=most,
            limits=[min(most, longest_draw(streams[at])) for at in places],
            sampling=Sampling(
                **asdict(config.sampling),
                keys=[
                    (group[at].record.uuid, number)
                    for at, number in zip(places, numbers, strict=True)
                ],
            ),
        )
        drawn = list(zip((group[at] for at in places), self._sample(name, request), strict=True))
        judgements = self._judge(f"{name}, judged", drawn) if config.drop else {}
        for each, (text, truncated) in drawn:
            judgement = judgements.get((each.question, text))
            each.add(text, truncated=truncated, judgement=judgement)

    def _judge(self, name: str, drawn: list[tuple[Candidates, Sampled]]) -> dict[Pair, Judgement]:
        """What the model says of the draws that its judgement decides about."""
        pairs = dict.fromkeys(
            (each.question, text)
            for each, (text, truncated) in drawn
            if each.is_open(text, truncated=truncated)
        )
        if not pairs:
            return {}
        asked = judge_request(self.engine.tokenizer, list(pairs))
        judged: list[Any] = [list(pair) for pair in asked.pairs]
        judged += [len(each) for each in asked.request.continuations[len(judged) :]]

        def write(index: int, likelihoods: Any) -> list[Any]:
            return [judged[index], LIKELIHOODS.write(index, likelihoods)]

        def read(index: int, entry: list[Any]) -> Any:
            if index >= len(judged) or judged[index] != entry[0]:
                raise self._other_draws()
            return LIKELIHOODS.read(index, entry[1])

        def compute(request: ScoringRequest, *, on_progress: Any, **settings: Any) -> Any:
            return self.engine.score(request, **settings)

        scored = self.answer_pass(
            name,
            asked.request,
            Entries(write, read),
            compute=compute,
            batch_size=self._batch_size,
            unit="paraphrases",
        )
        return dict(zip(pairs, read_judgements(asked, scored), strict=True))

    def _other_draws(self) -> UserError:
        """What is sampled again hangs on the filter: another version of it, other rounds."""
        return UserError(
            f"{self.journal.path} does not fit what is to be drawn: was it left by another "
            "version of this toolkit? --overwrite begins anew"
        )

    @property
    def _batch_size(self) -> int:
        """Of paraphrases: what was asked for, or what suits the device."""
        asked = self.config.paraphrases.generation.batch_size
        on_cpu = self.engine.device.type == "cpu"
        return asked or (CPU_BATCH_SIZE if on_cpu else GPU_BATCH_SIZE)

    def _missing(self, candidates: Candidates) -> int:
        config = self.config.paraphrases
        return config.num_paraphrases - len(candidates.paraphrases(drop=config.drop))

    def _streams(
        self, group: list[Candidates], template: PromptTemplate
    ) -> tuple[tuple[int, ...], list[Stream]]:
        from self_ensemble.attention.segments import split_prompts
        from self_ensemble.generation.streams import logit_streams

        questions = [[each.question] for each in group]
        prefix, split = split_prompts(self.engine.tokenizer, template, questions)
        return prefix, [logit_streams(question, len(prefix))[0] for question in split]

    def _sample(self, name: str, request: Request) -> list[Sampled]:
        """One pass: the first line of each draw, and whether it ran into the token limit."""
        assert request.sampling is not None
        keys = request.sampling.keys

        def write(index: int, answer: Answer) -> list[Any]:
            text = self.engine.tokenizer.decode(answer.token_ids, skip_special_tokens=True)
            return [*keys[index], first_line(text), answer.truncated]

        def read(index: int, entry: list[Any]) -> Sampled:
            *drawn, text, truncated = entry
            if index >= len(keys) or keys[index] != tuple(drawn):
                raise self._other_draws()
            return text, truncated

        batches = self.answer_pass(
            name,
            request,
            Entries(write, read),
            compute=self.engine.generate,
            batch_size=self._batch_size,
            unit="paraphrases",
        )
        found = {index: sampled for batch in batches for index, sampled in batch}
        return [found[index] for index in range(len(keys))]

    @property
    def filtered(self) -> list[Filtered]:
        """All candidates: uuid, text, and what is wrong with it."""
        return [
            (each.record.uuid, text, rejected)
            for each in self.candidates
            for text, rejected in each.texts
        ]

    def write(self) -> None:
        """The three files, and what was done on stderr."""
        config, filtered = self.config.paraphrases, self.filtered
        rows = [(c.record, c.question, c.paraphrases(drop=config.drop)) for c in self.candidates]
        manifest = {
            "identity": self.identity,
            "num_questions": self.num_questions,
            "dataset": self.dataset.name,
            "model": {"name": self.source.name, "revision": self.source.revision},
            **self.environment,
            **self.begun_with(),
            "batch_size": self._batch_size,
            "paraphrases": sum(len(kept) for *_, kept in rows),
            "draws": len(filtered),
            "flagged": sum(1 for *_, rejected in filtered if rejected),
            "short": too_few(rows, config.num_paraphrases),
            **self.state(),
        }
        write_files(self.stem, rows, filtered, manifest)
        self.journal.remove()
        say(f"wrote {result_file(self.stem, '.jsonl')} (_report.csv and .json beside it)")


def longest_draw(stream: Stream) -> int:
    """Tokens after which a draw has run away: no paraphrase of the question is as long."""
    return LENGTH_FACTOR * len(stream.segments[0]) + LENGTH_SLACK


def _templates(config: ParaphraseRunConfig, source: ModelSource) -> dict[str, PromptTemplate]:
    """The prompt of each kind of question, as the model gets it."""
    if not config.paraphrases.chat_template:
        return plain_templates()
    from self_ensemble.models.loading import load_tokenizer

    tokenizer = load_tokenizer(source)
    return {
        kind: chat_prompt_template(tokenizer, ALONE, before=messages)
        for kind, messages in demonstration_messages().items()
    }


def _identity(
    config: ParaphraseRunConfig,
    dataset: Dataset,
    source: ModelSource,
    templates: dict[str, PromptTemplate],
) -> dict[str, Any]:
    """What the paraphrases depend on; JSON types."""
    asked = config.paraphrases
    # Not the dataset's own fingerprint: that knows paraphrases, which this very run may make.
    records = [[r.uuid, Candidates(r).question, r.answers] for r in dataset.records]
    sampling = asdict(asked.sampling)
    return {
        "data": fingerprint(records),
        "model": source.fingerprint,
        "prompt": {kind: [each.head, each.tail] for kind, each in templates.items()},
        "chat_template": asked.chat_template,
        "num_paraphrases": asked.num_paraphrases,
        "sampling": {name: sampling[name] for name in ("temperature", "top_p", "seed")},
        "max_new_tokens": asked.generation.max_new_tokens,
        "length": f"{LENGTH_FACTOR} times the question's tokens and {LENGTH_SLACK}",
        "drop": asked.drop,
        "max_attempts": asked.max_attempts if asked.drop else 1,
        "quality_filter": FILTER_VERSION,
        "hopeless": [HOPELESS_DRAWS, LEAST_PASSED] if asked.drop else None,
        "dtype": str(source.dtype).removeprefix("torch."),
    }
