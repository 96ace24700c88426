"""On a GPU: the proofs of test_fusion.py again, through compiled FlexAttention too.

    python -m pytest -n 0 -m gpu

The CPU's engine, which test_fusion.py holds against its oracles, is the oracle here.
"""

import pytest
import torch
from fused import (
    PREFIX,
    QUESTIONS,
    STREAMS,
    answer,
    capped,
    distance,
    fused_logits,
    make_engine,
    question,
)
from tiny import ARCHITECTURES, ROTARY, tiny_model

from self_ensemble.attention import backends
from self_ensemble.attention.cuda_graphs import CapturedStep
from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.generation.streams import attention_streams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]

# The kernels compile for heads of 16 and more.
WIDER = {"head_dim": 16, "hidden_size": 64}


@pytest.fixture
def flex_calls(monkeypatch):
    """How often compiled FlexAttention ran."""
    torch._dynamo.reset()
    calls = []
    kernel = backends.compiled_flex_attention("cuda")

    def counting(*args, **kwargs):
        calls.append(args[0].shape)
        return kernel(*args, **kwargs)

    monkeypatch.setattr(backends, "compiled_flex_attention", lambda device: counting)
    return calls


@pytest.mark.parametrize("fusion", ["mean", "joint"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_flex_sdpa_and_plain_math_agree_with_the_cpu(name, fusion, flex_calls):
    model, q = tiny_model(name, **WIDER), question(10)
    positions = "exact" if fusion == "mean" and name in ROTARY else "left"
    tokens, expected = fused_logits(model, q, positions, Fusion(fusion), backend="eager")
    model = model.cuda()
    for backend in ("flex", "sdpa", "eager"):
        if backend == "sdpa" and capped(model):
            continue
        found, logits = fused_logits(
            model, q, positions, Fusion(fusion), backend=backend, compiled=True
        )
        assert bool(flex_calls) == (backend == "flex")
        flex_calls.clear()
        assert found == tokens, backend
        assert distance(logits.cpu(), expected) <= 1e-3, backend


U = (1.0, 0.0, 2.0, 1.0, 1.0)


@pytest.fixture
def replays(monkeypatch):
    """A truth for each replay of a captured step."""
    found = []
    replay = CapturedStep.__call__

    def counting(step, *inputs):
        found.append(True)
        return replay(step, *inputs)

    monkeypatch.setattr(CapturedStep, "__call__", counting)
    return found


@pytest.mark.parametrize(
    ("name", "kind", "tau", "weights", "rows"),
    [
        ("llama", "mean", 0, None, "attention"),
        ("llama", "mean", 0, U, "attention"),
        ("llama", "mean", 0.5, U, "attention"),
        ("llama", "joint", 0, U, "attention"),
        ("gemma2", "mean", 0, None, "attention"),
        ("gpt_neox", "mean", 0, None, "attention"),
        ("gpt2", "joint", 0, None, "attention"),
        ("gemma3", "mean", 0, None, "logits"),
        ("gemma3", "mean", 0, None, "concat"),
    ],
)
def test_captured_steps_equal_steps_as_they_are(name, kind, tau, weights, rows, replays):
    """Questions that stop at different steps, so that rows leave and the step is captured again."""
    model = tiny_model(name, **WIDER)
    reduce, streams_of = STREAMS[rows]
    streams = [streams_of(q) for q in QUESTIONS]
    if rows == "attention" and not (name in ROTARY and kind == "mean"):
        streams = [attention_streams(q, len(PREFIX), "left") for q in QUESTIONS]

    def run(model, captured, sizes):
        fusion = Fusion.of(kind, tau, weights, model.device)
        replays.clear()
        with FlexAttentionWrapper(model, "flex" if captured else "eager") as wrapper:
            engine = make_engine(wrapper, capture=captured)
            endless = answer(engine, streams, fusion, reduce, steps=10)
            assert bool(replays) == captured
            stops = {tokens[1 + index % 6] for index, tokens in enumerate(endless)}
            found = [
                answer(engine, streams, fusion, reduce, b, steps=10, stop=stops) for b in sizes
            ]
            return endless, found

    endless, [expected] = run(model, False, [None])
    model = model.cuda()
    assert run(model, False, [None]) == (endless, [expected])
    # Replayed from the first step on; in more room; a question at a time; as it was.
    assert run(model, True, [None, None, 2, 1, None]) == (endless, [expected] * 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(dtype, flex_calls):
    model, q = tiny_model("llama", **WIDER), question(10)
    _, expected = fused_logits(model, q, "exact", steps=1)
    model = model.to("cuda", dtype)
    for backend in ("flex", "sdpa", "eager"):
        _, logits = fused_logits(model, q, "exact", backend=backend, compiled=True, steps=1)
        spread = expected.std().item()
        assert distance(logits.cpu(), expected) <= 0.25 * spread, backend
    assert flex_calls
