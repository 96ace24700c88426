"""Whether a model fits: the bytes its weights take, and those that are free."""

import re
from pathlib import Path

from self_ensemble.system.errors import UserError

GIB = 2**30
CONTROL_GROUP = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes: of the machine or, if that is less, of the control group (v2) this process is in."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        free = int(re.search(r"^MemAvailable:\s+(\d+) kB", text, re.M)[1]) * 1024
    except (OSError, TypeError):  # no Linux
        return None
    try:
        limit = int((CONTROL_GROUP / "memory.max").read_text())
        used = int((CONTROL_GROUP / "memory.current").read_text())
        # Files that were read stay in memory for as long as nobody needs it.
        stat = (CONTROL_GROUP / "memory.stat").read_text()
        read = re.findall(r"^(?:in)?active_file (\d+)$", stat, re.M)
    except (OSError, ValueError):  # no such group, or `max`
        return free
    return min(free, max(0, limit - used + sum(map(int, read))))


def weight_bytes(config, dtype) -> int:
    """What the weights of a model of this configuration take. None is loaded or even made."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    tensors = (*model.parameters(), *model.buffers())  # tied ones come once
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def check_fits(name: str, config, dtype, device) -> None:
    """Refuses a model that its device, or the memory it is read into first, cannot hold.

    Raises:
        UserError: with what it needs and what there is.
    """
    import torch

    needed = weight_bytes(config, dtype)
    places = {"this machine's memory": available_memory()}
    if device.type == "cuda":
        places[f"{device} ({torch.cuda.get_device_name(device)})"] = torch.cuda.mem_get_info(
            device
        )[0]
    for place, free in places.items():
        if free is not None and needed > free:
            number_format = str(dtype).removeprefix("torch.")
            raise UserError(
                f"--model: the weights of {name} take {needed / GIB:.1f} GiB in {number_format}, "
                f"and {place} has {free / GIB:.1f} GiB free: take a smaller model, a larger "
                "machine, or where it is float32 --dtype bfloat16"
            )
