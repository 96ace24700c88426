"""Models whose weights are quantised in safetensors: what reads them, and what must not be missed.

transformers loads them by its own quantisers. A method that it does not know it leaves out with a
warning, and a scale that it has no place for too: the numbers that are then computed with are not
the model's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from self_ensemble.system.errors import UserError

# What transformers reads a method with, where its own message does not say all of it.
PACKAGES = {
    "awq": ("gptqmodel", "accelerate"),
    "gptq": ("gptqmodel", "optimum"),
    "bitsandbytes": ("bitsandbytes", "accelerate"),
}
# Tensors that make values of quantised weights, by the ends of their names.
SCALE = re.compile(
    r"(scales?|scale_inv|zeros|zero_points?|zp|qweight|weight_packed|absmax|quant_map|SCB|g_idx)$"
)


def method_of(config: Any) -> str | None:
    """By what the weights are quantised, as the configuration has it; None: they are not."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    if not isinstance(settings, dict):
        settings = settings.to_dict()
    method = settings.get("quant_method")
    if method is None and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        return "bitsandbytes"
    return str(getattr(method, "value", method))


def check_quantised(config: Any, name: str) -> None:
    """Refuses a model quantised by what is not installed, or not known.

    Raises:
        UserError: with what to install.
    """
    method = method_of(config)
    if method is None:
        return
    # bitsandbytes has two entries, by the number of bits.
    if method not in {re.sub("_[48]bit$", "", known) for known in AUTO_QUANTIZATION_CONFIG_MAPPING}:
        raise UserError(
            f"--model: {name} is quantised by {method!r}, which transformers "
            f"{version('transformers')} does not know; take the model unquantised"
        )
    missing = [package for package in PACKAGES.get(method, ()) if find_spec(package) is None]
    if missing:
        raise UserError(
            f"--model: {name} is quantised by {method}, and to read that transformers needs the "
            f"package {' and '.join(missing)}: pip install {' '.join(missing)}, or take the model "
            "unquantised"
        )


def check_scales(unused: Iterable[str], name: str) -> None:
    """Refuses weights whose scales found no place in the model.

    Raises:
        UserError: with the first of them.
    """
    scales = [tensor for tensor in unused if SCALE.search(tensor)]
    if scales:
        raise UserError(
            f"--model: the weights of {name} are quantised, and {len(scales)} tensors of that are "
            f"not used, such as {scales[0]}: its config.json does not say how they are to be "
            "read; take the model unquantised"
        )
