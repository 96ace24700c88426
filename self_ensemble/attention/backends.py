"""Attention under a mask, by FlexAttention, by scaled_dot_product_attention, or in plain math.

Legend: ``B`` batch entries, ``S`` queries, ``H`` query heads, ``J`` key/value heads, ``D`` head
size.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.nn.functional import scaled_dot_product_attention

from self_ensemble.attention.masks import dense_mask
from self_ensemble.attention.scoring import attention_scores, masked, read_values

BACKENDS = ("flex", "sdpa", "eager")


def attend_under_mask(query, key, value, mask, scoring, backend, compiled=True):
    """Attention under a mask. query [B, H, S, D], key and value [B, J, KV, D] → [B, H, S, D]."""
    if backend == "flex":
        return _flex(query, key, value, mask, scoring, compiled)
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


def _flex(query, key, value, block_mask, scoring, compiled):
    kernel = compiled_flex_attention(query.device.type) if compiled else _eager_flex()
    lengths = (query.shape[2], key.shape[2])
    assert block_mask.seq_lengths == lengths, (block_mask.seq_lengths, lengths)
    return kernel(
        query,
        key,
        value,
        score_mod=None if scoring.softcap is None else soft_cap(scoring.softcap),
        block_mask=block_mask,
        scale=scoring.scaling,
        enable_gqa=True,
    )


def _eager_flex():
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@lru_cache(maxsize=2)
def compiled_flex_attention(device_type: str):
    """FlexAttention, on a GPU compiled once for all packed lengths.

    On a CPU once a length: with dynamic shapes its code does not build there. Past the limit of
    recompilations torch would go over to the unfused kernel in silence; ``fullgraph`` makes that
    an error.
    """
    return compile_with_room(_eager_flex(), dynamic=device_type == "cuda", fullgraph=True)


@lru_cache(maxsize=8)
def soft_cap(cap: float):
    def score_mod(score, b, h, q_idx, kv_idx):
        return cap * torch.tanh(score / cap)

    return score_mod


def make_mask(mask_mod, q_length: int, kv_length: int, device, backend: str):
    """A `BlockMask` for flex, a dense [1, 1, q, kv] bool mask for the others."""
    if backend != "flex":
        return dense_mask(mask_mod, q_length, kv_length, device)[None, None]
    from torch.nn.attention.flex_attention import create_block_mask

    make = create_block_mask
    if torch.device(device).type == "cuda":
        make = compiled_create_block_mask()  # writes no dense mask: at 30,000 tokens it is 1 GB
    return make(mask_mod, None, None, q_length, kv_length, device=device)


@lru_cache(maxsize=1)
def compiled_create_block_mask():
    from torch.nn.attention.flex_attention import create_block_mask

    return compile_with_room(create_block_mask, dynamic=True)


def compile_with_room(function, **settings):
    """`torch.compile`, with room for every length and window that a run may bring.

    A model's numbers, such as its soft cap, are compiled in: as inputs, with dynamic shapes,
    FlexAttention's code does not build.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    torch._dynamo.config.specialize_float = True
    return torch.compile(function, **settings)
