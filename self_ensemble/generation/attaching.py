"""An engine around a model: our attention put in, tried, and the best backend chosen."""

from __future__ import annotations

from typing import Any

from self_ensemble.attention.checks import check_architecture
from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.generation.engine import Engine
from self_ensemble.models.backend import choose_backend
from self_ensemble.models.config import ModelConfig


def make_engine(
    model: Any,
    tokenizer: Any,
    *,
    attention: str = ModelConfig.attention,
    capture: bool = True,
    keep_prefix: bool = False,
) -> Engine:
    """An engine around a model, which is given back as it was.

    Args:
        model: a causal language model on its device.
        tokenizer: the model's own.
        attention: ``auto``, ``flex``, ``sdpa`` or ``eager``; only ``auto`` falls back.
        capture: see `Engine`; taken where FlexAttention runs on a GPU, and no wish elsewhere.
        keep_prefix: see `Engine`.

    Raises:
        UserError: an architecture that cannot work, or a backend asked for and not to be had.
    """
    wrapper = FlexAttentionWrapper(model, "eager")
    with wrapper:
        check_architecture(wrapper)
        wrapper.backend, wrapper.fallback = choose_backend(attention, wrapper)
    can_capture = wrapper.backend == "flex" and model.device.type == "cuda"
    return Engine(
        model,
        tokenizer,
        wrapper,
        capture=capture and can_capture,
        keep_prefix=keep_prefix,
    )
