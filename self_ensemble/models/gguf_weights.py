"""The weights of a GGUF file: dequantised by transformers, every tensor accounted for."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from math import prod
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from self_ensemble.models.gguf_config import ROPE_FACTORS, empty_folder
from self_ensemble.models.gguf_header import GgufHeader, check_whole
from self_ensemble.models.gguf_tokenizer import end_ids
from self_ensemble.system.errors import UserError

# transformers keeps the experts of a layer in one tensor, under a name that gguf does not know.
EXPERTS = re.compile(r"blk\.\d+\.ffn_(gate|up|down)_exps\.weight")
LAYER = re.compile(r"blk\.(\d+)\.")


def check_stored(header: GgufHeader, name: str) -> None:
    """Refuses tensors that cannot be dequantised, and a file that is cut short.

    Raises:
        UserError: with the type, or the sizes.
    """
    import gguf

    for kind in sorted({tensor.kind for tensor in header.tensors}):
        tensor = next(tensor for tensor in header.tensors if tensor.kind == kind)
        shown = str(kind)
        try:
            quantisation = gguf.GGMLQuantizationType(kind)
            shown = quantisation.name
            _, size = gguf.GGML_QUANT_SIZES[quantisation]
            with np.errstate(all="ignore"):
                gguf.dequantize(np.zeros((1, size), dtype=np.uint8), quantisation)
        except (NotImplementedError, ValueError) as error:
            raise UserError(
                f"--model: {name} stores {tensor.name} as {shown}, a type of ggml that the package "
                "gguf cannot dequantise; take another quantisation of the model"
            ) from error
    check_whole(header, {int(kind): size for kind, size in gguf.GGML_QUANT_SIZES.items()})


def dequantising_bytes(header: GgufHeader) -> int:
    """What is held beside the weights while they are dequantised: the largest tensor twice, in
    float32."""
    return 2 * 4 * max((prod(tensor.shape) for tensor in header.tensors), default=0)


def read_weights(
    header: GgufHeader,
    config: Any,
    dtype: torch.dtype,
    name: str,
    device_map: dict[str, int],
) -> tuple[Any, dict[str, Any]]:
    """The model on the CPU, or where the device map has it, and transformers' report of missing,
    unexpected and mismatched keys.

    Raises:
        UserError: tensors that the configuration has no place for.
        Exception: whatever transformers says of it.
    """
    with empty_folder() as folder, _without_bar():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=str(header.path),
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are reported, and refused by the caller
            output_loading_info=True,
            device_map=device_map or None,
        )
    model, report = loaded
    unused = _unused(header, model)
    # The configuration is made of what the file says, and it does not say whether there are biases
    # or norms: without one of them it is another model.
    layers = config.get_text_config().num_hidden_layers
    for tensor in unused:
        layer = LAYER.match(tensor)
        if layer is None or int(layer[1]) < layers:
            raise UserError(
                f"--model: {name} holds {len(unused)} tensors that transformers' "
                f"{type(model).__name__} has no place for, such as {tensor}: without them it is "
                "another model; take it as a folder of safetensors"
            )
    report["unexpected_keys"] = {*report["unexpected_keys"], *unused}
    model.generation_config.eos_token_id = end_ids(header) or None
    return model, report


def _unused(header: GgufHeader, model: Any) -> list[str]:
    """Names of the file's tensors that no parameter of the model was made of.

    transformers leaves them out without a word.
    """
    import gguf

    [architecture] = [
        key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == header.architecture
    ]
    layers = model.config.get_text_config().num_hidden_layers
    names = gguf.get_tensor_name_map(architecture, layers)
    parameters = model.state_dict()
    used = {ROPE_FACTORS}  # in the configuration
    for parameter in parameters:
        base, _, suffix = parameter.rpartition(".")
        used.add(f"{names.get_name(base)}.{suffix}")
    has_experts = any(".experts." in parameter for parameter in parameters)
    return [
        tensor.name
        for tensor in header.tensors
        if tensor.name not in used and not (has_experts and EXPERTS.fullmatch(tensor.name))
    ]


@contextmanager
def _without_bar() -> Iterator[None]:
    """Off a terminal without tqdm's bar of the dequantising, which transformers always shows."""
    init = tqdm.__init__
    if not sys.stderr.isatty():
        tqdm.__init__ = partialmethod(init, disable=True)
    try:
        yield
    finally:
        tqdm.__init__ = init
