"""Which model is asked, and how it computes."""

import re
from dataclasses import dataclass

from self_ensemble.system.errors import UserError

DEVICE_NAME = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")
DTYPES = ("auto", "float32", "bfloat16", "float16")
ATTENTIONS = ("auto", "flex", "sdpa", "eager")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What `find_model` and `loaded_engine` are asked for; the defaults stand here alone.

    name: an alias, a hub id, a folder or a .gguf file, see `aliases.resolve_model`.
    revision: branch, tag or commit on the hub; None: its newest state.
    device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    dtype: number format of the weights: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
    attention: what computes attention: ``auto``, ``flex``, ``sdpa`` or ``eager``.
    gpus_per_worker: over how many GPUs the model's layers are spread; None: under ``auto`` over as
        few as hold them, else one.

    Raises:
        UserError: device, dtype or attention is none of these, or device is no number of GPUs.
    """

    name: str = "demo"
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    attention: str = "auto"
    gpus_per_worker: int | None = None

    def __post_init__(self) -> None:
        if not DEVICE_NAME.fullmatch(self.device):
            raise UserError(f"--device: {self.device!r} is none of auto, cpu, cuda, cuda:N")
        if self.dtype not in DTYPES:
            raise UserError(f"--dtype: {self.dtype!r} is none of {', '.join(DTYPES)}")
        check_attention(self.attention)
        gpus = self.gpus_per_worker
        if gpus is None:
            return
        if isinstance(gpus, bool) or gpus not in range(1, 10**3):
            raise UserError(f"--gpus_per_worker: {gpus!r} is no whole number above 0")
        if gpus > 1 and self.device not in ("auto", "cuda"):
            raise UserError(
                f"--gpus_per_worker {gpus}: --device {self.device} is one device; say cuda, and "
                "choose among GPUs with CUDA_VISIBLE_DEVICES"
            )


def check_attention(name: str) -> None:
    """Raises UserError where there is no such way to compute attention."""
    if name not in ATTENTIONS:
        raise UserError(f"--attention: {name!r} is none of {', '.join(ATTENTIONS)}")
