"""What docs/lm_eval.md shows and tells to type, typed here through the launcher."""

import inspect
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml
from lm_eval.tasks import TaskManager

from self_ensemble import lm_eval as launcher
from self_ensemble.integrations.lm_eval import SelfEnsembleLM
from self_ensemble.integrations.lm_eval_arguments import HF_ARGUMENTS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "lm_eval.md"
TEXT = PAGE.read_text(encoding="utf-8")
STARTS = "python -m self_ensemble.lm_eval "
THEIRS = {"llama3.2_3b_it": "chat"}


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", TEXT, re.S | re.M)
    return [line for block in blocks for line in block.splitlines() if line.startswith(STARTS)]


@pytest.fixture
def checkout(tmp_path, monkeypatch, small):
    """A folder with the tasks, and a model with a chat template.

    What the harness tells of the machine, and its own tasks, which it looks for first, take
    seconds: they are left out.
    """
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    model = tmp_path / "chat"
    model.mkdir()
    for file in small.folder.iterdir():
        (model / file.name).symlink_to(file)
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<a>"
    (model / "chat_template.jinja").write_text(template)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # as the harness does, and leaves it
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(tmp_path / "requests"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "data")
    own_tasks = partial(TaskManager, include_defaults=False)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", own_tasks)
    level = logging.getLogger("lm_eval").level
    yield tmp_path
    logging.getLogger("lm_eval").setLevel(level)


def typed(line: str, monkeypatch) -> None:
    words = shlex.split(line.removeprefix(STARTS))
    for theirs, ours in THEIRS.items():
        words = [word.replace(theirs, ours) for word in words]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *words])
    launcher.main()


@pytest.mark.parametrize("line", commands(), ids=lambda line: line[-40:])
def test_command(line, checkout, monkeypatch, capsys):
    typed(f"{line} --limit 2", monkeypatch)
    printed = capsys.readouterr().out
    tasks = re.search(r"--tasks (\S+)", line)[1].split(",")
    for task in tasks:
        assert re.search(rf"^\|{task}\b", printed, re.M), printed
    if "--log_samples" in line:
        [samples] = checkout.glob("out/*/samples_*.jsonl")
        assert len(samples.read_text().splitlines()) == 2
    if "--use_cache" in line:
        assert list(checkout.glob("cache/*.db")) and list(checkout.glob("requests/*"))


def test_predictions_alone(checkout, monkeypatch, capsys):
    line = f"{commands()[1]} --predict_only --output_path out --limit 2"
    typed(line, monkeypatch)
    [answers] = checkout.glob("out/*/samples_demo_answers_*.jsonl")
    assert len([json.loads(line)["resps"] for line in answers.read_text().splitlines()]) == 2


def test_what_is_said_of_python(checkout, capsys):
    [code] = re.findall(r"^```python\n(.*?)^```", TEXT, re.S | re.M)
    exec(code.replace("num_fewshot=5", "num_fewshot=5, limit=2"), {})
    assert capsys.readouterr().out.splitlines()[-1] in ("0.0", "0.5", "1.0")


def test_the_task_that_is_shown_is_the_file():
    for name, shown in re.findall(r"^<!-- file: (\S+) -->\n```yaml\n(.*?)^```", TEXT, re.S | re.M):
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == shown


def test_every_argument_is_told():
    own = inspect.signature(SelfEnsembleLM).parameters.keys() - {"others"}
    for name in (*own, *HF_ARGUMENTS):
        assert f"`{name}`" in TEXT, name


def test_the_snippet_for_other_prompts_is_yaml_of_the_harness():
    [snippet] = re.findall(r"^```yaml\n(doc_to_text.*?)^```", TEXT, re.S | re.M)
    assert yaml.safe_load(snippet)["doc_to_text"].startswith("Question: ␞␞{{")


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from self_ensemble import lm_eval; sys.argv = ['lm_eval', '--help']\n"
        "try: lm_eval.main()\n"
        "finally: print(sorted({'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stderr


def launched(*argv, **environment):
    return subprocess.run(
        [sys.executable, "-m", "self_ensemble.lm_eval", *argv],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_from_a_shell(tmp_path):
    """The whole of it in processes of its own, and a mistake is one line and status 2."""
    told = ("--model", "self-ensemble", "--include_path", "docs/lm_eval", "--tasks", "demo_answers")
    home = {"HF_HOME": str(tmp_path)}
    done = launched(*told, "--model_args", "pretrained=demo", "--limit", "2", **home)
    assert done.returncode == 0 and "|demo_answers|" in done.stdout, done.stderr[-2000:]
    wrong = launched(*told, "--model_args", "pretrained=demo,method=mean", **home)
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].startswith("error: unknown method 'mean'")
