"""What docs/inspect_ai.md shows and tells to type, typed here through the launcher."""

import inspect
import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from self_ensemble import Ensemble, Prompt, UserError
from self_ensemble import inspect_ai as launcher

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "inspect_ai.md").read_text(encoding="utf-8")
STARTS = "python -m self_ensemble.inspect_ai "
needs_inspect = pytest.mark.skipif(find_spec("inspect_ai") is None, reason="needs inspect_ai")
LIMIT = 3


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", TEXT, re.S | re.M)
    return [line for block in blocks for line in block.splitlines() if line.startswith(STARTS)]


def read_lines(file):
    lines = (ROOT / "docs/lm_eval" / file).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def ensemble():
    shots = [
        (row["paraphrases"][0], row["answers"][0]) for row in read_lines("demonstrations.jsonl")
    ]
    prompt = Prompt("Give the missing fact in as few words as possible.", shots[:5])
    return Ensemble.from_pretrained("demo", dtype="float32", device="cpu", prompt=prompt)


def typed(line, monkeypatch, folder):
    from inspect_ai.log import list_eval_logs, read_eval_log

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # Inspect sets its own
    monkeypatch.setenv("INSPECT_LOG_DIR", str(folder))
    words = [*shlex.split(line.removeprefix(STARTS)), "--limit", str(LIMIT), "--display", "none"]
    monkeypatch.setattr(sys, "argv", ["inspect", *words])
    with pytest.raises(SystemExit) as end:
        launcher.main()
    assert not end.value.code
    [log] = list_eval_logs(str(folder))
    return read_eval_log(log)


@needs_inspect
@pytest.mark.parametrize("line", commands(), ids=lambda line: line[-40:])
def test_command(line, monkeypatch, tmp_path, ensemble):
    log = typed(line, monkeypatch, tmp_path)
    assert log.status == "success", log.error
    given = dict(re.findall(r"-M (\w+)=(\S+)", line))
    settings = {"method": given.get("method", "attention")}
    if "fusion_tau" in given:
        settings |= {"tau": float(given["fusion_tau"]), "weights_by": given["weights_by"]}
    questions = [row["paraphrases"] for row in read_lines("questions.jsonl")[:LIMIT]]
    expected = ensemble.generate(questions, stop=["\n"], **settings)
    assert [sample.output.completion for sample in log.samples] == [e.generation for e in expected]
    assert log.results.scores[0].metrics["mean"].value > 0.5


def test_the_task_that_is_shown_is_the_file():
    [(name, shown)] = re.findall(r"^<!-- file: (\S+) -->\n```python\n(.*?)^```", TEXT, re.S | re.M)
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == shown


@needs_inspect
def test_every_argument_and_option_is_told():
    from self_ensemble.integrations.inspect_ai import MAX_TOKENS, SelfEnsembleAPI
    from self_ensemble.integrations.inspect_ai_arguments import READ

    parameters = inspect.signature(SelfEnsembleAPI).parameters.values()
    own = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
    for name in (*own, *READ):
        assert f"`{name}`" in TEXT, name
    assert f"{MAX_TOKENS:,}" in TEXT


def test_without_inspect_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(launcher, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -r requirements-inspect\.txt"):
        launcher.main()


@needs_inspect
@pytest.mark.slow
def test_from_a_shell(tmp_path):
    """The whole of it in a process of its own: a mistake is one line and status 2."""
    command = [sys.executable, "-m", *shlex.split(commands()[0])[2:], "-M", "method=mean"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: unknown method 'mean'")
