"""Decode steps that run as CUDA graphs: captured once a shape, replayed in later batches."""

from __future__ import annotations

from collections.abc import Callable

import torch

from self_ensemble.attention.buffers import BufferPool
from self_ensemble.attention.cuda_graphs import CapturedDecodeState, CapturedStep

# So many captured steps are kept.
STEPS_KEPT = 32

FusedForward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class CapturedSteps:
    """The captured steps of one model, and the static buffers that they read.

    A step is found again by the shape of its decode state, and by the prefix and the rotary tables
    whose addresses it reads.
    """

    def __init__(self) -> None:
        self.buffers = BufferPool()
        # By shape and by what else is read; None has run once as it is. What is read is kept, so
        # that nothing else comes to its address.
        self._steps: dict[tuple[object, ...], CapturedStep | None] = {}
        self._read: dict[tuple[object, ...], tuple[object, ...]] = {}
        self._version = 0  # of the buffers, when the steps were captured

    def clear(self) -> None:
        """Drop all steps, and the buffers."""
        self._forget_steps()
        self.buffers = BufferPool()

    def run(
        self,
        state: CapturedDecodeState,
        forward: FusedForward,
        ids: torch.Tensor,
        positions: torch.Tensor,
        reads: tuple[object, ...],
    ) -> torch.Tensor | None:
        """The logits [R, V] of one token a row, by replay; None where it is to run as it is.

        Compiling and choosing kernels cannot be captured, so the first step of a shape runs as it
        is, and the second is captured.

        Args:
            state: of the rows, in this model's buffers.
            forward: (ids [R, 1], positions [R, 1]) → logits [R, V], under ``state``.
            ids, positions: [R, 1].
            reads: what the step reads outside the buffers: the prefix, the rotary tables.
        """
        key = (state.shape, *map(id, reads))
        if key in self._steps:
            if self._steps[key] is None:
                others = [step for step in self._steps.values() if step is not None]
                self._steps[key] = CapturedStep(state, forward, ids, positions, others)
            step = self._steps[key]
            assert step is not None
            return step(ids, positions)
        if len(self._steps) == STEPS_KEPT or self._version != self.buffers.version:
            self._forget_steps()
        self._steps[key], self._read[key] = None, reads
        self._version = self.buffers.version
        return None

    def _forget_steps(self) -> None:
        self._steps.clear()
        self._read.clear()
