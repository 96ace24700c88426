"""Datasets by name: the bundled ones, and a user's own."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from writing import error_of, write

import generate
from self_ensemble.data import (
    Dataset,
    DatasetOptions,
    FewShot,
    Record,
    dataset_names,
    load_dataset,
    open_dataset,
    register_dataset,
)
from self_ensemble.data.registry import DATASETS, cloned_datasets, hub_datasets, users_of

ROOT = Path(__file__).parents[3]

RECORDS = [
    Record("pe", ("Capital of Peru?", "Peru's capital?"), ("Lima",)),
    Record("ml", ("Capital of Mali?", "Mali's capital?"), ("Bamako",)),
]


@pytest.fixture
def capitals():
    """A registered dataset, and a list of the options that it was opened with."""
    asked = []

    @register_dataset("capitals", options=("seed", "data_dir"), repository="org/capitals")
    def open_capitals(options):
        asked.append(options)
        return Dataset("capitals", RECORDS, (FewShot("Capital of Chad?", "N'Djamena"),), "Answer.")

    yield asked
    DATASETS.remove("capitals")


def test_what_is_bundled():
    assert dataset_names()[:5] == ("demo", "demo_choices", "webqa", "myriadlama", "pararel")
    assert hub_datasets() == {
        "webqa": "stanfordnlp/web_questions",
        "myriadlama": "iszhaoxin/MyriadLAMA",
    }
    assert cloned_datasets() == {"pararel": "https://github.com/yanaiela/pararel"}


def test_a_dataset_of_the_users_own_is_one_like_the_others(capitals):
    loaded = load_dataset("capitals", max_samples=1)
    assert loaded.records == RECORDS[:1] and loaded.few_shot[0].answer == "N'Djamena"
    assert loaded.fingerprint == load_dataset("capitals").fingerprint
    assert capitals[0] == DatasetOptions(max_samples=1)
    assert "capitals" in dataset_names() and hub_datasets()["capitals"] == "org/capitals"
    assert users_of("seed") == ("myriadlama", "capitals")
    assert ", capitals, or give" in error_of(load_dataset, "capital")


def test_its_options_are_flags_and_those_of_others_are_refused(capitals, capsys):
    asked = generate.parse_args(["--dataset", "capitals", "--seed", "7"]).questions
    assert (asked.dataset, asked.options.seed) == ("capitals", 7)
    with pytest.raises(SystemExit):
        generate.parse_args(["--dataset", "capitals", "--num_auto", "1"])
    told = "--num_auto belongs to --dataset myriadlama; capitals does not use it"
    assert told in capsys.readouterr().err
    assert error_of(open_dataset, "capitals", DatasetOptions(num_auto=1)) == told
    assert error_of(open_dataset, "demo", DatasetOptions(seed=1)) == (
        "--seed belongs to --dataset myriadlama and capitals; demo does not use it"
    )
    with pytest.raises(SystemExit):
        generate.parse_args(["--help"])
    assert "myriadlama, capitals: what the draw depends on" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize(
    "records, named",
    [
        ([], ["no records"]),
        ([RECORDS[0], replace(RECORDS[1], uuid="pe")], ["'pe'", "same uuid"]),
        ([replace(RECORDS[0], answers=()), RECORDS[1]], ["pe", "no answers"]),
        ([replace(RECORDS[0], choices=("Lima",))], ["question pe", "choices", "'Lima' alone"]),
        (
            [replace(RECORDS[0], choices=("a", "b", "a"))],
            ["question pe", "choices[2]", "choices[0]"],
        ),
        ([replace(RECORDS[0], choices=("Lima", " "))], ["'pe'", "choices must be texts"]),
        ([replace(RECORDS[0], answers=("Lima", " "))], ["'pe'", "answers"]),
        ([replace(RECORDS[0], answers=(3,))], ["'pe'", "answers", "3"]),
    ],
)
def test_records_that_do_not_do(capitals, monkeypatch, records, named):
    monkeypatch.setattr(f"{__name__}.RECORDS", records)
    sentence = error_of(load_dataset, "capitals")
    for part in named:
        assert part in sentence, sentence


def test_a_name_is_taken_once_and_options_are_those_there_are(capitals):
    with pytest.raises(ValueError, match="capitals"):
        register_dataset("capitals")(lambda options: None)
    with pytest.raises(AssertionError, match="weight"):
        register_dataset("other", options=("weight",))


OWN_FILE = """
from self_ensemble.data import Dataset, Record, register_dataset

@register_dataset("capitals")
def capitals(options):
    return Dataset("capitals", [Record("pe", ["Capital of Peru?"], ["Lima"])])
"""


def test_a_file_in_the_folder_of_datasets_is_found(tmp_path):
    for room in ("data", "system"):
        shutil.copytree(ROOT / "self_ensemble" / room, tmp_path / "self_ensemble" / room)
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    (tmp_path / "self_ensemble" / "data" / "datasets" / "capitals.py").write_text(OWN_FILE)
    code = "from self_ensemble.data import *; print(dataset_names(), load_dataset('capitals').name)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (
        done.stdout
        == "('demo', 'demo_choices', 'webqa', 'myriadlama', 'pararel', 'capitals') capitals\n"
    ), done.stderr


def test_importing_is_light(tmp_path):
    # pyarrow comes with the first table, torch with the engine, the others never here.
    path = write(tmp_path / "own.jsonl", [{"question": "q", "answer": "a"}])
    code = (
        "import sys, constants, dataset\n"
        f"assert dataset.load_dataset({str(path)!r}, max_samples=None).records\n"
        "heavy = 'torch transformers datasets spacy pandas numpy pyarrow'.split()\n"
        "sys.exit(f'loaded {[name for name in heavy if name in sys.modules]}'"
        " if any(name in sys.modules for name in heavy) else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
