"""How many workers answer, and on which cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from self_ensemble.system.errors import UserError

if TYPE_CHECKING:  # torch takes seconds to import
    import torch


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """Workers hold a whole model each; the defaults stand here alone.

    number: of workers; ``auto``: as many as there are GPUs for. One without an address is this
        very process.
    address: of a Ray cluster that is running, such as ``auto`` or ``host:6379``; None: a Ray of the
        run's own on this machine.

    Raises:
        UserError: that is no number of workers.
    """

    number: int | Literal["auto"] = 1
    address: str | None = None

    def __post_init__(self) -> None:
        number = self.number
        if number != "auto" and (isinstance(number, bool) or number not in range(1, 10**6)):
            raise UserError(f"workers: {number!r} is neither auto nor a whole number above 0")

    @property
    def may_need_ray(self) -> bool:
        return self.number != 1 or self.address is not None

    def needs_ray(self, device: torch.device, gpus_each: Callable[[], int]) -> bool:
        """Whether others than this process answer.

        device: of the model, as found here. gpus_each: how many a worker takes, asked if needed.
        """
        if self.number == "auto" and self.address is None:
            import torch

            if device.type != "cuda" or torch.cuda.device_count() == 1:
                return False
            return torch.cuda.device_count() // gpus_each() > 1
        return self.may_need_ray

    def check_installed(self) -> None:
        """Raises UserError where workers are asked for and Ray is not installed."""
        if self.may_need_ray and find_spec("ray") is None:
            raise UserError(
                f"--workers {self.number} needs Ray: pip install -r requirements-ray.txt, or leave "
                "--workers out"
            )
