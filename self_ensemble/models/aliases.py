"""Short names for models, and what a name given to --model means.

register_alias("mine", "my-organisation/my-model-3b")      # then: --model mine
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from self_ensemble.system.bundled import DEMO_MODEL
from self_ensemble.system.errors import UserError
from self_ensemble.system.registry import Registry

# What is loaded: a hub id, or the folder of the bundled model. `_it` marks the
# instruction-tuned model of a size, its absence the base model.
BUNDLED = {
    "demo": str(DEMO_MODEL),
    "llama3.1_8b": "meta-llama/Llama-3.1-8B",
    "llama3.1_8b_it": "meta-llama/Llama-3.1-8B-Instruct",
    "llama3.1_70b": "meta-llama/Llama-3.1-70B",
    "llama3.1_70b_it": "meta-llama/Llama-3.1-70B-Instruct",
    "llama3.2_1b": "meta-llama/Llama-3.2-1B",
    "llama3.2_1b_it": "meta-llama/Llama-3.2-1B-Instruct",
    "llama3.2_3b": "meta-llama/Llama-3.2-3B",
    "llama3.2_3b_it": "meta-llama/Llama-3.2-3B-Instruct",
    "qwen2.5_0.5b": "Qwen/Qwen2.5-0.5B",
    "qwen2.5_0.5b_it": "Qwen/Qwen2.5-0.5B-Instruct",
    "qwen2.5_1.5b": "Qwen/Qwen2.5-1.5B",
    "qwen2.5_1.5b_it": "Qwen/Qwen2.5-1.5B-Instruct",
    "qwen2.5_3b": "Qwen/Qwen2.5-3B",
    "qwen2.5_3b_it": "Qwen/Qwen2.5-3B-Instruct",
    "qwen2.5_7b": "Qwen/Qwen2.5-7B",
    "qwen2.5_7b_it": "Qwen/Qwen2.5-7B-Instruct",
    "qwen2.5_14b": "Qwen/Qwen2.5-14B",
    "qwen2.5_14b_it": "Qwen/Qwen2.5-14B-Instruct",
    "qwen2.5_32b": "Qwen/Qwen2.5-32B",
    "qwen2.5_32b_it": "Qwen/Qwen2.5-32B-Instruct",
    "qwen2.5_72b": "Qwen/Qwen2.5-72B",
    "qwen2.5_72b_it": "Qwen/Qwen2.5-72B-Instruct",
    "qwen3_0.6b": "Qwen/Qwen3-0.6B-Base",
    "qwen3_0.6b_it": "Qwen/Qwen3-0.6B",
    "qwen3_1.7b": "Qwen/Qwen3-1.7B-Base",
    "qwen3_1.7b_it": "Qwen/Qwen3-1.7B",
    "qwen3_4b": "Qwen/Qwen3-4B-Base",
    "qwen3_4b_it": "Qwen/Qwen3-4B",
    "qwen3_8b": "Qwen/Qwen3-8B-Base",
    "qwen3_8b_it": "Qwen/Qwen3-8B",
    "qwen3_14b": "Qwen/Qwen3-14B-Base",
    "qwen3_14b_it": "Qwen/Qwen3-14B",
    "qwen3_32b_it": "Qwen/Qwen3-32B",
    "deepseek_r1_qwen_1.5b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    "deepseek_r1_qwen_7b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
    "deepseek_r1_qwen_14b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B",
    "deepseek_r1_qwen_32b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
    "deepseek_r1_llama_8b": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    "deepseek_r1_llama_70b": "deepseek-ai/DeepSeek-R1-Distill-Llama-70B",
    "gemma2_2b": "google/gemma-2-2b",
    "gemma2_2b_it": "google/gemma-2-2b-it",
    "gemma2_9b": "google/gemma-2-9b",
    "gemma2_9b_it": "google/gemma-2-9b-it",
    "gemma2_27b": "google/gemma-2-27b",
    "gemma2_27b_it": "google/gemma-2-27b-it",
    # Gemma 3 from 4B up reads pictures too and loads as another class: not listed.
    "gemma3_270m": "google/gemma-3-270m",
    "gemma3_270m_it": "google/gemma-3-270m-it",
    "gemma3_1b": "google/gemma-3-1b-pt",
    "gemma3_1b_it": "google/gemma-3-1b-it",
    "mistral_7b": "mistralai/Mistral-7B-v0.3",
    "mistral_7b_it": "mistralai/Mistral-7B-Instruct-v0.3",
    "olmo2_1b": "allenai/OLMo-2-0425-1B",
    "olmo2_1b_it": "allenai/OLMo-2-0425-1B-Instruct",
    "olmo2_7b": "allenai/OLMo-2-1124-7B",
    "olmo2_7b_it": "allenai/OLMo-2-1124-7B-Instruct",
    "olmo2_13b": "allenai/OLMo-2-1124-13B",
    "olmo2_13b_it": "allenai/OLMo-2-1124-13B-Instruct",
    "olmo2_32b": "allenai/OLMo-2-0325-32B",
    "olmo2_32b_it": "allenai/OLMo-2-0325-32B-Instruct",
}


GGUF = ".gguf"
# As llama.cpp names the parts of a split file.
PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$", re.IGNORECASE)

ALIASES: Registry[str] = Registry(
    "--model: {name!r} is no folder, no .gguf file, no hub id (organisation/name) and no alias; "
    "the aliases are {names}"
)


def register_alias(name: str, target: str) -> None:
    """Makes `--model name` load `target`: a hub id, a folder or a .gguf file.

    Raises:
        ValueError: the name is taken, or has a slash, as hub ids and folders have.
    """
    if not name or "/" in name or "\\" in name:
        raise ValueError(f"an alias is a word without slashes, not {name!r}")
    ALIASES.add(name, target)


for _name, _target in BUNDLED.items():
    register_alias(_name, _target)


class _Paths(Mapping[str, str]):
    """All aliases, those that are registered later too."""

    def __getitem__(self, name: str) -> str:
        if name not in ALIASES:
            raise KeyError(name)
        return ALIASES.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(ALIASES)

    def __len__(self) -> int:
        return len(ALIASES.names())

    def __repr__(self) -> str:
        return repr(dict(self))


# Alias -> what is loaded; the name that notebooks have always imported.
MODEL_PATHs: Mapping[str, str] = _Paths()


def resolve_model(name: str) -> str:
    """What to load for --model: an alias's target, else the folder, file or hub id as it is.

    A folder that holds one .gguf file and no config.json stands for the file. Whether the hub has a
    model of that id is found out by loading it.

    Raises:
        UserError: the name is none of them; a folder with several .gguf files; a part of a split
            one.
    """
    if name in ALIASES:
        name = ALIASES.get(name)
    if os.path.isdir(name):
        return _gguf_in(name) or name
    if os.path.isfile(name) and name.lower().endswith(GGUF):
        return _whole(name)
    if os.path.exists(name):
        raise UserError(
            f"--model: {name} is a file, and no .gguf; give the folder that holds config.json"
        )
    if name.lower().endswith(GGUF):  # with one slash it could be a hub id, and is a mistyped path
        raise UserError(f"--model: there is no file {name}")
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        return name
    return ALIASES.get(name)


def _gguf_in(folder: str) -> str | None:
    """The .gguf file of a folder that has no config.json; None where there is none."""
    if os.path.isfile(os.path.join(folder, "config.json")):
        return None
    # A folder that cannot be listed is seen as empty.
    files = sorted(path.name for path in Path(folder).glob("*") if path.suffix.lower() == GGUF)
    if not files:
        return None
    if len(files) == 1 or all(PART.search(file) for file in files):
        return _whole(os.path.join(folder, files[0]))
    raise UserError(
        f"--model: the folder {folder} holds {len(files)} .gguf files, give one of them: "
        f"{', '.join(files)}"
    )


def _whole(file: str) -> str:
    part = PART.search(file)
    if part is not None and int(part[1]) > 1:
        raise UserError(one_of_several(file, int(part[1])))
    return file


def one_of_several(file: str, parts: int) -> str:
    return (
        f"--model: {file} is one of {parts} parts of a split GGUF, which transformers cannot read; "
        "merge them with llama.cpp's llama-gguf-split --merge, and give the merged file"
    )
