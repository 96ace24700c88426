"""Tensors beside the layers that read them, where a model's layers are on several devices."""

from __future__ import annotations

from collections.abc import Hashable

import torch


class Copies:
    """What all layers share, on each device that layers are on: copied when it is first read there.

    On the tensor's own device it is the tensor itself, so that with one device nothing is copied.
    Whoever changes a tensor in place, or puts another in its stead, must `clear`.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[Hashable, torch.device], tuple[torch.Tensor, torch.Tensor]] = {}

    def on(self, device: torch.device, tensor: torch.Tensor, name: Hashable = None) -> torch.Tensor:
        """The tensor on a device. name: by which its copy is found again."""
        if tensor.device == device:
            return tensor
        if (name, device) not in self._made:
            self._made[name, device] = tensor, tensor.to(device)
        of, copy = self._made[name, device]
        assert of is tensor, f"{name}: the copy is of another tensor"
        return copy

    def clear(self) -> None:
        self._made.clear()
