"""The package as it is installed: what is in it, and that importing it changes nothing."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKED = ("self_ensemble", "demo", "pyproject.toml", "setup.py", "README.md", "LICENSE")


def python(*argv, folder, path):
    """What a fresh Python prints that is started in `folder` and finds modules in `path`.

    Its environment is not that of the tests, where the package is imported already.
    """
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-P", *map(str, argv)],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == "" or "all" in argv  # transformers shows a bar where it loads a model
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the wheel's content. Built in a copy: building leaves files in the sources."""
    folder = tmp_path_factory.mktemp("package")
    for name in PACKED:
        source, target = ROOT / name, folder / "sources" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    build = "from setuptools.build_meta import build_wheel; build_wheel('../wheel')"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=folder / "sources", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    [wheel] = (folder / "wheel").glob("self_ensemble-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "installed")
    return folder / "installed"


def test_the_wheel_holds_the_package_and_the_demo_and_nothing_else(installed):
    top = {path.name for path in installed.iterdir()}
    assert top == {"self_ensemble", f"self_ensemble-{project()['version']}.dist-info"}
    files = {str(p.relative_to(installed)) for p in installed.rglob("*") if p.is_file()}
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "self_ensemble").rglob("*.py")}
    demo = {
        f"self_ensemble/demo/{name}"
        for name in ("questions.parquet", "choices.parquet", "few_shot.jsonl")
    }
    model = {f"self_ensemble/demo/model/{path.name}" for path in (ROOT / "demo/model").iterdir()}
    packed = {file for file in files if file.startswith("self_ensemble/")}
    others = {"self_ensemble/py.typed", "self_ensemble/paraphrasing/english_words.txt.gz"}
    assert packed == ours | demo | model | others


def test_installed_it_finds_its_demo_from_anywhere(installed, tmp_path):
    script = """
from pathlib import Path
import self_ensemble
from self_ensemble.data import load_dataset
from self_ensemble.system.bundled import DEMO_MODEL
questions = load_dataset("demo", max_samples=None).records
print(Path(self_ensemble.__file__).parent, DEMO_MODEL.parent, len(questions), sep="\\n")
"""
    package = str(installed / "self_ensemble")
    told = python("-c", script, folder=tmp_path, path=installed).splitlines()
    assert told == [package, f"{package}/demo", "1000"]


def test_importing_it_is_quick_and_changes_nothing(tmp_path):
    """The fastest of three: the machine may be busy."""
    runs = [
        json.loads(python(ROOT / "test/support/untouched.py", "import", folder=tmp_path, path=ROOT))
        for _ in range(3)
    ]
    for run in runs:
        assert run["changed"] == []
        assert set(run["imported"]) <= {"self_ensemble", *sys.stdlib_module_names}
    assert min(run["seconds"] for run in runs) < 0.3


def test_all_of_it_changes_nothing(tmp_path):
    """Not even beside torch and transformers, whose settings are the user's: import and answers."""
    told = python(ROOT / "test/support/untouched.py", "all", folder=tmp_path, path=ROOT)
    changed = json.loads(told)
    assert changed.keys() >= {"modules", "call"}
    assert not any(changed.values()), changed


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_what_is_pinned_lies_in_the_ranges():
    """The requirements are what is tested; [project] says what may be installed."""
    wanted = [*project()["dependencies"]]
    wanted += [each for extra in project()["optional-dependencies"].values() for each in extra]
    ranges = dict(each.split(">=") for each in wanted if ">=" in each)
    of = ("", "-lm-eval", "-inspect", "-ray")
    names = [f"requirements{each}.txt" for each in of]
    files = [ROOT / name for name in names]
    pins = dict(line.split("==") for file in files for line in file.read_text().split())
    assert ranges.keys() == pins.keys()
    for name, lowest in ranges.items():
        numbers = [[int(n) for n in re.findall(r"\d+", text)] for text in (lowest, pins[name])]
        assert numbers == sorted(numbers), name


def test_the_version_stands_in_the_citation_too():
    assert f"version: {project()['version']}\n" in (ROOT / "CITATION.cff").read_text()
