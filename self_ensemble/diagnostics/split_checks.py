"""Whether prompts are split right: prefix, segments and tail, and the BOS in front.

Held against the tokenizer's own ids and character offsets of every whole prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from self_ensemble.attention.segments import SplitQuestion
from self_ensemble.data import PromptTemplate
from self_ensemble.diagnostics.items import Item, checked
from self_ensemble.diagnostics.measured_masks import EncodedForward, FusedForward


@dataclass(frozen=True)
class SplitTexts:
    """One question's prompts as they were split; texts of tokens, in order.

    straddling: tokens that hold characters of both sides of a border; they are the segment's.
    """

    prefix: tuple[str, ...]
    segments: tuple[tuple[str, ...], ...]
    tail: tuple[str, ...]
    straddling: tuple[str, ...]


@dataclass(frozen=True)
class TokenizedPrompt:
    """A whole prompt as the tokenizer has it, and where in its text the paraphrase is."""

    paraphrase: str
    begin: int
    end: int
    ids: list[int]
    offsets: list[tuple[int, int]]

    @classmethod
    def of(cls, tokenizer: Any, template: PromptTemplate, paraphrase: str) -> TokenizedPrompt:
        encoded = tokenizer(
            template.render(paraphrase),
            add_special_tokens=template.add_special_tokens,
            return_offsets_mapping=True,
        )
        begin = len(template.head)
        end = begin + len(paraphrase)
        return cls(paraphrase, begin, end, encoded["input_ids"], encoded["offset_mapping"])

    @property
    def straddling(self) -> list[int]:
        """The token ids that hold characters of both sides of a border."""
        return [
            token
            for token, (start, stop) in zip(self.ids, self.offsets, strict=True)
            if any(start < border < stop for border in (self.begin, self.end))
        ]

    def faults(
        self, prefix: Sequence[int], segment: Sequence[int], tail: Sequence[int]
    ) -> Iterator[str]:
        """What is wrong with these as the parts of the prompt."""
        if any(stop > self.begin for _, stop in self.offsets[: len(prefix)]):
            yield f"of {self.paraphrase!r}, the prefix holds characters of the paraphrase"
        if any(start < self.end for start, _ in self.offsets[len(self.offsets) - len(tail) :]):
            yield f"of {self.paraphrase!r}, the tail holds characters of the paraphrase"
        if not segment or not tail:
            yield f"of {self.paraphrase!r}, nothing is left as a segment or as a tail"
        if [*prefix, *segment, *tail] != self.ids:
            yield f"the parts of {self.paraphrase!r} are not the tokens of its prompt"


def tokenize_prompts(
    tokenizer: Any, template: PromptTemplate, questions: Sequence[Sequence[str]]
) -> list[list[TokenizedPrompt]]:
    """By question and paraphrase."""
    return [
        [TokenizedPrompt.of(tokenizer, template, paraphrase) for paraphrase in paraphrases]
        for paraphrases in questions
    ]


def split_texts(
    tokenizer: Any,
    prompts: Sequence[Sequence[TokenizedPrompt]],
    prefix: Sequence[int],
    split: Sequence[SplitQuestion],
) -> tuple[SplitTexts, ...]:
    """How each question was split, to be shown."""

    def texts(ids: Sequence[int]) -> tuple[str, ...]:
        return tuple(tokenizer.decode([token]) for token in ids)

    shown = []
    for of_question, question in zip(prompts, split, strict=True):
        straddling = [token for prompt in of_question for token in prompt.straddling]
        shown.append(
            SplitTexts(
                prefix=texts(prefix),
                segments=tuple(texts(segment) for segment in question.segments),
                tail=texts(question.tail),
                straddling=tuple(dict.fromkeys(texts(straddling))),
            )
        )
    return tuple(shown)


def check_split(
    prompts: Sequence[Sequence[TokenizedPrompt]],
    prefix: Sequence[int],
    split: Sequence[SplitQuestion],
) -> Item:
    """That every prompt's parts are the prompt, and what is shared holds nothing of its own."""
    faults = [
        fault
        for of_question, question in zip(prompts, split, strict=True)
        for prompt, segment in zip(of_question, question.segments, strict=True)
        for fault in prompt.faults(prefix, segment, question.tail)
    ]
    lengths = [length for question in split for length in question.lengths]
    right = (
        f"{len(lengths)} prompts: a prefix of {len(prefix)} tokens, segments of {min(lengths)} "
        f"to {max(lengths)}, a tail of {_span([len(question.tail) for question in split])}; each "
        "is its prompt as the tokenizer has it"
    )
    return checked("cut", not faults, len(faults), faults[0] if faults else right)


def check_fed(
    prefix: Sequence[int],
    split: Sequence[SplitQuestion],
    order: Sequence[int],
    encoded: Sequence[EncodedForward],
    tails: FusedForward,
) -> Iterator[Item]:
    """That the model was given these very tokens: ``cut`` fails where it was not.

    order: the questions as they were packed. encoded: the forwards of the prefix where there is
        one, and of the segments.
    """
    packed = [token for index in order for part in split[index].segments for token in part]
    right = encoded[-1].ids.tolist()[: len(packed)] == packed
    if prefix:
        right = right and encoded[0].ids[: len(prefix)].tolist() == list(prefix)
    for row, index in zip(tails.ids.tolist(), order, strict=True):
        right = right and tuple(row[-len(split[index].tail) :]) == split[index].tail
    if not right:
        said = "the model is fed other tokens than those that were cut"
        yield checked("cut", False, None, said)


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def explain_bos(tokenizer: Any, prompts: Sequence[str], *, chat: bool) -> tuple[int, str]:
    """How many BOS each of these prompts should have, and who puts them there or does not."""
    bos = tokenizer.bos_token_id
    # What stands in the text itself, and what the tokenizer would put before any text.
    written = max(prompt.count(tokenizer.bos_token or "\0") for prompt in prompts)
    bare = tokenizer("a", add_special_tokens=False)["input_ids"].count(bos)
    added = tokenizer("a")["input_ids"].count(bos) - bare
    puts = written if chat else added
    if bos is None:
        return 0, "the tokenizer has none"
    if puts == 0:
        source = "the chat template writes none" if chat else "its post-processor puts none"
        return 0, f"the tokenizer has {tokenizer.bos_token}, but {source}"
    if not chat:
        why = "the tokenizer's post-processor puts it before every text"
    else:
        why = "the chat template writes it"
        if added:
            why += ", so the tokenizer's own is left out"
    return puts, f"{tokenizer.bos_token}: {why}"


def opens_turns(tokenizer: Any) -> bool:
    """Whether the chat template writes the token that is called BOS before every message.

    Then it marks turns, as in SmolLM2's template, and a prompt has as many as turns.
    """

    def count(roles: Sequence[str]) -> int:
        messages = [{"role": role, "content": "a"} for role in roles]
        text: str = tokenizer.apply_chat_template(messages, tokenize=False)
        return text.count(tokenizer.bos_token)

    return count(("user", "assistant", "user")) - count(("user",)) == 2


def count_bos(tokenizer: Any, prompts: Sequence[Sequence[TokenizedPrompt]]) -> int:
    """How many BOS a prompt has, at most."""
    bos = tokenizer.bos_token_id
    return max(prompt.ids.count(bos) for of_question in prompts for prompt in of_question)


def check_bos(
    tokenizer: Any,
    template: PromptTemplate,
    prompts: Sequence[Sequence[TokenizedPrompt]],
    prefix: Sequence[int],
    *,
    chat: bool,
) -> Item:
    """That there are as many BOS as there should be, in front of a prompt, and no more."""
    bos = tokenizer.bos_token_id
    flat = [prompt for of_question in prompts for prompt in of_question]
    counts, count = {prompt.ids.count(bos) for prompt in flat}, prefix.count(bos)
    texts = [template.render(prompt.paraphrase) for prompt in flat]
    puts, why = explain_bos(tokenizer, texts, chat=chat)
    wrong = ""
    if bos is not None and chat and opens_turns(tokenizer):
        why = f"{tokenizer.bos_token} is what the chat template opens every turn with"
        if counts != {puts}:
            wrong = f"{puts} should be there"
    elif bos is not None:
        if counts != {count}:
            wrong = "a segment or a tail holds one"
        elif count != puts:
            wrong = f"{puts} should be there"
        elif count > 1:
            wrong = "one at most has a meaning to a model"
        elif count == 1 and prefix[0] != bos:
            wrong = "it is not the first token"
    reason = f"{max(counts)} in a prompt ({why})"
    return checked("bos", not wrong, max(counts), f"{reason}: {wrong}" if wrong else reason)
