"""Attention under a mask, by FlexAttention, by scaled_dot_product_attention, or in plain math.

Legend: ``B`` batch entries, ``S`` queries, ``H`` query heads, ``J`` key/value heads, ``D`` head
size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, Union

import torch
from torch.nn.functional import scaled_dot_product_attention

from self_ensemble.attention.masks import MaskMod, dense_mask
from self_ensemble.attention.scoring import Scoring, attention_scores, masked, read_values

if TYPE_CHECKING:  # imports the compiler
    from torch.nn.attention.flex_attention import BlockMask

Mask = Union["BlockMask", torch.Tensor]  # what `make_mask` gives

BACKENDS = ("flex", "sdpa", "eager")
# For every window of a model, and every length where lengths are compiled one by one.
RECOMPILE_LIMIT = 64


def attend_under_mask(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: Mask,
    scoring: Scoring,
    backend: str,
    compiled: bool = True,
) -> torch.Tensor:
    """Attention under a mask that `make_mask` made for this backend.

    query [B, H, S, D], key and value [B, J, KV, D] → [B, H, S, D].
    """
    if backend == "flex":
        assert not isinstance(mask, torch.Tensor), "flex takes a block mask"
        return _flex(query, key, value, mask, scoring, compiled)
    assert isinstance(mask, torch.Tensor), type(mask)
    if backend == "sdpa":
        assert scoring.softcap is None, "sdpa has no soft cap"
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scoring.scaling, enable_gqa=True
        )
    _, H, S, _ = query.shape
    J = key.shape[1]
    grouped = query.unflatten(1, (J, H // J)).flatten(2, 3)  # [B, J, G*S, D]
    scores = attention_scores(grouped, key, scoring).unflatten(2, (H // J, S))
    probabilities = masked(scores, mask[:, :, None]).softmax(-1, dtype=torch.float32)
    return read_values(probabilities.flatten(2, 3), value).unflatten(2, (H // J, S)).flatten(1, 2)


def _flex(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    block_mask: BlockMask,
    scoring: Scoring,
    compiled: bool,
) -> torch.Tensor:
    kernel = compiled_flex_attention(query.device.type) if compiled else _eager_flex()
    lengths = (query.shape[2], key.shape[2])
    assert block_mask.seq_lengths == lengths, (block_mask.seq_lengths, lengths)
    out: torch.Tensor = kernel(
        query,
        key,
        value,
        score_mod=None if scoring.softcap is None else soft_cap(scoring.softcap),
        block_mask=block_mask,
        scale=scoring.scaling,
        enable_gqa=True,
    )
    return out


def _eager_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@lru_cache(maxsize=2)
def compiled_flex_attention(device_type: str) -> Callable[..., Any]:
    """FlexAttention, on a GPU compiled once for all packed lengths.

    On a CPU once a length: with dynamic shapes its code does not build there. Past the limit of
    recompilations torch would go over to the unfused kernel in silence; ``fullgraph`` makes that
    an error.
    """
    return compile_once(_eager_flex(), dynamic=device_type == "cuda", fullgraph=True)


@lru_cache(maxsize=8)
def soft_cap(cap: float) -> Callable[..., torch.Tensor]:
    """A ``score_mod`` that bounds scores, one object a cap: another would be compiled for again."""

    def score_mod(
        score: torch.Tensor,
        b: torch.Tensor,
        h: torch.Tensor,
        q_idx: torch.Tensor,
        kv_idx: torch.Tensor,
    ) -> torch.Tensor:
        return cap * torch.tanh(score / cap)

    return score_mod


def make_mask(
    mask_mod: MaskMod,
    q_length: int,
    kv_length: int,
    device: torch.device | str,
    backend: str,
) -> Mask:
    """A `BlockMask` for flex, a dense [1, 1, q, kv] bool mask for the others."""
    if backend != "flex":
        return dense_mask(mask_mod, q_length, kv_length, device)[None, None]
    from torch.nn.attention.flex_attention import create_block_mask

    make = create_block_mask
    if torch.device(device).type == "cuda":
        make = compiled_create_block_mask()  # writes no dense mask: at 30,000 tokens it is 1 GB
    return make(mask_mod, None, None, q_length, kv_length, device=device)


@lru_cache(maxsize=1)
def compiled_create_block_mask() -> Callable[..., Any]:
    """`create_block_mask`, compiled for all lengths."""
    from torch.nn.attention.flex_attention import create_block_mask

    return compile_once(create_block_mask, dynamic=True)


def compile_once(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    """`torch.compile`, under `dynamo_settings` at each call: that is when it compiles."""
    compiled = torch.compile(function, **settings)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with dynamo_settings():
            return compiled(*args, **kwargs)

    return call


@contextmanager
def dynamo_settings() -> Iterator[None]:
    """Within, torch compiles for every length and window that a run may bring.

    A model's numbers, such as its soft cap, are compiled in: as inputs, with dynamic shapes,
    FlexAttention's code does not build. Whoever else compiles finds the settings as they were.
    """
    config = torch._dynamo.config
    if config.recompile_limit >= RECOMPILE_LIMIT and config.specialize_float:
        yield
        return
    limit = max(config.recompile_limit, RECOMPILE_LIMIT)
    with config.patch(recompile_limit=limit, specialize_float=True):
        yield
