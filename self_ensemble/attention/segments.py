"""From N tokenised prompts to prefix, segments and tail, their positions and their isolation mask.

Legend: ``N`` paraphrases of a question, ``P`` tokens of the prefix, ``n_i`` tokens of segment i,
``M`` the longest segment of the question, ``L`` the tokens before the first fused one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate, takewhile

import torch

from self_ensemble.data.names import SEPARATOR
from self_ensemble.system.errors import UserError

POSITIONS = ("exact", "left", "right", "sequential")

# Openings a paraphrase may have. What a tokenizer does before all of them, it does before any:
# the prefix is fixed by the template alone, whatever the data.
_OPENINGS = (
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


@dataclass(frozen=True)
class SplitQuestion:
    """One question's token ids, cut at the borders.

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


@dataclass(frozen=True)
class Placement:
    """Where a question's tokens stand.

    starts: the position of each segment's first token, [N].
    fused_start: the position of the first fused token.
    turns: by how many positions a fused token is nearer to segment i and the prefix than
        ``fused_start`` says, [N]; all zero but under ``exact``.
    separators: the position of each separator token; none but in the layout ``concat``.
    """

    starts: tuple[int, ...]
    fused_start: int
    turns: tuple[int, ...]
    separators: tuple[int, ...] = ()


def place(lengths: Sequence[int], prefix_length: int, positions: str) -> Placement:
    """Place segments of the given lengths after a prefix.

    Example, ``lengths=[2, 4]``, ``prefix_length=3``::

        exact        starts 3 3    fused from 7    turns 2 0
        left         starts 3 3    fused from 7    turns 0 0
        right        starts 5 3    fused from 7    turns 0 0
        sequential   starts 3 5    fused from 9    turns 0 0
    """
    assert positions in POSITIONS, positions
    longest = max(lengths)
    starts = [prefix_length] * len(lengths)
    fused_start = prefix_length + longest
    turns = [0] * len(lengths)
    if positions == "exact":
        turns = [longest - n for n in lengths]
    elif positions == "right":
        starts = [prefix_length + longest - n for n in lengths]
    elif positions == "sequential":
        starts = list(accumulate(lengths, initial=prefix_length))[:-1]
        fused_start = prefix_length + sum(lengths)
    return Placement(tuple(starts), fused_start, tuple(turns))


def place_question(question: SplitQuestion, prefix_length: int, positions: str) -> Placement:
    """`place` for a question that may have separators.

    Under ``sequential`` every token of the layout ``concat`` stands where the joined text has it,
    behind the prefix; otherwise the separators stand between the segments and the fused tokens.
    """
    placement = place(question.lengths, prefix_length, positions)
    count = len(question.separators)
    if count == 0:
        return placement
    if positions != "sequential":
        first = placement.fused_start
        turned = count if positions == "exact" else 0  # nor do separators make a gap
        return replace(
            placement,
            fused_start=first + count,
            turns=tuple(turn + turned for turn in placement.turns),
            separators=tuple(range(first, first + count)),
        )
    taken = [prefix_length + index for index, _ in question.separators]
    end = placement.fused_start + count
    free = sorted(set(range(prefix_length, end)) - set(taken))
    starts = tuple(free[start - prefix_length] for start in placement.starts)
    return Placement(starts, end, placement.turns, tuple(taken))


def split_prompts(
    tokenizer, template, questions: Sequence[Sequence[str]]
) -> tuple[tuple[int, ...], list[SplitQuestion]]:
    """Cut every question's prompts into the shared prefix, their own segments and the shared tail.

    Each full prompt is tokenised once and cut by character offsets, never by tokenising pieces. A
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
    prefix = _template_prefix(tokenizer, template)
    prompts = [template.render(text) for paraphrases in questions for text in paraphrases]
    encoded = iter(_encode(tokenizer, prompts, template.add_special_tokens))
    split = []
    for paraphrases in questions:
        bodies, tails = [], []
        for paraphrase in paraphrases:
            prompt = next(encoded)
            if tuple(prompt.ids[: len(prefix)]) != prefix:
                raise UserError(
                    f"the tokenizer merges the text before the paraphrase {paraphrase!r} with its "
                    "first characters: let it begin with a letter or take it out"
                )
            tail_at = prompt.first_from(len(template.head) + len(paraphrase))
            bodies.append(prompt.ids[len(prefix) :])
            tails.append(prompt.ids[max(tail_at, len(prefix) + 1) :])
        tail = _common_suffix(tails)
        if not tail:
            raise UserError(
                f"the prompts of {paraphrases[0]!r} share no last token after the paraphrase: "
                "the tokenizer merges the answer cue with it; take the question out"
            )
        segments = tuple(tuple(body[: -len(tail)]) for body in bodies)
        split.append(SplitQuestion(segments, tail))
    return prefix, split


def concatenate_paraphrases_with_positions(
    prompts: Sequence[str],
    tokenizer,
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
    text, positions, ids = _join(prompts, tokenizer, separator, add_special_tokens)
    return text, positions, len(ids)


def concatenate_prompts(
    tokenizer, template, paraphrases: Sequence[str], separator: str
) -> SplitQuestion:
    """The layout ``concat``: whole prompts as segments, separators apart, no prefix and no tail."""
    prompts = [template.render(paraphrase) for paraphrase in paraphrases]
    _, positions, ids = _join(prompts, tokenizer, separator, template.add_special_tokens)
    owned = {index for start, end in positions for index in range(start, end)}
    separators = tuple((index, token) for index, token in enumerate(ids) if index not in owned)
    return SplitQuestion(tuple(tuple(ids[start:end]) for start, end in positions), (), separators)


def create_segment_isolation_mask(
    segment_positions: Sequence[tuple[int, int]],
    original_length: int,
    *,
    prefix_length: int = 0,
    device: str | torch.device = "cpu",
) -> Callable:
    """A ``mask_mod`` that keeps segments apart and lets every fused token see all of them.

    ``causal & (same segment | kv in prefix | q is fused)``; every token sees itself, so that no
    row is empty. Tokens from ``original_length`` on are fused. Tokens before it that are in no
    segment and not in the prefix are separators: they see themselves (and the prefix), and fused
    tokens see them.

    Example, ``segment_positions=[(1, 3), (4, 6)]``, ``original_length=6``, ``prefix_length=1``::

              kv  p a a | b b f f
        q  p      x
           a      x x
           a      x x x
           |      x     x
           b      x       x
           b      x       x x
           f      x x x x x x x
           f      x x x x x x x x

    Args:
        segment_positions: half-open ``(start, end)`` token ranges, in order, not overlapping.
        original_length: the tokens before the first fused one.
        prefix_length: the tokens every segment sees.
        device: where the mask will be evaluated.

    Returns:
        ``mask_mod(b, h, q_idx, kv_idx) -> bool``, for ``create_block_mask`` or plain indexing.
    """
    assert 0 <= prefix_length <= original_length, (prefix_length, original_length)
    owner = torch.full((max(original_length, 1),), -1, dtype=torch.int32)
    reached = prefix_length
    for index, (start, end) in enumerate(segment_positions):
        assert reached <= start < end <= original_length, (index, start, end, original_length)
        owner[start:end] = index
        reached = end
    owner = owner.to(device)
    last = owner.shape[0] - 1

    def segment_isolation_mask(b, h, q_idx, kv_idx):
        q_owner = owner[q_idx.clamp(max=last)]
        kv_owner = owner[kv_idx.clamp(max=last)]
        same_segment = (q_owner == kv_owner) & (q_owner >= 0)
        visible = same_segment | (kv_idx < prefix_length) | (q_idx >= original_length)
        return (q_idx >= kv_idx) & (visible | (q_idx == kv_idx))

    return segment_isolation_mask


def packed_segment_mask(
    segment_ids: torch.Tensor,
    position_ids: torch.Tensor,
    prefix_length: int,
    window: int | None,
) -> Callable:
    """A ``mask_mod`` for segments of many questions packed behind each other, prefix in front.

    Queries are the packed tokens, keys are ``prefix + packed tokens``. Within a segment the order
    of the indices is the order of the tokens. A window counts positions, not indices.

    Args:
        segment_ids: whose each packed token is, [T]; each padding token has an id of its own.
        position_ids: the packed tokens' positions, [T].
        prefix_length: P; the prefix stands at positions 0..P-1.
        window: how many positions back a layer sees, itself included; None for all.
    """
    total = segment_ids.shape[0]

    def packed_mask(b, h, q_idx, kv_idx):
        own = (kv_idx - prefix_length).clamp(0, total - 1)
        in_prefix = kv_idx < prefix_length
        same_segment = (segment_ids[q_idx] == segment_ids[own]) & (q_idx >= own)
        visible = in_prefix | same_segment
        if window is not None:
            kv_position = torch.where(in_prefix, kv_idx, position_ids[own])
            visible = visible & (position_ids[q_idx] - kv_position < window)
        return visible

    return packed_mask


def dense_mask(mask_mod: Callable, q_length: int, kv_length: int, device="cpu") -> torch.Tensor:
    """A ``mask_mod`` written out, [q_length, kv_length] bool."""
    q_idx = torch.arange(q_length, device=device)[:, None]
    kv_idx = torch.arange(kv_length, device=device)[None, :]
    zero = torch.zeros((), dtype=torch.long, device=device)
    return mask_mod(zero, zero, q_idx, kv_idx).expand(q_length, kv_length)


@dataclass(frozen=True)
class _Encoded:
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


def _encode(tokenizer, texts, add_special_tokens) -> list[_Encoded]:
    """Raises UserError where a text cannot be cut, or cannot be continued."""
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
        _Encoded(ids, offsets, len(text), piece)
        for text, ids, offsets in zip(*columns, strict=True)
    ]


def _template_prefix(tokenizer, template) -> tuple[int, ...]:
    """The tokens before the paraphrase that come out the same whatever the paraphrase."""
    prompts = [template.render(opening) for opening in _OPENINGS]
    heads = [
        encoded.ids[: encoded.first_beyond(len(template.head))]
        for encoded in _encode(tokenizer, prompts, template.add_special_tokens)
    ]
    return _common_prefix(heads)


def _join(prompts, tokenizer, separator, add_special_tokens):
    """(text, ranges, ids) of `concatenate_paraphrases_with_positions`."""
    assert all(prompts), prompts
    text = separator.join(prompts)
    [encoded] = _encode(tokenizer, [text], add_special_tokens)
    positions = []
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
    return text, positions, encoded.ids


def _common_prefix(sequences: Sequence[Sequence[int]]) -> tuple[int, ...]:
    columns = zip(*sequences, strict=False)
    return tuple(column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns))


def _common_suffix(sequences: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return _common_prefix([sequence[::-1] for sequence in sequences])[::-1]
