"""Over which GPUs the layers of a model are spread, where one cannot hold them all.

What is in no layer (embeddings, the last norm, the head) is on the first GPU, where tokens go in and
logits come out. Hidden states go from GPU to GPU with the layers, and back at the end.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch

from self_ensemble.models.memory import GIB, empty_model, tensor_bytes
from self_ensemble.system.errors import UserError

logger = logging.getLogger(__name__)

# Of a GPU's free memory, what weights may take where there is a choice: batches need some too.
WEIGHTS_FRACTION = 0.9
FIRST = 0


def find_gpus(
    name: str, config: Any, dtype: torch.dtype, device: torch.device, gpus: int | None
) -> list[int]:
    """The GPU of each layer; empty where one device has the whole model.

    Args:
        name: of the model, for messages.
        config, dtype: of the model.
        device: that it is loaded onto, or its first one.
        gpus: over how many its layers are to be spread; None: as few as hold them.

    Raises:
        UserError: there are not as many, or all of them together have too little memory.
    """
    if device.type != "cuda" or gpus == 1:
        return []
    count = torch.cuda.device_count()
    if gpus is not None and gpus > count:
        raise UserError(
            f"--gpus_per_worker {gpus}: this machine has {count} GPUs that torch can use"
        )
    outside, layers = _bytes(empty_model(config, dtype), name)
    needed = outside + sum(layers)
    # Asking a GPU for its memory takes some of it, so that others are left alone until needed.
    if gpus is None and (count == 1 or needed <= WEIGHTS_FRACTION * _free(device.index or 0)):
        return []
    free = [_free(index) for index in range(count)]
    for number in range(2, count + 1) if gpus is None else [gpus]:
        found = spread(outside, layers, [int(WEIGHTS_FRACTION * each) for each in free[:number]])
        if found is not None:
            return found
    if gpus is None and needed <= free[device.index or 0]:  # barely, and the others are in use
        return []
    raise UserError(
        f"--model: the weights of {name} take {needed / GIB:.1f} GiB in "
        f"{str(dtype).removeprefix('torch.')}, and {gpus or count} GPUs have "
        f"{sum(free[: gpus or count]) / GIB:.1f} GiB free together: take a smaller model, more "
        "GPUs, or where it is float32 --dtype bfloat16"
    )


def _free(index: int) -> int:
    return torch.cuda.mem_get_info(index)[0]


def _bytes(model: Any, name: str) -> tuple[int, list[int]]:
    """What the weights outside the layers take, and each layer's."""
    names = layer_names(model)
    if not names:
        raise UserError(
            f"--gpus_per_worker: transformers does not say what the layers of {name} are, so that "
            "they cannot be spread over GPUs"
        )
    layers = [tensor_bytes(model.get_submodule(layer)) for layer in names]
    return tensor_bytes(model) - sum(layers), layers


def spread(outside: int, layers: Sequence[int], room: Sequence[int]) -> list[int] | None:
    """Which device each layer goes to, in their order, each device used in proportion to its room.

    Args:
        outside: bytes of the first device that no layer has.
        layers: bytes of each.
        room: bytes that each device has.

    Returns:
        A device for every layer, or None where that does not fit, or leaves a device without one.
    """
    total = outside + sum(layers)
    if total > sum(room):
        return None
    ends = list(accumulate(total * each / sum(room) for each in room))
    found, used, at = [], [outside, *[0] * (len(room) - 1)], outside
    for size in layers:
        device = sum(at + size / 2 > end for end in ends[:-1])
        found.append(device)
        used[device] += size
        at += size
    fits = all(taken <= has for taken, has in zip(used, room, strict=True))
    return found if fits and len(set(found)) == len(room) else None


def layer_names(model: Any) -> list[str]:
    """The modules of a model that transformers never divides between devices, in their order."""
    kinds = set(model._no_split_modules or ())
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if type(module).__name__ in kinds and not inside:
            found.append(name)
    return found


def make_device_map(model: Any, gpus: Sequence[int]) -> dict[str, int]:
    """What transformers takes as ``device_map``.

    gpus: of each layer, in the order of `layer_names`.
    """
    found: dict[str, int] = dict(zip(layer_names(model), gpus, strict=True))
    parents = {""}
    for layer in found:
        while layer := layer.rpartition(".")[0]:
            parents.add(layer)
    for name, module in model.named_modules():
        if name in parents:
            tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            found |= {f"{name}.{own}".removeprefix("."): FIRST for own, _ in tensors}
        elif name not in found and name.rpartition(".")[0] in parents:
            found[name] = FIRST
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
