"""What a model and a machine can do, found out before they are used."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import PretrainedConfig

from self_ensemble.attention.backends import attend_under_mask, make_mask
from self_ensemble.attention.kv_state import EncodeState
from self_ensemble.attention.masks import packed_segment_mask
from self_ensemble.attention.patching import FlexAttentionWrapper, not_numbers, unsupported
from self_ensemble.attention.scoring import Scoring
from self_ensemble.system.errors import UserError

logger = logging.getLogger(__name__)

# Two segments of this many tokens show whether a model works under our attention.
PROBE_TOKENS = 8


def reason_of(error: BaseException) -> str:
    """Its kind and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def head_shape(config: PretrainedConfig) -> tuple[int, int, int]:
    """Query heads, key/value heads and head size of a text model's configuration."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return heads, kv_heads, getattr(config, "head_dim", None) or config.hidden_size // heads


def check_config(config: PretrainedConfig) -> None:
    """Refuse, before any weights are loaded, what the configuration already shows cannot work.

    Raises:
        UserError: with the reason.
    """
    text_config = config.get_text_config()
    kinds = set(getattr(text_config, "layer_types", None) or ())
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(unsupported(config, "it is an encoder-decoder model"))
    if (
        getattr(text_config, "alibi", False)
        or getattr(text_config, "position_embedding_type", "") == "alibi"
    ):
        raise UserError(unsupported(config, "its positions are alibi biases on the attention"))
    if not kinds <= {"full_attention", "sliding_attention"}:
        other = sorted(kinds - {"full_attention", "sliding_attention"})[0]
        raise UserError(unsupported(config, f"it has layers of the kind {other!r}"))
    if getattr(text_config, "num_kv_shared_layers", 0):
        raise UserError(unsupported(config, "its layers share keys and values"))


class _ProbeState(EncodeState):
    """Remembers which layers attended, in order."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.attended: list[int] = []

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scoring: Scoring,
    ) -> torch.Tensor:
        self.attended.append(layer)
        return super().attend(layer, query, key, value, scoring)


@torch.inference_mode()
def check_architecture(wrapper: FlexAttentionWrapper) -> None:
    """Run a patched model once and refuse what our attention would silently get wrong.

    Two segments packed into one sequence must come out as the model's own attention has each of
    them alone: with layers that look ahead, or carry a state from token to token, they do not.

    Raises:
        UserError: with the reason; or the model's own values are not numbers.
    """
    model, config = wrapper.model, wrapper.model.config.get_text_config()
    check_config(model.config)
    try:
        separate, packed, attended = _probe(wrapper)
    except UserError:
        raise
    except torch.OutOfMemoryError as error:
        raise UserError(f"out of memory with a few tokens: {reason_of(error)}") from error
    except Exception as error:  # a foreign architecture may raise anything; --verbose shows it
        logger.info("the probe failed", exc_info=True)
        raise UserError(unsupported(model.config, reason_of(error))) from error
    count = config.num_hidden_layers
    if sorted(attended) != list(range(count)):
        raise UserError(
            unsupported(
                model.config,
                f"it attends {len(attended)} times through the attention interface where its "
                f"{count} layers should once each: they are state-space, linear or of their own "
                "making",
            )
        )
    for layer, kind in enumerate(getattr(config, "layer_types", None) or ()):
        if (kind == "sliding_attention") != (wrapper.layers[layer][1].window is not None):
            reason = f"layer {layer} does not pass on its window"
            raise UserError(unsupported(model.config, reason))
    if separate.isnan().any():
        raise UserError(not_numbers(model))
    difference = ((packed - separate).norm() / separate.norm()).item()
    # Half precision rounds by shape; layers that look ahead move the logits by their own size.
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    if not difference <= tolerance:  # nor may NaN pass
        raise UserError(
            unsupported(
                model.config,
                f"packed with others, a segment's logits move by {difference:.1%}: its layers look "
                "ahead, or tokens meet in it outside the attention",
            )
        )


def _probe(wrapper: FlexAttentionWrapper) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Logits of two segments under the model's own attention and packed under ours, and which
    layers attended, in order."""
    model, n = wrapper.model, PROBE_TOKENS
    ids = torch.arange(2 * n, device=model.device) % model.config.get_text_config().vocab_size
    positions = torch.arange(n, device=model.device).repeat(2)
    segment_ids = torch.arange(2, device=model.device).repeat_interleave(n)
    with wrapper.taken_out():
        model.set_attn_implementation("eager")
        separate = model(
            input_ids=ids.view(2, n), position_ids=positions.view(2, n), use_cache=False
        ).logits
    state = _ProbeState([n, n], segment_ids, positions, {}, backend="eager")
    with wrapper.using(state):
        packed = model(input_ids=ids[None], position_ids=positions[None], use_cache=False).logits
    return separate.flatten(0, 1).float(), packed[0].float(), state.attended


@torch.inference_mode()
def flex_problem(wrapper: FlexAttentionWrapper) -> str | None:
    """Why compiled FlexAttention cannot run for this model on its device; None if it can.

    Compiles it for the model's heads and holds it against plain math.
    """
    model = wrapper.model
    _, scoring = next(iter(wrapper.layers.values()))
    heads, kv_heads, size = head_shape(model.config.get_text_config())
    segment_ids = torch.arange(256, device=model.device) // 100
    mask_mod = packed_segment_mask(segment_ids, segment_ids, 0, None)
    # A generator of its own: the caller's random numbers go on as if nothing had been drawn.
    drawn = torch.Generator(model.device).manual_seed(0)
    q, k, v = (
        torch.randn(1, h, 256, size, device=model.device, dtype=model.dtype, generator=drawn)
        for h in (heads, kv_heads, kv_heads)
    )
    try:
        mask = make_mask(mask_mod, 256, 256, model.device, "flex")
        got = attend_under_mask(q, k, v, mask, scoring, "flex", wrapper.compiled)
    except Exception as error:  # the compiler's own faults come in every kind
        return reason_of(error)
    mask = make_mask(mask_mod, 256, 256, model.device, "eager")
    difference = (got - attend_under_mask(q, k, v, mask, scoring, "eager")).abs().max().item()
    tolerance = 1e-4 if model.dtype == torch.float32 else 5e-2
    if not difference <= tolerance:  # nor may NaN pass
        return f"its result is off by {difference:.3g}"
    return None
