"""On a GPU: likelihoods are the CPU's, by every backend, and beside captured decode steps.

python -m pytest -n 0 -m gpu test/unit/generation/test_likelihood_gpu.py
"""

import pytest
import torch
from fused import QUESTIONS, STREAMS, capped, make_engine, make_request, tokens_of
from test_likelihood import MANY, same, score
from tiny import tiny_model

from self_ensemble.attention.patching import FlexAttentionWrapper

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
WIDER = {"head_dim": 16, "hidden_size": 64}


@pytest.mark.parametrize("kind", list(STREAMS))
@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral"])
def test_likelihoods_agree_with_the_cpu(name, kind):
    model, (reduce, streams_of) = tiny_model(name, **WIDER), STREAMS[kind]
    streams = [streams_of(q) for q in QUESTIONS]
    with FlexAttentionWrapper(model, "eager") as wrapper:
        expected = score(make_engine(wrapper), streams, MANY, reduce=reduce)
    model = model.cuda()
    for backend in ("flex", "eager") if capped(model) else ("flex", "sdpa", "eager"):
        with FlexAttentionWrapper(model, backend) as wrapper:
            found = score(make_engine(wrapper), streams, MANY, reduce=reduce)
        for each, wanted in zip(found, expected, strict=True):
            same(each, wanted, tolerance=1e-3)


def test_captured_steps_are_as_they_were_after_a_scoring():
    model, (reduce, streams_of) = tiny_model("llama", **WIDER).cuda(), STREAMS["attention"]
    streams = [streams_of(q) for q in QUESTIONS]
    with FlexAttentionWrapper(model, "flex") as wrapper:
        engine = make_engine(wrapper, capture=True)
        request = make_request(streams, reduce=reduce)
        expected = tokens_of(engine.generate(request))
        alone = score(make_engine(wrapper), streams, MANY, reduce=reduce)
        scored = score(engine, streams, MANY, reduce=reduce)
        assert engine.capture_problem(request.fusion) is None
        assert tokens_of(engine.generate(request)) == expected
        for each, wanted in zip(scored, alone, strict=True):
            same(each, wanted, tolerance=1e-3)
