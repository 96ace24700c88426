"""Tiny random models of the supported architectures, each with its own feature made to bite."""

from typing import ClassVar

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 97

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
MIXED = ["sliding_attention", "full_attention"] * 2

# architecture → (model_type, its own settings)
ARCHITECTURES = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "mistral": ("mistral", {"sliding_window": 7}),
    "gemma2": (
        "gemma2",
        {
            "sliding_window": 7,
            "layer_types": MIXED,
            "attn_logit_softcapping": 1.5,
            "query_pre_attn_scalar": 1,
        },
    ),
    "gemma3": ("gemma3_text", {"sliding_window": 7, "layer_types": MIXED}),
    "phi3": ("phi3", {"sliding_window": 9, "partial_rotary_factor": 0.5}),
    "olmo2": ("olmo2", {}),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.5}),
    "gpt2": ("gpt2", {"n_positions": 256}),
}
ROTARY = [name for name in ARCHITECTURES if name != "gpt2"]


def tiny_model(name: str, **changes):
    """The architecture's random model in float32 eval mode, the same every time."""
    model_type, settings = ARCHITECTURES[name]
    config = CONFIG_MAPPING[model_type](**{**COMMON, **settings, **changes})
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return model.float().eval()


def shallow_model(name: str, **changes):
    """A tiny model of two layers, or of three where kinds alternate: two of one, and another
    between them. For what many answers show; a layer costs as much as the ones before it."""
    layers = MIXED[:3] if "layer_types" in ARCHITECTURES[name][1] else None
    few = {"num_hidden_layers": 3, "layer_types": layers} if layers else {"num_hidden_layers": 2}
    return tiny_model(name, **few, **changes)


class TinyTokenizer:
    """What the engine needs of a tokenizer for ids that mean nothing."""

    eos_token_id = 1
    added_tokens_decoder: ClassVar = {}

    def decode(self, row, **_):
        return f"t{row[0]} "

    def batch_decode(self, rows, **_):
        return [f"t{row[0]} " for row in rows]
