"""What lm-evaluation-harness is told, checked and in our words: model arguments, generation ones.

Needs the package ``lm_eval``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from lm_eval.models.utils import normalize_gen_kwargs

from self_ensemble.data.choices import NORMS
from self_ensemble.generation.config import GenerationConfig, SamplingConfig
from self_ensemble.integrations import LM_EVAL_NAME
from self_ensemble.integrations.arguments import check_method_arguments, flags_named
from self_ensemble.models.config import ModelConfig
from self_ensemble.system.errors import UserError

# Arguments of the model type hf that mean here what they mean there.
HF_ARGUMENTS = (
    "add_bos_token",
    "chat_template_args",
    "enable_thinking",
    "logits_cache",
    "max_batch_size",
    "max_length",
    "prefix_token_id",
    "softmax_dtype",
    "think_end_token",
    "truncation",
)
# What a task may say of generation beside what is read, where it changes nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "repetition_penalty": (1.0,),
    "top_k": (0, -1, None),
    "use_cache": (True,),
}


def check_hf_arguments(others: Mapping[str, Any], own: Collection[str]) -> None:
    """Raises UserError where one of the others is not the model type hf's, or has no meaning here.

    own: the names of our arguments.
    """
    if "trust_remote_code" in others:
        raise UserError(
            "trust_remote_code: code of a model's repository is never run; leave it out"
        )
    for name in sorted(others.keys() - set(HF_ARGUMENTS)):
        known = ", ".join(sorted({*HF_ARGUMENTS, *own}))
        raise UserError(f"unknown argument {name!r} of {LM_EVAL_NAME}: there is {known}")
    end = others.get("think_end_token")
    if end is not None and (not isinstance(end, str) or end.isdigit()):
        raise UserError("think_end_token: give its text, not its number")


def check_arguments(
    *,
    method: str,
    choice_norm: str,
    num_paraphrases: int | None,
    separator: str,
    weights: Sequence[float] | None,
) -> None:
    """Raises UserError where one of them cannot be had, or several processes were started."""
    check_method_arguments(method=method, num_paraphrases=num_paraphrases, weights=weights)
    if choice_norm not in NORMS:
        raise UserError(f"choice_norm: {choice_norm!r} is none of {', '.join(NORMS)}")
    if not isinstance(separator, str) or not separator.strip():
        raise UserError(f"separator: {separator!r} is not a text that can be seen")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"{LM_EVAL_NAME} runs in one process, and each of several would answer everything: "
            "start it without accelerate or torchrun"
        )


def check_batch_size(batch_size: int | str) -> None:
    """Raises UserError where it is no whole number above 0 and not ``auto`` or ``auto:N``."""
    text = str(batch_size)
    if not re.fullmatch(r"0*[1-9][0-9]*|auto(:[0-9.]+)?", text):
        raise UserError(f"batch_size: {text} is not a whole number above 0, auto or auto:N")


def device_there(device: str | None) -> str:
    """The device. The harness names the first GPU where nobody has named one: no wish, then."""
    if device is None or (device in ("cuda", "cuda:0") and not torch.cuda.is_available()):
        return ModelConfig.device
    return device


def generation_config(
    given: Mapping[str, Any], *, max_gen_toks: int, batch_size: int | None, seed: int
) -> GenerationConfig:
    """What a task says of generation.

    Args:
        given: ``generation_kwargs``.
        max_gen_toks: where it does not say.
        batch_size: questions at a time; None takes what fits.
        seed: of draws.

    Raises:
        UserError: it says something that is not done here.
    """
    told: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), max_gen_toks))
    until, limit = told.pop("until"), told.pop("max_gen_toks")
    drawn, temperature = told.pop("do_sample", False), told.pop("temperature", 0.0)
    top_p = told.pop("top_p", None)
    for name, value in told.items():
        if value not in NEUTRAL.get(name, ()):
            raise UserError(
                f"generation argument {name}={value!r}: contexts with paraphrases take until, "
                "max_gen_toks, do_sample, temperature and top_p"
            )
    sampling = None
    if drawn:
        top_p = SamplingConfig.top_p if top_p is None else top_p
        sampling = SamplingConfig(temperature=temperature, top_p=top_p, seed=seed)
    stop = tuple(text for text in until if text is not None)
    return GenerationConfig(
        max_new_tokens=limit, batch_size=batch_size, stop=stop, sampling=sampling
    )


def model_args_named() -> AbstractContextManager[None]:
    """Inside, a sentence that names a flag of the scripts names the harness's argument instead."""
    return flags_named(
        ("--model:", "pretrained:"),
        ("--max_new_tokens", "max_gen_toks"),
        ("max_new_tokens", "max_gen_toks"),
        ("--chat_template", "--apply_chat_template"),
        ("stop: ", "until: "),
    )
