"""On a GPU: the proofs of test_fusion.py again, through compiled FlexAttention too.

    python -m pytest -m gpu

The CPU's engine, which test_fusion.py holds against its oracles, is the oracle here.
"""

import pytest
import torch
from test_fusion import capped, distance, fused_logits, question
from tiny import ARCHITECTURES, ROTARY, tiny_model

import attention
from attention import Fusion

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
    kernel = attention.compiled_flex_attention()

    def counting(*args, **kwargs):
        calls.append(args[0].shape)
        return kernel(*args, **kwargs)

    monkeypatch.setattr(attention, "compiled_flex_attention", lambda: counting)
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
