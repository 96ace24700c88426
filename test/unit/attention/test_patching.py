"""A model is given back as it was, whatever happened; a block inside a block changes nothing."""

import copy

import pytest
import torch
from tiny import tiny_model
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from self_ensemble.attention.masks import create_segment_isolation_mask
from self_ensemble.attention.patching import FlexAttentionWrapper, MaskedState, configs_of

IDS = torch.arange(2, 14)[None]


def traces(model) -> tuple:
    """All that patching could leave behind, in the model and in transformers."""
    return (
        [(id(config), config._attn_implementation) for config in configs_of(model)],
        [
            (name, list(module._forward_pre_hooks), list(module._forward_hooks))
            for name, module in model.named_modules()
        ],
        [(name, vars(module).get("forward")) for name, module in model.named_modules()],
        [module.training for module in model.modules()],
        dict(ALL_ATTENTION_FUNCTIONS),
        dict(ALL_MASK_ATTENTION_FUNCTIONS),
    )


@pytest.fixture
def model():
    model = tiny_model("llama")
    model.set_attn_implementation("sdpa")
    return model


@torch.no_grad()
def logits(model, **settings):
    return model(IDS, use_cache=False, **settings).logits


def test_a_block_inside_a_block_changes_nothing(model):
    before, expected = traces(model), logits(model)
    wrapper = FlexAttentionWrapper(model, "eager")
    mask_mod = create_segment_isolation_mask([(0, 5), (5, 12)], 12)
    with wrapper.patch_model(mask_mod):
        within, state = traces(model), wrapper.state
        isolated = logits(model)
        with wrapper as again:
            assert again is wrapper and wrapper.state is state
            with pytest.raises(ZeroDivisionError), wrapper:
                raise ZeroDivisionError
            assert traces(model) == within
        assert traces(model) == within and torch.equal(logits(model), isolated)
    assert traces(model) == before and not wrapper.patched and wrapper.state is None
    assert torch.equal(logits(model), expected) and not torch.equal(isolated, expected)


def test_blocks_that_end_in_another_order(model):
    """As two iterators of answers do that are consumed by turns."""
    before = traces(model)
    wrapper = FlexAttentionWrapper(model, "eager")
    wrapper.__enter__()
    wrapper.__enter__()
    wrapper.__exit__(None, None, None)
    assert wrapper.patched
    wrapper.__exit__(None, None, None)
    assert traces(model) == before


def test_an_exception_in_a_layer_leaves_no_trace(model):
    before, expected = traces(model), logits(model)

    class Failing(MaskedState):
        def attend(self, layer, *given):
            if layer == 1:
                raise ZeroDivisionError
            return super().attend(layer, *given)

    wrapper = FlexAttentionWrapper(model, "eager")
    with pytest.raises(ZeroDivisionError), wrapper, wrapper.using(Failing(backend="eager")):
        logits(model)
    with pytest.raises(ZeroDivisionError), wrapper, wrapper.taken_out():
        assert traces(model)[:4] == before[:4]
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), wrapper, wrapper.compiled_layers():
        raise ZeroDivisionError
    assert traces(model) == before and torch.equal(logits(model), expected)


def test_what_the_model_was_given_before_stays(model):
    """A hook and a layer's forward of the caller's, and an entry of the caller's among ours."""
    calls = []
    model.base_model.register_forward_pre_hook(lambda *given: calls.append("hook"))
    layer = model.model.layers[1]
    own = layer.forward
    layer.forward = lambda *given, **more: calls.append("layer") or own(*given, **more)
    ALL_ATTENTION_FUNCTIONS["callers_own"] = copy.copy(ALL_ATTENTION_FUNCTIONS["sdpa"])
    try:
        before = traces(model)
        wrapper = FlexAttentionWrapper(model, "eager")
        with wrapper:
            with wrapper.compiled_layers():
                pass
            logits(model)
        assert traces(model) == before
        assert calls == ["hook", "layer"] * 2  # once to meet the layers
    finally:
        del ALL_ATTENTION_FUNCTIONS["callers_own"]


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_stays(model, training):
    model.train(training)
    with FlexAttentionWrapper(model, "eager"):
        assert model.training == training
    assert all(module.training == training for module in model.modules())


def test_every_sub_configuration_gets_its_own_back():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(num_hidden_layers=1, image_size=8, patch_size=4, **sizes),
        text_config=LlamaConfig(num_hidden_layers=2, vocab_size=32, **sizes),
        image_token_index=31,
    )
    model = LlavaForConditionalGeneration(config).eval()
    model.set_attn_implementation({"": "sdpa", "text_config": "eager", "vision_config": "sdpa"})
    before, expected = traces(model), logits(model)
    assert [name for _, name in before[0]] == ["sdpa", "sdpa", "eager"]
    with FlexAttentionWrapper(model, "eager") as wrapper:
        found = logits(model)
        assert len(wrapper.layers) == 2
        within = traces(model)
        with wrapper.taken_out():
            assert traces(model)[0] == before[0]
        assert traces(model)[0] == within[0] != before[0]
        assert torch.equal(logits(model), found)
    assert traces(model) == before
    torch.testing.assert_close(found, expected)


def test_what_was_set_within_stays(model):
    with FlexAttentionWrapper(model, "eager"):
        model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"


def test_layers_stay_compiled_from_block_to_block(model, monkeypatch):
    """A library patches and unpatches a model for every batch."""
    compile_for_real, counter = torch.compile, CompileCounterWithBackend("eager")
    monkeypatch.setattr(
        torch,
        "compile",
        lambda function, dynamic, options: compile_for_real(
            function, dynamic=dynamic, backend=counter
        ),
    )
    wrapper, counts = FlexAttentionWrapper(model, "eager"), []
    expected = logits(model)
    for _ in range(3):
        with wrapper, wrapper.compiled_layers():
            torch.testing.assert_close(logits(model), expected)
        counts.append(counter.frame_count)
        logits(model)
        with FlexAttentionWrapper(tiny_model("llama"), "eager") as other:
            logits(other.model)
    assert counts[0] > 0 and counts[1:] == [counts[0]] * 2, counts
