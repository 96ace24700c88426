"""What computes the attention of a model's paraphrases, on its device."""

from __future__ import annotations

import logging

import torch

from self_ensemble.attention.checks import flex_problem
from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.models.config import check_attention
from self_ensemble.system.errors import UserError

logger = logging.getLogger(__name__)


def choose_backend(asked: str, wrapper: FlexAttentionWrapper) -> tuple[str, str | None]:
    """What encodes: as asked, or under auto the best that this device and model can do.

    Returns:
        The backend, and why auto did not take FlexAttention where it tried to.

    Raises:
        UserError: what was asked for is not to be had, or unknown.
    """
    check_attention(asked)
    capped = any(scoring.softcap is not None for _, scoring in wrapper.layers.values())
    without_flex = "eager" if capped else "sdpa"
    if asked == "sdpa" and capped:
        raise UserError(
            "--attention sdpa: this model caps its attention scores, which sdpa cannot do; "
            "use --attention eager or flex"
        )
    if asked in ("sdpa", "eager"):
        return asked, None
    if asked == "auto" and not prefers_flex(wrapper.model.device):
        return without_flex, None
    problem = flex_problem(wrapper)
    if problem is None:
        return "flex", None
    if asked == "flex":
        raise UserError(f"--attention flex: FlexAttention does not run here: {problem}")
    logger.warning(
        "FlexAttention does not run here (%s): the same mask runs through %s",
        problem,
        without_flex,
    )
    return without_flex, problem


def prefers_flex(device: torch.device) -> bool:
    """What auto tries first. On a CPU sdpa is as fast at these lengths and starts at once."""
    return device.type != "cpu"
