"""Methods that decode every paraphrase in a row of its own: alone, by vote, fused logits."""

from __future__ import annotations

import pickle
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TypeVar

import torch

from self_ensemble.attention.continuations import split_choices
from self_ensemble.data.answers import first_line
from self_ensemble.data.choices import choose, normalized
from self_ensemble.data.extraction import FIRST_LINE
from self_ensemble.generation.decode import Answer, answer_text
from self_ensemble.generation.likelihood import Likelihood, ScoringRequest
from self_ensemble.generation.packed import PackedStreams
from self_ensemble.generation.request import Request
from self_ensemble.generation.streams import logit_streams
from self_ensemble.methods.base import (
    Asked,
    AskedChoices,
    Outcome,
    ScoredChoices,
    check_weights,
    sampling_of,
    split_questions,
)
from self_ensemble.methods.logit_fusion import LOGIT_METHODS, choice_confidence, confidence
from self_ensemble.methods.votes import VOTES, VoteRule, majority, majority_of_lines
from self_ensemble.methods.weighting import parse_weighting, weigh_by
from self_ensemble.system.errors import UserError

EACH_PASS = "each paraphrase"

T = TypeVar("T")


@dataclass(frozen=True)
class LogitFusion:
    """One token taken for all paraphrases, step by step, from their combined logits.

    name: of a registered logit method.
    weights: for each question one of each paraphrase, 0 or more, not all 0: instead of the
        confidence of the paraphrases' own answers, where the method is a weighted one.
    weights_by: instead of it, a weighting that finds weights for each question, see
        `methods.weighting`.
    """

    name: str = "avg"
    weights: Sequence[Sequence[float]] | None = None
    weights_by: str | None = None

    def __post_init__(self) -> None:
        if self.weights_by is None:
            return
        parse_weighting(self.weights_by)
        if not LOGIT_METHODS.get(self.name).weighted:
            raise UserError(f"the method {self.name} uses no weights: leave weights_by out")
        if self.weights is not None:
            raise UserError("weights are given, or found by weights_by: leave one of them out")

    def answer(self, asked: Asked) -> Iterator[Outcome]:
        """See `methods.base.Method`."""
        method, request = LOGIT_METHODS.get(self.name), logit_request(asked)
        weights = self._given_weights(asked.questions)
        if method.weighted and weights is None and self.weights_by is None:
            weights = _own_confidences(request, asked)
        request = replace(
            request,
            reduce=method.reduce,
            weights=weights,
            weigh=weigh_by(self.weights_by),
            sampling=sampling_of(asked, ((uuid, 0) for uuid in asked.uuids)),
        )
        for batch in asked.ask(self.name, request, batch_size=asked.config.batch_size):
            for index, answer in batch:
                yield Outcome(index, (answer,))

    def score(self, asked: AskedChoices) -> Iterator[ScoredChoices]:
        """See `methods.base.ScoringMethod`.

        A weighted method that is given no weights takes as a paraphrase's confidence the
        probability of its likeliest choice among its own: `choice_confidence`.
        """
        method, request = LOGIT_METHODS.get(self.name), scoring_request(asked)
        weights = self._given_weights(asked.questions)
        if method.weighted and weights is None and self.weights_by is None:
            each = dict(_score_each(request, asked))
            rows = [[choice_confidence(own) for own in each[index]] for index in range(len(each))]
            weights = _weight_tensor(rows)
        request = replace(
            request, reduce=method.reduce, weights=weights, weigh=weigh_by(self.weights_by)
        )
        for batch in asked.ask(self.name, request, batch_size=asked.batch_size):
            for index, likelihoods in batch:
                yield ScoredChoices(index, (likelihoods,))

    def _given_weights(self, questions: Sequence[Sequence[str]]) -> torch.Tensor | None:
        if self.weights is None:
            return None
        if not LOGIT_METHODS.get(self.name).weighted:
            raise UserError(f"the method {self.name} uses no weights")
        if len(self.weights) != len(questions):
            raise UserError(f"weights: {len(self.weights)} rows for {len(questions)} questions")
        for index, (row, paraphrases) in enumerate(zip(self.weights, questions, strict=True)):
            if len(row) != len(paraphrases):
                raise UserError(
                    f"weights: {len(row)} for the {len(paraphrases)} paraphrases of question "
                    f"{index}"
                )
            check_weights(f"weights of question {index}", row)
        return _weight_tensor(self.weights)


@dataclass(frozen=True)
class PerPrompt:
    """Every paraphrase answers by itself, and every answer is given."""

    def answer(self, asked: Asked) -> Iterator[Outcome]:
        """See `methods.base.Method`."""
        for question, answers in _answer_each(logit_request(asked), asked):
            yield Outcome(question, answers, 0 if len(answers) == 1 else None)

    def score(self, asked: AskedChoices) -> Iterator[ScoredChoices]:
        """See `methods.base.ScoringMethod`."""
        for question, each in _score_each(scoring_request(asked), asked):
            yield ScoredChoices(question, each, 0 if len(each) == 1 else None)


@dataclass(frozen=True)
class Origin:
    """The first wording of every question answers alone."""

    def answer(self, asked: Asked) -> Iterator[Outcome]:
        """See `methods.base.Method`."""
        first = [paraphrases[:1] for paraphrases in asked.questions]
        return PerPrompt().answer(replace(asked, questions=first))

    def score(self, asked: AskedChoices) -> Iterator[ScoredChoices]:
        """See `methods.base.ScoringMethod`."""
        first = [paraphrases[:1] for paraphrases in asked.questions]
        return PerPrompt().score(replace(asked, questions=first))


@dataclass(frozen=True)
class Vote:
    """Every paraphrase answers by itself, and one of the answers is taken.

    name: of a registered vote.
    """

    name: str = "vote"

    def answer(self, asked: Asked) -> Iterator[Outcome]:
        """See `methods.base.Method`."""
        rule = VOTES.get(self.name)
        if rule is majority and asked.extract in (first_line, FIRST_LINE):
            rule = majority_of_lines
        for question, answers in _answer_each(logit_request(asked), asked):
            generated = [answer_text(asked.engine.tokenizer, answer) for answer in answers]
            taken = self._taken([asked.extract(text) for text in generated], rule)
            yield Outcome(question, (answers[taken],), taken)

    def score(self, asked: AskedChoices) -> Iterator[ScoredChoices]:
        """See `methods.base.ScoringMethod`.

        Every paraphrase chooses by itself, under the norm, and the likelihoods of the paraphrase
        that is taken are given. What votes is the number of the choice, as text: two choices count
        as two however alike their texts are when normalised (``A`` is an article).
        """
        for question, each in _score_each(scoring_request(asked), asked):
            chosen = [choose(scores_of(own, asked.choices[question], asked.norm)) for own in each]
            taken = self._taken([str(choice) for choice in chosen], VOTES.get(self.name))
            yield ScoredChoices(question, (each[taken],), taken)

    def _taken(self, predictions: Sequence[str], rule: VoteRule) -> int:
        taken = rule(predictions)
        if isinstance(taken, bool) or taken not in range(len(predictions)):
            raise UserError(
                f"the vote {self.name} must return the index of one of the "
                f"{len(predictions)} answers, counted from 0; it returns {taken!r}"
            )
        return int(taken)


def _weight_tensor(rows: Sequence[Sequence[float]]) -> torch.Tensor:
    """[Q, N] float32, N the most that a question has; behind a question's own stand zeros."""
    most = max(map(len, rows), default=0)
    padded = [[*row, *[0.0] * (most - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.float32).reshape(len(padded), most)


def logit_request(asked: Asked) -> Request:
    """Every paraphrase as a stream of its own. Its `reduce` is yet to be chosen."""
    prefix, split = split_questions(asked.engine.tokenizer, asked.template, asked.questions)
    return Request(
        prefix,
        PackedStreams(logit_streams(question, len(prefix)) for question in split),
        max_new_tokens=asked.config.max_new_tokens,
        stop=asked.config.stop,
    )


def scoring_request(asked: AskedChoices) -> ScoringRequest:
    """As `logit_request`, with the choices."""
    prefix, split = split_choices(
        asked.engine.tokenizer, asked.template, asked.questions, asked.choices
    )
    return ScoringRequest(
        prefix,
        PackedStreams(logit_streams(each.question, len(prefix)) for each in split),
        continuations=[each.continuations for each in split],
    )


def scores_of(
    likelihoods: Sequence[Likelihood], choices: Sequence[str], norm: str
) -> tuple[float, ...]:
    """The log-likelihoods of a question's choices under a norm, see `data.choices.normalized`."""
    pairs = zip(likelihoods, choices, strict=True)
    return tuple(normalized(likelihood.logprobs, choice, norm) for likelihood, choice in pairs)


def _answer_each(request: Request, asked: Asked) -> Iterator[tuple[int, tuple[Answer, ...]]]:
    """(question, the answers of its paraphrases) as soon as all of a question's are there."""
    counts = [len(group) for group in request.questions]
    keys = ((u, k) for u, count in zip(asked.uuids, counts, strict=True) for k in range(count))
    single = replace(request, questions=_single_streams(request), sampling=sampling_of(asked, keys))
    batch_size = prompts_at_once(asked.config.batch_size, counts)
    return gathered(asked.ask(EACH_PASS, single, batch_size=batch_size, unit="prompts"), counts)


def _score_each(
    request: ScoringRequest, asked: AskedChoices
) -> Iterator[tuple[int, tuple[tuple[Likelihood, ...], ...]]]:
    """(question, what each of its paraphrases says of the choices), as `_answer_each`."""
    counts = [len(group) for group in request.questions]
    pairs = zip(request.continuations, counts, strict=True)
    single = replace(
        request,
        questions=_single_streams(request),
        continuations=[own for own, count in pairs for _ in range(count)],
    )
    batch_size = prompts_at_once(asked.batch_size, counts)
    return gathered(asked.ask(EACH_PASS, single, batch_size=batch_size, unit="prompts"), counts)


def _single_streams(request: Request) -> PackedStreams:
    return PackedStreams([stream] for group in request.questions for stream in group)


def prompts_at_once(batch_size: int | None, counts: Sequence[int]) -> int | None:
    """How many prompts go together where so many questions do."""
    return batch_size and batch_size * max(counts, default=1)


def gathered(
    batches: Iterable[Sequence[tuple[int, T]]], counts: Sequence[int]
) -> Iterator[tuple[int, tuple[T, ...]]]:
    """(question, what its paraphrases got) as soon as all of a question's are there.

    batches: of (index among the paraphrases of all questions, what it got).
    counts: how many paraphrases each question has.
    """
    firsts = list(accumulate(counts, initial=0))
    # Short prompts come first, whatever their questions: most of what was got waits for the rest of
    # its question, pickled, which takes a fifth of the room.
    found: dict[int, dict[int, bytes]] = {}
    for batch in batches:
        for index, got in batch:
            question = bisect_right(firsts, index) - 1
            each = found.setdefault(question, {})
            each[index - firsts[question]] = pickle.dumps(got)
            if len(each) == counts[question]:
                yield question, tuple(pickle.loads(each[k]) for k in range(len(each)))
                del found[question]


def _own_confidences(request: Request, asked: Asked) -> torch.Tensor:
    """Confidences of the paraphrases' own answers, [Q, N]; equal where all are zero.

    The likeliest ones, whether the fused answer is drawn or not: how sure a paraphrase is does not
    depend on chance.
    """
    greedy = replace(asked, config=replace(asked.config, sampling=None))
    each = dict(_answer_each(request, greedy))
    rows = [[confidence(answer) for answer in each[index]] for index in range(len(each))]
    weights = _weight_tensor(rows)
    return weights.where(weights.sum(-1, keepdim=True) > 0, torch.ones(()))
