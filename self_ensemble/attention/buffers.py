"""Where the tensors of a state lie: anywhere, or in memory that the next state finds again."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import torch


class Buffers:
    """Tensors anywhere: nothing will look for them again."""

    def take(self, name: Hashable, shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        """Uninitialised, contiguous."""
        return like.new_empty(shape)

    def reserve(self, name: Hashable, size: int, like: torch.Tensor) -> None:
        """See `BufferPool.reserve`."""

    def keep(self, name: Hashable, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, where it may stay."""
        return tensor


class BufferPool(Buffers):
    """Memory that states use one after the other: what has the same name has the same address.

    A CUDA graph reads and writes where it did when it was captured.

    version: changes when memory was moved, after which no captured forward may be replayed.
    """

    def __init__(self) -> None:
        self.version = 0
        self._flat: dict[Hashable, torch.Tensor] = {}

    def take(self, name: Hashable, shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        """Uninitialised, contiguous; whatever had this name before is overwritten."""
        self.reserve(name, math.prod(shape), like)
        return self._flat[name][: math.prod(shape)].view(shape)

    def reserve(self, name: Hashable, size: int, like: torch.Tensor) -> None:
        """Memory for so many numbers, so that none of what is taken up to this size moves."""
        if name not in self._flat or self._flat[name].numel() < size:
            self._flat.pop(name, None)  # before the larger one is asked for
            self._flat[name] = torch.empty(size, dtype=like.dtype, device=like.device)
            self.version += 1

    def keep(self, name: Hashable, tensor: torch.Tensor) -> torch.Tensor:
        return self.take(name, tensor.shape, tensor).copy_(tensor)
