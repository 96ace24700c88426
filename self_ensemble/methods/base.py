"""What every method is: from questions in several wordings to answers, through named passes.

A method makes requests and lets somebody else have them answered: a run keeps every batch in its
journal, the Python interface nothing. So the same code serves a file of questions and a notebook.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any, Protocol, runtime_checkable

from self_ensemble.attention.segments import (
    SplitQuestion,
    each_split_prompts,
    each_split_whole_prompts,
    template_prefix,
    tokenizers_prefix,
)
from self_ensemble.data.answers import first_line
from self_ensemble.data.templates import PromptTemplate, WholePrompts
from self_ensemble.generation.answering import AnyEngine
from self_ensemble.generation.config import GenerationConfig
from self_ensemble.generation.decode import Answer
from self_ensemble.generation.engine import Batch
from self_ensemble.generation.likelihood import Likelihood, ScoredBatch, ScoringRequest
from self_ensemble.generation.request import Request
from self_ensemble.generation.sampling import Sampling
from self_ensemble.system.errors import UserError

# What a text becomes a prompt by.
Template = PromptTemplate | WholePrompts


@dataclass(frozen=True)
class Outcome:
    """What a method says of one question.

    question: its index.
    answers: one; of ``per_prompt`` one a paraphrase, in their order.
    paraphrase: the index of the paraphrase whose own answer was taken, where one was.
    """

    question: int
    answers: tuple[Answer, ...]
    paraphrase: int | None = None


class Ask(Protocol):
    """Has a request answered."""

    def __call__(
        self, name: str, request: Request, *, batch_size: int | None, unit: str = "questions"
    ) -> Iterable[Batch]:
        """Batches of (index into the request's questions, answer).

        Args:
            name: of the pass: a method may need several.
            request: what is asked.
            batch_size: of the request's questions; None chooses.
            unit: what one of them is, for progress.
        """
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Asked:
    """Questions, and by what and how they are answered.

    engine: whose tokenizer splits the prompts.
    template: what a paraphrase becomes a prompt by.
    questions: the paraphrases of each.
    uuids: of each; what is drawn for a question depends on it.
    ask: has a method's requests answered.
    config: limits of the answers, and how many questions go together.
    extract: what of a generation is its prediction, which votes compare.
    """

    engine: AnyEngine
    template: Template
    questions: Sequence[Sequence[str]]
    uuids: Sequence[str]
    ask: Ask
    config: GenerationConfig
    extract: Callable[[str], str] = first_line

    def __post_init__(self) -> None:
        assert len(self.questions) == len(self.uuids), (len(self.questions), len(self.uuids))


def sampling_of(asked: Asked, keys: Iterable[tuple[str, int]]) -> Sampling | None:
    """How the tokens of a request are drawn, where they are.

    keys: of each of the request's questions a uuid, and which of the draws for it this is; not
        looked at where nothing is drawn.
    """
    sampling = asked.config.sampling
    return None if sampling is None else Sampling(**asdict(sampling), keys=list(keys))


@dataclass(frozen=True)
class ScoredChoices:
    """What a method says of one question's choices.

    question: its index.
    likelihoods: of its choices, in their order: one tuple; of ``per_prompt`` one a paraphrase.
    paraphrase: the index of the paraphrase whose own likelihoods were taken, where they were.
    """

    question: int
    likelihoods: tuple[tuple[Likelihood, ...], ...]
    paraphrase: int | None = None


class AskLikelihood(Protocol):
    """Has a scoring request answered."""

    def __call__(
        self, name: str, request: ScoringRequest, *, batch_size: int | None, unit: str = "questions"
    ) -> Iterable[ScoredBatch]:
        """Batches of (index into the request's questions, likelihoods of its continuations).

        The arguments are those of `Ask`.
        """
        ...


def asking(engine: AnyEngine) -> Ask:
    """Has requests answered by the engine itself, and keeps nothing."""

    def ask(
        name: str, request: Request, *, batch_size: int | None, unit: str = "questions"
    ) -> Iterable[Batch]:
        return engine.generate(request, batch_size=batch_size)

    return ask


def asking_likelihood(engine: AnyEngine) -> AskLikelihood:
    """The same for scoring requests."""

    def ask(
        name: str, request: ScoringRequest, *, batch_size: int | None, unit: str = "questions"
    ) -> Iterable[ScoredBatch]:
        return engine.score(request, batch_size=batch_size)

    return ask


@dataclass(frozen=True, eq=False, kw_only=True)
class AskedChoices:
    """Questions with the choices to be scored, and by what they are scored.

    engine, template, questions: see `Asked`.
    choices: of each question; see `attention.continuations` for how they follow a prompt.
    ask: has a method's requests answered.
    batch_size: questions that go together; None chooses.
    norm: one of `data.choices.NORMS`: by what a paraphrase chooses where a method votes.
    """

    engine: AnyEngine
    template: Template
    questions: Sequence[Sequence[str]]
    choices: Sequence[Sequence[str]]
    ask: AskLikelihood
    batch_size: int | None = None
    norm: str = "sum"

    def __post_init__(self) -> None:
        assert len(self.questions) == len(self.choices), (len(self.questions), len(self.choices))


class Method(Protocol):
    """A way to answer questions that are asked in several wordings."""

    def answer(self, asked: Asked) -> Iterator[Outcome]:
        """Answer questions.

        Yields:
            An outcome for each question, as they are finished.

        Raises:
            UserError: the tokenizer, the model or the lengths do not allow it.
        """
        ...


@runtime_checkable
class ScoringMethod(Protocol):
    """A method that can also say how likely given answers are."""

    def score(self, asked: AskedChoices) -> Iterator[ScoredChoices]:
        """Score every choice of each question: its tokens' log-probabilities, fused.

        Yields:
            What it says of each question, as they are finished.

        Raises:
            UserError: the tokenizer, the model or the lengths do not allow it.
        """
        ...


def split_questions(
    tokenizer: Any, template: Template, questions: Sequence[Sequence[str]]
) -> tuple[tuple[int, ...], Iterator[SplitQuestion]]:
    """The prefix's token ids, and every question split into its segments and its tail.

    The questions are split as they are taken: a million of them need not be held.

    Raises:
        UserError: the tokenizer does not allow it, see `attention.segments`; also while the
            questions are taken.
    """
    if isinstance(template, WholePrompts):
        prefix = tokenizers_prefix(tokenizer, template.add_special_tokens)
        return prefix, each_split_whole_prompts(tokenizer, template, questions, prefix)
    prefix = template_prefix(tokenizer, template)
    return prefix, each_split_prompts(tokenizer, template, questions, prefix)


def check_weights(what: str, weights: Sequence[float]) -> None:
    """Raises UserError where weights are not finite numbers of 0 or more, not all 0."""
    numbers = all(isinstance(weight, Real) and 0 <= weight < math.inf for weight in weights)
    if not numbers or not any(weights):
        raise UserError(f"{what}: {list(weights)} must be numbers of 0 or more, not all 0")
