"""What is refused before a model is used: values that are no numbers, which pass every ``>``."""

import pytest
import torch
from tiny import tiny_model

from self_ensemble.attention import backends
from self_ensemble.attention.checks import check_architecture, flex_problem
from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.attention.rotary import read_rotary
from self_ensemble.system.errors import UserError

NAN = float("nan")


def poisoned(weight: str, dtype=torch.float32):
    model = tiny_model("llama").to(dtype)
    with torch.no_grad():
        model.get_parameter(weight).view(-1)[0] = NAN
    return model


WEIGHTS = ("model.layers.1.mlp.up_proj.weight", "lm_head.weight")


@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_model_of_nan_is_not_taken_for_a_good_one(weight):
    with (
        FlexAttentionWrapper(poisoned(weight), "eager") as wrapper,
        pytest.raises(UserError) as error,
    ):
        check_architecture(wrapper)
    assert "not numbers in float32: its weights are damaged" in str(error.value)


def test_half_precision_is_what_is_told_to_leave():
    with (
        FlexAttentionWrapper(poisoned(WEIGHTS[0], torch.float16), "eager") as wrapper,
        pytest.raises(UserError, match=r"not numbers in float16: take --dtype float32$"),
    ):
        check_architecture(wrapper)


def test_our_attention_alone_gives_nan(monkeypatch):
    """Then it is the architecture that does not work under it."""
    from self_ensemble.attention import kv_state

    intact = kv_state.attend_under_mask
    monkeypatch.setattr(kv_state, "attend_under_mask", lambda *given: intact(*given) * NAN)
    with (
        FlexAttentionWrapper(tiny_model("llama"), "eager") as wrapper,
        pytest.raises(UserError, match="a segment's logits move by nan%"),
    ):
        check_architecture(wrapper)


def test_rotary_positions_are_not_blamed_for_nan():
    with (
        FlexAttentionWrapper(poisoned(WEIGHTS[0]), "eager") as wrapper,
        pytest.raises(UserError, match="not numbers in float32"),
    ):
        read_rotary(wrapper, max_offset=3, last_position=20)


def test_a_kernel_that_gives_nan_has_a_problem(monkeypatch):
    intact = backends._eager_flex()
    monkeypatch.setattr(
        backends, "compiled_flex_attention", lambda device: lambda *q, **m: intact(*q, **m) * NAN
    )
    with FlexAttentionWrapper(tiny_model("llama"), "flex") as wrapper:
        wrapper.meet_layers()
        assert flex_problem(wrapper) == "its result is off by nan"
