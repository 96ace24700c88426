"""How likely a model finds a question behind its paraphrase: one scored pass of the engine.

The paraphrase is put into a prompt that asks for the same question in other words, and the question
is scored as what follows. The same question behind a prompt with nothing in it is what its
likelihood is held against, so that a long or a rare question is no worse off: the difference is
the pointwise mutual information of the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from self_ensemble.data import PromptTemplate
from self_ensemble.paraphrasing.rejections import Judgement

if TYPE_CHECKING:  # torch takes seconds to import
    from self_ensemble.attention.continuations import SplitChoices
    from self_ensemble.generation.answering import AnyEngine
    from self_ensemble.generation.likelihood import Likelihood, ScoringRequest

# A question and a text that may be its paraphrase.
Pair = tuple[str, str]

# What a likelihood is held against: a prompt whose question says nothing.
NOTHING = "..."
TEMPLATE = PromptTemplate("Question: ", "\nThe same question in other words:")
# Texts that are scored behind one prompt: a batch holds as many rows.
TEXTS_AT_ONCE = 16


@dataclass(frozen=True)
class JudgeRequest:
    """What is scored, and where each pair's figures stand in it.

    pairs: (question, paraphrase).
    alone: of a question or paraphrase, which of the request's questions scores it behind
        `NOTHING`, and as which of its continuations.
    split: of the request's questions; the first are the pairs'.
    """

    pairs: tuple[Pair, ...]
    alone: dict[str, tuple[int, int]]
    split: list[SplitChoices]
    request: ScoringRequest


def judge_request(tokenizer: Any, pairs: Sequence[Pair]) -> JudgeRequest:
    """The one request whose likelihoods `read_judgements` makes judgements of.

    Args:
        tokenizer: the engine's.
        pairs: (question, paraphrase); neither is empty.

    Raises:
        UserError: the tokenizer cannot split a prompt from what follows it, see `split_choices`.
    """
    from self_ensemble.attention.continuations import split_choices
    from self_ensemble.generation.likelihood import ScoringRequest
    from self_ensemble.generation.streams import logit_streams

    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    groups = [texts[at : at + TEXTS_AT_ONCE] for at in range(0, len(texts), TEXTS_AT_ONCE)]
    alone = {
        text: (len(pairs) + at, index)
        for at, group in enumerate(groups)
        for index, text in enumerate(group)
    }
    said = [[paraphrase] for _, paraphrase in pairs] + [[NOTHING] for _ in groups]
    follows = [[question] for question, _ in pairs] + groups
    prefix, split = split_choices(tokenizer, TEMPLATE, said, follows)
    request = ScoringRequest(
        prefix,
        [logit_streams(each.question, len(prefix)) for each in split],
        continuations=[each.continuations for each in split],
    )
    return JudgeRequest(tuple(pairs), alone, split, request)


def read_judgements(
    asked: JudgeRequest, scored: Iterable[Sequence[tuple[int, tuple[Likelihood, ...]]]]
) -> list[Judgement]:
    """One a pair, in order. scored: the batches that `engine.score(asked.request)` gives."""
    found = {index: likelihoods for batch in scored for index, likelihoods in batch}

    def behind_nothing(text: str) -> Sequence[float]:
        index, place = asked.alone[text]
        return found[index][place].logprobs

    judgements = []
    for index, (question, paraphrase) in enumerate(asked.pairs):
        given, without = found[index][0].logprobs, behind_nothing(question)
        fluency = behind_nothing(paraphrase)
        judgements.append(
            Judgement(
                lift=(sum(given) - sum(without)) / len(given),
                word_lifts=(),
                fluency=sum(fluency) / len(fluency),
            )
        )
    return judgements


def judge(engine: AnyEngine, pairs: Sequence[Pair], *, batch_size: int | None) -> list[Judgement]:
    """What the engine's model says of each pair."""
    asked = judge_request(engine.tokenizer, pairs)
    return read_judgements(asked, engine.score(asked.request, batch_size=batch_size))
