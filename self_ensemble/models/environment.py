"""What computes a run, for its manifest: the device and the versions of what it runs on."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PACKAGES = ("transformers", "tokenizers", "numpy", "pandas", "pyarrow")


def describe_device(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    # Sums are split among the threads: their number moves the last digits of a logprob.
    capability = torch.backends.cpu.get_cpu_capability()
    return f"cpu, {capability}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    from importlib.metadata import version

    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,  # says what CUDA it was built for, too
        **{name: version(name) for name in PACKAGES},
    }
