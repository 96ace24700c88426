"""Writing models as GGUF files, as llama.cpp's converter does; and a tokenizer for them."""

import re
from pathlib import Path

import gguf
import numpy as np
import torch
from tiny import COMMON
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

SPECIAL = ["<unk>", "<bos>", "<eos>", "<turn>"]
GEMMA_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]
NORMAL, CONTROL, BYTE = 1, 3, 6
CHAT = (
    "{{ bos_token }}{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
TEXT = (
    "Based on what is said, answer with the name of the city, please: the capital of the country, "
    "where it lies, which river flows there. Answer with one word and nothing else. Q: A: "
)


def make_tokenizer(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE with all bytes, and words that are tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=352,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template=CHAT,
        additional_special_tokens=["<turn>"],
    )


def make_gemma_tokenizer() -> Tokenizer:
    """As Gemma's is: BPE on text whose spaces are ▁, bytes for what it does not know."""
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(
        vocab_size=440, special_tokens=[*GEMMA_SPECIAL, *bytes_], show_progress=False
    )
    # Word by word, or whole sentences would become tokens.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    return tokenizer


def gemma_tokenizer_values(tokenizer: Tokenizer) -> dict:
    """As Gemma's files have them: without merges, and with scores that do not follow them."""
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    kinds = [CONTROL] * len(GEMMA_SPECIAL) + [BYTE] * 256
    kinds += [NORMAL] * (len(tokens) - len(kinds))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [float(-(i * 7919 % 1000)) for i in range(len(tokens))],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }


def tiny_model(model_type: str, vocabulary: int, **settings):
    """A random model whose rows are multiples of 32, as blocks of 32 weights need."""
    sizes = {"vocab_size": vocabulary, "intermediate_size": 64, "num_hidden_layers": 2}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = CONFIG_MAPPING[model_type](**{**COMMON, **sizes, **special, **settings})
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def tokenizer_values(tokenizer) -> dict:
    """The metadata that says what a byte-level tokenizer is."""
    state = tokenizer.backend_tokenizer
    tokens = sorted(state.get_vocab(), key=state.get_vocab().get)
    merges = re.findall(r'\["((?:[^"\\]|\\.)*)","((?:[^"\\]|\\.)*)"\]', state.to_str())
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL if t in SPECIAL else NORMAL for t in tokens],
        "tokenizer.ggml.merges": [
            f"{a} {b}".replace('\\"', '"').replace("\\\\", "\\") for a, b in merges
        ],
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": tokenizer("x")["input_ids"][0] == 1,
        "tokenizer.chat_template": tokenizer.chat_template,
    }


def model_values(model, architecture: str) -> dict:
    """The metadata that says what a model is."""
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    window = getattr(config, "sliding_window", None)
    values = {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": getattr(config, "intermediate_size", None),
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None),
        "attention.key_length": head_dim,
        "attention.sliding_window": window,
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None),
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None),
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
        "expert_count": getattr(config, "num_experts", None),
        "expert_used_count": getattr(config, "num_experts_per_tok", None),
        "rope.freq_base": rope.get("rope_theta"),
        "rope.dimension_count": int(head_dim * rope.get("partial_rotary_factor", 1))
        if rope
        else None,
    }
    return {f"{architecture}.{key}": value for key, value in values.items()}


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of queries and keys, for its way of rotating."""
    shape = weight.shape
    return weight.reshape(heads, 2, -1, *shape[1:]).swapaxes(1, 2).reshape(shape)


def model_tensors(model, architecture: str) -> dict[str, np.ndarray]:
    """What llama.cpp's converter writes, by its names."""
    config = model.config
    [kind] = [key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture]
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    tensors = {}
    for name, parameter in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        base, _, suffix = name.rpartition(".")
        value = parameter.float().numpy()
        if architecture == "llama" and re.search(r"\.[qk]_proj\.", name):
            heads = config.num_attention_heads
            value = permuted(value, config.num_key_value_heads if ".k_proj." in name else heads)
        adds_one = architecture.startswith("gemma") or architecture == "nemotron"
        if adds_one and re.search(r"norm\.weight$", name):
            value = value + 1
        if base.endswith("experts"):  # of a layer all in one
            block = f"blk.{re.search(r'[0-9]+', name)[0]}"
            if suffix == "down_proj":
                tensors[f"{block}.ffn_down_exps.weight"] = value
            else:
                gate, up = np.split(value, 2, axis=1)
                tensors |= {
                    f"{block}.ffn_gate_exps.weight": gate,
                    f"{block}.ffn_up_exps.weight": up,
                }
            continue
        if architecture == "gpt2" and re.search(r"(c_attn|c_proj|c_fc)\.weight", name):
            value = value.T
        tensors[f"{names.get_name(base)}.{suffix}"] = value
    return {name: np.ascontiguousarray(value) for name, value in tensors.items()}


def write_gguf(
    path: Path, values: dict, tensors: dict[str, np.ndarray], *, quantise: str | None = None
) -> Path:
    """Values that are None are left out.

    quantise: a type of ggml for all matrices.
    """
    values = dict(values)
    writer = gguf.GGUFWriter(path, values.pop("general.architecture"))
    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING", list: "ARRAY"}
    for key, value in values.items():
        if value is not None:
            kind = gguf.GGUFValueType[kinds[type(value)]]
            writer.add_key_value(key, value, kind, *([_element(value)] if kind == 9 else []))
    for name, tensor in tensors.items():
        if quantise is not None and tensor.ndim == 2:
            kind = gguf.GGMLQuantizationType[quantise]
            writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _element(values: list) -> gguf.GGUFValueType:
    kinds = {bool: "BOOL", int: "INT32", float: "FLOAT32", str: "STRING"}
    return gguf.GGUFValueType[kinds[type(values[0])]]


def all_values(model, tokenizer, architecture: str) -> dict:
    return {
        "general.architecture": architecture,
        "general.name": "Tiny",
        **model_values(model, architecture),
        **tokenizer_values(tokenizer),
    }
