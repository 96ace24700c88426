"""The devices that a loaded model is on: one, or several among which its layers are spread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from self_ensemble.system.errors import UserError


def layer_names(model: Any) -> list[str]:
    """The modules of a model that transformers never divides between devices, in their order."""
    kinds = set(model._no_split_modules or ())
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if type(module).__name__ in kinds and not inside:
            found.append(name)
    return found


def devices_of(model: Any) -> list[torch.device]:
    """The devices that a model's weights are on, the first one first."""
    return list(dict.fromkeys([model.device, *(each.device for each in model.parameters())]))


def check_devices(model: Any) -> None:
    """Refuses a model that somebody else has spread in a way that is not ours.

    Raises:
        UserError: with what to do.
    """
    devices = devices_of(model)
    if len(devices) == 1:
        return
    layers = tuple(f"{name}." for name in layer_names(model))
    outside = {p.device for name, p in model.named_parameters() if not name.startswith(layers)}
    if len(outside) > 1 or len({device.type for device in devices}) > 1:
        raise UserError(
            f"the model is spread over {', '.join(map(str, devices))} in a way that is not known "
            "here: let Ensemble.from_pretrained load it, which keeps all but the layers on the "
            "first GPU and none on cpu or disk"
        )


def describe_layers(layers: Mapping[int, torch.device], names: Mapping[torch.device, str]) -> str:
    """For a manifest: which devices have which layers, such as `2 GPUs: A (layers 0-13), ...`.

    layers: index → device. names: of the devices.
    """
    parts = []
    for device, name in names.items():
        its = sorted(index for index, where in layers.items() if where == device)
        parts.append(f"{name} (layers {its[0]}-{its[-1]})" if its else name)
    return f"{len(names)} GPUs: {', '.join(parts)}"
