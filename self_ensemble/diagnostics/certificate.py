"""What the method promises, proved on one model with its own tokenizer, template and weights.

`certify` asks a loaded engine a few questions, watches every forward that it runs, and gives a
`Certificate`: where the prompts are cut, and for each promise whether it is kept, with a figure.
Nothing is printed here. Raised are only faults of the program.

The masks are not read but measured. With all queries and keys zero, attention is the plain mean of
the values it may see, and with a one for each key in turn as the values its output says which keys
those are: the same plan, mask and kernel answer that the model has just run with.

Legend: ``P`` prefix tokens, ``T`` packed tokens, ``K`` segments of a question, ``M`` the longest of
them, ``R`` questions, ``S`` fused tokens of a forward, ``H`` query heads, ``V`` vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from transformers import DynamicCache

from self_ensemble.attention.checks import head_shape
from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.kv_state import DecodeState, EncodeState
from self_ensemble.attention.patching import MaskedState
from self_ensemble.attention.scoring import KeyValues
from self_ensemble.attention.segments import SplitQuestion, split_prompts
from self_ensemble.generation.engine import (
    Counts,
    Engine,
    Stream,
    attention_streams,
    logit_streams,
    only_stream,
    plan_batches,
)
from self_ensemble.methods.logit_fusion import average_logits
from self_ensemble.system.console import quoted
from self_ensemble.system.errors import UserError

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"

# What is promised, in the order shown.
ITEMS = {
    "cut": "prefix, segment and tail are the prompt, token for token",
    "bos": "as many BOS as the tokenizer or the chat template puts, at most one",
    "positions": "the model can have the positions that are its default",
    "segments_apart": "no segment attends to another",
    "prefix_seen": "every segment attends to the whole prefix",
    "causal_order": "every token attends to its own earlier ones and to none behind it",
    "fused_sees_all": "every fused token attends to prefix, all segments and earlier fused tokens",
    "no_empty_row": "no row attends to nothing, and no padding is attended to",
    "first_token_fused": "permuting the paraphrases does not move the first token's logits",
    "packed_equals_separate": "packed segments have the states that they have alone",
    "fused_equals_alone": "with all the weight on one paraphrase, fused tokens say what its prompt "
    "says alone",
}
MASK_ITEMS = ("segments_apart", "prefix_seen", "causal_order", "fused_sees_all", "no_empty_row")

# The first token, and one decoded after it.
STEPS = 2
# How far a share of the attention may be off, as a part of it: rounding of the kernels.
SHARE_TOLERANCE = 0.03


@dataclass(frozen=True)
class Item:
    """One promise: ``passed``, ``failed`` or ``not run``, with its figure and one sentence."""

    name: str
    status: str
    figure: float | int | None
    reason: str


@dataclass(frozen=True)
class Cut:
    """One question's prompts as they were cut; texts of tokens, in order.

    straddling: tokens that hold characters of both sides of a border; they are the segment's.
    """

    prefix: tuple[str, ...]
    segments: tuple[tuple[str, ...], ...]
    tail: tuple[str, ...]
    straddling: tuple[str, ...]


@dataclass(frozen=True)
class Certificate:
    """template: ``plain`` or ``chat``. bos: how many stand in front of a prompt."""

    template: str
    backend: str
    dtype: str
    positions: str
    bos: int | None
    cuts: tuple[Cut, ...]
    items: tuple[Item, ...]

    @property
    def passed(self) -> bool:
        return all(item.status == PASSED for item in self.items)


def rounding(dtype: torch.dtype, layers: int, *, more: int = 0) -> float:
    """How far two right computations of the same states may differ, relative to their norm.

    They differ in the order of their sums alone. A layer rounds its states to the dtype some eight
    times on their way through (two norms, queries, keys, values, attention, two products of the
    feed-forward), each time by half of ``eps`` at most. Roundings that know nothing of each other
    add up like a random walk, here over two computations: ``eps / 2 * sqrt(2 * 8 * layers)``.
    Weights amplify what went in; half precision gets a factor of 2 for that, where seeing the
    other segments moves states by tens of percent, and float32, with room to spare, one of 100.

    more: how many times more one of the two rounds in a layer.
    """
    walk = torch.finfo(dtype).eps / 2 * math.sqrt((2 * 8 + more) * layers)
    return walk * (100 if dtype == torch.float32 else 2)


# ---- the certificate ----------------------------------------------------------------------------


class _Report:
    """Items as they are found out."""

    def __init__(self):
        self.items: dict[str, Item] = {}

    def add(self, name: str, passed: bool, figure, reason: str) -> None:
        if figure is not None and not math.isfinite(figure):
            figure = None  # JSON has no such number; the reason shows it
        self.items[name] = Item(name, PASSED if passed else FAILED, figure, reason)

    def finished(self, because: str) -> tuple[Item, ...]:
        """All items in order; those that were not reached say why."""
        missing = lambda name: Item(name, NOT_RUN, None, because)  # noqa: E731
        return tuple(self.items.get(name) or missing(name) for name in ITEMS)


@torch.inference_mode()
def certify(
    engine: Engine,
    template,
    questions: Sequence[Sequence[str]],
    *,
    positions: str,
    chat: bool = False,
) -> Certificate:
    """The certificate of a model under one prompt template.

    Args:
        engine: around a patched model; left as it is (its prefix and counts too).
        template: a `dataset.PromptTemplate`.
        questions: the paraphrases of a few questions, two of each or more and as many of all.
        positions: as the main job would choose, see `positions.assign_positions`.
        chat: whether ``template`` is a chat template's.
    """
    assert len(questions) > 1 and min(map(len, questions)) > 1, questions
    report = _Report()
    found = {"bos": None, "cuts": ()}

    def finished(because: str = "") -> Certificate:
        return Certificate(
            template="chat" if chat else "plain",
            backend=engine.wrapper.backend,
            dtype=str(engine.model.dtype).removeprefix("torch."),
            positions=positions,
            items=report.finished(because),
            **found,
        )

    tokenizer = engine.tokenizer
    try:
        prefix, split = split_prompts(tokenizer, template, questions)
    except UserError as error:
        report.add("cut", False, None, str(error))
        return finished("the prompts cannot be cut")
    found["cuts"] = _check_cut(report, tokenizer, template, questions, prefix, split)
    found["bos"] = _check_bos(report, tokenizer, template, questions, prefix, chat)

    trial = without_stops(engine)
    streams = [attention_streams(question, len(prefix), positions) for question in split]
    try:
        with watched(trial) as forwards:
            trial.set_prefix(prefix)
        able = trial.can_turn(streams, STEPS)
        _check_positions(report, positions, able)
        if not able:
            return finished("the model cannot have these positions")
        with watched(trial) as more:
            [logits, *_] = step_logits(trial, streams, steps=STEPS)
        forwards += more
        [order] = plan_batches(streams, len(streams), 0)
        _check_fed(report, prefix, split, order, forwards)
        _check_masks(report, trial, split, streams, order, forwards)
        _check_fusion(report, trial, split, positions, logits)
        followed = follow_each(trial, split, positions)
        alone = [[stock for _, stock in each] for each in followed]
        _check_isolation(report, trial, split, order, forwards[1 if prefix else 0], alone)
        _check_fused_alone(report, trial, followed, positions)
    except UserError as error:
        report.items.setdefault("positions", Item("positions", FAILED, None, str(error)))
        return finished(str(error))
    return finished()


def without_stops(engine: Engine) -> Engine:
    """The engine with a prefix and counts of its own; answers of any length, nothing recorded."""
    trial = copy.copy(engine)
    trial.counts, trial.recording, trial.room, trial.recorded_steps = Counts(), False, None, {}
    trial.stop = lambda tokens, seen: (torch.zeros_like(seen), seen, seen)
    return trial


# ---- cuts and BOS -------------------------------------------------------------------------------


def _check_cut(report, tokenizer, template, questions, prefix, split) -> tuple[Cut, ...]:
    """Held against the tokenizer's own ids and character offsets of every whole prompt."""
    wrong, cuts = [], []
    for paraphrases, question in zip(questions, split, strict=True):
        straddling: list[str] = []
        for number, paraphrase in enumerate(paraphrases):
            encoded = tokenizer(
                template.render(paraphrase),
                add_special_tokens=template.add_special_tokens,
                return_offsets_mapping=True,
            )
            ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
            segment = question.segments[number]
            faults = _faults_of_cut(offsets, template, paraphrase, prefix, question.tail)
            wrong += [f"of {paraphrase!r}, {fault}" for fault in faults]
            if not segment or not question.tail:
                wrong.append(f"of {paraphrase!r}, nothing is left as a segment or as a tail")
            borders = (len(template.head), len(template.head) + len(paraphrase))
            straddling += [
                tokenizer.decode([token])
                for token, (start, stop) in zip(ids, offsets, strict=True)
                if any(start < border < stop for border in borders)
            ]
            if [*prefix, *segment, *question.tail] != ids:
                wrong.append(f"the parts of {paraphrase!r} are not the tokens of its prompt")
        cuts.append(_shown(tokenizer, prefix, question, tuple(dict.fromkeys(straddling))))
    lengths = sorted(length for question in split for length in question.lengths)
    report.add(
        "cut",
        not wrong,
        len(wrong),
        wrong[0]
        if wrong
        else f"{len(lengths)} prompts: a prefix of {len(prefix)} tokens, segments of {lengths[0]} "
        f"to {lengths[-1]}, a tail of {_span([len(question.tail) for question in split])}; each is "
        "its prompt as the tokenizer has it",
    )
    return tuple(cuts)


def _faults_of_cut(offsets, template, paraphrase: str, prefix, tail) -> list[str]:
    """Whether the parts that all paraphrases share hold characters of this one."""
    begin, end = len(template.head), len(template.head) + len(paraphrase)
    faults = []
    if any(stop > begin for _, stop in offsets[: len(prefix)]):
        faults.append("the prefix holds characters of the paraphrase")
    if any(start < end for start, _ in offsets[len(offsets) - len(tail) :]):
        faults.append("the tail holds characters of the paraphrase")
    return faults


def _shown(tokenizer, prefix, question: SplitQuestion, straddling) -> Cut:
    texts = lambda ids: tuple(tokenizer.decode([token]) for token in ids)  # noqa: E731
    return Cut(
        prefix=texts(prefix),
        segments=tuple(texts(segment) for segment in question.segments),
        tail=texts(question.tail),
        straddling=straddling,
    )


def _check_fed(report, prefix, split, order, forwards) -> None:
    """That the model was given these very tokens: ``cut`` fails where it was not."""
    *encoded, tail, _ = forwards
    packed = [token for index in order for part in split[index].segments for token in part]
    given = encoded[-1].ids[0].tolist()
    right = given[: len(packed)] == packed
    if prefix:
        right = right and tuple(encoded[0].ids[0, : len(prefix)].tolist()) == prefix
    for row, index in zip(tail.ids.tolist(), order, strict=True):
        right = right and tuple(row[-len(split[index].tail) :]) == split[index].tail
    if not right:
        report.add("cut", False, None, "the model is fed other tokens than those that were cut")


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def explain_bos(tokenizer, prompts: Sequence[str], *, chat: bool) -> tuple[int, str]:
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


def _check_bos(report, tokenizer, template, questions, prefix, chat: bool) -> int:
    """How many BOS a prompt has, who puts them there, and that there are no more."""
    bos = tokenizer.bos_token_id
    prompts = [template.render(text) for paraphrases in questions for text in paraphrases]
    used = tokenizer(prompts, add_special_tokens=template.add_special_tokens)["input_ids"]
    counts, count = {ids.count(bos) for ids in used}, prefix.count(bos)
    puts, why = explain_bos(tokenizer, prompts, chat=chat)
    wrong = ""
    if bos is not None:
        if counts != {count}:
            wrong = "a segment or a tail holds one"
        elif count != puts:
            wrong = f"{puts} should be there"
        elif count > 1:
            wrong = "one at most has a meaning to a model"
        elif count == 1 and prefix[0] != bos:
            wrong = "it is not the first token"
    reason = f"{max(counts)} in a prompt ({why})"
    report.add("bos", not wrong, max(counts), f"{reason}: {wrong}" if wrong else reason)
    return max(counts)


def _check_positions(report, positions: str, able: bool) -> None:
    if not able:
        reason = "this model's positions turn in a way that is not known here; --positions left"
    elif positions == "exact":
        reason = "on every layer a query turned back is the query of the earlier position"
    else:
        reason = "no query has to be turned"
    report.add("positions", able, None, f"{positions}: {reason}")


# ---- watching the engine ------------------------------------------------------------------------


@dataclass(frozen=True)
class Forward:
    """One forward of the engine: its plan, what it was fed, and what came out.

    shares: window → the lowest and the highest share, over the heads, of each query's attention
    that each key gets under equal scores, [queries, keys] both (of fused tokens [R, S, keys]).
    """

    plan: EncodeState | DecodeState
    ids: torch.Tensor  # [rows, tokens]
    hidden: torch.Tensor  # [rows, tokens, hidden size]
    shares: dict[int | None, tuple[torch.Tensor, torch.Tensor]]
    slots: range  # of fused tokens: which slots this forward filled


@contextmanager
def watched(engine: Engine) -> Iterator[list[Forward]]:
    """Every forward that the engine runs inside, with the attention that its plan gives."""
    forwards: list[Forward] = []

    def keep(module, args, kwargs, output):
        plan = engine.wrapper.state
        # Layers of one window share their masks.
        layers = {
            scoring.window: (index, scoring)
            for index, (_, scoring) in engine.wrapper.layers.items()
        }
        heads = head_shape(engine.config)[0]
        measure = encode_shares if isinstance(plan, EncodeState) else fuse_shares
        forwards.append(
            Forward(
                plan=plan,
                ids=(kwargs["input_ids"] if "input_ids" in kwargs else args[0]).clone(),
                hidden=output.last_hidden_state,
                shares={
                    window: measure(plan, layer, scoring, heads)
                    for window, (layer, scoring) in layers.items()
                },
                slots=range(plan.filled, plan.filled + plan.queries)
                if isinstance(plan, DecodeState)
                else range(0),
            )
        )

    hook = engine.model.base_model.register_forward_hook(keep, with_kwargs=True)
    try:
        yield forwards
    finally:
        hook.remove()


def encode_shares(plan: EncodeState, layer: int, scoring, heads: int):
    """What each packed token attends to in a plan that has run: [T, P + T], lowest and highest.

    Columns are the prefix's tokens, then the packed ones.
    """
    own = plan.layers[layer]
    J, T, D = own.keys.shape
    P, width = plan.prefix_length, own.values.shape[-1]
    look = copy.copy(plan)
    look.layers = {}
    query = own.keys.new_zeros(1, T, heads, D).transpose(1, 2)
    key = own.keys.new_zeros(1, T, J, D).transpose(1, 2)
    columns = []
    for ones in _ones(own.values, P + T, width):
        if P:
            zero = torch.zeros_like(plan.prefix[layer].keys)
            look.prefix = {layer: KeyValues(zero, ones[:P].expand(J, P, width))}
        # Laid out as the model's own: kernels are compiled for a layout.
        value = ones[P:, None].expand(T, J, width).contiguous().transpose(0, 1)[None]
        columns.append(look.attend(layer, query, key, value, scoring)[0].float())  # [H, T, width]
    return _over_heads(torch.cat(columns, dim=-1), P + T, dim=0)


def fuse_shares(plan: DecodeState, layer: int, scoring, heads: int):
    """What each fused token of the plan's last forward attends to: [R, S, keys], lowest and
    highest.

    Columns are the prefix's tokens, the K times M cells of the segments, then the slots of fused
    tokens.
    """
    segments, own = plan.segments[layer], plan.own[layer]
    J, R, K, M, D = segments.keys.shape
    P, slots, width = plan.prefix_length, own.keys.shape[2], own.values.shape[-1]
    S = plan.queries
    look = copy.copy(plan)
    query = own.keys.new_zeros(R, S, heads, D).transpose(1, 2)
    key = own.keys.new_zeros(R, S, J, D).transpose(1, 2)
    columns = []
    for ones in _ones(own.values, P + K * M + slots, width):
        of_prefix, of_segments, of_own = ones.split([P, K * M, slots])
        if P:
            zero = torch.zeros_like(plan.prefix[layer].keys)
            look.prefix = {layer: KeyValues(zero, of_prefix.expand(J, P, width))}
        look.segments = {
            layer: KeyValues(
                torch.zeros_like(segments.keys),
                of_segments.view(K, M, width).expand(J, R, K, M, width),
            )
        }
        values = of_own.expand(J, R, slots, width)
        look.own = {layer: KeyValues(torch.zeros_like(own.keys), values.clone())}
        value = values[:, :, plan.at].transpose(0, 1)
        columns.append(look.attend(layer, query, key, value, scoring).float())  # [R, H, S, width]
    return _over_heads(torch.cat(columns, dim=-1), P + K * M + slots, dim=1)


def _ones(like: torch.Tensor, keys: int, width: int) -> Iterator[torch.Tensor]:
    """Values that tell keys apart, as many at a time as a value is wide: [keys, width] each."""
    for start in range(0, keys, width):
        ones = like.new_zeros(keys, width)
        count = min(width, keys - start)
        ones[start : start + count, :count] = torch.eye(count, dtype=like.dtype, device=like.device)
        yield ones


def _over_heads(shares: torch.Tensor, keys: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    shares = shares[..., :keys].cpu()
    return shares.amin(dim), shares.amax(dim)


# ---- masks --------------------------------------------------------------------------------------


class _Findings:
    """What is wrong with the measured masks, by item: how many cells, and the first in words."""

    def __init__(self):
        self.counts = dict.fromkeys(MASK_ITEMS, 0)
        self.first: dict[str, str] = {}
        self.rows = 0

    def add(self, item: str, cells: torch.Tensor, tell) -> None:
        """cells: [rows, keys] bool; tell: (row, key) → a sentence."""
        where = cells.nonzero()
        if len(where):
            self.counts[item] += len(where)
            self.first.setdefault(item, tell(*where[0].tolist()))

    def no_empty(self, highest: torch.Tensor, name) -> torch.Tensor:
        """Which rows attend to nothing, [rows, 1]; noted. name: row → what it is."""
        self.rows += len(highest)
        empty = ~(highest.sum(1, keepdim=True) > 0.5)  # also where it is no number
        self.add("no_empty_row", empty, lambda row, _: f"{name(row)} attends to nothing")
        return empty


@dataclass(frozen=True)
class _Key:
    """What a row or a column of a measured mask stands for.

    part: ``prefix``, ``segment``, ``fused`` or ``padding``. owner: the segment's number.
    position: where it stands. text: of the token.
    """

    part: str
    position: int
    text: str = ""
    owner: tuple[int, int] = (-1, -1)  # question, segment; counted from 0

    def __str__(self) -> str:
        question, segment = self.owner
        place = {
            "prefix": "the prefix",
            "segment": f"segment {segment + 1} of question {question + 1}",
            "fused": "the fused tokens",
        }
        return (
            f"{quoted(self.text)} of {place[self.part]}"
            if self.part in place
            else "a padding token"
        )


def _check_masks(report, engine, split, streams, order, forwards) -> None:
    """Every forward's measured attention against what the method says in words."""
    findings = _Findings()
    text = lambda token: engine.tokenizer.decode([token])  # noqa: E731
    prefix = [_Key("prefix", at, text(token)) for at, token in enumerate(engine.prefix_ids)]
    packed = [
        _Key("segment", start + at, text(token), (index, number))
        for index in order
        for number, start in enumerate(streams[index][0].positions.starts)
        for at, token in enumerate(split[index].segments[number])
    ]
    *encoded, tail, step = forwards
    if prefix:
        _check_encoded(findings, encoded[0], (), prefix)
    _check_encoded(findings, encoded[-1], prefix, packed)
    for forward in (tail, step):
        for row, index in enumerate(order):
            _check_fused(
                findings, engine, forward, row, prefix, streams[index][0], split[index], index
            )

    good = {
        "segments_apart": "every segment attends to nothing of any other, its own question's or "
        "another's",
        "prefix_seen": f"every segment attends to all of the prefix ({len(prefix)} tokens)"
        if prefix
        else "there is no prefix",
        "causal_order": "every token attends to its own earlier ones, and to none behind it",
        "fused_sees_all": "every fused token attends to the prefix, all segments in equal shares, "
        "and the fused tokens before it",
        "no_empty_row": f"each of {findings.rows} rows attends to something, none to padding",
    }
    for item in MASK_ITEMS:
        count = findings.counts[item]
        reason = good[item]
        if count:
            others = f" ({count} such cells in all)" if count > 1 else ""
            reason = findings.first[item] + others
        report.add(item, not count, count, reason)


def _check_encoded(findings, forward: Forward, prefix, packed) -> None:
    """``prefix`` and ``packed``: the `_Key` of every column; padding stands behind them."""
    padding = forward.ids.shape[1] - len(packed)
    rows = [*packed, *(_Key("padding", 0, owner=(-2, at)) for at in range(padding))]
    keys = [*prefix, *rows]
    query, key = _Columns(rows), _Columns(keys)
    order = torch.arange(len(rows))[:, None] + len(prefix) >= torch.arange(len(keys))
    same = query.owner[:, None] == key.owner
    shared = torch.arange(len(keys)) < len(prefix)  # padding sees it too, and nobody reads that
    for window, (lowest, highest) in forward.shares.items():
        visible = (same & order) | shared
        if window is not None:
            visible = visible & (query.position[:, None] - key.position < window)
        expected = visible / visible.sum(1, keepdim=True)
        _compare(findings, query, key, window, expected, lowest, highest)


def _check_fused(findings, engine, forward, row: int, prefix, stream: Stream, question, index):
    """One row's fused tokens: the mean over the segments of what each partition attends to."""
    text = lambda token: engine.tokenizer.decode([token])  # noqa: E731
    placement = stream.positions
    K, M = forward.plan.segment_mask.shape[1:]
    slots = forward.plan.own_mask.shape[1]
    pad = slots - STEPS - len(stream.tail)  # tails are padded on their left to the longest
    keys = list(prefix)
    for number, start in enumerate(placement.starts):
        segment = question.segments[number]
        for at in range(M):
            real = at < len(segment)
            part, shown = ("segment", text(segment[at])) if real else ("padding", "")
            keys.append(_Key(part, start + at, shown, (index, number)))
    for slot in range(slots):
        at = slot - pad
        part = "fused" if at >= 0 else "padding"
        shown = text(stream.tail[at]) if 0 <= at < len(stream.tail) else "the answer"
        keys.append(_Key(part, placement.fused_start + at, shown, (-3, slot)))
    own = len(prefix) + K * M
    real = [at for at, slot in enumerate(forward.slots) if slot >= pad]
    padding = [at for at, slot in enumerate(forward.slots) if slot < pad]
    rows = [keys[own + forward.slots[at]] for at in real]

    query, key = _Columns(rows), _Columns(keys)
    number = torch.arange(own, own + slots)
    earlier = number <= number[[forward.slots[at] for at in real], None]
    fused = torch.cat([torch.zeros(len(rows), own, dtype=torch.bool), earlier], dim=1)
    fused = fused & key.of("fused")
    for window, (lowest, highest) in forward.shares.items():
        expected = torch.zeros(len(rows), len(keys))
        distance = query.position[:, None] - key.position
        for segment, turn in enumerate(placement.rope_offsets):
            at_segment = key.of("segment") & (key.owner == _code((index, segment)))
            others = (key.of("prefix") | at_segment).expand(len(rows), -1)
            visible = fused | others
            if window is not None:
                visible = (fused & (distance < window)) | (others & (distance - turn < window))
            expected += visible / visible.sum(1, keepdim=True) / K
        _compare(findings, query, key, window, expected, lowest[row][real], highest[row][real])
        # What pads the shorter tails: no number in its states would spread to all of the row.
        findings.no_empty(highest[row][padding], lambda _: "a padding token among the fused tokens")


class _Columns:
    """`_Key`s as tensors: whose they are, where they stand, and which belong to a part."""

    def __init__(self, keys: Sequence[_Key]):
        self.keys = keys
        self.owner = torch.tensor([_code(key.owner) for key in keys])
        self.position = torch.tensor([key.position for key in keys])

    def of(self, part: str) -> torch.Tensor:
        return torch.tensor([key.part == part for key in self.keys])


def _code(owner: tuple[int, int]) -> int:
    return owner[0] * 10**6 + owner[1]


def _compare(findings, query, key, window, expected, lowest, highest) -> None:
    """Put every cell that is not as expected under the item it breaks.

    query, key: `_Columns` of the rows and of the keys; the tensors are [rows, keys].
    """
    rows, keys = query.keys, key.keys
    empty = findings.no_empty(highest, lambda q: rows[q])
    seen = ~empty & (highest > 0) & (expected == 0)
    hidden = ~empty & (lowest <= 0) & (expected > 0)
    # Where something is seen or hidden that should not be, all shares of the row are off.
    clean = ~empty & ~(seen | hidden).any(1, keepdim=True)
    off = torch.maximum(highest - expected, expected - lowest)
    uneven = clean & (off > SHARE_TOLERANCE * expected)

    fused = query.of("fused")[:, None]
    own = (query.owner[:, None] == key.owner) & ~fused
    foreign = key.of("segment") & ~own & ~fused
    prefix, padding = key.of("prefix") & ~own & ~fused, key.of("padding") & ~own
    behind = ~foreign & ~prefix & ~padding & ~(fused & ~key.of("fused"))

    def sees(q, kv):
        within = "" if window is None else f", where it sees {window} positions back"
        return f"{rows[q]} attends to {keys[kv]}{within}"

    def misses(q, kv):
        return f"{rows[q]} does not attend to {keys[kv]}"

    def unequal(q, kv):
        share = highest if highest[q, kv] - expected[q, kv] == off[q, kv] else lowest
        found, wanted = share[q, kv].item(), expected[q, kv].item()
        return f"{rows[q]} gives {keys[kv]} {found:.3g} of its attention, not {wanted:.3g}"

    findings.add("no_empty_row", seen & padding, sees)
    findings.add("no_empty_row", uneven & ~fused, unequal)
    findings.add("segments_apart", seen & foreign, sees)
    findings.add("prefix_seen", hidden & prefix, misses)
    findings.add("prefix_seen", seen & prefix, sees)
    findings.add("causal_order", seen & behind, sees)
    findings.add("causal_order", hidden & own, misses)
    findings.add("fused_sees_all", hidden & fused, misses)
    findings.add("fused_sees_all", seen & fused & ~behind & ~padding, sees)
    findings.add("fused_sees_all", uneven & fused, unequal)


# ---- figures ------------------------------------------------------------------------------------


def step_logits(engine, streams, *, steps: int, combine=only_stream, fusion=None) -> torch.Tensor:
    """At each of the first steps of each question, before they are combined: [steps, R, n, V]."""
    kept = []

    def keep(logits, weights):
        kept.append(logits)
        return combine(logits, weights)

    halved = engine.counts.out_of_memory
    batches = engine.generate(
        streams,
        fusion=fusion or Fusion(),
        combine=keep,
        max_new_tokens=steps,
        batch_size=len(streams),
    )
    [answers] = list(batches)
    if engine.counts.out_of_memory > halved:
        raise UserError("out of memory with a few questions at a time; take a smaller model")
    order = torch.tensor([index for index, _ in answers])
    return torch.stack(kept)[:, order.argsort()]


def _check_fusion(report, engine, split, positions: str, logits: torch.Tensor) -> None:
    """The first token's logits, with the paraphrases in other orders."""
    P = len(engine.prefix_ids)
    moved = 0.0
    for order in (lambda parts: parts[::-1], lambda parts: parts[1:] + parts[:1]):
        permuted = [replace(question, segments=order(question.segments)) for question in split]
        streams = [attention_streams(question, P, positions) for question in permuted]
        [found] = step_logits(engine, streams, steps=1)
        moved = max(moved, _relative(found, logits), key=size)
    streams = [logit_streams(question, P) for question in split]
    [alone] = step_logits(engine, streams, steps=1, combine=average_logits)
    apart = max(_relative(alone[:, [number]], alone[:, :1]) for number in range(1, alone.shape[1]))
    allowed = rounding(engine.model.dtype, engine.config.num_hidden_layers)
    said = (
        f"permuting the paraphrases moves the first token's logits by {moved:.2g} of their spread "
        f"(rounding: up to {allowed:.2g}); read off one paraphrase alone they would move by "
        f"{apart:.2g}"
    )
    report.add("first_token_fused", moved <= allowed, moved, said)


def _relative(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest difference of any logits, as a part of their spread. [..., V] both."""
    spread = reference - reference.mean(-1, keepdim=True)
    return ((logits - reference).norm(dim=-1) / spread.norm(dim=-1)).max().item()


def size(number: float) -> float:
    """For a maximum that what is no number wins."""
    return math.inf if math.isnan(number) else number


# ---- against the model as it came ---------------------------------------------------------------


@dataclass(frozen=True)
class Alone:
    """A whole prompt through the model's own attention, and one token more.

    hidden: of the segment's tokens, [n, hidden size]. layers: their keys and values by layer.
    logits: after the prompt, and after the token, [2, V] float32.
    """

    hidden: torch.Tensor
    layers: dict[int, KeyValues]
    logits: torch.Tensor


def run_alone(engine: Engine, segment: Sequence[int], tail: Sequence[int], token: int) -> Alone:
    """One stock forward of prefix, segment, tail and token. Nothing of ours takes part."""
    model, cache, hidden = engine.model, DynamicCache(), []
    own = slice(len(engine.prefix_ids), len(engine.prefix_ids) + len(segment))
    ids = torch.tensor([[*engine.prefix_ids, *segment, *tail, token]], device=engine.device)
    keep = lambda module, args, output: hidden.append(output.last_hidden_state)  # noqa: E731
    hook = model.base_model.register_forward_hook(keep)
    try:
        with engine.wrapper.taken_out():
            model.set_attn_implementation("eager")
            logits = model(
                input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=STEPS
            ).logits
    finally:
        hook.remove()
    layers = {
        index: KeyValues(layer.keys[0, :, own], layer.values[0, :, own])
        for index, layer in enumerate(cache.layers)
    }
    return Alone(hidden[0][0, own], layers, logits[0].float())


def follow_each(
    engine: Engine, split: Sequence[SplitQuestion], positions: str
) -> list[list[tuple[torch.Tensor, Alone]]]:
    """Of every question every paraphrase, by the fusion that listens to it only, and alone.

    Under ``exact`` all paraphrases are fused, with all the weight on one: the others are encoded,
    laid out and turned to, and must count for nothing. Other positions put paraphrases elsewhere
    than alone, unless a question has only one.

    Args:
        engine: with the prefix set, able to turn (see `Engine.can_turn`), and ignoring stops.
        split: questions with as many segments each.

    Returns:
        By question and paraphrase: the logits after the tail and after the token then chosen,
        [2, V], and those of the stock forward with the rest of it.
    """
    P, N = len(engine.prefix_ids), len(split[0].segments)
    if positions == "exact":
        streams = [attention_streams(question, P, positions) for question in split]
        weights = torch.eye(N, device=engine.device)
        fused = [
            step_logits(engine, streams, steps=STEPS, fusion=Fusion(weights=weight))
            for weight in weights
        ]
        fused = torch.cat(fused, dim=2)  # [STEPS, R, N, V]
    else:
        single = [
            replace(question, segments=(segment,))
            for question in split
            for segment in question.segments
        ]
        streams = [attention_streams(question, P, positions) for question in single]
        fused = step_logits(engine, streams, steps=STEPS).view(STEPS, len(split), N, -1)
    return [
        [
            (said, run_alone(engine, segment, question.tail, said[0].argmax().item()))
            for segment, said in zip(question.segments, of_question.unbind(1), strict=True)
        ]
        for question, of_question in zip(split, fused.unbind(1), strict=True)
    ]


def fused_difference(followed: Sequence[tuple[torch.Tensor, Alone]]) -> float:
    """The largest of a question, as a part of the logits' spread."""
    return max((_relative(said, stock.logits) for said, stock in followed), key=size)


def fused_tolerance(engine: Engine, positions: str) -> float:
    """What rounding may do to `fused_difference`.

    Fused tokens round four times more in a layer, since their attention is a sum of three parts
    (two parts and two sums more), and four times more again where they are turned: their cosines
    and sines, those that turn, the turned query, and the keys of other positions. The head
    amplifies all of it once more, in logits: half as much again.
    """
    more = 8 if positions == "exact" else 4
    return 1.5 * rounding(engine.model.dtype, engine.config.num_hidden_layers, more=more)


def _check_fused_alone(report, engine, followed, positions: str) -> None:
    differences = [fused_difference(each) for each in followed]
    figure = max(differences, key=size)
    allowed = fused_tolerance(engine, positions)
    way = (
        "with all the weight on one paraphrase"
        if positions == "exact"
        else "asked with one paraphrase"
    )
    first = followed[0]
    apart = max(_relative(other.logits[0], first[0][1].logits[0]) for _, other in first[1:])
    report.add(
        "fused_equals_alone",
        figure <= allowed,
        figure,
        f"{way} the logits after the tail and after the next token differ from its whole prompt's "
        f"in a stock forward by {figure:.2g} of their spread, most in question "
        f"{differences.index(figure) + 1} (rounding: up to {allowed:.2g}); another paraphrase's "
        f"differ by {apart:.2g}",
    )


def packed_differences(
    packed: Forward, lengths: Sequence[int], alone: Sequence[Alone], at: int = 0
) -> list[dict[str, tuple[float, float]]]:
    """A segment each: kind → how far its states are off, relative to their norm, and the largest.

    packed: the forward that encoded the segments. at: where the first one stands in it.
    """
    found = []
    for length, stock in zip(lengths, alone, strict=True):
        own = slice(at, at + length)
        at += length
        pairs = {"keys": [], "values": [], "hidden states": []}
        for layer, wanted in stock.layers.items():
            mine = packed.plan.layers[layer]
            pairs["keys"].append((mine.keys[:, own], wanted.keys))
            pairs["values"].append((mine.values[:, own], wanted.values))
        pairs["hidden states"].append((packed.hidden[0, own], stock.hidden))
        offs = {kind: zip(*map(_off, given), strict=True) for kind, given in pairs.items()}
        found.append({kind: tuple(max(of, key=size) for of in both) for kind, both in offs.items()})
    return found


def _off(pair) -> tuple[float, float]:
    got, wanted = (tensor.float() for tensor in pair)
    # Where all is zero nothing differs.
    norm = max(wanted.norm().item(), torch.finfo(torch.float32).tiny)
    return (got - wanted).norm().item() / norm, (got - wanted).abs().max().item()


def _check_isolation(report, engine, split, order, packed: Forward, alone) -> None:
    """Keys, values and last hidden states of every segment against its prompt's alone."""
    at, mixed, found = 0, 0.0, {}
    for index in order:
        lengths = split[index].lengths
        differences = packed_differences(packed, lengths, alone[index], at)
        at += sum(lengths)
        for number, each in enumerate(differences, start=1):
            for kind, pair in each.items():
                found[kind, f"segment {number} of question {index + 1}"] = pair
        mixed = max(mixed, without_a_mask(engine, split[index], alone[index]), key=size)
    (kind, where), (figure, _) = max(found.items(), key=lambda item: size(item[1][0]))
    allowed = rounding(engine.model.dtype, engine.config.num_hidden_layers)
    shown = []
    for each in dict.fromkeys(kind for kind, _ in found):
        relative, largest = zip(*(pair for (k, _), pair in found.items() if k == each), strict=True)
        shown.append(f"{each} {max(relative, key=size):.2g} ({max(largest, key=size):.2g})")
    report.add(
        "packed_equals_separate",
        figure <= allowed,
        figure,
        f"relative (and largest) difference from each prompt alone: {', '.join(shown)}, most in "
        f"{kind} of {where}; rounding: up to {allowed:.2g}; without the mask hidden states would "
        f"differ by {mixed:.2g}",
    )


def without_a_mask(engine, question: SplitQuestion, alone: Sequence[Alone]) -> float:
    """How far the segments' hidden states are off if each also sees the segments before it."""
    P, lengths = len(engine.prefix_ids), question.lengths
    ids = [*engine.prefix_ids, *(token for segment in question.segments for token in segment)]
    positions = [*range(P), *(P + at for length in lengths for at in range(length))]
    with engine.wrapper.using(MaskedState(backend="eager")):
        mixed = engine.model.base_model(
            input_ids=torch.tensor([ids], device=engine.device),
            position_ids=torch.tensor([positions], device=engine.device),
            use_cache=False,
        ).last_hidden_state[0, P:]
    pairs = zip(mixed.split(lengths), (stock.hidden for stock in alone), strict=True)
    return max((_off(pair)[0] for pair in pairs), key=size)
