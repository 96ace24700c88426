"""The folder that transformers loads for `model.generate(..., custom_generate=FOLDER)`.

It holds copies of the package's own modules: `integrations/generate.py` as ``generate.py``, and
what that imports, directly or not. transformers copies such a folder into its cache file by file,
following ``from .name import``, and knows no sub-folders there. So the copies lie flat, a room's
name in front (``attention/fusion.py`` becomes ``attention_fusion.py``), and their imports of each
other are written relative; nothing else in them is changed. Nothing here imports torch.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from self_ensemble.system.errors import UserError

PACKAGE = "self_ensemble"
ROOT = f"{PACKAGE}.integrations.generate"
# Needs Triton, which transformers would ask everybody for. Only captured steps call it, and
# `generate_fused` captures none.
LEFT_OUT = f"{PACKAGE}.attention.kernels.launch"
SUBFOLDER = "custom_generate"
# What the modules import of others, as pyproject.toml has it.
REQUIREMENTS = ("torch>=2.11", "transformers>=5.17", "numpy>=2.0", "tqdm>=4.66")
# How a file is known that may be written anew.
MARK = "written by python -m self_ensemble.custom_generate"
TAG = "custom_generate"

README = f"""---
library_name: transformers
license: mit
tags:
- {TAG}
---
<!-- {MARK} -->

# Paraphrases of a question, fused in the attention

A question asked in several wordings gets several answers from one language model. This generation
method reads all wordings of a question side by side, isolated from each other, and decodes one
answer that attends to all of them. It works on causal language models with rotary or learned
positions whose layers go through transformers' attention interface (Llama, Qwen, Mistral, Gemma,
Phi, OLMo, GPT-NeoX, GPT-2 and others), and says so where it does not.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("MODEL")
model = AutoModelForCausalLM.from_pretrained("MODEL")
answers = model.generate(
    custom_generate="THIS_REPOSITORY_OR_FOLDER",
    trust_remote_code=True,
    tokenizer=tokenizer,
    paraphrases=[
        ["What is the capital of France?", "France's capital is which city?"],
        ["Which city is the capital of Peru?", "Peru has which capital?"],
    ],
    max_new_tokens=20,
)
tokenizer.batch_decode(answers, skip_special_tokens=True)
```

## Arguments

* `paraphrases`: the wordings of each question; a flat list of texts is one question.
* `tokenizer`: the model's own fast tokenizer.
* `prompt`: a text in which `{{paraphrase}}` stands for the wording, `"Q: {{paraphrase}}\\nA:"` for
  instance, or what a chat template renders; `"{{paraphrase}}"` takes wordings for whole prompts.
* `add_special_tokens`: what the tokenizer is called with; by default not where the prompt begins
  with BOS.
* `stop_strings`: texts that end an answer; by default the newline after its first visible
  character; `[]`: only end-of-sequence and `max_new_tokens` end it.
* `method`: `"attention"`, or a logit method such as `"avg"`, `"prob_avg"`, `"max"`, `"vote"`.
* `tau`, `weights`, `weights_by`, `fusion`, `positions`: settings of the fusion.
* `do_sample` with `temperature`, `top_p`, `top_k=0`; `sample_seed`.
* `max_new_tokens`, `pad_token_id`, `return_dict_in_generate` as in `generate`. Arguments that are
  not supported, such as `num_beams`, are refused by name.

`inputs` are not read; where they are given, a row a question, they come back in front of the
answers. The model is afterwards as it was before.

The files in `{SUBFOLDER}/` are copies of modules of the package self-ensemble, which has the method
in full: likelihoods of given answers, result files, comparisons, and proofs on your own model.
"""


@dataclass(frozen=True)
class _Import:
    """A statement ``from self_ensemble.… import …``.

    modules: those that it imports from, or that it imports.
    """

    node: ast.ImportFrom
    modules: tuple[str, ...]


def folder_files() -> dict[str, str]:
    """The folder's files: path below it → text."""
    files = {"README.md": README, f"{SUBFOLDER}/requirements.txt": "\n".join(REQUIREMENTS) + "\n"}
    waiting, seen = [ROOT], {ROOT}
    while waiting:
        module = waiting.pop(0)
        source = _path_of(module).read_text(encoding="utf-8")
        tree = ast.parse(source)
        imports = list(_imports(tree))
        files[f"{SUBFOLDER}/{flat_name(module)}.py"] = _copy(module, source, tree, imports)
        for found in imports:
            new = [name for name in found.modules if name not in seen and name != LEFT_OUT]
            seen.update(new)
            waiting += new
    assert len(files) == len(seen) + 2, "two modules have one flat name"
    return files


def write_folder(folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write the folder, for use as it is and for a repository of the hub.

    What else lies in it stays, so that it may be a model's.

    Args:
        folder: made where it is not there.
        overwrite: write files anew that this has written before, and remove those of them that are
            no longer needed.

    Returns:
        The paths written.

    Raises:
        UserError: files stand in the way, or the folder cannot be written.
    """
    files = {folder / name: text for name, text in folder_files().items()}
    readme = folder / "README.md"
    try:
        there = sorted((folder / SUBFOLDER).glob("*.py"))
        foreign = [path for path in there if not _is_ours(path)]
        if foreign:
            raise UserError(f"{foreign[0]} is not of this program: choose another folder")
        if there and not overwrite:
            raise UserError(f"{folder / SUBFOLDER} is written already: --overwrite writes it anew")
        if readme.exists() and not _is_ours(readme):
            if not re.search(rf"^- {TAG}$", readme.read_text(encoding="utf-8"), re.MULTILINE):
                raise UserError(
                    f"{readme} has no tag {TAG}, by which the hub finds such folders: add it to "
                    "the tags at its top"
                )
            del files[readme]
        (folder / SUBFOLDER).mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.write_text(text, encoding="utf-8", newline="\n")
        for path in there:
            if path not in files:
                path.unlink()
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    return list(files)


def flat_name(module: str) -> str:
    """``self_ensemble.attention.fusion`` → ``attention_fusion``; the root is ``generate``."""
    return "generate" if module == ROOT else "_".join(module.split(".")[1:])


def _path_of(module: str) -> Path:
    package = Path(__file__).resolve().parents[1]
    return package.joinpath(*module.split(".")[1:]).with_suffix(".py")


def _is_ours(path: Path) -> bool:
    return MARK in path.read_text(encoding="utf-8", errors="replace")


def _imports(tree: ast.Module) -> Iterator[_Import]:
    """Those that run; what stands under TYPE_CHECKING does not."""
    for node in _running(tree):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith(PACKAGE) for alias in node.names), ast.unparse(
                node
            )
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            assert node.module is not None
            if _path_of(node.module).exists():
                yield _Import(node, (node.module,))
            else:
                yield _Import(node, tuple(f"{node.module}.{alias.name}" for alias in node.names))


def _running(tree: ast.Module) -> Iterator[ast.AST]:
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += (child for child in ast.iter_child_nodes(node) if not _is_type_checking(child))


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _copy(module: str, source: str, tree: ast.Module, imports: Iterable[_Import]) -> str:
    """A module's text with relative imports, and without what is there for type checkers alone."""
    lines = source.splitlines(keepends=True)
    for found in imports:
        first, last = found.node.lineno - 1, found.node.end_lineno or found.node.lineno
        statement = "".join(lines[first:last])
        lines[first:last] = [_relative(found, statement), *[""] * (last - first - 1)]
    for node in ast.walk(tree):
        if _is_type_checking(node):
            assert isinstance(node, ast.If) and not node.orelse
            last = node.end_lineno or node.lineno
            lines[node.lineno - 1 : last] = [""] * (last - node.lineno + 1)
    path = "/".join(module.split("."))
    head = f"# A copy of {path}.py, {MARK}.\n# SPDX-License-Identifier: MIT\n"
    return head + "".join(lines)


def _relative(found: _Import, statement: str) -> str:
    indent = " " * found.node.col_offset
    if LEFT_OUT in found.modules:
        return f'{indent}raise ImportError("{LEFT_OUT} is no part of this folder")\n'
    written = f"from {found.node.module} import"
    assert statement.startswith(indent + written), statement
    if found.modules == (found.node.module,):
        return statement.replace(written, f"from .{flat_name(found.modules[0])} import", 1)
    # transformers follows no `from . import name`; others import from these modules by name.
    lines = []
    for module, alias in zip(found.modules, found.node.names, strict=True):
        lines.append(f"{indent}from . import {flat_name(module)} as {alias.asname or alias.name}\n")
    return "".join(lines)
