"""What methods and runs ask of an engine, whether it computes here or has workers that do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch

from self_ensemble.attention.fusion import Fusion
from self_ensemble.generation.decode import Answer
from self_ensemble.generation.likelihood import Likelihood, ScoringRequest
from self_ensemble.generation.passes import OnProgress
from self_ensemble.generation.request import Request
from self_ensemble.generation.stats import Stats
from self_ensemble.generation.streams import Stream

Given = TypeVar("Given")


class Answering(Iterator[list[tuple[int, Given]]], Protocol[Given]):
    """A request that is being answered: batches of (index of a question, what it is given).

    stats, max_batch_size: see `passes.Pass`.
    computed_by: how many questions each kind of worker has answered; empty where there are none.
    environment: what `AnyEngine.environment` has told, with the workers that came later; empty
        where there are none.
    """

    stats: Stats
    max_batch_size: int | None
    computed_by: Mapping[str, int]

    @property
    def environment(self) -> Mapping[str, Any]: ...


class AnyEngine(Protocol):
    """See `engine.Engine`; `workers.pool.WorkerPool` is the other one.

    config: the text model's. device: where a fusion's weights are to be.
    """

    tokenizer: Any
    config: Any
    device: torch.device

    def schedule(
        self,
        questions: Sequence[Sequence[Stream]],
        batch_size: int | None,
        among: Sequence[int] | None = None,
    ) -> list[list[int]]: ...

    def generate(
        self,
        request: Request,
        *,
        batch_size: int | None = None,
        batches: Sequence[Sequence[int]] | None = None,
        max_batch_size: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Answering[Answer]: ...

    def score(
        self,
        request: ScoringRequest,
        *,
        batch_size: int | None = None,
        batches: Sequence[Sequence[int]] | None = None,
        max_batch_size: int | None = None,
    ) -> Answering[tuple[Likelihood, ...]]: ...

    def environment(
        self, fusion: Fusion, *, asked: str, weighed: bool = False
    ) -> dict[str, Any]: ...
