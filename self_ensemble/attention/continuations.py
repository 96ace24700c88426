"""Given texts behind a question's prompts: which tokens are theirs, split by character offsets.

Prompt, separator and choice are tokenised once, as one text, for each paraphrase and choice. A
choice's tokens are those whose text reaches beyond the prompt, so that a token which holds the end
of the prompt and the beginning of the choice is scored. What is before them must be the same for
all choices of a question: its segments are encoded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from self_ensemble.attention.segments import (
    QUESTIONS_AT_ONCE,
    EncodedText,
    SplitQuestion,
    common_prefix,
    common_suffix,
    encode_texts,
    join_prompts,
    separated,
    shared_tail,
    template_prefix,
    tokenizers_prefix,
)
from self_ensemble.data.names import SEPARATOR
from self_ensemble.data.templates import PromptTemplate, WholePrompts, choice_separator
from self_ensemble.system.errors import UserError


@dataclass(frozen=True)
class Continuation:
    """Tokens that follow a question's tail, whatever the paraphrase.

    token_ids: behind the tail, which is what all continuations of the question share.
    scored: how many of the last ones are the choice's. Those before them are the prompt's, where
        the tokenizer splits its end otherwise before another choice.
    """

    token_ids: tuple[int, ...]
    scored: int

    def __post_init__(self) -> None:
        assert 0 < self.scored <= len(self.token_ids), (self.scored, self.token_ids)


@dataclass(frozen=True)
class SplitChoices:
    """A question's token ids with its choices.

    ``prefix + segments[i] + tail + continuations[c].token_ids`` is, token for token, prompt i with
    separator and choice c.
    """

    question: SplitQuestion
    continuations: tuple[Continuation, ...]


def split_choices(
    tokenizer: Any,
    template: PromptTemplate | WholePrompts,
    questions: Sequence[Sequence[str]],
    choices: Sequence[Sequence[str]],
) -> tuple[tuple[int, ...], list[SplitChoices]]:
    """Split prompts with their choices into prefix, segments, tail and continuations.

    Args:
        tokenizer: a fast tokenizer (it must give character offsets).
        template: what a paraphrase becomes a prompt by.
        questions: the paraphrases of each question.
        choices: the choices of each question; none empty.

    Returns:
        The prefix's token ids and one `SplitChoices` per question, in the order given.

    Raises:
        UserError: what `split_prompts` raises; or the tokenizer merges a choice with the prompt so
            that its paraphrases' segments depend on it, or leaves it no token; or a chat template
            leaves a thought open.
    """
    _refuse_open_thought(template)
    if isinstance(template, WholePrompts):
        prefix = tokenizers_prefix(tokenizer, template.add_special_tokens)
    else:
        prefix = template_prefix(tokenizer, template)
    split = []
    for paraphrases, texts, encoded in _encoded(tokenizer, template, questions, choices):
        borders = [len(template.render(paraphrase)) for paraphrase in paraphrases]
        scored = [_scored(each, borders, text) for each, text in zip(encoded, texts, strict=True)]
        # Where each prompt's segment ends, by each choice.
        ends = []
        for each, count in zip(encoded, scored, strict=True):
            if isinstance(template, WholePrompts):
                tail = _whole_prompts_tail(each, count, len(prefix))
            else:
                tail = shared_tail(each, paraphrases, template, prefix)
            ends.append([len(text.ids) - len(tail) for text in each])
        cuts = [min(column) for column in zip(*ends, strict=True)]
        split.append(_cut(encoded, cuts, scored, paraphrases, texts, len(prefix)))
    return prefix, split


def concatenate_choices(
    tokenizer: Any,
    template: PromptTemplate | WholePrompts,
    questions: Sequence[Sequence[str]],
    choices: Sequence[Sequence[str]],
) -> list[SplitChoices]:
    """The layout ``concat``: whole prompts joined, and a choice behind the last one.

    There is no prefix and no tail; the arguments and errors are those of `split_choices`.
    """
    _refuse_open_thought(template)
    split = []
    for paraphrases, texts in zip(questions, choices, strict=True):
        prompts = [template.render(paraphrase) for paraphrase in paraphrases]
        border = len(SEPARATOR.join(prompts))
        found = []
        for text in texts:
            ending = choice_separator(template, prompts[-1], text) + text
            found.append(
                join_prompts(prompts, tokenizer, SEPARATOR, template.add_special_tokens, ending)
            )
        encoded = [each for each, _ in found]
        scored = [_scored([e], [border], text) for e, text in zip(encoded, texts, strict=True)]
        cut = min(len(e.ids) - count for e, count in zip(encoded, scored, strict=True))
        *positions, (start, _) = found[0][1]
        heads = {tuple(e.ids[:cut]) for e in encoded}
        if len(heads) > 1 or start >= cut or any(ranges[:-1] != positions for _, ranges in found):
            raise _merged(paraphrases, texts)
        question = separated(heads.pop(), [*positions, (start, cut)])
        continuations = tuple(
            Continuation(tuple(e.ids[cut:]), count)
            for e, count in zip(encoded, scored, strict=True)
        )
        split.append(SplitChoices(question, continuations))
    return split


def _refuse_open_thought(template: PromptTemplate | WholePrompts) -> None:
    tail = template.tail if isinstance(template, PromptTemplate) else ""
    if "<think>" in tail.rpartition("</think>")[2]:
        raise UserError(
            "the chat template begins the answer with a thought (<think>) that nothing closes, "
            "where no choice is likely: score choices without --chat_template"
        )


def _encoded(
    tokenizer: Any,
    template: PromptTemplate | WholePrompts,
    questions: Sequence[Sequence[str]],
    choices: Sequence[Sequence[str]],
) -> Iterator[tuple[Sequence[str], Sequence[str], list[list[EncodedText]]]]:
    """(paraphrases, choices, each choice behind each paraphrase's prompt) of every question."""
    for at in range(0, len(questions), QUESTIONS_AT_ONCE):
        part = slice(at, at + QUESTIONS_AT_ONCE)
        pairs = list(zip(questions[part], choices[part], strict=True))
        texts = []
        for paraphrases, options in pairs:
            prompts = [template.render(paraphrase) for paraphrase in paraphrases]
            for option in options:
                texts += [p + choice_separator(template, p, option) + option for p in prompts]
        encoded = iter(encode_texts(tokenizer, texts, template.add_special_tokens))
        for paraphrases, options in pairs:
            yield paraphrases, options, [[next(encoded) for _ in paraphrases] for _ in options]


def _scored(encoded: Sequence[EncodedText], borders: Sequence[int], choice: str) -> int:
    """How many tokens reach beyond the prompts: the choice's, behind every paraphrase the same."""
    counts = {
        len(text.ids) - text.first_beyond(border)
        for text, border in zip(encoded, borders, strict=True)
    }
    if counts == {0}:
        raise UserError(f"the tokenizer has no token for the choice {choice!r}")
    if len(counts) > 1:
        raise UserError(
            f"the tokenizer merges the choice {choice!r} with the ends of the paraphrases' "
            "prompts, each in its own way: let the prompts end with an answer cue (A:)"
        )
    return counts.pop()


def _whole_prompts_tail(
    encoded: Sequence[EncodedText], scored: int, prefix_length: int
) -> tuple[int, ...]:
    """As `split_whole_prompts` has it, with the choice behind it."""
    bodies = [text.ids[prefix_length:] for text in encoded]
    longest = min(map(len, bodies)) - 1
    if len(bodies) == 1:
        longest = min(scored + 1, longest)
    tail = common_suffix(bodies)
    return tail[len(tail) - min(len(tail), longest) :]


def _cut(
    encoded: Sequence[Sequence[EncodedText]],
    cuts: Sequence[int],
    scored: Sequence[int],
    paraphrases: Sequence[str],
    choices: Sequence[str],
    prefix_length: int,
) -> SplitChoices:
    """Segments up to ``cuts``, the tail that all choices share, and what is each one's own.

    encoded: of each choice, its text behind each prompt.
    """
    heads = {tuple(tuple(t.ids[:cut]) for t, cut in zip(e, cuts, strict=True)) for e in encoded}
    fused = [{tuple(t.ids[cut:]) for t, cut in zip(e, cuts, strict=True)} for e in encoded]
    if len(heads) > 1 or any(len(each) > 1 for each in fused):
        raise _merged(paraphrases, choices)
    rows = [each.pop() for each in fused]
    before = [row[: max(len(row) - count, 0)] for row, count in zip(rows, scored, strict=True)]
    tail = common_prefix(before)
    if not tail:
        raise _merged(paraphrases, choices)
    segments = tuple(head[prefix_length:] for head in heads.pop())
    continuations = tuple(
        Continuation(row[len(tail) :], count) for row, count in zip(rows, scored, strict=True)
    )
    return SplitChoices(SplitQuestion(segments, tail), continuations)


def _merged(paraphrases: Sequence[str], choices: Sequence[str]) -> UserError:
    return UserError(
        f"the tokenizer merges the choices {', '.join(map(repr, choices))} with the end of the "
        f"prompts of {paraphrases[0]!r}, so that not all of them follow the same tokens: let the "
        "prompts end with an answer cue (A:), or take the question out"
    )
