"""Methods that decode every paraphrase in a row of its own: alone, by vote, fused logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from self_ensemble.generation.decode import Answer
from self_ensemble.generation.request import Request
from self_ensemble.generation.streams import logit_streams
from self_ensemble.methods.base import Asked, Outcome, check_weights, split_questions
from self_ensemble.methods.logit_fusion import LOGIT_METHODS, confidence
from self_ensemble.methods.votes import VOTES
from self_ensemble.system.errors import UserError

EACH_PASS = "each paraphrase"


@dataclass(frozen=True)
class LogitFusion:
    """One token taken for all paraphrases, step by step, from their combined logits.

    name: of a registered logit method.
    weights: for each question one of each paraphrase, 0 or more, not all 0: instead of the
        confidence of the paraphrases' own answers, where the method is a weighted one.
    """

    name: str = "avg"
    weights: Sequence[Sequence[float]] | None = None

    def answer(self, asked: Asked) -> Iterator[Outcome]:
        """See `methods.base.Method`."""
        method = LOGIT_METHODS.get(self.name)
        request = logit_request(asked)
        weights = None
        if method.weighted and self.weights is None:
            weights = _own_confidences(request, asked)
        elif method.weighted:
            weights = self._given_weights(asked.questions)
        elif self.weights is not None:
            raise UserError(f"the method {self.name} uses no weights")
        request = replace(request, reduce=method.reduce, weights=weights)
        for batch in asked.ask(self.name, request, batch_size=asked.config.batch_size):
            for index, answer in batch:
                yield Outcome(index, (answer,))

    def _given_weights(self, questions: Sequence[Sequence[str]]) -> torch.Tensor:
        assert self.weights is not None
        if len(self.weights) != len(questions):
            raise UserError(f"weights: {len(self.weights)} rows for {len(questions)} questions")
        for index, (row, paraphrases) in enumerate(zip(self.weights, questions, strict=True)):
            if len(row) != len(paraphrases):
                raise UserError(
                    f"weights: {len(row)} for the {len(paraphrases)} paraphrases of question "
                    f"{index}"
                )
            check_weights(f"weights of question {index}", row)
        return torch.tensor([list(row) for row in self.weights], dtype=torch.float32)


@dataclass(frozen=True)
class PerPrompt:
    """Every paraphrase answers by itself, and every answer is given."""

    def answer(self, asked: Asked) -> Iterator[Outcome]:
        """See `methods.base.Method`."""
        for question, answers in _answer_each(logit_request(asked), asked):
            yield Outcome(question, answers, 0 if len(answers) == 1 else None)


@dataclass(frozen=True)
class Origin:
    """The first wording of every question answers alone."""

    def answer(self, asked: Asked) -> Iterator[Outcome]:
        """See `methods.base.Method`."""
        first = [paraphrases[:1] for paraphrases in asked.questions]
        return PerPrompt().answer(replace(asked, questions=first))


@dataclass(frozen=True)
class Vote:
    """Every paraphrase answers by itself, and one of the answers is taken.

    name: of a registered vote.
    """

    name: str = "vote"

    def answer(self, asked: Asked) -> Iterator[Outcome]:
        """See `methods.base.Method`."""
        rule = VOTES.get(self.name)
        for question, answers in _answer_each(logit_request(asked), asked):
            generated = [
                asked.engine.tokenizer.decode(answer.token_ids, skip_special_tokens=True)
                for answer in answers
            ]
            taken = rule([asked.extract(text) for text in generated])
            if isinstance(taken, bool) or taken not in range(len(answers)):
                raise UserError(
                    f"the vote {self.name} must return the index of one of the "
                    f"{len(answers)} answers, counted from 0; it returns {taken!r}"
                )
            yield Outcome(question, (answers[taken],), int(taken))


def logit_request(asked: Asked) -> Request:
    """Every paraphrase as a stream of its own. Its `reduce` is yet to be chosen."""
    prefix, split = split_questions(asked.engine.tokenizer, asked.template, asked.questions)
    streams = [logit_streams(question, len(prefix)) for question in split]
    return Request(prefix, streams, max_new_tokens=asked.config.max_new_tokens)


def _answer_each(request: Request, asked: Asked) -> Iterator[tuple[int, tuple[Answer, ...]]]:
    """(question, the answers of its paraphrases) as soon as all of a question's are there."""
    if not request.questions:
        return
    count = len(request.questions[0])
    single = [[stream] for group in request.questions for stream in group]
    batch_size = asked.config.batch_size and asked.config.batch_size * count
    found: dict[int, dict[int, Answer]] = {}
    for batch in asked.ask(
        EACH_PASS, replace(request, questions=single), batch_size=batch_size, unit="prompts"
    ):
        for index, answer in batch:
            question, paraphrase = divmod(index, count)
            found.setdefault(question, {})[paraphrase] = answer
            if len(found[question]) == count:
                answers = found.pop(question)
                yield question, tuple(answers[k] for k in range(count))


def _own_confidences(request: Request, asked: Asked) -> torch.Tensor:
    """Confidences of the paraphrases' own answers, [Q, N]; equal where all are zero."""
    each = dict(_answer_each(request, asked))
    rows = [[confidence(answer) for answer in each[index]] for index in range(len(each))]
    weights = torch.tensor(rows)
    return weights.where(weights.sum(-1, keepdim=True) > 0, torch.ones(()))
