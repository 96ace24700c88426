"""Whether a model fits: the bytes its weights take, and those that are free."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from self_ensemble.system.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

GIB = 2**30
CONTROL_GROUP = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes: of the machine or, if that is less, of the control group (v2) this process is in."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:  # no Linux
        return None
    available = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.M)
    if available is None:
        return None
    free = int(available[1]) * 1024
    try:
        limit = int((CONTROL_GROUP / "memory.max").read_text())
        used = int((CONTROL_GROUP / "memory.current").read_text())
        # Files that were read stay in memory for as long as nobody needs it.
        stat = (CONTROL_GROUP / "memory.stat").read_text()
        read = re.findall(r"^(?:in)?active_file (\d+)$", stat, re.M)
    except (OSError, ValueError):  # no such group, or `max`
        return free
    return min(free, max(0, limit - used + sum(map(int, read))))


def empty_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model of this configuration whose weights are neither loaded nor made."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model


def tensor_bytes(module: torch.nn.Module) -> int:
    """What a module's weights and buffers take; tied ones come once."""
    tensors = (*module.parameters(), *module.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def weight_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """What the weights of a model of this configuration take. None is loaded or even made."""
    return tensor_bytes(empty_model(config, dtype))


def check_fits(
    name: str,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    while_reading: int = 0,
) -> None:
    """Refuses a model that its device, or the memory it is read into first, cannot hold.

    Args:
        while_reading: bytes that this machine's memory holds beside the weights meanwhile.

    Raises:
        UserError: with what it needs and what there is.
    """
    import torch

    needed = weight_bytes(config, dtype)
    places = {"this machine's memory": (available_memory(), while_reading)}
    if device.type == "cuda":
        name_of_gpu = f"{device} ({torch.cuda.get_device_name(device)})"
        places[name_of_gpu] = (torch.cuda.mem_get_info(device)[0], 0)
    for place, (free, more) in places.items():
        if free is not None and needed + more > free:
            number_format = str(dtype).removeprefix("torch.")
            meanwhile = f", and {more / GIB:.1f} GiB more while they are read" if more else ""
            raise UserError(
                f"--model: the weights of {name} take {needed / GIB:.1f} GiB in {number_format}"
                f"{meanwhile}, and {place} has {free / GIB:.1f} GiB free: take a smaller model, a "
                "larger machine, or where it is float32 --dtype bfloat16"
            )
