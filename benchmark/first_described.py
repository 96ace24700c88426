"""The two methods as they were first described, as small as they can be: what gpu.py compares with.

Attention fusion: a question at a time, its whole prompts joined by separators, the whole sequence
again for every token, and in every layer a new block mask. Logit averaging: some questions at a
time, a prompt a row, the whole prompts again for every token.
"""

import torch


def attention_fusion(model, prompts: list[list[int]], separator: int, new_tokens: int) -> list[int]:
    """Answer one question. model: unpatched. prompts: token ids of its paraphrases' prompts."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ids, owner = [], []
    for number, prompt in enumerate(prompts):
        ids += [*prompt, separator]
        owner += [number] * len(prompt) + [-1]
    end = len(ids)
    owner = torch.tensor(owner + [-1] * new_tokens, device=model.device)

    def mask_mod(b, h, q_idx, kv_idx):
        return (q_idx >= kv_idx) & ((owner[q_idx] == owner[kv_idx]) | (q_idx >= end))

    def attend(module, query, key, value, attention_mask=None, scaling=None, **options):
        length = query.shape[2]
        mask = create_block_mask(mask_mod, None, None, length, length, device=query.device)
        out = flex_attention(query, key, value, block_mask=mask, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2).contiguous(), None

    before = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS["first_described"] = attend
    ALL_MASK_ATTENTION_FUNCTIONS["first_described"] = lambda *args, **kwargs: None
    model.set_attn_implementation("first_described")
    try:
        for _ in range(new_tokens):
            logits = model(torch.tensor([ids], device=model.device), use_cache=False).logits
            ids.append(logits[0, -1].argmax().item())
    finally:
        model.set_attn_implementation(before)
        del ALL_ATTENTION_FUNCTIONS["first_described"]
        del ALL_MASK_ATTENTION_FUNCTIONS["first_described"]
    return ids[end:]


def logit_average(model, prompts: torch.Tensor, paraphrases: int, new_tokens: int) -> torch.Tensor:
    """Answer some questions. prompts [questions * paraphrases, S] → [questions, new_tokens]."""
    ids = prompts
    for _ in range(new_tokens):
        logits = model(ids, use_cache=False).logits[:, -1].float()
        chosen = logits.unflatten(0, (-1, paraphrases)).mean(1).argmax(-1)
        ids = torch.cat([ids, chosen.repeat_interleave(paraphrases)[:, None]], dim=1)
    return ids[::paraphrases, prompts.shape[1] :]
