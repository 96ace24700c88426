"""What a patched model refuses, and rotary positions that must not be taken for others."""

import pytest
import torch
from fused import PREFIX, answer, distance, fused_logits, make_engine, oracle_logits, question
from oracle import mean_oracle
from tiny import tiny_model

from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.masks import create_segment_isolation_mask
from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.generation.streams import attention_streams
from self_ensemble.system.errors import UserError

ROPE = {"rope_theta": 10000.0, "original_max_position_embeddings": 40}
LONGROPE = {
    **ROPE,
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "factor": 6.0,
}


def test_exact_positions_where_the_padding_token_is_token_0():
    """Its embedding is zero, and so is whatever is rotated: it would prove nothing."""
    model, q = tiny_model("llama", pad_token_id=0), question()
    assert not model.get_input_embeddings().weight[0].any()
    tokens, logits = fused_logits(model, q, "exact")
    assert distance(logits, oracle_logits(mean_oracle, model, q, tokens, "exact")) <= 1e-4
    assert distance(logits, oracle_logits(mean_oracle, model, q, tokens, "left")) >= 1e-2


def test_rotary_positions_are_learned_on_a_model_that_has_not_run_yet():
    with FlexAttentionWrapper(tiny_model("llama"), "sdpa") as wrapper:
        engine = make_engine(wrapper)
        assert not wrapper.layers
        assert answer(engine, [attention_streams(question(), 0, "exact")], prefix=())


@pytest.mark.parametrize("backend", ["flex", "sdpa", "eager"])
def test_a_patched_model_refuses_what_it_would_ignore(backend):
    model, ids = tiny_model("llama"), torch.arange(2, 14)[None]
    mask_mod = create_segment_isolation_mask([(0, 5), (5, 10)], 10)
    padding = torch.ones_like(ids)
    wrapper = FlexAttentionWrapper(model, backend, compiled=False)
    with torch.no_grad(), wrapper.patch_model(mask_mod):
        model(ids, attention_mask=padding, use_cache=False)
        padding[0, :3] = 0
        with pytest.raises(ValueError, match="takes its mask from the wrapper"):
            model(ids, attention_mask=padding, use_cache=False)
        with pytest.raises(ValueError, match="use_cache=False"):
            model.generate(ids, max_new_tokens=3, min_new_tokens=3)


@pytest.mark.parametrize("tau", [30.0, 1e38])
def test_a_large_tau_listens_to_the_heaviest_paraphrase(tau):
    model, q = tiny_model("llama"), question()
    _, logits = fused_logits(model, q, "exact", Fusion("mean", tau=tau))
    assert logits.isfinite().all()


def test_a_prefix_longer_than_the_context_is_refused_before_it_is_encoded():
    with (
        FlexAttentionWrapper(
            tiny_model("gpt2", n_positions=9, max_position_embeddings=9), "sdpa"
        ) as wrapper,
        pytest.raises(UserError, match="positions with its answer"),
    ):
        answer(make_engine(wrapper), [])


def test_rotations_that_change_with_the_length_are_refused_beyond_it():
    """A long question would turn the positions of those it is batched with."""
    model = tiny_model(
        "phi3",
        partial_rotary_factor=1.0,
        original_max_position_embeddings=40,
        rope_parameters=LONGROPE,
    )
    with FlexAttentionWrapper(model, "eager") as wrapper:
        engine = make_engine(wrapper)
        short, long = (
            [attention_streams(question(lengths=(n, 4)), len(PREFIX), "left")] for n in (8, 30)
        )
        assert len(answer(engine, short)[0]) == 6
        with pytest.raises(UserError, match="beyond 40 this model turns all positions"):
            answer(engine, long)
