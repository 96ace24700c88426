"""The runs behind the table of pretrained.py: a job a model, set, N and method, a result file each.

A result is what generate.py and flex_attention_generate.py write, under the same name, so that
score.py reads it. A finished one is not made again; one that was made otherwise is an error.
"""

import inspect
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from self_ensemble.system.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from self_ensemble.data.prompts import Prompt
    from self_ensemble.data.records import Record
    from self_ensemble.generation.decode import Answer
    from self_ensemble.generation.engine import Batch, Engine
    from self_ensemble.generation.request import Request
    from self_ensemble.models.loading import ModelSource

NUMBERS = ("tau",)  # settings that are one
# Names for what is written longer otherwise.
ALIASES = {
    "one": "per_prompt",
    "first_described": "attention:layout=concat,fusion=joint,positions=sequential",
}


@dataclass(frozen=True)
class NamedMethod:
    """A method of the toolkit or of pretrained_methods.py, with its settings."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def parse_method(text: str) -> NamedMethod:
    """`NAME` or `NAME:KEY=VALUE,KEY=VALUE`: `attention:tau=1,weights_by=entropy:1`.

    Numbers are numbers, `1/0.5/2` is a list of them, anything else a text.

    Raises:
        UserError: it is not written so.
    """
    name, _, rest = ALIASES.get(text, text).partition(":")
    settings = {}
    for part in rest.split(",") if rest else ():
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise UserError(f"--methods: {text!r} is not written NAME:KEY=VALUE,KEY=VALUE")
        settings[key] = _value(value)
        if key in NUMBERS and not isinstance(settings[key], float):
            raise UserError(f"--methods: in {text!r} {key} is no number")
    return NamedMethod(name, settings)


def _value(text: str) -> Any:
    try:
        numbers = tuple(float(part) for part in text.split("/"))
    except ValueError:
        return text
    return numbers if "/" in text else numbers[0]


def make(named: NamedMethod) -> Any:
    """The method itself.

    Raises:
        UserError: there is no such method or setting.
    """
    from pretrained_methods import METHODS

    from self_ensemble.methods.names import make_method

    if named.name in METHODS:
        return METHODS[named.name](**named.settings)
    return make_method(named.name, **named.settings)


def described(named: NamedMethod, config: Any) -> tuple[str, dict[str, Any]]:
    """What its results are called, and its part of their identity, on a model's configuration."""
    from pretrained_methods import METHODS

    from self_ensemble.data.records import sha256
    from self_ensemble.experiment.identity import attention_settings, logit_settings
    from self_ensemble.experiment.names import attention_method_name, logit_method_name
    from self_ensemble.methods.attention_fusion import AttentionFusion, default_positions_on
    from self_ensemble.methods.config import LogitFusionConfig

    if named.name in METHODS:
        parts = [f"{key}{_in_a_name(value)}" for key, value in named.settings.items()]
        source = sha256(inspect.getsource(METHODS[named.name]))
        identity = {"name": named.name, **named.settings, "source": source}
        return "-".join([named.name, *parts]), identity
    method = make(named)
    if isinstance(method, AttentionFusion):
        method = replace(method, positions=method.positions_on(config))
        usual = default_positions_on(config, method.fusion)
        return attention_method_name(method, default_positions=usual), attention_settings(method)
    config = LogitFusionConfig(method=named.name, **named.settings)
    return logit_method_name(config), logit_settings(config, None)


def _in_a_name(value: Any) -> str:
    """`(1.0, 0.5)` -> `1_0.5`, `entropy:1` -> `entropy1`."""
    if isinstance(value, tuple):
        return "_".join(map(_in_a_name, value))
    return f"{value:g}" if isinstance(value, float) else value.replace(":", "")


@dataclass(frozen=True)
class Job:
    """One result file: `count` paraphrases of a set's questions, by a method, on a model.

    text: the method as it was typed.
    """

    model: str
    set: str
    count: int
    text: str
    method: NamedMethod


def make_jobs(
    models: Iterable[str],
    sets: Mapping[str, "Asked"],
    counts: Iterable[int],
    methods: Iterable[str],
) -> list[Job]:
    """All of them, one model's together; none with more paraphrases than any question of a set has.

    Raises:
        UserError: a method is unknown, or has no such setting.
    """
    named = {text: parse_method(text) for text in methods}
    for method in named.values():
        make(method)
    return [
        Job(*each, named[each[-1]])
        for each in product(models, sets, counts, named)
        if sets[each[1]].with_paraphrases(each[2])
    ]


@dataclass(frozen=True)
class Asked:
    """A set's questions with all their wordings, and what stands around them."""

    records: Sequence["Record"]
    prompt: "Prompt"

    def with_paraphrases(self, count: int) -> list["Record"]:
        """The first so many wordings of the questions that have as many."""
        return [
            replace(record, paraphrases=record.paraphrases[:count])
            for record in self.records
            if len(record.paraphrases) >= count
        ]


@dataclass(frozen=True)
class Settings:
    """What all jobs share.

    output: where results go: `OUTPUT/SET/MODEL/`.
    attention, capture: see `generation.attaching.make_engine`.
    max_new_tokens: of an answer.
    batch_size: questions at a time; None: what fits.
    overwrite: make every result anew.
    """

    output: "Path"
    attention: str
    capture: bool
    max_new_tokens: int
    batch_size: int | None
    overwrite: bool


class SingleAnswers:
    """Passes of a job, answered by an engine.

    What a paraphrase answers alone is the same for every N and method that asks for it: it is
    generated once. The rows are counted as if each job had generated its own.
    """

    def __init__(self, engine: "Engine"):
        self._engine = engine
        self._known: dict[tuple, Answer] = {}
        self.rows = 0  # decoded for the job's answers, those that stood idle in a batch aside

    def ask(
        self, name: str, request: "Request", *, batch_size: int | None, unit: str = "questions"
    ) -> Iterator["Batch"]:
        from self_ensemble.methods.prompt_by_prompt import EACH_PASS

        batches: Iterable[Batch]
        if name == EACH_PASS and request.sampling is None:
            batches = self._each(request, batch_size)
        else:
            batches = self._engine.generate(request, batch_size=batch_size)
        for batch in batches:
            for index, answer in batch:
                group = request.questions[index]
                self.rows += len(group) * steps_of(answer, request.max_new_tokens)
                if request.weigh is not None and len(group) == 1:
                    self.rows += len(group[0].segments)
            yield batch

    def _each(self, request: "Request", batch_size: int | None) -> Iterator["Batch"]:
        keys = [(request.prefix, only.segments, only.tail) for [only] in request.questions]
        new = [index for index, key in enumerate(keys) if key not in self._known]
        asked = replace(request, questions=[request.questions[index] for index in new])
        for batch in self._engine.generate(asked, batch_size=batch_size) if new else ():
            self._known.update((keys[new[index]], answer) for index, answer in batch)
        yield [(index, self._known[key]) for index, key in enumerate(keys)]


def steps_of(answer: "Answer", limit: int) -> int:
    """How many tokens were decoded for an answer, the one that ended it included."""
    return min(limit, len(answer.token_ids) + (not answer.truncated))


def run_jobs(
    jobs: Sequence[Job],
    settings: Settings,
    *,
    sets: Mapping[str, Asked],
    sources: Mapping[str, "ModelSource"],
) -> None:
    """Makes the results that are not there yet, one model after the other.

    sets, sources: by the names that the jobs have.

    Raises:
        UserError: a result that is there was made otherwise.
    """
    for model, source in sources.items():
        of_model = [job for job in jobs if job.model == model]
        # One method may be named twice.
        pending = {
            planned.stem: planned
            for _, planned in plans(of_model, settings, sets=sets, source=source)
            if planned is not None
        }
        if pending:
            _run_on(source, list(pending.values()), settings)


def finished(
    jobs: Sequence[Job],
    settings: Settings,
    *,
    sets: Mapping[str, Asked],
    sources: Mapping[str, "ModelSource"],
) -> list[Job]:
    """Those whose results are there."""
    return [
        job
        for model, source in sources.items()
        for job, planned in plans(
            [job for job in jobs if job.model == model], settings, sets=sets, source=source
        )
        if planned is None
    ]


def plans(
    jobs: Sequence[Job], settings: Settings, *, sets: Mapping[str, Asked], source: "ModelSource"
) -> Iterator[tuple[Job, "Planned | None"]]:
    """Each job of a model with what is to be done for it; None where its result is finished."""
    from self_ensemble.models.loading import load_tokenizer

    is_chat = any(asked.prompt.chat_template for asked in sets.values())
    tokenizer = load_tokenizer(source) if is_chat else None
    for job in jobs:
        yield job, plan(job, sets[job.set], source, tokenizer, settings)


@dataclass(frozen=True)
class Planned:
    """A job that is still to be done: its questions and its result's stem and identity."""

    job: Job
    records: Sequence["Record"]
    prompt: "Prompt"
    stem: "Path"
    identity: Mapping[str, Any]


def stem_of(job: Job, settings: Settings, config: Any) -> "Path":
    """A job's result, without suffix. config: of the model."""
    from self_ensemble.experiment.names import run_name

    name, _ = described(job.method, config)
    return settings.output / job.set / job.model / run_name(name, count=job.count)


def plan(
    job: Job, asked: Asked, source: "ModelSource", tokenizer: Any, settings: Settings
) -> Planned | None:
    """What is to be done for a job; None where its result is finished.

    tokenizer: the model's own, for a chat template; else None.

    Raises:
        UserError: the result there was made otherwise, or there is not a weight a paraphrase.
    """
    from self_ensemble.data.identities import as_written
    from self_ensemble.data.records import Dataset
    from self_ensemble.data.result_files import count_finished

    records = asked.with_paraphrases(job.count)
    assert records, job
    template = asked.prompt.template(tokenizer)
    _, method = described(job.method, source.config)
    identity = as_written(
        {
            "data": Dataset(job.set, records).fingerprint,
            "model": source.fingerprint,
            "prompt": {"head": template.head, "tail": template.tail},
            "paraphrases": job.count,
            "method": method,
            "dtype": str(source.dtype).removeprefix("torch."),
            "max_new_tokens": settings.max_new_tokens,
        }
    )
    stem = stem_of(job, settings, source.config)
    if not settings.overwrite and count_finished(stem, identity) == len(records):
        return None
    return Planned(job, records, asked.prompt, stem, identity)


def _run_on(source: "ModelSource", pending: Sequence[Planned], settings: Settings) -> None:
    from self_ensemble.generation.loading import loaded_engine
    from self_ensemble.system.console import say

    with loaded_engine(source, attention=settings.attention, capture=settings.capture) as engine:
        answers = SingleAnswers(engine)
        for number, planned in enumerate(pending, 1):
            found = _run(planned, engine, answers, settings)
            job = planned.job
            say(
                f"{number} of {len(pending)} on {job.model}: {job.set}/{planned.stem.name}: "
                f"{len(planned.records) / found['seconds']:.1f} questions/s, exact match "
                f"{found['exact']:.2%}"
            )


def _run(
    planned: Planned, engine: "Engine", answers: SingleAnswers, settings: Settings
) -> dict[str, Any]:
    """Answers a job's questions and writes them; the manifest."""
    import pandas
    import torch
    import transformers

    from self_ensemble.data.answers import first_line
    from self_ensemble.data.result_files import write_results
    from self_ensemble.evaluation.matchers import is_right
    from self_ensemble.experiment.rows import answer_row
    from self_ensemble.generation.config import GenerationConfig
    from self_ensemble.methods import base

    records, answers.rows = planned.records, 0
    asked = base.Asked(
        engine=engine,
        template=planned.prompt.template(engine.tokenizer),
        questions=[record.paraphrases for record in records],
        uuids=[record.uuid for record in records],
        ask=answers.ask,
        config=GenerationConfig(settings.max_new_tokens, settings.batch_size),
    )
    begun = time.perf_counter()
    outcomes = sorted(make(planned.job.method).answer(asked), key=lambda each: each.question)
    seconds = time.perf_counter() - begun
    rows, tokens = [], 0
    for outcome in outcomes:
        record = records[outcome.question]
        of_each = planned.job.method.name == "per_prompt"
        for index, answer in enumerate(outcome.answers):
            tokens += steps_of(answer, settings.max_new_tokens)
            column = {"paraphrase": record.paraphrases[index]} if of_each else {}
            rows.append(answer_row(record, answer, engine.tokenizer, first_line, **column))
    manifest = {
        "identity": planned.identity,
        "num_questions": len(records),
        "seconds": seconds,
        "decode_rows": answers.rows,
        "decoded_tokens": tokens,
        "exact": sum(is_right(row["prediction"], row["answers"]) for row in rows) / len(rows),
        "device": str(engine.device),
        "attention": engine.wrapper.backend,
        "captures": engine.captures,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    write_results(planned.stem, pandas.DataFrame(rows), manifest)
    return manifest
