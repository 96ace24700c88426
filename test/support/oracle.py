"""The methods written plainly: no cache, no packing, no splitting, no turning of queries.

`mean_oracle` feeds the N prompts as a batch of N stock sequences and averages, in every layer, the
attention outputs of the tokens they share: row i is partition i, with that prompt's own positions.
`joint_oracle` feeds prefix, segments and fused tokens as one sequence under a dense mask.
"""

from contextlib import contextmanager

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

FAR = 10**6  # a position that is no position: padding


@contextmanager
def plain_attention(model, combine, visible, positions, bias=0.0, watch=None):
    """Eager attention under ``visible`` [rows, tokens, tokens]; ``combine`` sees every output.

    positions [rows, tokens] are what sliding windows count; ``bias`` is added to the scores;
    ``watch`` gets every layer's number, probabilities [rows, H, tokens, tokens] and lse.
    """

    def attention(
        module, query, key, value, mask, scaling=None, softcap=None, sliding_window=None, **_
    ):
        group = query.shape[1] // key.shape[1]
        key = key.repeat_interleave(group, dim=1)
        value = value.repeat_interleave(group, dim=1)
        scores = query @ key.transpose(-1, -2)
        scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        seen = visible
        if sliding_window is not None:
            seen = seen & (positions[:, :, None] - positions[:, None, :] < sliding_window)
        seen = seen | torch.eye(seen.shape[-1], dtype=torch.bool)
        scores = (scores + bias).masked_fill(~seen[:, None], float("-inf"))
        if watch is not None:
            watch(module.layer_idx, scores.softmax(-1), scores.logsumexp(-1))
        out = combine(scores.softmax(-1) @ value, scores.logsumexp(-1))
        return out.transpose(1, 2), None

    before = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS["oracle"] = attention
    ALL_MASK_ATTENTION_FUNCTIONS["oracle"] = lambda *args, **kwargs: None
    model.set_attn_implementation("oracle")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        del ALL_ATTENTION_FUNCTIONS["oracle"]
        del ALL_MASK_ATTENTION_FUNCTIONS["oracle"]


def partition_positions(lengths, P, F, scheme):
    """Positions of prefix + segment + fused tokens in each partition, by DESIGN's words."""
    M, total = max(lengths), sum(lengths)
    rows = []
    for i, n in enumerate(lengths):
        start = {
            "exact": P,
            "left": P,
            "right": P + M - n,
            "sequential": P + sum(lengths[:i]),
        }[scheme]
        fused = {"exact": P + n, "left": P + M, "right": P + M, "sequential": P + total}[scheme]
        rows.append([*range(P), *range(start, start + n), *range(fused, fused + F)])
    return rows


@torch.no_grad()
def mean_oracle(model, prefix, segments, fused, scheme, tau=0.0, weights=None, watch=None):
    """Logits at every fused token, [F, V]."""
    P, F, N = len(prefix), len(fused), len(segments)
    lengths = [len(s) for s in segments]
    rows = partition_positions(lengths, P, F, scheme)
    width = P + max(lengths) + F
    ids = torch.zeros(N, width, dtype=torch.long)
    positions = torch.zeros(N, width, dtype=torch.long)
    real = torch.zeros(N, width, dtype=torch.bool)
    for i, segment in enumerate(segments):
        tokens = [*prefix, *segment, *fused]
        ids[i, -len(tokens) :] = torch.tensor(tokens)
        positions[i, -len(tokens) :] = torch.tensor(rows[i])
        real[i, -len(tokens) :] = True
    visible = torch.ones(width, width).tril().bool()[None] & real[:, None, :]
    u = torch.ones(N) if weights is None else torch.tensor(weights)

    def combine(out, lse):  # [N, H, width, D], [N, H, width]
        out = out.clone()
        share = u[:, None, None] * torch.exp(tau * (lse - lse.amax(0)))
        share = (share / share.sum(0))[:, :, -F:, None]
        out[:, :, -F:] = (share * out[:, :, -F:]).sum(0, keepdim=True)
        return out

    with plain_attention(model, combine, visible, positions, watch=watch):
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    assert (logits[:1, -F:] - logits[:, -F:]).abs().max() < 1e-4, "fused tokens are the same"
    return logits[0, -F:]


@torch.no_grad()
def joint_oracle(model, prefix, segments, fused, scheme, weights=None, watch=None):
    """Logits at every fused token, [F, V], of one softmax over everything."""
    P, F, N = len(prefix), len(fused), len(segments)
    lengths = [len(s) for s in segments]
    rows = partition_positions(lengths, P, F, scheme)
    ids = [*prefix, *(t for s in segments for t in s), *fused]
    owner = [-1] * P + [i for i, s in enumerate(segments) for _ in s] + [N] * F
    positions = list(range(P)) + [p for row in rows for p in row[P : len(row) - F]] + rows[0][-F:]
    size = len(ids)
    visible = torch.zeros(1, size, size, dtype=torch.bool)
    bias = torch.zeros(size, size)
    for q in range(size):
        for kv in range(q + 1):
            visible[0, q, kv] = owner[kv] == -1 or owner[q] == owner[kv] or owner[q] == N
            if weights is not None and owner[q] == N and 0 <= owner[kv] < N:
                bias[q, kv] = torch.tensor(N * weights[owner[kv]] / sum(weights)).log()
    positions = torch.tensor([positions])
    with plain_attention(model, lambda out, lse: out, visible, positions, bias, watch):
        logits = model(
            input_ids=torch.tensor([ids]), position_ids=positions, use_cache=False
        ).logits
    return logits[0, -F:]
