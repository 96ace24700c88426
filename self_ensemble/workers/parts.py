"""Requests in parts: what a worker is sent of one, and what it sends back.

A worker never has a request whole. It opens a pass with those questions that are the largest in
some way, which decide shapes and sizes, and is then sent batch after batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch

from self_ensemble.attention.fusion import FUSIONS, FusionKind
from self_ensemble.generation import batching
from self_ensemble.generation.likelihood import ScoringRequest
from self_ensemble.generation.request import Request
from self_ensemble.generation.stats import Stats


@dataclass(frozen=True, eq=False)
class Opening:
    """What a pass is begun with.

    request: with the largest of its questions only.
    batches: of them, those that have the most questions and tokens at a time.
    batch_size: questions at a time; None for what fits.
    fusion_kind: what is registered under the fusion's name: a user's own is known to the driver
        alone.
    """

    request: Request
    batches: Sequence[Sequence[int]]
    batch_size: int | None
    fusion_kind: FusionKind


@dataclass(frozen=True)
class Reply:
    """What became of a batch.

    answers: in the order of the part.
    stats: of this batch.
    max_batch_size: what the worker's memory allows at a time, once it has run out.
    warnings: what the worker has to say to the user.
    """

    answers: list[Any]
    stats: Stats
    max_batch_size: int | None
    warnings: list[str]


@dataclass(frozen=True)
class Failed:
    """A mistake of the user's that a worker has found: see `UserError`."""

    sentence: str


@dataclass(frozen=True)
class Broken:
    """The worker's device is of no more use to its process."""

    reason: str


def open_with(
    request: Request,
    batches: Sequence[Sequence[int]],
    batch_size: int | None,
    tokens_at_once: int,
) -> Opening:
    """What a worker opens a request's pass with.

    Args:
        batches: all that it may be sent, in any order; not empty.
        batch_size: see `Opening`.
        tokens_at_once: that decide how many questions fit, see `batching.tokens_at_once`.
    """
    largest: list[tuple[int, int]] = []  # of each size, and the question that has it
    for index in chain.from_iterable(batches):
        sizes = _sizes(request, index)
        largest = largest or [(size, index) for size in sizes]
        for at, size in enumerate(sizes):
            if size > largest[at][0]:
                largest[at] = size, index
    sizes_of = [_at_a_time(request, batch, batch_size, tokens_at_once) for batch in batches]
    deciding = [batches[max(range(len(batches)), key=lambda at: sizes_of[at][k])] for k in (0, 1)]
    chosen = dict.fromkeys([*chain(*deciding), *(index for _, index in largest)])
    place = {index: at for at, index in enumerate(chosen)}
    return Opening(
        part_of(request, list(chosen)),
        [[place[index] for index in batch] for batch in deciding],
        batch_size,
        FUSIONS.get(request.fusion.kind),
    )


def _at_a_time(
    request: Request, batch: Sequence[int], batch_size: int | None, tokens_at_once: int
) -> tuple[int, int]:
    """Of a batch: how many questions are answered at a time, and their encoded tokens at most."""
    encoded = sorted(
        sum(stream.encoded_tokens for stream in request.questions[index]) for index in batch
    )
    places = batch_size or batching.filling(tokens_at_once // encoded[-1])
    return min(places, len(batch)), sum(encoded[-places:])


def _sizes(request: Request, index: int) -> list[int]:
    """Of a question: whatever a pass takes the largest of, see `Engine` and `Pass`."""
    streams = request.questions[index]
    sizes = [
        len(streams),
        max(len(stream.segments) for stream in streams),
        max(max(stream.positions.rope_offsets) for stream in streams),
        max(stream.answer_start for stream in streams),
    ]
    if isinstance(request, ScoringRequest):
        sizes.append(max(len(each.token_ids) for each in request.continuations[index]))
    return sizes


def part_of(request: Request, indices: Sequence[int]) -> Request:
    """The same request for some of its questions, by index, in this order."""
    assert request.observe is None, "what observes a request cannot be sent to a worker"
    own: dict[str, Any] = {"questions": [request.questions[index] for index in indices]}
    if request.weights is not None:
        own["weights"] = request.weights[list(indices)]
    if request.limits is not None:
        own["limits"] = [request.limits[index] for index in indices]
    if request.sampling is not None:
        keys = [request.sampling.keys[index] for index in indices]
        own["sampling"] = replace(request.sampling, keys=keys)
    if isinstance(request, ScoringRequest):
        own["continuations"] = [request.continuations[index] for index in indices]
    return replace(request, **own)


def on_device(request: Request, device: torch.device) -> Request:
    """The request with its fusion's weights where the model is."""
    weights = request.fusion.weights
    if weights is None:
        return request
    return replace(request, fusion=replace(request.fusion, weights=weights.to(device)))
