"""Over which GPUs the layers of a model are spread, where one cannot hold them all.

What is in no layer (embeddings, the last norm, the head) is on the first GPU, where tokens go in
and logits come out. Hidden states go from GPU to GPU with the layers, and back at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch

from self_ensemble.models.devices import layer_names
from self_ensemble.models.memory import GIB, empty_model, tensor_bytes
from self_ensemble.system.errors import UserError

# Of a GPU's free memory, what weights may take where there is a choice: batches need some too.
WEIGHTS_FRACTION = 0.9
FIRST = 0


def find_device_map(
    name: str,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    gpus: int | None,
    memory: Callable[[int], int],
) -> dict[str, int]:
    """Which module is on which GPU, as transformers takes it; empty where one device has them all.

    Args:
        name: of the model, for messages.
        config, dtype: of the model.
        device: that it is loaded onto, or its first one.
        gpus: over how many its layers are to be spread; None: as few as hold them.
        memory: bytes that a GPU has for it: `free_bytes`, or `all_bytes`.

    Raises:
        UserError: there are not as many, or all of them together have too little memory.
    """
    if device.type != "cuda" or gpus == 1:
        return {}
    count = torch.cuda.device_count()
    if gpus is not None and gpus > count:
        raise UserError(
            f"--gpus_per_worker {gpus}: this machine has {count} GPUs that torch can use"
        )
    if count == 1:
        return {}
    model = empty_model(config, dtype)
    needed = tensor_bytes(model)
    # Asking a GPU for its free memory takes some of it, so that others are asked only if needed.
    if gpus is None and needed <= WEIGHTS_FRACTION * memory(FIRST):
        return {}
    outside, layers = _bytes(model, name)
    room = [memory(index) for index in range(gpus or count)]
    for number in range(2, count + 1) if gpus is None else [gpus]:
        found = spread(outside, layers, [int(WEIGHTS_FRACTION * each) for each in room[:number]])
        if found is not None:
            return make_device_map(model, found) if any(found) else {}
    if gpus is None and needed <= room[FIRST]:  # barely, and the others have no room either
        return {}
    raise UserError(
        f"--model: the weights of {name} take {needed / GIB:.1f} GiB in "
        f"{str(dtype).removeprefix('torch.')}, and {len(room)} GPUs have {sum(room) / GIB:.1f} GiB "
        f"for them, of which {1 - WEIGHTS_FRACTION:.0%} must stay free: take a smaller model, more "
        "GPUs, or where it is float32 --dtype bfloat16"
    )


def free_bytes(gpu: int) -> int:
    """What nobody uses of a GPU's memory."""
    return torch.cuda.mem_get_info(gpu)[0]


def all_bytes(gpu: int) -> int:
    """A GPU's memory, as a process will have it that is to have the GPU for itself."""
    return torch.cuda.get_device_properties(gpu).total_memory


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
    """Which device each layer goes to, in their order, each device in proportion to its room.

    Args:
        outside: bytes of the first device that no layer has.
        layers: bytes of each.
        room: bytes that each device has.

    Returns:
        A device for every layer, or None where they do not fit.
    """
    left = [room[FIRST] - outside, *room[1:]]
    if left[FIRST] < 0 or sum(layers) > sum(left):
        return None
    ends = list(accumulate(sum(layers) * each / sum(left) for each in left))
    found, at = [], 0
    for size in layers:
        device = sum(at + size / 2 > end for end in ends[:-1])
        found.append(device)
        left[device] -= size
        at += size
    return found if min(left) >= 0 else None


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
            tensors = (
                *module.named_parameters(recurse=False),
                *module.named_buffers(recurse=False),
            )
            found |= {f"{name}.{own}".removeprefix("."): FIRST for own, _ in tensors}
        elif name not in found and name.rpartition(".")[0] in parents:
            found[name] = FIRST
    return found
