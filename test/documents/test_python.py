"""docs/python.md is typed from top to bottom, as one notebook, and prints what it says."""

import contextlib
import io
import re
from pathlib import Path

from self_ensemble import custom_generate
from self_ensemble.integrations.generate import UNSUPPORTED, generate_fused

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "python.md"
BLOCK = re.compile(r"^```(python|sh|text)\n(.*?)^```$", re.S | re.M)
COMMAND = "python -m self_ensemble.custom_generate "


def test_the_page_from_top_to_bottom(tmp_path, monkeypatch, modules_cache):
    """In a folder of its own, with the project's demo in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    names, printed, compared = {}, "", 0
    for kind, code in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if kind == "text":
            assert printed == code
            compared += 1
            continue
        with contextlib.redirect_stdout(io.StringIO()) as out:
            if kind == "python":
                exec(compile(code, str(PAGE), "exec"), names)
            else:
                assert code.startswith(COMMAND)
                argv = code.removeprefix(COMMAND).split()
                custom_generate.main(custom_generate.parse_args(argv))
        printed = out.getvalue()
    assert compared == 10


def test_the_arguments_in_the_table_are_those_that_there_are():
    text = PAGE.read_text(encoding="utf-8")
    [table] = re.findall(r"^\| argument \|.*?\n\n", text, re.S | re.M)
    told = {name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in words(row)}
    taken = set(generate_fused.__kwdefaults__)
    settings = {"layout", "positions", "fusion", "tau", "weights", "weights_by", "samples"}
    hidden = {"logits_processor", "stopping_criteria"}
    assert taken - settings - hidden <= told
    assert not told & UNSUPPORTED.keys()


def words(text):
    return re.findall(r"`(\w+)`", text)
