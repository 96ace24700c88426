"""Whether this machine can run the toolkit: Python, packages, devices, memory, disk, the demo.

Nothing heavy is imported before it is known to be there.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from self_ensemble.diagnostics.checks import FAILED, OK, WARNING, Check, one_line
from self_ensemble.diagnostics.hub_check import check_hub
from self_ensemble.diagnostics.versions import (
    NEWEST_PYTHON,
    OLDEST_PYTHON,
    VersionRange,
    is_checkout,
    series,
    version_ranges,
)
from self_ensemble.models.memory import GIB, available_memory
from self_ensemble.system.bundled import DEMO_MODEL, DEMO_QUESTIONS, PACKAGE
from self_ensemble.system.files import nearest_existing

# What can be absent while the main job runs, and what needs it.
LEMMAS = "flex_attention_generate.py and generate.py with --lemmaize, score.py --lemmas recompute"
NEEDED_ONLY_BY = {
    **dict.fromkeys(("gguf", "accelerate"), "a .gguf file as --model"),
    "datasets": "--dataset webqa and --dataset myriadlama without --data_dir",
    "matplotlib": "score.py --plot and --html, debug_flexattention.py --save",
    "scipy": "score.py and benchmark/quality.py",
    "spacy": LEMMAS,
    "spacy-lookups-data": LEMMAS,
}

LITTLE_MEMORY, LITTLE_SPACE, LITTLE_CACHE = 2 * GIB, GIB // 2, 10 * GIB
SMALLEST_DEMO = 2**20  # bytes of its weights; what git-lfs puts in a file's place is smaller


def check_installation() -> list[Check]:
    """Python, the packages, and that they can be imported. Without these nothing runs."""
    return [check_python(), *check_packages(), *check_imports()]


def check_machine(*, torch_works: bool) -> list[Check]:
    """Devices, memory, disk, the hub, and what else lies here.

    torch_works: whether torch can be asked for the devices.
    """
    return [
        *(check_devices() if torch_works else ()),
        check_spacy_model(),
        check_memory(),
        *check_disk(),
        *check_hub(),
        check_demo(),
    ]


def check_python() -> Check:
    found = platform.python_version()
    oldest, newest = OLDEST_PYTHON, NEWEST_PYTHON
    said = f"{found}, tested with {oldest} to {newest}"
    if series(found) < series(oldest):
        return Check("Python", FAILED, said, f"install Python {oldest} or newer")
    if series(found) > series(newest):
        return Check("Python", WARNING, said, "run the tests here: python -m pytest")
    return Check("Python", OK, said)


def check_packages() -> Iterator[Check]:
    """Every package that the toolkit asks for."""
    for tested in version_ranges():
        try:
            found = version(tested.package)
        except PackageNotFoundError:
            yield _not_installed(tested)
            continue
        said = f"{found}, tested with {tested}"
        if tested.has(found):
            yield Check(tested.package, OK, said)
        else:
            todo = f"if anything goes wrong, {tested.install}"
            yield Check(tested.package, WARNING, said, todo)


def _not_installed(tested: VersionRange) -> Check:
    needed = NEEDED_ONLY_BY.get(tested.package)
    if needed is None and tested.extra is not None:
        needed = f"what the extra {tested.extra!r} brings"
    if needed is None:
        return Check(tested.package, FAILED, "not installed", tested.install)
    said = f"not installed; only {needed} need it"
    return Check(tested.package, WARNING, said, tested.install)


def check_imports() -> Iterator[Check]:
    """FlexAttention and the modules of this project that hold on to the insides of libraries."""
    # A broken installation raises what it likes.
    try:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention  # noqa: F401
    except Exception as error:
        said = f"cannot be imported: {one_line(error)}"
        yield Check("FlexAttention", FAILED, said, _install("torch"))
        return
    yield Check("FlexAttention", OK, "can be imported")
    try:
        import self_ensemble.attention.patching  # noqa: F401
    except Exception as error:
        said = f"transformers' attention interface cannot be used: {one_line(error)}"
        whole = "pip install -r requirements.txt"
        todo = whole if is_checkout(PACKAGE.parent) else _install("transformers")
        yield Check("attention", FAILED, said, todo)
        return
    yield Check("attention", OK, "transformers' attention interface takes ours")


def _install(package: str) -> str:
    [tested] = [each for each in version_ranges() if each.package == package]
    return tested.install


def check_spacy_model() -> Check:
    from self_ensemble.evaluation.lemmatizer import PREFERRED_MODEL

    if find_spec(PREFERRED_MODEL):
        return Check("spaCy model", OK, f"{PREFERRED_MODEL} is installed")
    if find_spec("spacy_lookups_data"):
        said = f"no {PREFERRED_MODEL}: lemmas come from spaCy's lookup table"
        return Check("spaCy model", OK, said)
    return Check(
        "spaCy model",
        WARNING,
        f"neither {PREFERRED_MODEL} nor a lookup table; only {LEMMAS} need one",
        f"python -m spacy download {PREFERRED_MODEL}, or pip install spacy-lookups-data",
    )


def check_devices() -> Iterator[Check]:
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") is None:
            yield Check("GPU", OK, "none: everything runs on the CPU, in float32")
            return
        built = torch.version.cuda or torch.version.hip
        yield Check(
            "GPU",
            WARNING,
            f"there is an NVIDIA driver, but torch {torch.__version__} cannot use it",
            "look at nvidia-smi: the driver is too old for this torch, or CUDA_VISIBLE_DEVICES "
            "hides the GPUs"
            if built
            else "install a torch that is built for CUDA (pytorch.org, get started)",
        )
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        with torch.cuda.device(index):
            bf16 = torch.cuda.is_bf16_supported()
        said = (
            f"{torch.cuda.get_device_name(index)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, "
            f"{'bfloat16' if bf16 else 'no bfloat16: weights load in float16'}"
        )
        short = free < LITTLE_MEMORY
        todo = "see nvidia-smi for who holds its memory, or choose --device cuda:N" if short else ""
        figures = {"free_bytes": free, "total_bytes": total, "bf16": bf16}
        yield Check(f"cuda:{index}", WARNING if short else OK, said, todo, figures)


def check_memory() -> Check:
    free = available_memory()
    if free is None:
        return Check(
            "memory", WARNING, "this system does not say how much is free", "look yourself"
        )
    short = free < LITTLE_MEMORY
    return Check(
        "memory",
        WARNING if short else OK,
        f"{free / GIB:.1f} GiB available",
        "the demo takes about 1 GiB, a model twice its weights while it loads" if short else "",
        {"available_bytes": free},
    )


def check_disk() -> Iterator[Check]:
    yield free_space("results folder", Path("results"), LITTLE_SPACE, "use --output_dir", FAILED)
    if find_spec("huggingface_hub"):  # else transformers is missing too, which is told
        from self_ensemble.system.hub_errors import cache_folder

        cache = Path(cache_folder())
        yield free_space(
            "model cache", cache, LITTLE_CACHE, "set HF_HOME to a larger disk", WARNING
        )


def free_space(name: str, folder: Path, little: int, elsewhere: str, unwritable: str) -> Check:
    """How much is free where the folder is, or will be made.

    unwritable: the status where nothing can be written there.
    """
    there = nearest_existing(folder.absolute())
    free = shutil.disk_usage(there).free
    said = f"{free / GIB:.1f} GiB free in {folder}"
    figures: dict[str, float | int | str] = {"free_bytes": free, "folder": str(folder)}
    if not (there.is_dir() and os.access(there, os.W_OK)):
        return Check(name, unwritable, f"{there} cannot be written", elsewhere, figures)
    short = free < little
    todo = f"make room, or {elsewhere}" if short else ""
    return Check(name, WARNING if short else OK, said, todo, figures)


def check_demo() -> Check:
    weights = DEMO_MODEL / "model.safetensors"
    for path in (weights, DEMO_QUESTIONS):
        if not path.is_file():
            return Check("demo", FAILED, f"{path} is missing", "clone the project again")
    if weights.stat().st_size < SMALLEST_DEMO:
        todo = "clone the project again, whole"
        return Check("demo", FAILED, f"{weights} holds no weights", todo)
    return Check("demo", OK, "its model and its questions are there")
