"""Find a model, say which one it is, load it, and put our attention into it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from attention import FlexAttentionWrapper, check_architecture, flex_problem
from constants import UserError, resolve_model
from engine import Engine

logger = logging.getLogger(__name__)

# How much of a weights file goes into its fingerprint: this many blocks of this many bytes.
SAMPLED_BLOCKS, BLOCK_BYTES = 64, 65536


@dataclass(frozen=True)
class ModelSource:
    """A model that was found and not yet loaded.

    fingerprint: of its content; the commit for a model of the hub.
    """

    name: str
    path: str
    revision: str | None
    config: Any
    fingerprint: str
    device: torch.device
    dtype: torch.dtype

    @property
    def default_positions(self) -> str:
        """``exact`` where positions are rotary; learned absolute ones cannot do it: ``left``."""
        text_config = self.config.get_text_config()
        return "exact" if getattr(text_config, "rope_parameters", None) else "left"


def find_model(name: str, *, revision: str | None, device: str, dtype: str) -> ModelSource:
    """Resolve a model's name, read its configuration, choose device and dtype.

    Raises:
        UserError: no such model, device or dtype, or one that needs code of its own.
    """
    path = resolve_model(name)
    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--model: cannot load {name}: {_first_line(error)}") from error
    where = choose_device(device)
    return ModelSource(
        name=name,
        path=path,
        revision=revision,
        config=config,
        fingerprint=getattr(config, "_commit_hash", None) or folder_fingerprint(Path(path)),
        device=where,
        dtype=choose_dtype(dtype, where),
    )


@contextmanager
def loaded_engine(source: ModelSource, *, attention: str, ignore_stops=False) -> Iterator[Engine]:
    """The model on its device with our attention in its layers; taken out at the end.

    Args:
        source: from `find_model`.
        attention: ``auto``, ``flex``, ``sdpa`` or ``eager``; only ``auto`` falls back.
        ignore_stops: see `Engine`.

    Raises:
        UserError: damaged files, an architecture that cannot work, or a backend asked for and
            not to be had.
    """
    tokenizer, model = load_tokenizer(source), load_weights(source)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(
            f"--model: the tokenizer of {source.name} has {len(tokenizer)} tokens and its model "
            f"{rows}: they do not belong together"
        )
    with FlexAttentionWrapper(model, "eager") as wrapper:
        check_architecture(wrapper)
        wrapper.backend = choose_backend(attention, wrapper)
        yield Engine(model, tokenizer, wrapper, ignore_stops=ignore_stops)


def load_tokenizer(source: ModelSource):
    try:
        return AutoTokenizer.from_pretrained(
            source.path, revision=source.revision, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"--model: cannot load the tokenizer of {source.name}: {_first_line(error)}"
        ) from error


def load_weights(source: ModelSource):
    """The model in eval mode on its device, from safetensors, every weight accounted for."""
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source.path,
            revision=source.revision,
            dtype=source.dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"--model: cannot load the weights of {source.name}: {_first_line(error)}"
        ) from error
    lacking = sorted(map(str, (*report["missing_keys"], *report["mismatched_keys"])))
    if lacking:
        raise UserError(
            f"--model: the weights of {source.name} lack {len(lacking)} tensors that its "
            f"configuration asks for, such as {lacking[0]}"
        )
    return model.eval().to(source.device)


def choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device("cuda:0" if name == "cuda" else name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device: {name} is not there; this machine has {torch.cuda.device_count()} GPUs "
            "that torch can use"
        )
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto: float32 on a CPU, bfloat16 on a GPU that has it, else float16."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def choose_backend(asked: str, wrapper: FlexAttentionWrapper) -> str:
    """What encodes: as asked, or under auto the best that this device and model can do.

    Auto takes sdpa on a CPU, where at these lengths it is as fast as compiled FlexAttention and
    starts at once, and plain math where a soft cap rules sdpa out.
    """
    capped = any(scoring.softcap is not None for _, scoring in wrapper.layers.values())
    device = wrapper.model.device
    if asked == "sdpa" and capped:
        raise UserError(
            "--attention sdpa: this model caps its attention scores, which sdpa cannot do; "
            "use --attention eager or flex"
        )
    if asked in ("sdpa", "eager"):
        return asked
    if asked == "auto" and device.type == "cpu":
        return "eager" if capped else "sdpa"
    problem = flex_problem(wrapper)
    if problem is None:
        return "flex"
    if asked == "flex":
        raise UserError(f"--attention flex: FlexAttention does not run here: {problem}")
    fallback = "eager" if capped else "sdpa"
    logger.warning(
        "FlexAttention does not run here (%s): the same mask runs through %s", problem, fallback
    )
    return fallback


def folder_fingerprint(folder: Path) -> str:
    """sha256 over a model folder: small files whole, of large ones evenly spaced blocks."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.suffix not in (".json", ".safetensors", ".model", ".txt", ".jinja"):
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= SAMPLED_BLOCKS * BLOCK_BYTES:
                digest.update(file.read())
                continue
            for block in range(SAMPLED_BLOCKS):
                file.seek(block * (size - BLOCK_BYTES) // (SAMPLED_BLOCKS - 1))
                digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
