"""An engine around a model: our attention put in, tried, and the best backend chosen."""

from __future__ import annotations

from typing import Any

from self_ensemble.attention.checks import check_architecture
from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.generation.engine import Engine
from self_ensemble.models.backend import choose_backend
from self_ensemble.models.config import ModelConfig
from self_ensemble.models.devices import check_devices, devices_of


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
        capture: see `Engine`; taken where FlexAttention runs on one GPU, and no wish elsewhere.
        keep_prefix: see `Engine`.

    Raises:
        UserError: an architecture that cannot work, or a backend asked for and not to be had.
    """
    check_devices(model)
    wrapper = FlexAttentionWrapper(model, "eager")
    with wrapper:
        check_architecture(wrapper)
        wrapper.backend, wrapper.fallback = choose_backend(attention, wrapper)
    on_one_gpu = model.device.type == "cuda" and len(devices_of(model)) == 1
    return Engine(
        model,
        tokenizer,
        wrapper,
        capture=capture and on_one_gpu and wrapper.backend == "flex",
        keep_prefix=keep_prefix,
    )
