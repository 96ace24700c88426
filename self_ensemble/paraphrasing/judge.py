"""How likely a model finds a question behind its paraphrase: one scored pass of the engine.

    Question: which language is spoken in holland?
    The same question in other words: what language do people speak in the netherlands?

The paraphrase stands in the prompt and the question is scored as what follows, token by token. The
same question behind `...` is what its likelihood is held against, so that a long or a rare question
is no worse off. The difference of the two log-probabilities is the pointwise mutual information of
question and paraphrase under the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from self_ensemble.data import PromptTemplate
from self_ensemble.paraphrasing.rejections import Judgement

if TYPE_CHECKING:  # torch takes seconds to import
    from self_ensemble.generation.answering import AnyEngine
    from self_ensemble.generation.likelihood import Likelihood, ScoringRequest

# A question and a text that may be its paraphrase.
Pair = tuple[str, str]

# What a likelihood is held against: a prompt whose question says nothing.
NOTHING = "..."
TEMPLATE = PromptTemplate("Question: ", "\nThe same question in other words:", before_choice=" ")
# Questions that are scored behind `NOTHING` together.
QUESTIONS_AT_ONCE = 16


@dataclass(frozen=True)
class JudgeRequest:
    """What is scored, and where each pair's figures stand in it.

    pairs: (question, paraphrase).
    alone: of a question, which of the request's questions scores it behind `NOTHING`, and as which
        of its continuations.
    """

    pairs: tuple[Pair, ...]
    alone: dict[str, tuple[int, int]]
    request: ScoringRequest


def judge_request(tokenizer: Any, pairs: Sequence[Pair]) -> JudgeRequest:
    """The one request whose likelihoods `read_judgements` makes judgements of.

    Its first questions are the pairs, in order; behind them come the questions alone.

    Args:
        tokenizer: the engine's.
        pairs: (question, paraphrase), in one line each; neither is empty.

    Raises:
        UserError: the tokenizer cannot split a prompt from what follows it, see `split_choices`.
    """
    from self_ensemble.attention.continuations import split_choices
    from self_ensemble.generation.likelihood import ScoringRequest
    from self_ensemble.generation.streams import logit_streams

    pairs = tuple((_in_one_line(question), _in_one_line(text)) for question, text in pairs)
    asked = list(dict.fromkeys(question for question, _ in pairs))
    groups = [asked[at : at + QUESTIONS_AT_ONCE] for at in range(0, len(asked), QUESTIONS_AT_ONCE)]
    alone = {
        question: (len(pairs) + at, place)
        for at, group in enumerate(groups)
        for place, question in enumerate(group)
    }
    prefix, split = split_choices(
        tokenizer,
        TEMPLATE,
        [[paraphrase] for _, paraphrase in pairs] + [[NOTHING] for _ in groups],
        [[question] for question, _ in pairs] + groups,
    )
    request = ScoringRequest(
        prefix,
        [logit_streams(each.question, len(prefix)) for each in split],
        continuations=[each.continuations for each in split],
    )
    return JudgeRequest(pairs, alone, request)


def _in_one_line(text: str) -> str:
    return " ".join(text.split())


def read_judgements(
    asked: JudgeRequest, scored: Iterable[Sequence[tuple[int, tuple[Likelihood, ...]]]]
) -> list[Judgement]:
    """One a pair, in order. scored: the batches that `engine.score(asked.request)` gives."""
    found = {index: likelihoods for batch in scored for index, likelihoods in batch}
    judgements = []
    for index, (question, _) in enumerate(asked.pairs):
        at, place = asked.alone[question]
        behind, alone = found[index][0].logprobs, found[at][place].logprobs
        judgements.append(Judgement(1 - sum(behind) / min(sum(alone), -LEAST_INFORMATION)))
    return judgements


# Nats; of a question that the model knows by heart nothing can be explained.
LEAST_INFORMATION = 1e-3


def judge(engine: AnyEngine, pairs: Sequence[Pair], *, batch_size: int | None) -> list[Judgement]:
    """What the engine's model says of each pair; arguments as `judge_request` has them."""
    if not pairs:
        return []
    asked = judge_request(engine.tokenizer, pairs)
    return read_judgements(asked, engine.score(asked.request, batch_size=batch_size))
