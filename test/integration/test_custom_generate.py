"""The folder for `model.generate(custom_generate=FOLDER)`: what is written, and that it works.

Beside ours, what others have run into with such folders: relative imports that were not copied, of
a folder (transformers 38916) and of a repository (40480), a `generate` that calls itself (38304),
code that ran without trust_remote_code (46483), a second process with the files in its cache
(45840), files that only other files import (text-generation-inference 3251).
"""

import itertools
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from hub import Hub
from small import INSTRUCTION, QUESTIONS
from tiny import tiny_model
from transformers.dynamic_module_utils import get_imports, get_relative_import_files

from self_ensemble import Ensemble, UserError, custom_generate, generate_fused
from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.cli import parser as cli
from self_ensemble.integrations import custom_generate as writer
from self_ensemble.integrations.custom_generate import write_folder

ROOT = Path(__file__).resolve().parents[2]
PROMPT = f"{INSTRUCTION}\n\nQ: {{paraphrase}}\nA:"
ASKED = [question["paraphrases"] for question in QUESTIONS]

# Where self_ensemble cannot be imported. The first process copies the code to its cache, and the
# second, which knows nothing of it, finds it there. Prints what each way answers, a line a process.
CHILD = """
import json, os, sys

sys.modules |= dict.fromkeys(["self_ensemble", "pandas", "pyarrow", "triton"])  # not to be had
from transformers import AutoModelForCausalLM, AutoTokenizer

plain, own, ways, asked = json.loads(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(plain)
model = AutoModelForCausalLM.from_pretrained(plain)
asked |= {"tokenizer": tokenizer}
if first := os.fork():
    os.waitpid(first, 0)
found = {}
for way in ways:
    rows = model.generate(custom_generate=way, trust_remote_code=True, **asked)
    found[way] = rows.tolist()
if first:
    print(json.dumps(found), flush=True)
    os._exit(0)
# The repository of a model, which then generates so by itself, with inputs by place.
its = AutoModelForCausalLM.from_pretrained(own, trust_remote_code=True)
inputs = tokenizer(["x"] * len(asked["paraphrases"]), return_tensors="pt").input_ids
found["own"] = its.generate(inputs, **asked)[:, inputs.shape[1] :].tolist()
try:
    model.generate(custom_generate=ways[0], trust_remote_code=False, **asked)
except ValueError as error:
    found["untrusted"] = str(error)
print(json.dumps(found), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As it is written, under a name that needs care."""
    folder = tmp_path_factory.mktemp("written") / "my-sdpa.folder"
    write_folder(folder)
    return folder


def by_folder(model, tokenizer, folder, **arguments):
    asked = {"paraphrases": ASKED, "prompt": PROMPT, "max_new_tokens": 6} | arguments
    return model.generate(
        custom_generate=str(folder), trust_remote_code=True, tokenizer=tokenizer, **asked
    )


def by_callable(model, tokenizer, **arguments):
    asked = {"paraphrases": ASKED, "prompt": PROMPT, "max_new_tokens": 6} | arguments
    return model.generate(custom_generate=generate_fused, processing_class=tokenizer, **asked)


# ---- it works -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_the_folder_is_the_callable(name, small, folder, modules_cache):
    model = tiny_model(name, vocab_size=len(small.tokenizer))
    before = model.config._attn_implementation, set(vars(model))
    found = by_folder(model, small.tokenizer, folder)
    assert found.equal(by_callable(model, small.tokenizer))
    assert before == (model.config._attn_implementation, set(vars(model)))
    assert not model.base_model._forward_pre_hooks
    stops = {"stop_strings": ["e"], "method": "avg", "return_dict_in_generate": True}
    here = by_callable(model, small.tokenizer, **stops)
    there = by_folder(model, small.tokenizer, folder, **stops)
    assert there.sequences.equal(here.sequences) and there.generations == here.generations
    assert type(there).__module__.startswith("transformers_modules.")


def test_both_copies_of_the_code_in_one_process(small, folder, modules_cache, monkeypatch):
    """A stream of the package is open while the folder's code has the same model."""
    # The third wrapper of the package, as the folder's code makes its third in the loop below.
    monkeypatch.setattr(FlexAttentionWrapper, "_serial", itertools.count(2))
    ensemble = Ensemble(small.model, small.tokenizer)
    expected = [answer.token_ids for answer in ensemble.generate(ASKED, prompt=None)]
    alone = by_folder(small.model, small.tokenizer, folder)
    with ensemble.engine.wrapper:  # as the scripts have it: patched throughout
        opened = ensemble.stream(ASKED, batch_size=1)  # several batches
        found = {}
        for answer in opened:
            found[answer.question] = answer.token_ids
            assert by_folder(small.model, small.tokenizer, folder).equal(alone)
    assert [found[index] for index in range(len(ASKED))] == expected
    assert small.model.config._attn_implementation in ("eager", "sdpa")


def test_arguments_that_no_callable_hears_of_are_refused(small, folder, modules_cache):
    for name in ("streamer", "assistant_model", "negative_prompt_ids"):
        with pytest.raises(Exception, match=f"fused generation has no {name}"):
            by_folder(small.model, small.tokenizer, folder, **{name: torch.tensor([[1]])})
    with pytest.raises(Exception, match="give the model's tokenizer"):
        by_folder(small.model, None, folder)
    given = by_folder(small.model, None, folder, processing_class=small.tokenizer)
    assert given.equal(by_callable(small.model, small.tokenizer))


def test_stop_strings_of_a_generation_config(small, folder, modules_cache):
    from transformers import GenerationConfig

    config = GenerationConfig(stop_strings="e", max_new_tokens=6)
    found = by_folder(small.model, small.tokenizer, folder, generation_config=config)
    assert found.equal(by_callable(small.model, small.tokenizer, stop_strings="e"))
    assert config.stop_strings == "e"


def test_without_the_package(small, tmp_path, folder):
    """From a folder that was copied elsewhere, a repository of the hub, and a model's own."""
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere" / "class")
    shutil.copytree(folder, tmp_path / "hub" / "models" / "someone" / "fused")
    own = shutil.copytree(small.folder, tmp_path / "own")
    shutil.copytree(folder / "custom_generate", own / "custom_generate")
    asked = {"paraphrases": ASKED, "prompt": PROMPT, "max_new_tokens": 6}
    expected = by_callable(small.model, small.tokenizer).tolist()

    argument = json.dumps([str(small.folder), str(own), [str(elsewhere), "someone/fused"], asked])
    with Hub(tmp_path / "hub") as hub:
        done = subprocess.run(
            [sys.executable, "-I", "-c", CHILD, argument],
            cwd=tmp_path,
            env=hub.environment(tmp_path / "home"),
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert second == {str(elsewhere): expected, "someone/fused": expected}
    assert first.pop("own") == [row[1:] for row in expected]
    assert "trust_remote_code=True" in first.pop("untrusted")
    assert first == second


# ---- what is written ----------------------------------------------------------------------------


def test_every_file_is_a_copy_of_the_packages_own(folder):
    """Line by line, apart from imports of each other and what only type checkers read."""
    copies = sorted((folder / "custom_generate").glob("*.py"))
    for copy in copies:
        head, _, *lines = copy.read_text(encoding="utf-8").splitlines()
        source = ROOT / re.search(r"self_ensemble/\S+\.py", head)[0]
        left = source.read_text(encoding="utf-8").splitlines()
        for line in lines:
            if re.match(r"\s*from \.", line) or line.lstrip().startswith("raise ImportError("):
                continue
            while left[0] != line:
                gone = left.pop(0)
                assert re.match(r"(if TYPE_CHECKING|    |from self_ensemble|$)", gone), gone
            left.pop(0)
        assert not left, source
        assert not re.search(r"^\s*(from|import) self_ensemble", copy.read_text(), re.MULTILINE)


def test_transformers_finds_every_file(folder):
    """It follows `from .name import` through the files, and copies nothing else."""
    root = folder / "custom_generate" / "generate.py"
    reached = {Path(path).name for path in get_relative_import_files(root)} | {root.name}
    assert reached == {path.name for path in root.parent.glob("*.py")}


def test_the_requirements_are_what_is_imported(folder):
    """Of a repository's files transformers asks for every package that any of them imports."""
    imported = {name for path in folder.rglob("*.py") for name in get_imports(path)}
    needed = imported - sys.stdlib_module_names
    listed = (folder / "custom_generate" / "requirements.txt").read_text().split()
    assert needed == {re.split("[>=]", line)[0] for line in listed}
    with open(ROOT / "pyproject.toml", "rb") as file:
        assert set(listed) <= set(tomllib.load(file)["project"]["dependencies"])


def test_the_readme_has_the_tag_and_an_example_that_runs(small, folder, modules_cache):
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert re.match(r"---\n.*^tags:\n- custom_generate\n---\n", text, re.DOTALL | re.MULTILINE)
    [example] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    example = example.replace("THIS_REPOSITORY_OR_FOLDER", str(folder))
    names = {}
    exec(example.replace("MODEL", str(small.folder)), names)
    assert len(names["answers"]) == 2


def test_writing_again(folder, tmp_path):
    target = shutil.copytree(folder, tmp_path / "new")
    with pytest.raises(UserError, match="--overwrite"):
        write_folder(target)
    (target / "notes.txt").write_text("mine")
    shutil.copy(target / "custom_generate/generate.py", target / "custom_generate/stale.py")
    write_folder(target, overwrite=True)
    assert not (target / "custom_generate/stale.py").exists()
    assert (target / "notes.txt").read_text() == "mine"
    for path in folder.rglob("*.*"):
        assert path.read_bytes() == (target / path.relative_to(folder)).read_bytes()


def test_what_is_anothers_stays(tmp_path):
    (tmp_path / "README.md").write_text("# My model\n")
    with pytest.raises(UserError, match="has no tag custom_generate"):
        write_folder(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "README.md"]
    text = "---\ntags:\n- custom_generate\n---\n# My model\n"
    (tmp_path / "README.md").write_text(text)
    write_folder(tmp_path)
    assert (tmp_path / "README.md").read_text() == text
    (tmp_path / "custom_generate" / "mine.py").write_text("mine = 1\n")
    with pytest.raises(UserError, match=r"mine\.py is not of this program"):
        write_folder(tmp_path, overwrite=True)


def test_the_command_line(tmp_path, capsys):
    def run(*argv):
        try:
            cli.run(custom_generate.main, custom_generate.parse_args([str(arg) for arg in argv]))
        except SystemExit as end:
            return end.code
        return 0

    assert run(tmp_path / "new") == 0
    count = len(list((tmp_path / "new/custom_generate").glob("*.py")))
    assert f"({count} modules, {count + 2} files in all)" in capsys.readouterr().out
    assert run(tmp_path / "new") == 2
    assert "is written already: --overwrite writes it anew" in capsys.readouterr().err
    assert run(tmp_path / "new", "--overwrite") == 0
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert run() == 2


def test_writing_imports_nothing_heavy(tmp_path):
    code = (
        "import runpy, sys\n"
        f"sys.argv[1:] = [{str(tmp_path / 'new')!r}]\n"
        "runpy.run_module('self_ensemble.custom_generate', run_name='__main__')\n"
        "assert not {'torch', 'transformers', 'numpy', 'pandas'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_module_that_is_left_out_is_asked_for_by_nobody(small, folder):
    """It needs Triton; `generate_fused` captures no steps."""
    assert writer.LEFT_OUT == "self_ensemble.attention.kernels.launch"
    [text] = [path.read_text() for path in folder.rglob("attention_cuda_graphs.py")]
    assert f'raise ImportError("{writer.LEFT_OUT} is no part of this folder")' in text
    assert "capture=False" in (folder / "custom_generate/generate.py").read_text()
