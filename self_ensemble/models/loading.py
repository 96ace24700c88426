"""Find a model, say which one it is, and load it."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from self_ensemble.attention.checks import check_config
from self_ensemble.models.aliases import resolve_model
from self_ensemble.models.config import ModelConfig
from self_ensemble.models.device_map import all_bytes, find_device_map, free_bytes
from self_ensemble.models.gguf_config import check_packages, read_config
from self_ensemble.models.gguf_header import GgufHeader, read_header
from self_ensemble.models.gguf_tokenizer import read_tokenizer
from self_ensemble.models.gguf_weights import check_stored, dequantising_bytes, read_weights
from self_ensemble.models.memory import check_fits
from self_ensemble.models.quantised import check_quantised, check_scales, method_of
from self_ensemble.system.console import say_if_slow
from self_ensemble.system.errors import UserError
from self_ensemble.system.hub_errors import explain

logger = logging.getLogger(__name__)

# How much of a library's error message is shown.
SHOWN_CHARACTERS = 300
CONVERSION = "DISABLE_SAFETENSORS_CONVERSION"


@dataclass(frozen=True)
class ModelSource:
    """A model that was found and not yet loaded.

    path: a hub id, a folder or a .gguf file.
    fingerprint: of its content; the commit for a model of the hub.
    header: of a .gguf file.
    gpus: over how many its layers are to be spread; None: over as few as hold them.
    """

    name: str
    path: str
    revision: str | None
    config: Any
    fingerprint: str
    device: torch.device
    dtype: torch.dtype
    header: GgufHeader | None = None
    gpus: int | None = 1


def find_model(model: ModelConfig) -> ModelSource:
    """Resolve a model's name, read its configuration, choose device and dtype.

    model: which one, and how it is to compute; its attention is for `choose_backend`.

    Raises:
        UserError: no such model, device or dtype, or one that needs code of its own.
    """
    name, revision = model.name, model.revision
    path = resolve_model(name)
    place = Path(path)
    if place.is_dir() and not (place / "config.json").is_file():
        raise UserError(f"--model: the folder {path} holds no config.json and no .gguf file")
    if place.exists() and revision is not None:
        kind = "folder" if place.is_dir() else "file"
        raise UserError(f"--revision {revision}: {path} is a {kind}, which has one state only")
    header = read_header(place) if place.is_file() else None
    if header is not None:
        check_packages(name)
        check_stored(header, name)
    with say_if_slow(f"reading {name}"):
        config = _read_config(name, path, revision, header)
        check_config(config)
        check_quantised(config, name)
        device = choose_device(model.device)
        gpus = model.gpus_per_worker
        if gpus is not None and gpus > 1 and device.type != "cuda":
            raise UserError(f"--gpus_per_worker {gpus}: there is no GPU that torch can use")
        fingerprint = hub_commit(path, revision) if not place.exists() else content_of(place)
    return ModelSource(
        name=name,
        path=path,
        revision=revision,
        config=config,
        fingerprint=fingerprint,
        device=device,
        dtype=choose_dtype(model.dtype, device),
        header=header,
        gpus=None if gpus is None and model.device == "auto" else gpus or 1,
    )


def gpus_each(source: ModelSource) -> int:
    """How many GPUs a worker takes that has them for itself: as many as asked for, else as few of
    this host's as hold the model.

    Raises:
        UserError: see `device_map.find_device_map`.
    """
    if source.gpus is not None:
        return source.gpus
    return len(set(_device_map(source, all_bytes).values())) or 1


def _device_map(source: ModelSource, memory: Callable[[int], int]) -> dict[str, int]:
    """See `device_map.find_device_map`."""
    if method_of(source.config) is not None:
        if source.gpus is not None and source.gpus > 1:
            raise UserError(
                f"--gpus_per_worker {source.gpus}: {source.name} is quantised, and such models "
                "are not spread over GPUs"
            )
        return {}  # what their weights take, their quantiser knows
    return find_device_map(
        source.name, source.config, source.dtype, source.device, source.gpus, memory
    )


def _read_config(name: str, path: str, revision: str | None, header: GgufHeader | None) -> Any:
    # Whatever a damaged or foreign file makes the library raise is about that file.
    try:
        if header is not None:
            return read_config(header, name)
        return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"--model: {name} brings Python code of its own, which is never run; take a model "
                "whose architecture is part of transformers"
            ) from error
        raise _cannot_load(name, path, revision, error) from error


def load_model(source: ModelSource) -> tuple[Any, Any]:
    """The model on its device in eval mode, and its tokenizer.

    Raises:
        UserError: damaged files, too little memory, or a tokenizer that is not the model's.
    """
    with say_if_slow(f"loading {source.name}"):
        tokenizer, model = load_tokenizer(source), load_weights(source)
    rows = model.get_input_embeddings().weight.shape[0]
    # Not its length: a token added behind the vocabulary, such as Gemma 3's for pictures, is no
    # harm to prompts without it.
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"--model: the tokenizer of {source.name} has {tokenizer.vocab_size} tokens and its "
            f"model {rows}: they do not belong together"
        )
    return model, tokenizer


def load_tokenizer(source: ModelSource) -> Any:
    """The model's own tokenizer. Raises UserError where it is missing, damaged or wrongly read."""
    try:
        if source.header is not None:
            return read_tokenizer(source.header, source.name)
        return AutoTokenizer.from_pretrained(
            source.path, revision=source.revision, trust_remote_code=False
        )
    except UserError:
        raise
    except Exception as error:
        folder = Path(source.path)
        if folder.is_dir() and not (folder / "tokenizer.json").is_file():
            raise UserError(f"--model: the folder {folder} holds no tokenizer.json") from error
        what = f"the tokenizer of {source.name}"
        raise _cannot_load(what, source.path, source.revision, error) from error


@contextmanager
def without_conversion() -> Iterator[None]:
    """Inside, transformers refuses a model of the hub that has pickled weights alone.

    Otherwise it has a public service convert them, and loads what that makes of them: another
    commit than the one on record.
    """
    before = os.environ.get(CONVERSION)
    os.environ[CONVERSION] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[CONVERSION]
        else:
            os.environ[CONVERSION] = before


def load_weights(source: ModelSource) -> Any:
    """The model in eval mode on its device, every weight accounted for.

    From safetensors, or dequantised from a GGUF file.
    """
    folder = Path(source.path)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        if any(folder.glob("*.gguf")):
            raise UserError(
                f"--model: the folder {folder} holds a config.json and no .safetensors weights; "
                "to load its .gguf file give the file itself"
            )
        raise UserError(
            f"--model: the folder {folder} holds no .safetensors weights; pickled ones are not "
            "loaded, since loading them can run any code"
        )
    try:
        device_map = _device_map(source, free_bytes)
        # What quantised weights take, their quantiser knows; weights that are spread go to their
        # GPUs one by one, and were checked there.
        if method_of(source.config) is None and not device_map:
            check_fits(
                source.name,
                source.config,
                source.dtype,
                source.device,
                while_reading=0 if source.header is None else dequantising_bytes(source.header),
            )
        if source.header is not None:
            model, report = read_weights(
                source.header, source.config, source.dtype, source.name, device_map
            )
        else:
            model, report = _read_safetensors(source, device_map)
    except UserError:
        raise
    except Exception as error:
        what = f"the weights of {source.name}"
        raise _cannot_load(what, source.path, source.revision, error) from error
    for key, found, wanted in sorted(report["mismatched_keys"]):
        raise UserError(
            f"--model: the weights of {source.name} do not fit its configuration: {key} is "
            f"{list(found)} and should be {list(wanted)}"
        )
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise UserError(
            f"--model: the weights of {source.name} lack {len(lacking)} tensors that its "
            f"configuration asks for, such as {lacking[0]}"
        )
    unused = sorted(report["unexpected_keys"])
    check_scales(unused, source.name)
    if unused:
        logger.warning(
            "the weights of %s hold %d tensors that its architecture does not use, such as %s",
            source.name,
            len(unused),
            unused[0],
        )
    if device_map:
        logger.warning(
            "the layers of %s are spread over %d GPUs, which compute one after the other; their "
            "decode steps are not captured as CUDA graphs",
            source.name,
            len(set(device_map.values())),
        )
        return model.eval()
    try:
        return model.eval().to(source.device)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"--model: {source.name} does not fit into the memory of {source.device}: "
            f"{_reason(error)}"
        ) from error


def _read_safetensors(
    source: ModelSource, device_map: dict[str, int]
) -> tuple[Any, dict[str, Any]]:
    """The model, and transformers' report of missing, unexpected and mismatched keys."""
    with without_conversion():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.path,
            revision=source.revision,
            dtype=source.dtype,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are reported, and refused by the caller
            output_loading_info=True,
            device_map=device_map or None,
        )
    model, report = loaded
    return model, report


def choose_device(name: str) -> torch.device:
    """auto: the first GPU if there is one. Raises UserError where that asked for is not there."""
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


def hub_commit(repository: str, revision: str | None) -> str:
    """The commit that the hub's cache has a model of, after its configuration was read."""
    config = try_to_load_from_cache(repository, "config.json", revision=revision)
    assert isinstance(config, str), f"no config.json of {repository} at {revision} in the cache"
    return Path(config).parent.name


def content_of(place: Path) -> str:
    """sha256 of what makes a model that lies on this machine: a folder, or a .gguf file."""
    if place.is_dir():
        return folder_fingerprint(place)
    with place.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_fingerprint(folder: Path) -> str:
    """sha256 over a model folder: the names, sizes and whole content of what makes the model.

    About a second for each GB; less would miss an edit of one tensor.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        known = path.suffix in (".json", ".safetensors", ".model", ".txt", ".jinja")
        if not (known and path.is_file()):
            continue
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)  # goes on in the same digest
    return digest.hexdigest()


def _cannot_load(what: str, path: str, revision: str | None, error: Exception) -> UserError:
    """The hub's, the network's or the disk's part in it if there is one, else what was said."""
    problem = None if Path(path).exists() else explain(error, path, revision=revision)
    if problem is not None and problem.kind == "revision":
        return UserError(f"--revision {revision}: {problem.text}")
    reason = _reason(error) if problem is None else problem.text
    return UserError(f"--model: cannot load {what}: {reason}")


def _reason(error: Exception) -> str:
    """A library's message as one line that can be read; its kind where the text alone says little.

    A KeyError's text is the key.
    """
    text = " ".join(str(error).split())
    if not text or isinstance(error, KeyError):
        text = f"{type(error).__name__} {text}".strip()
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
