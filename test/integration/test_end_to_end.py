"""The README's commands for the two public datasets, as they stand, against a hub on loopback.

From nothing: model and dataset are fetched from the hub by the real clients, with the demo's model
under the name of a public one and small tables in the datasets' schemas. Then all of it again with
HF_HUB_OFFLINE=1, after the hub is gone.
"""

import os
import re
import shlex
from pathlib import Path

import pytest
from hub import Hub, write_standard_content
from shell import Shell
from small import NAMED_TAU

from self_ensemble.data.result_files import read_results

pytest.importorskip("datasets")

ROOT = Path(__file__).resolve().parents[2]
# Facts enough that 2,000 of them can be the test questions; of these a few are asked.
NUM_QUESTIONS, NUM_FACTS, ASKED = 4, 2010, ["--max_samples", "4"]


def commands(dataset: str) -> list[str]:
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.S | re.M)
    [block] = [b for b in blocks if f"--dataset {dataset}" in b]
    return block.splitlines()


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    """Both blocks of the README, with the hub and then without."""
    folder = tmp_path_factory.mktemp("end_to_end")
    write_standard_content(folder / "hub", num_questions=NUM_QUESTIONS, num_facts=NUM_FACTS)
    with Hub(folder / "hub") as hub:
        with Shell(folder / "online", ROOT, hub.environment(folder / "home")) as online:
            type_all(online)
        unknown = list(hub.unknown)
        environment = hub.offline(folder / "home")
    with Shell(folder / "offline", ROOT, environment) as offline:
        type_all(offline)
    return online, offline, unknown


def tables(shell: Shell) -> dict[str, bytes]:
    paths = [*shell.folder.rglob("*.feather"), *shell.folder.rglob("paraphrases.jsonl")]
    return {str(path.relative_to(shell.folder)): path.read_bytes() for path in paths}


def type_all(shell: Shell) -> None:
    for dataset in ("webqa", "myriadlama"):
        for line in commands(dataset):
            is_long = dataset == "myriadlama" and re.match(r"python \S*generate\.py", line)
            shell.type(shlex.join([*shlex.split(line), *ASKED]) if is_long else line)


def test_the_blocks_are_whole():
    for dataset in ("webqa", "myriadlama"):
        programs = [line.split()[line.startswith("python")] for line in commands(dataset)]
        expected = ["flex_attention_generate.py", "generate.py"] * 2
        making = ["paraphrase.py"] if dataset == "webqa" else []
        assert programs == ["./download_resources.sh", *making, *expected, "score.py"]
        assert [line for line in commands(dataset) if "--lemmaize" in line] == commands(dataset)[
            -3:-1
        ]


def test_every_question_was_answered_and_lemmatised(typed):
    online, _, unknown = typed
    assert unknown == []
    for dataset in ("webqa", "myriadlama"):
        for name in (f"flex_attention{NAMED_TAU}-5", "avg-5"):
            path = online.folder / "results" / dataset / "llama3.2_3b_it" / f"{name}.feather"
            table = read_results(path)
            assert len(table) == NUM_QUESTIONS
            assert all(len(asked) == 5 for asked in table["paraphrases"])
            assert all(answers for answers in table["answer_lemmas"])
    assert "[MASK]" in read_results(path)["paraphrases"][0][0]


def test_offline_is_the_same(typed):
    online, offline, _ = typed
    assert tables(online).keys() == tables(offline).keys()
    assert tables(online) == tables(offline)
    assert len(tables(online)) == 5


def test_nothing_is_left_half_made(typed):
    for shell in typed[:2]:
        left = [path.name for path in shell.folder.rglob("*") if path.is_file()]
        endings = {os.path.splitext(name)[1] for name in left}
        assert endings == {".feather", ".csv", ".json", ".jsonl"}
        assert not [name for name in left if name.startswith(".")]
