"""Certificates on tokenizers and models that differ, and on what was broken on purpose.

A mask is broken where the model gets it from, so that the model really runs with it; the
certificate must name the promise that is broken, and only that one of the mask's.
"""

import re
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from tiny import ARCHITECTURES, MIXED, ROTARY, tiny_model
from tokenizing import CHAT, PLAIN, tokenizer_of

from self_ensemble.attention import checks, fusion, kv_state
from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.kv_state import DecodeState, EncodeState
from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.attention.segments import SplitQuestion, split_prompts
from self_ensemble.data import PromptTemplate, chat_prompt_template
from self_ensemble.diagnostics import certificate
from self_ensemble.diagnostics.certificate import certify
from self_ensemble.diagnostics.items import FAILED, ITEMS, MASK_ITEMS, NOT_RUN
from self_ensemble.generation import encode, forward, streams
from self_ensemble.generation.engine import Engine
from self_ensemble.generation.request import Request

QUESTIONS = [
    ["Who wrote Emma?", "Which author is the one who wrote Emma?", "The author of Emma?"],
    ["The capital of Peru is [MASK].", "Which city is Peru's capital?", "Peru's capital is"],
]
WITH_BOS = ["byte-level, BOS", "question mark and newline", "metaspace", "byte fallback"]

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture(autouse=True)
def quick_flex(monkeypatch):
    """Packed lengths are rounded up to less, and uncompiled FlexAttention is not traced either."""
    monkeypatch.setattr("self_ensemble.generation.batching.FLEX_BUCKET", 64)
    untraced = "torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
    monkeypatch.setattr(untraced, True, raising=False)  # an older torch has no such switch


@contextmanager
def engine_of(tokenizer, architecture="llama", backend="sdpa", dtype=torch.float32):
    # As many keys as a value is wide are told apart at a time; two layers are quicker than four.
    quicker = {"head_dim": 32, "num_hidden_layers": 2}
    changes = {"llama": quicker, "gemma3": quicker | {"layer_types": MIXED[:2]}}
    changes = changes.get(architecture, {})
    model = tiny_model(architecture, vocab_size=len(tokenizer), **changes).to(dtype)
    with FlexAttentionWrapper(model, backend, compiled=False) as wrapper:
        checks.check_architecture(wrapper)
        yield Engine(model, tokenizer, wrapper)


def certificate_of(
    tokenizer="byte-level, BOS",
    template=PLAIN,
    *,
    chat=False,
    architecture="llama",
    positions=None,
    fused=None,
    breaking=lambda: None,
    **settings,
):
    """breaking: what is broken once the model is loaded, since loading notices some of it."""
    positions = positions or ("exact" if architecture in ROTARY else "left")
    with engine_of(tokenizer_of(tokenizer), architecture, **settings) as engine:
        breaking()
        asked = {"positions": positions, "fusion": fused, "chat": chat}
        return certify(engine, template, QUESTIONS, **asked)


def statuses(found) -> dict[str, str]:
    return {item.name: item.status for item in found.items}


def failed(found) -> set[str]:
    assert set(statuses(found)) == set(ITEMS)
    assert NOT_RUN not in statuses(found).values()
    return {name for name, status in statuses(found).items() if status == FAILED}


def reason(found, name) -> str:
    [item] = [item for item in found.items if item.name == name]
    return item.reason


# ---- what is right passes -------------------------------------------------------------------


def tokens_of(tokenizer, prompt, special):
    """The texts of a prompt's tokens, by the tokenizer alone."""
    ids = tokenizer(prompt, add_special_tokens=special)["input_ids"]
    return [tokenizer.decode([token]) for token in ids]


@pytest.mark.parametrize("name", ["byte-level", *WITH_BOS, "whole words"])
def test_tokenizers_that_differ(name):
    tokenizer = tokenizer_of(name)
    found = certificate_of(name)
    assert failed(found) == set()
    assert found.passed
    assert found.bos == (0 if name == "byte-level" else 1)
    for split, paraphrases in zip(found.splits, QUESTIONS, strict=True):
        for segment, paraphrase in zip(split.segments, paraphrases, strict=True):
            whole = tokens_of(tokenizer, PLAIN.render(paraphrase), True)
            assert [*split.prefix, *segment, *split.tail] == whole
    why = "its post-processor puts none" if name == "byte-level" else "post-processor puts it"
    assert why in reason(found, "bos")


def test_a_token_over_the_border_is_shown():
    found = certificate_of("question mark and newline")
    assert "?\n" in found.splits[0].straddling
    assert all(segment[-1] == "?\n" for segment in found.splits[0].segments)
    assert "\n" not in "".join(found.splits[0].tail)
    assert "\n" in "".join(certificate_of("byte-level, BOS").splits[0].tail)


@pytest.mark.parametrize(
    "name, own_bos, why",
    [
        ("byte-level, BOS", True, "the chat template writes it, so the tokenizer's own is left"),
        ("question mark and newline", True, "the chat template writes it"),
        ("byte-level", True, "the chat template writes it"),
        ("byte-level, BOS", False, "the chat template writes none"),
    ],
)
def test_chat_templates(name, own_bos, why):
    tokenizer = tokenizer_of(name)
    tokenizer.chat_template = CHAT if own_bos else CHAT.removeprefix("{{ bos_token }}")
    chat = chat_prompt_template(tokenizer, PLAIN)
    found = certificate_of(name, chat, chat=True)
    assert failed(found) == set()
    assert (found.template, found.bos) == ("chat", int(own_bos))
    assert why in reason(found, "bos")
    assert found.splits[0].tail[-2:] == ("<|assistant|>", "\n")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architectures_that_differ(architecture):
    backend = "eager" if architecture == "gemma2" else "sdpa"
    assert failed(certificate_of(architecture=architecture, backend=backend)) == set()


def test_flex_attention_with_windows():
    assert failed(certificate_of(architecture="gemma3", backend="flex")) == set()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    found = certificate_of(dtype=dtype)
    assert failed(found) == set()
    assert found.dtype == str(dtype).removeprefix("torch.")


def test_the_engine_is_left_as_it_was():
    with engine_of(tokenizer_of("byte-level, BOS")) as engine:
        prefix, [question, *_] = split_prompts(engine.tokenizer, PLAIN, QUESTIONS)
        asked = Request(prefix, [streams.attention_streams(question, len(prefix), "exact")])
        [[(_, before)]] = engine.generate(asked)
        state, opened = engine.wrapper.state, engine.generate(asked)
        certify(engine, PLAIN, QUESTIONS, positions="exact")
        assert next(opened) == [(0, before)]
        assert engine.wrapper.state is state
        assert len(engine.model.base_model._forward_hooks) == 0
        assert engine.model.config._attn_implementation.startswith("self_ensemble")


# ---- the fusion that was asked for ----------------------------------------------------------

UNEQUAL = torch.tensor([0.5, 0.0, 0.5])
FUSIONS = {
    "tau": (Fusion(tau=0.7), "exact"),
    "weights": (Fusion(weights=UNEQUAL), "exact"),
    "tau and weights": (Fusion(tau=2.0, weights=torch.tensor([0.2, 0.7, 0.1])), "left"),
    "joint": (Fusion("joint"), "left"),
    "joint, weights": (Fusion("joint", weights=UNEQUAL), "left"),
    "right": (Fusion(tau=0.5), "right"),
}


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
@pytest.mark.parametrize("name", FUSIONS)
def test_every_fusion_is_certified(name, architecture):
    fused, positions = FUSIONS[name]
    found = certificate_of(architecture=architecture, fused=fused, positions=positions)
    assert failed(found) == set()
    assert "in the shares that the fusion gives them" in reason(found, "fused_sees_all")


@pytest.mark.parametrize("name", [name for name in FUSIONS if name != "weights"])
def test_another_fusion_than_the_one_asked_for_is_named(name, monkeypatch):
    """The plain mean runs whatever is asked for; joint then has no one softmax."""
    fused, positions = FUSIONS[name]
    intact = fusion.fuse_probabilities
    plain = lambda prefix, segments, own, _: intact(prefix, segments, own, Fusion())  # noqa: E731
    breaking = lambda: monkeypatch.setattr(fusion, "fuse_probabilities", plain)  # noqa: E731
    found = certificate_of(fused=fused, positions=positions, breaking=breaking)
    assert failed(found) & set(MASK_ITEMS) == {"fused_sees_all"}


def test_weights_in_another_order_are_named(monkeypatch):
    intact = fusion.fuse_probabilities

    def rolled(prefix, segments, own, asked):
        if asked.weights is not None:
            asked = replace(asked, weights=asked.weights.roll(1))
        return intact(prefix, segments, own, asked)

    breaking = lambda: monkeypatch.setattr(fusion, "fuse_probabilities", rolled)  # noqa: E731
    found = certificate_of(fused=Fusion(weights=UNEQUAL), breaking=breaking)
    assert failed(found) == {"fused_sees_all", ORDER, ALONE}


@pytest.fixture
def surest():
    """A fusion of a user's own: the partition of the largest attention mass, more than the rest."""

    @fusion.register_fusion("surest")
    def most_mass(prefix, segments, own, asked):
        scores = fusion.partition_scores(prefix, segments, own)
        weights = (scores.logsumexp(-1, keepdim=True) * 4).softmax(2)
        return fusion.weighted_partitions(scores, weights, prefix, segments)

    yield Fusion("surest")
    fusion.FUSIONS.remove("surest")


def test_a_fusion_of_ones_own(surest, monkeypatch):
    """Its shares are not known here; what it sees beyond the mask is."""
    found = certificate_of(fused=surest)
    assert failed(found) == set()
    assert "asked with one paraphrase" in reason(found, ALONE)
    found = certificate_of(fused=surest, breaking=lambda: fused_looks_ahead(monkeypatch))
    assert "causal_order" in failed(found)


# ---- a mask that is broken ------------------------------------------------------------------
# Each takes a MonkeyPatch and breaks one cell, or a few, of what the model runs with. Rows and
# keys of the packed mask count as segments.packed_segment_mask has them.


def packed_mask_with(patch, broken):
    """FlexAttention's mask. broken: (visible, q, kv, P, head) → visible; not the prefix's own
    mask, whose P is 0."""
    intact = kv_state.packed_segment_mask

    def mask(segment_ids, position_ids, P, window):
        mask_mod = intact(segment_ids, position_ids, P, window)
        if P == 0:
            return mask_mod
        return lambda b, h, q, kv: broken(mask_mod(b, h, q, kv), q, kv, P, h)

    patch.setattr(kv_state, "packed_segment_mask", mask)


def padded_mask_with(patch, row, q, kv, value):
    """The mask of sdpa and plain math, a row a segment; ``kv`` a slice or a number behind P."""
    intact = EncodeState._padded_mask

    def mask(self, window, *beside):
        found = intact(self, window, *beside)
        if not self.prefix:
            return found
        found = found.expand(len(self.lengths), -1, -1, -1).clone()
        found[row, :, q, kv if isinstance(kv, slice) else self.prefix_length + kv] = value
        return found

    patch.setattr(EncodeState, "_padded_mask", mask)


def fused_mask_with(patch, broken):
    """The mask of fused tokens. broken: changes its parts in place, [1, R, K, S, keys]."""
    intact = DecodeState._build_masks

    def masks(self, window, group):
        found = intact(self, window, group)
        if self.segment_mask.shape[1] == 1:  # a paraphrase alone
            return found
        found = replace(
            found,
            segments=found.segments.expand(-1, -1, -1, self.queries * group, -1).clone(),
            fused=found.fused.clone(),
        )
        broken(self, found)
        return found

    patch.setattr(DecodeState, "_build_masks", masks)


def segments_packed():
    """(question, segment, its first packed token, its length), in packed order."""
    packed, at = [], 0
    with engine_of(tokenizer_of("byte-level, BOS")) as engine:
        prefix, split = split_prompts(engine.tokenizer, PLAIN, QUESTIONS)
        asked = [streams.attention_streams(q, len(prefix), "exact") for q in split]
        [order] = engine.schedule(asked, len(asked))
    for index in order:
        for number, length in enumerate(split[index].lengths):
            packed.append((index, number, at, length))
            at += length
    return packed, at


PACKED, TOTAL = segments_packed()
LAST, BEFORE = PACKED[-1], PACKED[-2]  # of the same question


def sees_another_flex(patch):
    reader, key = LAST[2] + LAST[3] - 1, BEFORE[2]
    packed_mask_with(patch, lambda v, q, kv, P, _: v | ((q == reader) & (kv == P + key)))


def sees_another_question(patch):
    packed_mask_with(patch, lambda v, q, kv, P, _: v | ((q == LAST[2]) & (kv == P + PACKED[0][2])))


def one_head_sees_another(patch):
    packed_mask_with(
        patch, lambda v, q, kv, P, h: v | ((h == 1) & (q == LAST[2]) & (kv == P + BEFORE[2]))
    )


def sees_another_sdpa(patch):
    """A key and value of another segment, appended to the last one's own for its last token."""
    intact = kv_state.attend_under_mask

    def leaking(query, key, value, mask, *settings):
        rows, _, M, _ = query.shape
        if key.shape[2] == M:  # nothing is packed behind a prefix
            return intact(query, key, value, mask, *settings)
        foreign = key.shape[2] - M  # behind the prefix
        key, value = (
            torch.cat([x, x[-2:-1, :, [foreign]].expand(rows, -1, -1, -1)], dim=2)
            for x in (key, value)
        )
        seen = torch.zeros(rows, 1, M, 1, dtype=torch.bool)
        seen[-1, :, LAST[3] - 1] = True
        mask = torch.cat([mask.expand(rows, -1, -1, -1), seen], dim=-1)
        return intact(query, key, value, mask, *settings)

    patch.setattr(kv_state, "attend_under_mask", leaking)


def prefix_hidden_flex(patch):
    packed_mask_with(
        patch, lambda v, q, kv, P, _: v & ((kv >= P) | (q < LAST[2]) | (q >= LAST[2] + LAST[3]))
    )


def prefix_hidden_sdpa(patch):
    padded_mask_with(patch, -1, slice(None), slice(0, 3), False)


def looks_ahead_flex(patch):
    packed_mask_with(patch, lambda v, q, kv, P, _: v | ((q == LAST[2]) & (kv == P + LAST[2] + 1)))


def looks_ahead_sdpa(patch):
    padded_mask_with(patch, -1, 0, 1, True)


def prefix_looks_ahead(patch):
    intact = EncodeState._padded_mask

    def mask(self, window, *beside):
        found = intact(self, window, *beside)
        if not self.prefix:
            found[..., 0, 1] = True
        return found

    patch.setattr(EncodeState, "_padded_mask", mask)


def own_token_twice(patch):
    """The last token of a segment that is not the longest sees the cell that pads it."""
    row = next(at for at, part in enumerate(PACKED) if part[3] < max(p[3] for p in PACKED))
    padded_mask_with(patch, row, PACKED[row][3] - 1, PACKED[row][3], True)


def own_token_hidden(patch):
    padded_mask_with(patch, -1, 1, 0, False)


def empty_row_flex(patch):
    packed_mask_with(patch, lambda v, q, kv, P, _: v & (q != LAST[2] + 1))


def empty_row_sdpa(patch):
    padded_mask_with(patch, -1, 1, slice(None), False)


def sees_padding_flex(patch):
    packed_mask_with(patch, lambda v, q, kv, P, _: v | ((q == LAST[2]) & (kv == P + TOTAL)))


def fused_sees_padding(patch):
    shorter = min(range(3), key=lambda number: PACKED[-3 + number][3])
    fused_mask_with(patch, lambda plan, mask: mask.segments[:, -1, shorter].fill_(True))


def blind_to_a_segment(patch):
    fused_mask_with(patch, lambda plan, mask: mask.segments[:, :, 1].fill_(False))


def blind_after_the_first_token(patch):
    def broken(plan, mask):
        if plan.queries == 1:
            mask.segments[:, :, 1].fill_(False)

    fused_mask_with(patch, broken)


def blind_to_all_but_the_last(patch):
    fused_mask_with(patch, lambda plan, mask: mask.segments[:, :, :-1].fill_(False))


def fused_looks_ahead(patch):
    def broken(plan, mask):
        if plan.queries > 1:
            mask.fused[:, :, :, 0].fill_(True)

    fused_mask_with(patch, broken)


def uneven_partitions(patch):
    intact = fusion._partition_weights

    def weights(scores, fusion):
        K = scores.shape[2]
        return intact(scores, fusion) * torch.linspace(0.5, 1.5, K)[:, None, None]

    patch.setattr(fusion, "_partition_weights", weights)


STATES, ORDER, ALONE = "packed_equals_separate", "first_token_fused", "fused_equals_alone"
# What is broken: how, in which backend, the mask's promise that is named, the figures that fail.
BROKEN = {
    "segment sees another, flex": (sees_another_flex, "flex", "segments_apart", {STATES}),
    "segment sees another, sdpa": (sees_another_sdpa, "sdpa", "segments_apart", {STATES}),
    "sees another question": (sees_another_question, "flex", "segments_apart", {STATES}),
    "one head sees another": (one_head_sees_another, "flex", "segments_apart", {STATES}),
    "prefix hidden, flex": (prefix_hidden_flex, "flex", "prefix_seen", {STATES}),
    "prefix hidden, sdpa": (prefix_hidden_sdpa, "sdpa", "prefix_seen", {STATES}),
    "blind to a segment": (blind_to_a_segment, "sdpa", "fused_sees_all", {ORDER}),
    "blind to all but one": (blind_to_all_but_the_last, "eager", "fused_sees_all", {ORDER}),
    "blind after the first": (blind_after_the_first_token, "sdpa", "fused_sees_all", {ALONE}),
    "uneven": (uneven_partitions, "sdpa", "fused_sees_all", {ORDER}),
    "looks ahead, flex": (looks_ahead_flex, "flex", "causal_order", {STATES}),
    "looks ahead, sdpa": (looks_ahead_sdpa, "sdpa", "causal_order", {STATES}),
    "prefix looks ahead": (prefix_looks_ahead, "eager", "causal_order", {STATES}),
    "own token twice": (own_token_twice, "sdpa", "no_empty_row", {STATES}),
    "own token hidden": (own_token_hidden, "eager", "causal_order", {STATES}),
    "fused looks ahead": (fused_looks_ahead, "sdpa", "causal_order", {ALONE}),
    "empty row, flex": (empty_row_flex, "flex", "no_empty_row", {STATES}),
    "empty row, sdpa": (empty_row_sdpa, "sdpa", "no_empty_row", {STATES}),
    "empty row, eager": (empty_row_sdpa, "eager", "no_empty_row", {STATES}),
    "padding seen, flex": (sees_padding_flex, "flex", "no_empty_row", {STATES}),
    "padding seen by fused": (fused_sees_padding, "sdpa", "no_empty_row", {ALONE}),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_mask_is_named(fault, monkeypatch):
    breaks, backend, promise, figures = BROKEN[fault]
    found = certificate_of(backend=backend, breaking=lambda: breaks(monkeypatch))
    wrong = failed(found)
    print(reason(found, promise), wrong)
    assert wrong & set(MASK_ITEMS) == {promise}
    assert wrong >= figures


@pytest.mark.parametrize(
    "plan, name, promises",
    [
        (EncodeState, "_padded_mask", {"prefix_seen", "causal_order"}),
        (DecodeState, "_build_masks", {"fused_sees_all"}),
    ],
)
def test_a_window_that_is_lost_is_named(plan, name, promises, monkeypatch):
    """Sliding windows see nearer keys only; a mask without one sees them all."""
    intact = getattr(plan, name)

    def breaks():
        monkeypatch.setattr(plan, name, lambda self, window, *rest: intact(self, None, *rest))

    found = certificate_of(architecture="mistral", breaking=breaks)
    assert failed(found) & set(MASK_ITEMS) == promises
    for promise in promises:
        assert "where it sees 7 positions back" in reason(found, promise)


@pytest.mark.parametrize("kind", ["keys", "values"])
def test_what_is_kept_for_fused_tokens_is_compared(kind, monkeypatch):
    """Right attention, and wrong keys or values kept of one layer."""
    intact = EncodeState.attend

    def keeping(self, layer, *given):
        out = intact(self, layer, *given)
        if self.prefix and layer == 1:
            own = self.layers[layer]
            self.layers[layer] = replace(own, **{kind: getattr(own, kind) * 1.001})
        return out

    found = certificate_of(breaking=lambda: monkeypatch.setattr(EncodeState, "attend", keeping))
    assert failed(found) == {STATES, ALONE}
    assert f"most in {kind} of segment" in reason(found, STATES)


@pytest.mark.parametrize("kind", ["keys", "values"])
def test_two_segments_that_are_swapped_are_noticed(kind, monkeypatch):
    """What is kept of two segments of a question, each the other's as far as both go."""
    (_, _, first, n), (_, _, second, m) = BEFORE, LAST
    some = min(n, m)
    intact = EncodeState.attend

    def swapping(self, layer, *given):
        out = intact(self, layer, *given)
        kept = getattr(self.layers[layer], kind)
        if kept.shape[1] == TOTAL and self.prefix:
            mine, other = slice(first, first + some), slice(second, second + some)
            changed = kept.clone()
            changed[:, mine], changed[:, other] = kept[:, other], kept[:, mine]
            self.layers[layer] = replace(self.layers[layer], **{kind: changed})
        return out

    found = certificate_of(breaking=lambda: monkeypatch.setattr(EncodeState, "attend", swapping))
    assert {STATES, ALONE} <= failed(found)
    assert f"most in {kind} of segment" in reason(found, STATES)


@pytest.mark.parametrize("where", ["keys", "logits"])
def test_nan_fails_and_is_named(where, monkeypatch):
    """Nothing that is NaN passes, and the certificate goes on past it."""
    nan = float("nan")

    def kept(self, layer, *given):
        out = attend(self, layer, *given)
        if self.prefix:
            own = self.layers[layer]
            self.layers[layer] = replace(own, keys=own.keys * nan)
        return out

    def said(self, *given):
        return fused(self, *given) * nan

    attend, fused = EncodeState.attend, forward.Forward.fused

    def breaks():
        if where == "keys":
            monkeypatch.setattr(EncodeState, "attend", kept)
        else:
            monkeypatch.setattr(forward.Forward, "fused", said)

    found = certificate_of(breaking=breaks)
    expected = {"keys": {STATES, ORDER, ALONE}, "logits": {ORDER, ALONE}}[where]
    assert failed(found) >= expected
    figures = {item.name: item.figure for item in found.items if item.name in expected}
    assert figures == dict.fromkeys(expected)
    assert "nan" in reason(found, ORDER)


# ---- a decode that is wrong under right masks -----------------------------------------------


def placed(patch, change):
    """A question's placement, changed."""
    intact = streams.assign_question_positions
    place = lambda *given: change(intact(*given))  # noqa: E731
    patch.setattr(streams, "assign_question_positions", place)


def not_turned(patch):
    placed(patch, lambda found: replace(found, rope_offsets=(0,) * len(found.rope_offsets)))


def fused_further_on(patch):
    placed(patch, lambda found: replace(found, fused_start=found.fused_start + 7))


def queries_halved(patch):
    intact = DecodeState.attend
    patch.setattr(
        DecodeState,
        "attend",
        lambda self, layer, query, *rest: intact(self, layer, query / 2, *rest),
    )


def keys_rolled(patch):
    intact = DecodeState._write
    patch.setattr(
        DecodeState, "_write", lambda self, layer, k, v: intact(self, layer, k.roll(1, -1), v)
    )


def later_step_further_on(patch):
    intact = forward.Forward.fused

    def fused(self, ids, positions):
        return intact(self, ids, positions + 1 if ids.shape[1] == 1 else positions)

    patch.setattr(forward.Forward, "fused", fused)


WRONG_DECODES = [not_turned, fused_further_on, queries_halved, keys_rolled, later_step_further_on]


@pytest.mark.parametrize(
    "breaks, dtype",
    [*((breaks, torch.float32) for breaks in WRONG_DECODES), (queries_halved, torch.bfloat16)],
)
def test_a_wrong_decode_is_named(breaks, dtype, monkeypatch):
    found = certificate_of(dtype=dtype, breaking=lambda: breaks(monkeypatch))
    assert failed(found) == {ALONE}
    [item] = [item for item in found.items if item.name == ALONE]
    assert item.figure > 0.4  # what rounding may do in half precision is a fifth of that


@pytest.mark.parametrize("breaks", [fused_further_on, later_step_further_on])
def test_a_wrong_decode_is_named_without_turning(breaks, monkeypatch):
    """Positions a model with learned ones has: a question with one paraphrase is asked."""
    breaking = lambda: breaks(monkeypatch)  # noqa: E731
    found = certificate_of(architecture="gpt2", breaking=breaking)
    assert failed(found) == {ALONE}
    assert "asked with one paraphrase" in reason(found, ALONE)


def test_padding_of_a_shorter_tail_that_attends_to_nothing(monkeypatch):
    """Its states would be no numbers, and a share of zero of those is none either."""
    intact = DecodeState._build_masks
    tokenizer = tokenizer_of("question mark and newline")
    asked, told = "Who wrote {}?", "{} was written by [MASK]"
    questions = [[text.format(x) for x in ("Emma", "Dune")] for text in (asked, told)]

    def empty(self, window, group):
        found = intact(self, window, group)
        if self.queries > 1 and self.segment_mask.shape[1] > 1:
            segments = found.segments.expand(-1, -1, -1, self.queries * group, -1).clone()
            fused = found.fused.clone()
            for part in (segments, fused):
                part[:, ~self.own_mask[:, 0], :, 0 :: self.queries] = False
            found = replace(found, segments=segments, fused=fused)
        return found

    template = PromptTemplate("", PLAIN.tail, add_special_tokens=False)  # no prefix to see
    for broken in (False, True):
        if broken:
            monkeypatch.setattr(DecodeState, "_build_masks", empty)
        with engine_of(tokenizer) as engine:
            found = certify(engine, template, questions, positions="exact")
        assert len({len(split.tail) for split in found.splits}) == 2
        assert (statuses(found)["no_empty_row"] == FAILED) == broken
    assert "a padding token among the fused tokens attends" in reason(found, "no_empty_row")


# ---- cuts, BOS and positions that are wrong -------------------------------------------------


def wrong_cut(monkeypatch, change):
    """split_prompts with another result."""
    intact = certificate.split_prompts
    monkeypatch.setattr(certificate, "split_prompts", lambda *given: change(*intact(*given)))


def greedy_tail(prefix, split):
    """Of each question the last token of the first paraphrase goes to the tail."""
    return prefix, [
        SplitQuestion(
            tuple(segment[:-1] for segment in question.segments),
            question.segments[0][-1:] + question.tail,
        )
        for question in split
    ]


def greedy_prefix(prefix, split):
    return prefix + split[0].segments[0][:1], [
        replace(question, segments=tuple(part[1:] for part in question.segments))
        for question in split
    ]


def lost_token(prefix, split):
    last = split[-1]
    shorter = replace(last, segments=(*last.segments[:-1], last.segments[-1][1:]))
    return prefix, [*split[:-1], shorter]


def short_tail(prefix, split):
    return prefix, [
        SplitQuestion(tuple(part + q.tail[:-1] for part in q.segments), q.tail[-1:]) for q in split
    ]


@pytest.mark.parametrize(
    "change, said",
    [
        (greedy_tail, "the tail holds characters of the paraphrase"),
        (greedy_prefix, "the prefix holds characters of the paraphrase"),
        (lost_token, 'the parts of "Peru\'s capital is" are not the tokens of its prompt'),
    ],
)
def test_a_wrong_cut_is_named(change, said, monkeypatch):
    wrong_cut(monkeypatch, change)
    found = certificate_of()
    assert "cut" in failed(found)
    assert said in reason(found, "cut")


def test_another_tail_than_the_longest_is_no_fault(monkeypatch):
    wrong_cut(monkeypatch, short_tail)
    assert failed(certificate_of()) == set()


def test_other_tokens_than_the_cut_ones_are_noticed(monkeypatch):
    intact = encode.encode_packed

    def other(forward, segments, *rest, **settings):
        return intact(forward, [(5, *segment[1:]) for segment in segments], *rest, **settings)

    monkeypatch.setattr(encode, "encode_packed", other)
    found = certificate_of()
    assert {"cut", STATES} <= failed(found)
    assert reason(found, "cut") == "the model is fed other tokens than those that were cut"


def test_prompts_that_cannot_be_cut():
    found = certificate_of("anything merges")
    assert not found.passed
    assert statuses(found)["cut"] == FAILED
    assert "merges" in reason(found, "cut")
    assert set(statuses(found).values()) == {FAILED, NOT_RUN}
    assert reason(found, STATES) == "the prompts cannot be cut"


@pytest.mark.parametrize(
    "name, own_bos, special, said",
    [
        ("byte-level, BOS", True, True, "2 in a prompt (.*): 1 should be there"),
        ("byte-level, BOS", False, True, "1 in a prompt (.*): 0 should be there"),
        ("byte-level, BOS", None, False, "0 in a prompt (.*): 1 should be there"),
    ],
    ids=["template and tokenizer", "tokenizer for a template", "none for a plain prompt"],
)
def test_a_wrong_number_of_bos_is_named(name, own_bos, special, said):
    template = PLAIN
    if own_bos is not None:
        tokenizer = tokenizer_of(name)
        tokenizer.chat_template = CHAT if own_bos else CHAT.removeprefix("{{ bos_token }}")
        template = chat_prompt_template(tokenizer, PLAIN)
    template = replace(template, add_special_tokens=special)
    found = certificate_of(name, template, chat=own_bos is not None)
    assert failed(found) == {"bos"}
    assert re.fullmatch(said, reason(found, "bos"))


@pytest.mark.parametrize(
    "before, behind, said",
    [
        ("{{ bos_token }}", "", "one at most has a meaning to a model"),
        ("", "{{ bos_token }}:", "a segment or a tail holds one"),
        ("<|user|>", "", "it is not the first token"),
    ],
)
def test_a_chat_template_that_writes_bos_where_it_should_not(before, behind, said):
    tokenizer = tokenizer_of("byte-level, BOS")
    tokenizer.chat_template = before + CHAT + behind
    found = certificate_of(template=chat_prompt_template(tokenizer, PLAIN), chat=True)
    assert failed(found) == {"bos"}
    assert reason(found, "bos").endswith(f": {said}")


def test_a_chat_template_whose_turns_begin_with_bos():
    """As SmolLM2's, whose BOS is <|im_start|>: the assistant's header in the tail has one too."""
    tokenizer = tokenizer_of("byte-level, BOS")
    turn = "{{ bos_token }}<|{{ message['role'] }}|>\n{{ message['content'] }}\n"
    tokenizer.chat_template = (
        f"{{% for message in messages %}}{turn}{{% endfor %}}"
        "{% if add_generation_prompt %}{{ bos_token }}<|assistant|>\n{% endif %}"
    )
    template = chat_prompt_template(tokenizer, PLAIN)
    found = certificate_of(template=template, chat=True)
    assert failed(found) == set()
    assert "opens every turn with" in reason(found, "bos")
    # One more, which the tokenizer puts there, is still told of.
    found = certificate_of(template=replace(template, add_special_tokens=True), chat=True)
    assert failed(found) == {"bos"}
    assert reason(found, "bos").endswith(": 2 should be there")


def test_positions_that_the_model_cannot_have():
    with engine_of(tokenizer_of("byte-level, BOS"), "gpt2") as engine:
        found = certify(engine, PLAIN, QUESTIONS, positions="exact")
    assert statuses(found)["positions"] == FAILED
    assert "--positions left" in reason(found, "positions")
    assert statuses(found)[STATES] == NOT_RUN
    assert not found.passed


def test_prompts_that_are_too_long():
    template = PromptTemplate(PLAIN.head * 8, PLAIN.tail)
    found = certificate_of(template=template)
    assert statuses(found)["positions"] == FAILED
    assert "more than the model's 256" in reason(found, "positions")
    assert "more than the model's 256" in reason(found, STATES)
