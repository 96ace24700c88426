"""From N tokenised prompts to prefix, segments and tail, their positions and their isolation mask.

Legend: ``N`` paraphrases of a question, ``P`` tokens of the prefix, ``n_i`` tokens of segment i,
``M`` the longest segment of the question, ``L`` the tokens before the first fused one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from constants import SEPARATOR, UserError

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

    Under ``sequential`` every token of the layout ``concat`` stands where the joined text has it;
    otherwise the separators stand between the segments and the fused tokens.
    """
    placement = place(question.lengths, prefix_length, positions)
    count = len(question.separators)
    if count == 0:
        return placement
    if positions != "sequential":
        first = placement.fused_start
        return replace(
            placement, fused_start=first + count, separators=tuple(range(first, first + count))
        )
    taken = [index for index, _ in question.separators]
    total = sum(question.lengths) + count
    free = sorted(set(range(total)) - set(taken))
    starts = tuple(free[start] for start in placement.starts)
    return Placement(starts, total, placement.turns, tuple(taken))


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
        UserError: the tokenizer gives no offsets, or it merges the template's text with a
            paraphrase so that no fixed prefix or no tail is left.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            "this tokenizer gives no character offsets, so prompts cannot be cut; "
            "use a model with a fast tokenizer (tokenizer.json)"
        )
    prefix = _template_prefix(tokenizer, template)
    prompts = [template.render(text) for paraphrases in questions for text in paraphrases]
    encoded = iter(_encode_with_offsets(tokenizer, prompts, template.add_special_tokens))
    split = []
    for paraphrases in questions:
        bodies, tails = [], []
        for paraphrase in paraphrases:
            ids, offsets = next(encoded)
            if tuple(ids[: len(prefix)]) != prefix:
                raise UserError(
                    f"the tokenizer merges the prompt's opening with {paraphrase!r}: "
                    "end the instruction with a line break, or take the paraphrase out"
                )
            tail_at = _first_token_from(offsets, len(template.head) + len(paraphrase))
            bodies.append(ids[len(prefix) :])
            tails.append(ids[max(tail_at, len(prefix) + 1) :])
        tail = _common_suffix(tails)
        if not tail:
            raise UserError(
                f"the prompts of {paraphrases[0]!r} share no last token after the paraphrase: "
                "the tokenizer merges the answer cue with it; use another template"
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
    """
    text = separator.join(prompts)
    ids, offsets = _encode_with_offsets(tokenizer, [text], add_special_tokens)[0]
    positions = []
    begin = 0
    for prompt in prompts:
        end = begin + len(prompt)
        start_token = next(i for i, (_, stop) in enumerate(offsets) if stop > begin)
        end_token = _first_token_from(offsets, end)
        positions.append((start_token if positions else 0, end_token))
        begin = end + len(separator)
    return text, positions, len(ids)


def concatenate_prompts(
    tokenizer, template, paraphrases: Sequence[str], separator: str
) -> SplitQuestion:
    """The layout ``concat``: whole prompts as segments, separators apart, no prefix and no tail."""
    prompts = [template.render(paraphrase) for paraphrase in paraphrases]
    special = template.add_special_tokens
    text, positions, total = concatenate_paraphrases_with_positions(
        prompts, tokenizer, separator, add_special_tokens=special
    )
    ids = tokenizer(text, add_special_tokens=special)["input_ids"]
    owned = {index for start, end in positions for index in range(start, end)}
    separators = tuple((index, ids[index]) for index in range(total) if index not in owned)
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


def _template_prefix(tokenizer, template) -> tuple[int, ...]:
    """The tokens before the paraphrase that come out the same whatever the paraphrase."""
    prompts = [template.render(opening) for opening in _OPENINGS]
    encoded = _encode_with_offsets(tokenizer, prompts, template.add_special_tokens)
    heads = []
    for ids, offsets in encoded:
        ends = [i for i, (_, stop) in enumerate(offsets) if stop > len(template.head)]
        heads.append(ids[: ends[0]])
    shared = []
    for tokens in zip(*heads, strict=False):
        if len(set(tokens)) > 1:
            break
        shared.append(tokens[0])
    return tuple(shared)


def _encode_with_offsets(tokenizer, texts, add_special_tokens):
    """(ids, offsets) of each text. A special token's offset is empty: (0, 0)."""
    encoded = tokenizer(
        list(texts), add_special_tokens=add_special_tokens, return_offsets_mapping=True
    )
    return list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))


def _first_token_from(offsets, character: int) -> int:
    """The index of the first of the trailing tokens that begin at or after a character."""
    first = len(offsets)
    while first > 0 and offsets[first - 1][0] >= character:
        first -= 1
    return first


def _common_suffix(sequences: Sequence[Sequence[int]]) -> tuple[int, ...]:
    shared = []
    for tokens in zip(*(reversed(sequence) for sequence in sequences), strict=False):
        if len(set(tokens)) > 1:
            break
        shared.append(tokens[0])
    return tuple(reversed(shared))
