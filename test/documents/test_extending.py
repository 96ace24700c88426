"""What docs/extending.md shows is typed here, section by section, in a copy of the project."""

import os
import re
import shutil
from pathlib import Path

import pytest
from shell import Shell
from small import NAMED_TAU

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "extending.md"
LONGEST = 30  # lines of code

# What a user types is either a file, named in the text above it, or a command.
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.S | re.M)


def sections() -> dict[str, str]:
    _, *parts = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.M)
    return {title: text for title, _, text in (part.partition("\n") for part in parts)}


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shell")
    with Shell(folder, folder, os.environ) as shell:
        yield shell


@pytest.fixture
def copy(shell, tmp_path):
    """A project of one's own: what is added to it is added to nobody else's."""
    half_written = shutil.ignore_patterns("*.pyc.*")  # by another process of the tests
    shutil.copytree(ROOT / "self_ensemble", tmp_path / "self_ensemble", ignore=half_written)
    for script in ROOT.glob("*.py"):
        shutil.copy(script, tmp_path)
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    shell.folder = shell.root = tmp_path
    return tmp_path


def type_section(text: str, shell: Shell) -> list[str]:
    """Saves its files and gives its commands, in their order. Returns what these printed."""
    printed, end = [], 0
    for block in BLOCK.finditer(text):
        kind, code = block.groups()
        if kind == "sh":
            printed += [shell.type(line) for line in code.splitlines()]
        else:
            assert len(code.splitlines()) <= LONGEST, f"{len(code.splitlines())} lines: {code}"
            name = re.findall(r"`([\w/]+\.py)`", text[end : block.start()])[-1]
            (shell.folder / name).write_text(code, encoding="utf-8")
        end = block.end()
    assert end, "nothing is shown"
    return printed


@pytest.mark.parametrize("title", sections())
def test_every_example_runs_as_it_stands(copy, shell, title):
    printed = "".join(type_section(sections()[title], shell))
    if title == "A dataset":
        assert "avg-3 (baseline)" in printed and f"flex_attention{NAMED_TAU}-3" in printed
        assert len(list((copy / "results/capitals/demo").glob("*.feather"))) == 2
    if title == "An alias of a model":
        assert (copy / "results/demo/mine/avg-5.feather").exists()
