"""Sample through the engine's greedy loop: its `combine` gives scores whose best token is a draw.

A draw's chance comes from one number a token, and that from the seed, the question, the attempt and
the token's place alone: neither the order of the questions nor their batch changes it.

Legend: ``B`` rows, ``V`` vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

import torch

from self_ensemble.system.errors import UserError

# Rows whose distributions are sorted at a time: in float64 those of a batch would not fit.
ROWS_AT_ONCE = 32


def fresh_state(count: int) -> torch.Tensor:
    """What `sampler` is handed as the engine's ``weights``: (which draw, its next step), [B, 2].

    It travels with the rows: the engine copies it for each batch, also for one that is run again
    because memory ran out, and drops the rows of finished draws.
    """
    return torch.stack([torch.arange(count), torch.zeros(count, dtype=torch.long)], dim=1)


def sampler(
    draws: Sequence[tuple[str, int]], *, seed: int, temperature: float, top_p: float
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The `combine` of `Engine.generate` that draws tokens.

    Args:
        draws: uuid and attempt of each of the run's streams.
        seed: whatever is drawn with another seed is drawn independently.
        temperature: above 0; the logits are divided by it.
        top_p: above 0; sampled from the likeliest tokens that together have this probability.

    Returns:
        (logits [B, 1, V], state [B, 2] of `fresh_state`) → scores [B, V]; one step further in
        ``state``.
    """

    def combine(logits: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        assert logits.shape[1] == 1 and state.shape == (len(logits), 2), (logits.shape, state.shape)
        numbers = [uniform(seed, *draws[draw], step) for draw, step in state.tolist()]
        state[:, 1] += 1
        chosen = pick(logits[:, 0], torch.tensor(numbers, dtype=torch.float64), temperature, top_p)
        scores = torch.full_like(logits[:, 0], -torch.inf)  # [B, V]
        return scores.scatter_(1, chosen[:, None], 0.0)

    return combine


def uniform(seed: int, uuid: str, attempt: int, step: int) -> float:
    """A number in [0, 1), one of 2^48; the same for the same arguments, always and everywhere."""
    name = json.dumps([seed, uuid, attempt, step])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def pick(
    logits: torch.Tensor, numbers: torch.Tensor, temperature: float, top_p: float
) -> torch.Tensor:
    """The token at which the probabilities, added up in order of their ids, pass the number.

    Not in order of probability: two tokens that are about as likely could change places by a
    rounding of their batch, and with them what is drawn.

    Args:
        logits: [B, V].
        numbers: [B] float64 in [0, 1).

    Returns:
        Token ids [B].

    Raises:
        UserError: a logit is not a number.
    """
    parts = zip(logits.split(ROWS_AT_ONCE), numbers.split(ROWS_AT_ONCE), strict=True)
    return torch.cat([_pick(*part, temperature, top_p) for part in parts])


def _pick(logits, numbers, temperature, top_p) -> torch.Tensor:
    probabilities = (logits.double() / temperature).softmax(-1)  # [B, V]
    if probabilities.isnan().any():
        raise UserError(
            "the model's logits are not numbers in this number format; use --dtype float32"
        )
    if top_p < 1:
        ordered = probabilities.sort(-1, descending=True).values
        before = ordered.cumsum(-1) - ordered  # what the likelier ones have
        last = (before < top_p).sum(-1, keepdim=True) - 1
        least = ordered.gather(-1, last)  # [B, 1]
        probabilities = probabilities.where(probabilities >= least, 0.0)
    edges = probabilities.cumsum(-1)
    at = numbers.to(edges.device)[:, None] * edges[:, -1:]
    # The first edge above: never a token without probability.
    return torch.searchsorted(edges, at, right=True)[:, 0]
