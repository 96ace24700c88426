"""The fast engine against plain oracles and stock transformers, for every architecture."""

from dataclasses import replace

import pytest
import torch
from fused import (
    LENGTHS,
    MIXED_TAILS,
    PREFIX,
    QUESTIONS,
    STEPS,
    TAIL,
    TOLERANCE,
    Recorder,
    answer,
    attending,
    backends,
    distance,
    fused_logits,
    ids,
    make_engine,
    make_request,
    oracle_logits,
    question,
    small_memory,
    tokens_of,
)
from oracle import joint_oracle, mean_oracle
from tiny import ARCHITECTURES, ROTARY, tiny_model
from transformers import DynamicCache

from self_ensemble.attention import kv_state
from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.kv_state import DecodeState, EncodeState
from self_ensemble.attention.patching import FlexAttentionWrapper, MaskedState
from self_ensemble.attention.scoring import KeyValues
from self_ensemble.generation.encode import encode_prefix
from self_ensemble.generation.forward import Forward
from self_ensemble.generation.streams import attention_streams, logit_streams
from self_ensemble.system.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture(autouse=True)
def quick_flex(monkeypatch):
    """Packed lengths are rounded up to less, and uncompiled FlexAttention is not traced either."""
    monkeypatch.setattr("self_ensemble.generation.batching.FLEX_BUCKET", 64)
    untraced = "torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
    monkeypatch.setattr(untraced, True, raising=False)  # an older torch has no such switch


# ---- isolation ------------------------------------------------------------------------------


def encode_packed(wrapper, prefix, segments):
    """Hidden states [T, hidden] and the plan of one packed forward, under `left`."""
    with torch.no_grad():
        layers = encode_prefix(Forward(wrapper.model, wrapper, compiled=False), prefix).layers
    lengths = [len(s) for s in segments]
    positions = torch.cat([torch.arange(len(prefix), len(prefix) + n) for n in lengths])
    plan = EncodeState(
        lengths,
        torch.arange(len(segments)).repeat_interleave(torch.tensor(lengths)),
        positions,
        layers,
        backend=wrapper.backend,
        compiled=wrapper.compiled,
    )
    tokens = torch.tensor([t for s in segments for t in s])
    with wrapper.using(plan), torch.no_grad():
        hidden = wrapper.model.base_model(
            input_ids=tokens[None], position_ids=positions[None], use_cache=False
        ).last_hidden_state[0]
    return hidden, plan


def stock(model, tokens):
    """Hidden states and (keys, values) of each layer of a stock forward."""
    cache = DynamicCache()
    with torch.no_grad():
        hidden = model.base_model(
            input_ids=torch.tensor([tokens]), past_key_values=cache, use_cache=True
        ).last_hidden_state[0]
    return hidden, [(layer.keys[0], layer.values[0]) for layer in cache.layers]


def isolation_errors(model, q, backend, prefix=PREFIX):
    """Of each segment, the largest difference from stock `prefix + segment`: hidden states, keys
    and values."""
    with attending(model, backend) as wrapper:
        hidden, plan = encode_packed(wrapper, prefix, q.segments)
    errors, at = [], 0
    for segment in q.segments:
        expected, layers = stock(model, [*prefix, *segment])
        own = slice(at, at + len(segment))
        worst = distance(hidden[own], expected[len(prefix) :])
        for index, (keys, values) in enumerate(layers):
            kv = plan.layers[index]
            worst = max(worst, distance(kv.keys[:, own], keys[:, len(prefix) :]))
            worst = max(worst, distance(kv.values[:, own], values[:, len(prefix) :]))
        errors.append(worst)
        at += len(segment)
    return errors


@pytest.mark.parametrize("N", LENGTHS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_segments_equal_a_stock_forward_alone(name, N):
    model = tiny_model(name)
    for backend in backends(model):
        assert max(isolation_errors(model, question(N), backend)) <= TOLERANCE, backend


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_segments_without_a_prefix_equal_a_stock_forward_alone(name):
    model = tiny_model(name)
    for backend in backends(model):
        assert max(isolation_errors(model, question(), backend, prefix=())) <= TOLERANCE, backend


def leak_in_the_mask(monkeypatch, lengths):
    """Packed: the last segment's last token sees the first segment's first one."""
    intact, last = kv_state.packed_segment_mask, sum(lengths) - 1

    def leaking(segment_ids, position_ids, P, window):
        mask_mod = intact(segment_ids, position_ids, P, window)
        if P == 0:  # the prefix itself
            return mask_mod
        return lambda b, h, q, kv: mask_mod(b, h, q, kv) | ((q == last) & (kv == P))

    monkeypatch.setattr(kv_state, "packed_segment_mask", leaking)


def leak_of_a_key(monkeypatch, lengths):
    """Padded: the same key and value, appended to the row's own for that one query."""
    intact = kv_state.attend_under_mask

    def leaking(query, key, value, mask, *settings):
        rows, _, M, _ = query.shape
        if rows == 1:  # the prefix itself
            return intact(query, key, value, mask, *settings)
        foreign = key.shape[2] - M  # behind the prefix
        key, value = (
            torch.cat([x, x[:1, :, [foreign]].expand(rows, -1, -1, -1)], dim=2)
            for x in (key, value)
        )
        seen = torch.zeros(rows, 1, M, 1, dtype=torch.bool)
        seen[-1, :, lengths[-1] - 1] = True
        mask = torch.cat([mask.expand(rows, -1, -1, -1), seen], dim=-1)
        return intact(query, key, value, mask, *settings)

    monkeypatch.setattr(kv_state, "attend_under_mask", leaking)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_leaked_key_is_noticed(name, monkeypatch):
    """Negative control: one query sees one foreign key. Queries and all else stay as they are."""
    model, q = tiny_model(name), question()
    for backend in backends(model):
        leak = leak_in_the_mask if backend == "flex" else leak_of_a_key
        with monkeypatch.context() as patch:
            leak(patch, LENGTHS[5])
            *others, reader = isolation_errors(model, q, backend)
        assert reader >= 1e-2, backend
        assert max(others) <= TOLERANCE, backend


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("mistral", {"sliding_window": None}),
        ("phi3", {"sliding_window": None}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"layer_types": ["full_attention"] * 4}),
        ("gemma3", {"layer_types": ["full_attention"] * 4}),
        ("gemma3", {"layer_types": ["sliding_attention"] * 4}),
        ("gpt_neox", {"rotary_pct": 1.0}),
    ],
)
def test_each_architectures_feature_bites(name, without):
    """Negative control: with the feature removed the fused logits move."""
    q = question()
    model, plainer = tiny_model(name), tiny_model(name, **without)
    tokens, logits = fused_logits(model, q, "left")
    plain = oracle_logits(mean_oracle, plainer, q, tokens, "left")
    assert distance(logits, plain) >= 1e-2


# ---- fusion ---------------------------------------------------------------------------------


def architectures_at(*schemes):
    """Learned positions cannot be exact: test_learned_positions_cannot_be_exact."""
    found = [(name, scheme) for name in ARCHITECTURES for scheme in schemes]
    return [(name, scheme) for name, scheme in found if name in ROTARY or scheme != "exact"]


@pytest.mark.parametrize("N", LENGTHS)
@pytest.mark.parametrize(
    ("name", "positions"), architectures_at("exact", "left", "right", "sequential")
)
def test_mean_equals_averaging_the_attention_of_stock_prompts(name, positions, N):
    model, q = tiny_model(name), question(N)
    tokens, logits = fused_logits(model, q, positions)
    assert distance(logits, oracle_logits(mean_oracle, model, q, tokens, positions)) <= TOLERANCE


@pytest.mark.parametrize("N", LENGTHS)
@pytest.mark.parametrize(("name", "positions"), architectures_at("left", "right", "sequential"))
def test_joint_equals_one_softmax_under_a_dense_mask(name, positions, N):
    model, q = tiny_model(name), question(N)
    tokens, logits = fused_logits(model, q, positions, Fusion("joint"))
    assert distance(logits, oracle_logits(joint_oracle, model, q, tokens, positions)) <= TOLERANCE


@pytest.mark.parametrize("positions", ["exact", "left"])
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("weights", [None, (3.0, 0.0, 1.0, 1.0, 0.5)])
def test_the_dial_and_the_weights(positions, tau, weights):
    model, q = tiny_model("gemma3"), question()
    tokens, logits = fused_logits(model, q, positions, Fusion.of("mean", tau, weights, "cpu"))
    expected = oracle_logits(mean_oracle, model, q, tokens, positions, tau=tau, weights=weights)
    assert distance(logits, expected) <= TOLERANCE


def test_weights_of_joint_fusion_bias_the_scores():
    model, q, weights = tiny_model("llama"), question(), (3.0, 0.0, 1.0, 1.0, 0.5)
    tokens, logits = fused_logits(model, q, "left", Fusion.of("joint", 0.0, weights, "cpu"))
    expected = oracle_logits(joint_oracle, model, q, tokens, "left", weights=weights)
    assert distance(logits, expected) <= TOLERANCE


def test_tau_one_is_joint_with_the_segments_scores_lowered():
    """One softmax whose segment scores are lowered by log N, computed apart."""
    model, q = tiny_model("llama"), question()
    torch.manual_seed(0)
    scores = torch.randn(2, 3, 5, 4, 7), torch.randn(2, 3, 1, 4, 9), torch.randn(2, 3, 1, 4, 2)
    segments, prefix, fused = scores
    from self_ensemble.attention.fusion import fuse_probabilities

    dialled = fuse_probabilities(prefix, segments, fused, Fusion("mean", tau=1.0))
    lowered = fuse_probabilities(prefix, segments - torch.tensor(5.0).log(), fused, Fusion("joint"))
    for got, expected in zip(dialled, lowered, strict=True):
        assert distance(got, expected) <= 1e-6
    tokens, logits = fused_logits(model, q, "left", Fusion("mean", tau=1.0))
    assert len(tokens) == len(logits) == STEPS


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_flex_sdpa_and_plain_math_agree(name):
    model, q = tiny_model(name), question(10)
    found = {b: fused_logits(model, q, "left", backend=b) for b in backends(model)}
    for backend, (tokens, logits) in found.items():
        assert tokens == found["eager"][0], backend
        assert distance(logits, found["eager"][1]) <= TOLERANCE, backend


@pytest.mark.parametrize("prefix", [PREFIX, ()], ids=["prefix", "no prefix"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_paraphrase_equals_generate(name, prefix):
    model, q = tiny_model(name), question(lengths=(12,))
    prompt = torch.tensor([[*prefix, *q.segments[0], *q.tail]])
    expected = model.generate(
        prompt, max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False, eos_token_id=None
    )[0, prompt.shape[1] :].tolist()
    for positions in ("exact", "left", "right"):
        assert list(fused_logits(model, q, positions, prefix=prefix)[0]) == expected
    with attending(model, "eager") as wrapper:
        [tokens] = answer(make_engine(wrapper), [logit_streams(q, len(prefix))], prefix=prefix)
    assert list(tokens) == expected


@pytest.mark.parametrize(("name", "positions"), architectures_at("exact", "left", "right"))
def test_five_copies_equal_the_paraphrase_alone(name, positions):
    model, one = tiny_model(name), question(lengths=(8,))
    five = replace(one, segments=one.segments * 5)
    alone, copies = (fused_logits(model, q, positions) for q in (one, five))
    assert alone[0] == copies[0]
    assert distance(alone[1], copies[1]) <= TOLERANCE


@pytest.mark.parametrize(("name", "positions"), architectures_at("exact", "left", "right"))
def test_the_order_of_paraphrases_does_not_matter(name, positions):
    model, q = tiny_model(name), question()
    permuted = replace(q, segments=tuple(q.segments[i] for i in (3, 0, 4, 2, 1)))
    for fusion in ("mean",) if positions == "exact" else ("mean", "joint"):
        a, b = (fused_logits(model, x, positions, Fusion(fusion)) for x in (q, permuted))
        assert a[0] == b[0], fusion
        assert distance(a[1], b[1]) <= TOLERANCE, fusion


def test_sequential_positions_do_depend_on_the_order():
    model, q = tiny_model("llama"), question()
    permuted = replace(q, segments=q.segments[::-1])
    a, b = (fused_logits(model, x, "sequential", steps=1)[1] for x in (q, permuted))
    assert distance(a, b) >= 1e-2


def test_learned_positions_cannot_be_exact():
    streams = [attention_streams(question(), len(PREFIX), "exact")]
    with (
        attending(tiny_model("gpt2"), "sdpa") as wrapper,
        pytest.raises(UserError, match="positions are not rotary"),
    ):
        answer(make_engine(wrapper), streams)


# ---- batches --------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", ["mean", "joint"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_batched_equals_one_by_one(name, fusion):
    model = tiny_model(name)
    positions = "exact" if name in ROTARY and fusion == "mean" else "left"
    streams = [attention_streams(q, len(PREFIX), positions) for q in QUESTIONS]
    with attending(model, "eager") as wrapper:
        engine = make_engine(wrapper)
        alone = answer(engine, streams, Fusion(fusion), batch_size=1)
        assert answer(engine, streams, Fusion(fusion), batch_size=3) == alone
        assert answer(engine, streams, Fusion(fusion)) == alone
        assert answer(engine, streams[::-1], Fusion(fusion))[::-1] == alone


def test_logit_fusion_batched_equals_one_by_one():
    streams = [logit_streams(q, len(PREFIX)) for q in QUESTIONS]
    mean = lambda logits, weights: logits.mean(1)  # noqa: E731
    with attending(tiny_model("llama"), "sdpa") as wrapper:
        engine = make_engine(wrapper)
        alone = answer(engine, streams, reduce=mean, batch_size=1)
        assert answer(engine, streams, reduce=mean) == alone


def test_logit_fusion_reduces_the_logits_of_stock_prompts():
    model, q = tiny_model("qwen3"), question()
    recorder = Recorder(lambda logits, weights: logits.mean(1))
    with attending(model, "sdpa") as wrapper:
        [tokens] = answer(make_engine(wrapper), [logit_streams(q, len(PREFIX))], reduce=recorder)
    for step, logits in enumerate(recorder.logits):
        with torch.no_grad():
            separate = [
                model(torch.tensor([[*PREFIX, *s, *q.tail, *tokens[:step]]])).logits[0, -1]
                for s in q.segments
            ]
        assert distance(logits[0], torch.stack(separate).mean(0)) <= TOLERANCE


def test_decode_forwards_carry_questions_not_paraphrases():
    """One row a question for attention fusion, N for logit fusion."""
    rows = []
    model = tiny_model("llama")
    model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    with attending(model, "sdpa") as wrapper:
        engine = make_engine(wrapper)
        request = make_request([attention_streams(q, len(PREFIX), "exact") for q in QUESTIONS])
        generation = engine.generate(request)
        tokens_of(generation)
        width = max(map(len, MIXED_TAILS))
        assert rows == [(7, width)] + [(7, 1)] * (STEPS - 1)
        assert generation.stats.decode_rows == 7 * STEPS
        rows.clear()
        mean = lambda logits, weights: logits.mean(1)  # noqa: E731
        answer(engine, [logit_streams(q, len(PREFIX)) for q in QUESTIONS], reduce=mean)
        assert rows == [(35, width)] + [(35, 1)] * (STEPS - 1)


def test_a_finished_question_leaves_and_changes_nobody():
    """Each question stops after a number of tokens of its own; the others go on as before."""
    streams = [attention_streams(q, len(PREFIX), "exact") for q in QUESTIONS]
    with attending(tiny_model("llama"), "sdpa") as wrapper:
        engine = make_engine(wrapper)
        endless = answer(engine, streams, steps=8)
        stops = {tokens[1 + index % 4] for index, tokens in enumerate(endless)}
        generation = engine.generate(make_request(streams, steps=8, stop=stops))
        stopped = tokens_of(generation, stops)
        for full, cut in zip(endless, stopped, strict=True):
            first = min((full.index(s) for s in stops if s in full), default=len(full))
            assert cut == full[:first]
        assert generation.stats.decode_rows < 7 * generation.stats.decode_forwards


def test_weights_follow_their_questions_when_others_leave():
    """Question q listens to its stream q mod 5 alone, and stops after a number of tokens."""
    streams = [logit_streams(q, len(PREFIX)) for q in QUESTIONS]
    chosen = torch.eye(5)[torch.arange(len(QUESTIONS)) % 5]

    def listen(logits, weights):
        return (logits * weights[:, :, None]).sum(1)

    def run(streams, weights, stop=(), **settings):
        request = make_request(streams, reduce=listen, weights=weights, steps=8, stop=stop)
        return tokens_of(engine.generate(request, **settings), stop)

    with attending(tiny_model("llama"), "sdpa") as wrapper:
        engine = make_engine(wrapper)
        endless = run(streams, chosen, batch_size=7)
        stops = {tokens[1 + index % 4] for index, tokens in enumerate(endless)}
        alone = [
            run([stream], chosen[i : i + 1], stops, batch_size=1)[0]
            for i, stream in enumerate(streams)
        ]
        assert run(streams, chosen, stops, batch_size=7) == alone
        assert len({len(tokens) for tokens in alone}) > 1


def test_an_out_of_memory_batch_is_halved_and_nothing_is_lost(monkeypatch, caplog):
    streams = [attention_streams(q, len(PREFIX), "left") for q in QUESTIONS]
    with attending(tiny_model("llama"), "sdpa") as wrapper:
        engine = make_engine(wrapper)
        expected = answer(engine, streams)
        monkeypatch.setattr("self_ensemble.generation.passes.encode_streams", small_memory(2))
        assert answer(engine, streams) == expected
    assert [r.message for r in caplog.records] == [
        "out of memory with 7 questions at a time: halved"
    ]


# ---- the split form -------------------------------------------------------------------------


def test_split_form_equals_the_repeated_query_form():
    """One layer's fused attention against: repeat the query N times, mask row i to partition i."""
    torch.manual_seed(3)
    J, G, D, P, M, K, R, S = 2, 3, 8, 4, 6, 5, 2, 3
    lengths = torch.tensor([[6, 1, 3, 6, 2], [2, 2, 5, 1, 4]])
    prefix = KeyValues(torch.randn(J, P, D), torch.randn(J, P, D))
    segments = KeyValues(torch.randn(J, R, K, M, D), torch.randn(J, R, K, M, D))
    real = torch.arange(M) < lengths[:, :, None]
    plan = DecodeState(
        prefix={0: prefix},
        segments={0: segments},
        segment_mask=real,
        segment_positions=P + torch.arange(M).expand(R, K, M),
        rope_offsets=None,
        rotary=None,
        slots=S,
        fusion=Fusion(),
    )
    positions = (P + M + torch.arange(S)).expand(R, S)
    plan.append(positions, torch.ones(R, S, dtype=torch.bool))
    q, k, v = torch.randn(R, J * G, S, D), torch.randn(R, J, S, D), torch.randn(R, J, S, D)
    from self_ensemble.attention.scoring import Scoring

    got = plan.attend(0, q, k, v, Scoring(D**-0.5))
    for r in range(R):
        for h in range(J * G):
            j = h // G
            for s in range(S):
                outs = []
                for i in range(K):
                    n = lengths[r, i]
                    keys = torch.cat([prefix.keys[j], segments.keys[j, r, i, :n], k[r, j, : s + 1]])
                    values = torch.cat(
                        [prefix.values[j], segments.values[j, r, i, :n], v[r, j, : s + 1]]
                    )
                    outs.append((keys @ q[r, h, s] * D**-0.5).softmax(0) @ values)
                assert distance(got[r, h, s], torch.stack(outs).mean(0)) <= 1e-5


# ---- the hook -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_patching_leaves_no_trace(name):
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model = tiny_model(name)
    names = set(ALL_ATTENTION_FUNCTIONS), set(ALL_MASK_ATTENTION_FUNCTIONS)
    sequence = torch.tensor([[*PREFIX, *TAIL]])
    with torch.no_grad():
        before = model(sequence).logits
        with FlexAttentionWrapper(model, "eager") as wrapper:
            assert len(wrapper.layers) == 0
            patched = model(sequence, use_cache=False).logits
            assert len(wrapper.layers) == model.config.num_hidden_layers
        assert distance(before, patched) <= TOLERANCE
        with pytest.raises(ZeroDivisionError), FlexAttentionWrapper(model, "eager"):
            raise ZeroDivisionError
        assert model.config._attn_implementation == "eager"
        assert torch.equal(before, model(sequence).logits)
    assert (set(ALL_ATTENTION_FUNCTIONS), set(ALL_MASK_ATTENTION_FUNCTIONS)) == names
    FlexAttentionWrapper(model).unpatch_model()


def test_a_mask_mod_reaches_every_layer():
    from self_ensemble.attention.masks import create_segment_isolation_mask

    model = tiny_model("llama")
    sequence = torch.tensor([ids(12, seed=9)])
    mask_mod = create_segment_isolation_mask([(0, 5), (5, 10)], 10)
    with torch.no_grad():
        alone = model(sequence[:, :5]).logits
        for backend in backends(model):
            with attending(model, backend, mask_mod=mask_mod) as wrapper:
                assert isinstance(wrapper.state, MaskedState)
                logits = model(sequence, use_cache=False).logits
                changed = sequence.clone()
                changed[0, 2] += 1
                moved = (model(changed, use_cache=False).logits - logits).abs().amax(-1)[0]
            assert distance(logits[:, :5], alone) <= TOLERANCE
            assert moved[5:10].max() == 0, "the second segment does not see the first"
            assert moved[10:].min() > 0, "fused tokens do"
