"""From N tokenised prompts to prefix, segments and tail: token ids, split by character offsets."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Any

from self_ensemble.data.names import SEPARATOR
from self_ensemble.data.templates import PromptTemplate, WholePrompts
from self_ensemble.system.errors import UserError

# Openings a paraphrase may have. What a tokenizer does before all of them, it does before any:
# the prefix is fixed by the template alone, whatever the data.
OPENINGS = (
    "word",
    "Word",
    "7",
    "[MASK]",
    "(x)",
    '"x"',
    "été",
    "Éa",
    "的",
    "-x",
    "'s",
    "<x>",
    "$1",
    " x",
    "\nx",
)


# Questions whose prompts are tokenised at a time: offsets take much more room than ids.
QUESTIONS_AT_ONCE = 64


@dataclass(frozen=True)
class SplitQuestion:
    """One question's token ids, split at the borders.

    ``prefix + segments[i] + tail`` is, token for token, prompt i as it stands alone. Under the
    layout ``concat`` there is no tail, and ``separators`` holds (index, token id) of the tokens
    that belong to no segment; ``index`` counts tokens of the joined text.
    """

    segments: tuple[tuple[int, ...], ...]
    tail: tuple[int, ...]
    separators: tuple[tuple[int, int], ...] = ()

    @property
    def lengths(self) -> list[int]:
        return [len(segment) for segment in self.segments]


def split_prompts(
    tokenizer: Any, template: PromptTemplate, questions: Sequence[Sequence[str]]
) -> tuple[tuple[int, ...], list[SplitQuestion]]:
    """Split every question's prompts into shared prefix, their own segments and shared tail.

    Each full prompt is tokenised once and split by character offsets, never by tokenising pieces. A
    token that straddles a border belongs to the segment. The tail is the longest token suffix that
    all paraphrases of the question share within the template's text after the paraphrase.

    Args:
        tokenizer: a fast tokenizer (it must give character offsets).
        template: has ``head``, ``tail``, ``add_special_tokens`` and ``render(paraphrase)``.
        questions: the paraphrases of each question.

    Returns:
        The prefix's token ids and one `SplitQuestion` per question, in the order given.

    Raises:
        UserError: the tokenizer gives no offsets, or puts a token behind every text, or merges the
            template's text with a paraphrase so that no fixed prefix or no tail is left.
    """
    prefix = template_prefix(tokenizer, template)
    return prefix, list(each_split_prompts(tokenizer, template, questions, prefix))


def each_split_prompts(
    tokenizer: Any,
    template: PromptTemplate,
    questions: Sequence[Sequence[str]],
    prefix: tuple[int, ...],
) -> Iterator[SplitQuestion]:
    """`split_prompts`, one question after the other. prefix: from `template_prefix`."""
    for paraphrases, found in _encoded_prompts(tokenizer, template, questions):
        tail = shared_tail(found, paraphrases, template, prefix)
        if not tail:
            raise UserError(
                f"the prompts of {paraphrases[0]!r} share no last token after the paraphrase: "
                "the tokenizer merges the answer cue with it; take the question out"
            )
        segments = tuple(tuple(each.ids[len(prefix) : -len(tail)]) for each in found)
        yield SplitQuestion(segments, tail)


def _encoded_prompts(
    tokenizer: Any, template: PromptTemplate | WholePrompts, questions: Sequence[Sequence[str]]
) -> Iterator[tuple[Sequence[str], list[EncodedText]]]:
    """Each question's paraphrases, and their prompts encoded."""
    for at in range(0, len(questions), QUESTIONS_AT_ONCE):
        some = questions[at : at + QUESTIONS_AT_ONCE]
        prompts = [template.render(text) for paraphrases in some for text in paraphrases]
        encoded = iter(encode_texts(tokenizer, prompts, template.add_special_tokens))
        for paraphrases in some:
            yield paraphrases, [next(encoded) for _ in paraphrases]


def shared_tail(
    encoded: Sequence[EncodedText],
    paraphrases: Sequence[str],
    template: PromptTemplate,
    prefix: tuple[int, ...],
) -> tuple[int, ...]:
    """The longest token suffix that texts share behind their paraphrases; may be empty.

    Each text is a prompt of the template, or begins with one. A segment keeps one token at least.

    Raises:
        UserError: a text does not begin with the prefix.
    """
    tails = []
    for paraphrase, text in zip(paraphrases, encoded, strict=True):
        if tuple(text.ids[: len(prefix)]) != prefix:
            raise UserError(
                f"the tokenizer merges the text before the paraphrase {paraphrase!r} with its "
                "first characters: let it begin with a letter or take it out"
            )
        tail_at = text.first_from(len(template.head) + len(paraphrase))
        tails.append(text.ids[max(tail_at, len(prefix) + 1) :])
    return common_suffix(tails)


def split_whole_prompts(
    tokenizer: Any, questions: Sequence[Sequence[str]], *, add_special_tokens: bool = True
) -> tuple[tuple[int, ...], list[SplitQuestion]]:
    """Split prompts of which no template is known.

    The prefix is what the tokenizer puts in front of every text (a BOS), so that it does not depend
    on the data. The tail is the longest token suffix that all prompts of a question share; each
    segment keeps one token at least. Of one prompt alone it is the last token.

    Args:
        tokenizer: a fast tokenizer.
        questions: the prompts of each question.
        add_special_tokens: what the tokenizer is called with.

    Returns:
        The prefix's token ids and one `SplitQuestion` per question, in the order given.

    Raises:
        UserError: the tokenizer gives no offsets, or puts a token behind every text, or the prompts
            of a question do not end alike.
    """
    prefix = tokenizers_prefix(tokenizer, add_special_tokens)
    template = WholePrompts(add_special_tokens)
    return prefix, list(each_split_whole_prompts(tokenizer, template, questions, prefix))


def each_split_whole_prompts(
    tokenizer: Any,
    template: WholePrompts,
    questions: Sequence[Sequence[str]],
    prefix: tuple[int, ...],
) -> Iterator[SplitQuestion]:
    """`split_whole_prompts`, one question after the other. prefix: from `tokenizers_prefix`."""
    for prompts, encoded in _encoded_prompts(tokenizer, template, questions):
        bodies = [found.ids[len(prefix) :] for found in encoded]
        longest = min(map(len, bodies)) - 1 if len(bodies) > 1 else min(1, len(bodies[0]) - 1)
        tail = common_suffix(bodies)
        tail = tail[len(tail) - min(len(tail), longest) :]
        if not tail:
            raise UserError(
                f"the prompts {prompts[0][-40:]!r} … share no last token: let all prompts of a "
                "question end alike, such as with an answer cue (A:)"
            )
        yield SplitQuestion(tuple(tuple(ids[: -len(tail)]) for ids in bodies), tail)


def concatenate_paraphrases_with_positions(
    prompts: Sequence[str],
    tokenizer: Any,
    separator: str = SEPARATOR,
    *,
    add_special_tokens: bool = True,
) -> tuple[str, list[tuple[int, int]], int]:
    """Join whole prompts and say which tokens of the joined text are each prompt's own.

    The positions index the ids that ``tokenizer(text)`` gives, special tokens included where it
    adds them: a token it puts in front belongs to the first prompt. A token that straddles a border
    belongs to the prompt; what is left between two prompts is the separator's.

    Args:
        prompts: N texts, none empty.
        tokenizer: a fast tokenizer.
        separator: the text between two prompts.
        add_special_tokens: what the tokenizer is called with.

    Returns:
        The joined text, N half-open token ranges ``(start, end)``, and the number of tokens.

    Raises:
        UserError: the tokenizer gives no offsets, or puts a token behind every text, or merges a
            prompt whole with the one before it.
    """
    encoded, positions = join_prompts(prompts, tokenizer, separator, add_special_tokens)
    return separator.join(prompts), positions, len(encoded.ids)


def concatenate_prompts(
    tokenizer: Any,
    template: PromptTemplate | WholePrompts,
    paraphrases: Sequence[str],
    separator: str,
) -> SplitQuestion:
    """The layout ``concat``: whole prompts as segments, separators apart, no prefix and no tail."""
    prompts = [template.render(paraphrase) for paraphrase in paraphrases]
    encoded, positions = join_prompts(prompts, tokenizer, separator, template.add_special_tokens)
    return separated(encoded.ids, positions)


def separated(ids: Sequence[int], positions: Sequence[tuple[int, int]]) -> SplitQuestion:
    """The tokens in these ranges as segments, and those between them as separators."""
    owned = {index for start, end in positions for index in range(start, end)}
    separators = tuple((index, token) for index, token in enumerate(ids) if index not in owned)
    return SplitQuestion(tuple(tuple(ids[start:end]) for start, end in positions), (), separators)


@dataclass(frozen=True)
class EncodedText:
    """A text's token ids and which of its characters each token holds.

    ``offsets`` are the tokenizer's. Those of byte-level tokenizers may leave a token's outer spaces
    out (``trim_offsets``): a character that is in no offset is a token's where the token's own text
    begins or ends with as many spaces; otherwise the tokenizer dropped it.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]  # (0, 0) of a special token put in front
    num_characters: int
    piece: Callable[[int], str]  # the text of a token id

    def start(self, index: int) -> int:
        """The first character that the token holds."""
        start = self.offsets[index][0]
        reached = self.offsets[index - 1][1] if index > 0 else 0
        if start > reached:
            piece = self.piece(self.ids[index])
            start = max(reached, start - (len(piece) - len(piece.lstrip(" "))))
        return start

    def stop(self, index: int) -> int:
        """The character behind the last one that the token holds."""
        stop = self.offsets[index][1]
        following = self.start(index + 1) if index + 1 < len(self.ids) else self.num_characters
        if stop < following:
            piece = self.piece(self.ids[index])
            stop = min(following, stop + (len(piece) - len(piece.rstrip(" "))))
        return stop

    def first_beyond(self, character: int) -> int:
        """The first token that holds a character from this one on."""
        return bisect_right(range(len(self.ids)), character, key=self.stop)

    def first_from(self, character: int) -> int:
        """The first token that holds nothing before this character."""
        return bisect_left(range(len(self.ids)), character, key=self.start)


def encode_texts(
    tokenizer: Any, texts: Sequence[str], add_special_tokens: bool
) -> list[EncodedText]:
    """Raises UserError where a text cannot be split, or cannot be continued."""
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            "this tokenizer gives no character offsets, so prompts cannot be cut; "
            "use a model with a fast tokenizer (tokenizer.json)"
        )
    if not texts:
        return []
    encoded = tokenizer(
        list(texts),
        add_special_tokens=add_special_tokens,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    piece = cache(lambda token: tokenizer.decode([token], clean_up_tokenization_spaces=False))
    added = encoded["special_tokens_mask"][0]
    if added[-1:] == [1] and 0 in added:
        raise UserError(
            f"this tokenizer puts {piece(encoded['input_ids'][0][-1])} behind every prompt, where "
            "the answer is to begin: switch that off (add_eos_token in tokenizer_config.json)"
        )
    columns = (texts, encoded["input_ids"], encoded["offset_mapping"])
    return [
        EncodedText(ids, offsets, len(text), piece)
        for text, ids, offsets in zip(*columns, strict=True)
    ]


def tokenizers_prefix(tokenizer: Any, add_special_tokens: bool) -> tuple[int, ...]:
    """What the tokenizer puts in front of every text."""
    openings = encode_texts(tokenizer, OPENINGS, add_special_tokens)
    return common_prefix([found.ids for found in openings])


def template_prefix(tokenizer: Any, template: PromptTemplate) -> tuple[int, ...]:
    """The tokens before the paraphrase that come out the same whatever the paraphrase."""
    prompts = [template.render(opening) for opening in OPENINGS]
    heads = [
        encoded.ids[: encoded.first_beyond(len(template.head))]
        for encoded in encode_texts(tokenizer, prompts, template.add_special_tokens)
    ]
    return common_prefix(heads)


def join_prompts(
    prompts: Sequence[str],
    tokenizer: Any,
    separator: str,
    add_special_tokens: bool,
    ending: str = "",
) -> tuple[EncodedText, list[tuple[int, int]]]:
    """The joined text, with ``ending`` behind it, and the token range of each prompt in it.

    See `concatenate_paraphrases_with_positions`.
    """
    assert all(prompts), prompts
    [encoded] = encode_texts(tokenizer, [separator.join(prompts) + ending], add_special_tokens)
    positions: list[tuple[int, int]] = []
    begin = taken = 0
    for prompt in prompts:
        # A token that holds characters of two prompts is the earlier one's.
        first = max(taken, encoded.first_beyond(begin)) if positions else 0
        taken = encoded.first_from(begin + len(prompt))
        if first >= taken:
            raise UserError(
                f"the tokenizer leaves no token to the prompt {prompt!r} alone: "
                "use the layout 'shared'"
            )
        positions.append((first, taken))
        begin += len(prompt) + len(separator)
    return encoded, positions


def common_prefix(sequences: Sequence[Sequence[int]]) -> tuple[int, ...]:
    columns = zip(*sequences, strict=False)
    return tuple(column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns))


def common_suffix(sequences: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return common_prefix([sequence[::-1] for sequence in sequences])[::-1]
