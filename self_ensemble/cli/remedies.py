"""The commands that an error's sentence ends with: what a user types to get what lacks."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from self_ensemble.data.paraphrase_files import MissingParaphrases, ParaphraseSource
from self_ensemble.data.result_files import read_manifest
from self_ensemble.models.config import ModelConfig
from self_ensemble.paraphrasing.config import ParaphraseConfig

# The flags of paraphrase.py that decide what it draws, with their defaults.
PARAPHRASE_DEFAULTS = {
    "revision": ModelConfig.revision,
    "dtype": ModelConfig.dtype,
    **asdict(ParaphraseConfig.sampling),
    "num_paraphrases": ParaphraseConfig.num_paraphrases,
    "max_new_tokens": ParaphraseConfig.generation.max_new_tokens,
    "chat_template": ParaphraseConfig.chat_template,
    "drop": ParaphraseConfig.drop,
    "max_attempts": ParaphraseConfig.max_attempts,
}


def told(error: Exception) -> str:
    """An error's sentence, with the command that helps where there is one."""
    if isinstance(error, MissingParaphrases):
        return _with_command(error)
    return str(error)


def paraphrase_command(source: ParaphraseSource, flags: Sequence[str] = ()) -> str:
    """What makes a file of paraphrases."""
    argv = ["--dataset", source.dataset, "--model", source.model]
    if source.data_dir is not None:
        argv += ["--data_dir", str(source.data_dir)]
    if source.dataset_revision is not None:
        argv += ["--dataset_revision", source.dataset_revision]
    return f"python paraphrase.py {shlex.join([*argv, *flags])}"


def flags_of(identity: Mapping[str, Any], revision: str | None) -> list[str] | None:
    """The flags that a file was made with, by its manifest, where they are not the default.

    Args:
        identity: of the manifest.
        revision: of the model there.

    Returns:
        None where the file was not drawn by paraphrase.py.
    """
    if "sampling" not in identity:
        return None
    given = {"revision": revision, "dtype": identity["dtype"], **identity["sampling"]}
    for name in ("num_paraphrases", "max_new_tokens", "chat_template", "drop"):
        given[name] = identity[name]
    if identity["drop"]:
        given["max_attempts"] = identity["max_attempts"]
    flags = []
    for name, value in given.items():
        if value is True:
            flags.append(f"--{name}")
        elif value is not False and value != PARAPHRASE_DEFAULTS[name]:
            flags += [f"--{name}", str(value)]
    return flags


def _with_command(missing: MissingParaphrases) -> str:
    """What lacks, and what brings it."""
    source = missing.source
    if missing.lacking is None:
        return f"there are no paraphrases {source.path}; run: {paraphrase_command(source)}"
    manifest = read_manifest(source.path.with_suffix("")) or {}
    identity = manifest.get("identity", {})
    more = "draw them with"
    if missing.were_dropped:
        more = "add some to the file, or make it anew with"
        if identity.get("drop"):
            more = "draw more often with"
            identity = identity | {"max_attempts": 2 * identity.get("max_attempts", 1)}
    flags = flags_of(identity, manifest.get("model", {}).get("revision"))
    if flags is None:
        command = paraphrase_command(source, ["--overwrite"])
        return missing.sentence(f"add them to the file, or make it anew with: {command}")
    count = max(manifest["num_questions"], missing.asked)
    if count < missing.total:
        flags += ["--max_samples", str(count)]
    # To paraphrase.py a file with as many questions is finished.
    if missing.were_dropped or manifest["num_questions"] >= missing.asked:
        flags.append("--overwrite")
    return missing.sentence(f"{more}: {paraphrase_command(source, flags)}")
