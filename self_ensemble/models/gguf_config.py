"""The configuration that transformers makes of a GGUF file, held against what the file says.

transformers takes what it knows of a file's metadata and leaves the rest at its own defaults: the
RoPE scaling of Llama 3 and Gemma 3, a window or a soft cap that another size of the model has.
Such a model loads without a word and computes something else. So what a file says is compared with
what was made of it; the two RoPE scalings that a file says all about are put in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from self_ensemble.attention.checks import check_config
from self_ensemble.models.gguf_header import GgufHeader
from self_ensemble.system.errors import UserError

PACKAGES = ("gguf", "accelerate")
ROPE_FACTORS = "rope_freqs.weight"
# Of every Llama 3.1, 3.2 and 3.3; only the factor differs.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# Tensors of a RoPE scaling that is not known here.
LONG_ROPE = ("rope_factors_long.weight", "rope_factors_short.weight")
# Sizes whose queries are scaled in a way of their own, which llama.cpp knows by the number of
# layers, and the file does not say.
OTHER_QUERY_SCALE = {("gemma2", 46), ("gemma3", 62)}
RELATIVE_TOLERANCE = 1e-4


def check_packages(name: str) -> None:
    """Raises UserError where a package that reads GGUF files is not installed."""
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise UserError(
            f"--model: to read {name} transformers needs the package {' and '.join(missing)}: "
            f"pip install {' '.join(missing)}"
        )


@contextmanager
def empty_folder() -> Iterator[str]:
    """What transformers is given as the folder of a file that has an absolute path.

    It would otherwise take a tokenizer.json or a generation_config.json that lies beside the file,
    of whatever model, or a file of that name in the current folder.
    """
    with TemporaryDirectory() as folder:
        yield folder


def read_config(header: GgufHeader, name: str) -> Any:
    """A file's configuration.

    Raises:
        UserError: transformers does not know the architecture, or makes something else of the file
            than it says; or the method is not for it.
        Exception: whatever else transformers says of it.
    """
    try:
        with empty_folder() as folder:
            config = AutoConfig.from_pretrained(
                folder, gguf_file=str(header.path), trust_remote_code=False
            )
    except ValueError as error:
        if "not supported" not in str(error):
            raise
        raise UserError(
            f"--model: {name} is of the architecture {header.architecture!r}, which transformers "
            f"{version('transformers')} does not read from a GGUF file; take the model as a folder "
            "of safetensors"
        ) from error
    check_config(config)
    _scale_rope(header, config, name)
    for key, stated, taken in _differences(header, config):
        raise UserError(
            f"--model: transformers {version('transformers')} reads {name} wrongly: the file says "
            f"{header.architecture}.{key} = {_shown(stated)}, and the configuration made of it "
            f"has {_shown(taken)}; take the model as a folder of safetensors"
        )
    return config


def _differences(header: GgufHeader, config: Any) -> Iterator[tuple[str, Any, Any]]:
    """What the file says and the configuration has otherwise: key, stated, taken."""
    taken = _taken(config)
    for key, value in taken.items():
        stated = header.stated(key)
        if isinstance(stated, list) and len(set(stated)) == 1:  # one for each layer
            stated = stated[0]
        if stated is not None and not _same(stated, value):
            yield key, stated, value
    layers = taken["block_count"]
    if (header.architecture, layers) in OTHER_QUERY_SCALE:
        yield "block_count", layers, f"queries scaled by {config.query_pre_attn_scalar}**-0.5"
    yield from _window_differences(header, config)


def _window_differences(header: GgufHeader, config: Any) -> Iterator[tuple[str, Any, Any]]:
    stated = header.stated("attention.sliding_window") or None
    context = header.stated("context_length")
    if stated is not None and context is not None and stated >= context:
        stated = None  # it hides nothing
    kinds = getattr(config, "layer_types", None)
    slides = kinds is None or "sliding_attention" in kinds
    window = getattr(config, "sliding_window", None) if slides else None
    if window is not None and context is not None and window >= context:
        window = None
    if stated != window:
        yield "attention.sliding_window", stated, window
    pattern = header.stated("attention.sliding_window_pattern")
    if pattern is None or kinds is None:
        return
    if not isinstance(pattern, list):  # every so many layers one is full
        pattern = [bool((layer + 1) % pattern) for layer in range(len(kinds))]
    slides_by_layer = [kind == "sliding_attention" for kind in kinds]
    if [bool(slides) for slides in pattern] != slides_by_layer:
        yield "attention.sliding_window_pattern", pattern, slides_by_layer


def _taken(config: Any) -> dict[str, Any]:
    """A configuration in the words of GGUF files. What shapes of tensors show is left out."""

    def of(*names: str) -> Any:
        return next((getattr(config, name) for name in names if hasattr(config, name)), None)

    heads = config.num_attention_heads
    head_dim = of("head_dim") or config.hidden_size // heads
    full, sliding = rope_of(config, "full_attention"), rope_of(config, "sliding_attention")
    partial = full.get("partial_rotary_factor") or of("partial_rotary_factor") or 1.0
    epsilon = of("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
    return {
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "attention.head_count": heads,
        "attention.head_count_kv": of("num_key_value_heads") or heads,
        "attention.key_length": head_dim,
        "attention.scale": (of("query_pre_attn_scalar") or head_dim) ** -0.5,
        "attention.layer_norm_rms_epsilon": epsilon,
        "attention.layer_norm_epsilon": epsilon,
        "attn_logit_softcapping": of("attn_logit_softcapping"),
        "final_logit_softcapping": of("final_logit_softcapping"),
        "logit_scale": of("logit_scale"),
        "expert_used_count": of("num_experts_per_tok"),
        "rope.freq_base": full.get("rope_theta"),
        "rope.freq_base_swa": sliding.get("rope_theta"),
        "rope.dimension_count": int(head_dim * partial),
        "rope.scaling.type": "none" if _is_plain(full) else full["rope_type"],
        "rope.scaling.factor": full.get("factor", 1.0),
    }


def rope_of(config: Any, layers: str) -> dict[str, Any]:
    """The RoPE settings of the layers of a kind; empty where the model has no such layers."""
    settings = getattr(config, "rope_parameters", None) or {}
    kinds = getattr(config, "layer_types", None) or ()
    if any(kind in settings for kind in ("full_attention", "sliding_attention")):
        return settings.get(layers) or {}
    return settings if layers == "full_attention" or layers in kinds else {}


def _is_plain(rope: dict[str, Any]) -> bool:
    return rope.get("rope_type", "default") == "default"


def _scale_rope(header: GgufHeader, config: Any, name: str) -> None:
    """Puts in the RoPE scaling that the file says and transformers does not read."""
    rope = rope_of(config, "full_attention")
    if not rope or not _is_plain(rope):
        return
    if any(header.tensor(tensor) for tensor in LONG_ROPE):
        raise UserError(
            f"--model: {name} scales its RoPE by factors for long and short texts, which "
            "transformers does not read from a GGUF file; take the model as a folder of safetensors"
        )
    factor = header.stated("rope.scaling.factor")
    if header.stated("rope.scaling.type") == "linear" and factor is not None:
        rope |= {"rope_type": "linear", "factor": factor}
    if header.tensor(ROPE_FACTORS) is None:
        return
    factors = _rope_factors(header)
    before = _frequencies(config)
    rope |= LLAMA3_ROPE | {"factor": float(factors.max())}
    after = before / ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0].numpy()
    if factors.shape != after.shape or not np.allclose(factors, after, rtol=RELATIVE_TOLERANCE):
        raise UserError(
            f"--model: {name} scales its RoPE by the tensor {ROPE_FACTORS}, which is not Llama 3's "
            "scaling, and which transformers does not read; take the model as a folder of "
            "safetensors"
        )


def _rope_factors(header: GgufHeader) -> np.ndarray:
    """What each frequency is divided by, [head size / 2]."""
    tensor = header.tensor(ROPE_FACTORS)
    assert tensor is not None
    with header.path.open("rb") as file:
        file.seek(header.data_start + tensor.offset)
        return np.frombuffer(file.read(4 * math.prod(tensor.shape)), dtype="<f4")


def _frequencies(config: Any) -> np.ndarray:
    """RoPE's frequencies without any scaling, [rotary size / 2]."""
    taken = _taken(config)
    size = taken["rope.dimension_count"]
    return taken["rope.freq_base"] ** -(np.arange(0, size, 2, dtype=np.float64) / size)


def _same(stated: Any, taken: Any) -> bool:
    if isinstance(stated, (int, float)) and isinstance(taken, (int, float)):
        return math.isclose(stated, taken, rel_tol=RELATIVE_TOLERANCE)
    return stated == taken


def _shown(value: Any) -> str:
    return "nothing" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
