"""A row a wording, from the command line: both scripts, the others, and tables of the hub."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hub import Hub
from published import GSM_PLUS, KEEPING, POPQA_RECORDS, PROMPTSET, SEEDS, write_popqa
from small import INSTRUCTION, QUESTIONS, run_script
from writing import write

import debug_flexattention
import flex_attention_generate
import generate
import paraphrase
import score
from self_ensemble.data.result_files import read_manifest, read_results

ROOT = Path(__file__).parents[2]
POPQA = ("--group_by", "id", "--answer_column", "possible_answers")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The small questions as lists, and the same with a row a wording."""
    folder = tmp_path_factory.mktemp("files")
    asked = QUESTIONS[:4]
    lists = [
        {name: row[name] for name in ("uuid", "relation", "answers", "paraphrases")}
        for row in asked
    ]
    long = [
        {
            "qid": row["uuid"],
            "relation": row["relation"],
            "gold": json.dumps(row["answers"]),
            "kind": "far" if i == 3 else "near",
            "prompt": row["paraphrases"][i],
            "trust": row["trust"][i],
        }
        for i in range(4)
        for row in asked
    ]
    # Results of one folder have one name of the dataset, so that the runs meet.
    for form in ("lists", "long"):
        (folder / form).mkdir()
    return write(folder / "lists" / "t.jsonl", lists), write(folder / "long" / "t.csv", long)


LONG = ("--group_by", "qid", "--paraphrase_column", "prompt", "--answer_column", "gold")


@pytest.fixture
def run(small, tmp_path):
    def command(script, dataset, *argv, out="results"):
        common = ("--dataset", dataset, "--model", small.folder)
        output = ("--output_dir", tmp_path / out)
        flags = ("--instruction", INSTRUCTION)
        flags += () if "--task" in argv else ("--max_new_tokens", 4)
        return run_script(script, *common, *output, *flags, *argv)

    return command


@pytest.mark.parametrize(
    ("script", "argv"),
    [
        (flex_attention_generate, ("--num_paraphrases", 3)),
        (flex_attention_generate, ("--indexs", "3,1")),
        (generate, ("--num_paraphrases", 4)),
        (generate, ("--num_paraphrases", 2, "--method", "per_prompt")),
        (generate, ("--method", "origin")),
    ],
)
def test_both_forms_are_one_run(run, files, tmp_path, capsys, script, argv):
    """The same identity: the second command finds the first one's file finished."""
    lists, long = files
    assert run(script, lists, *argv, out="lists") == 0
    assert run(script, long, *LONG, *argv, out="long") == 0
    (of_lists,) = tmp_path.glob("lists/t/*/**/*.feather")
    of_rows = tmp_path / "long" / of_lists.relative_to(tmp_path / "lists")
    assert read_manifest(of_rows)["identity"] == read_manifest(of_lists)["identity"]
    assert read_results(of_rows).equals(read_results(of_lists))
    capsys.readouterr()
    assert run(script, long, *LONG, *argv, out="lists") == 0
    assert "finished" in capsys.readouterr().err


def test_some_of_the_rows(run, files, tmp_path):
    """Groups of unlike size, under a name of their own."""
    argv = (*LONG, "--where", "kind=near", "--num_paraphrases", 3)
    assert run(generate, files[1], *argv) == 0
    table = read_results(next(tmp_path.glob("results/t-near/*/avg-3.feather")))
    assert table["paraphrases"].tolist() == [row["paraphrases"][:3] for row in QUESTIONS[:4]]


def test_groups_of_unlike_size(run, tmp_path, capsys):
    rows = [{"id": i, "question": f"{i} {j}?", "answer": "x"} for j in range(3) for i in (1, 2)][:5]
    path = write(tmp_path / "t.csv", rows)
    asked = (generate, path, "--group_by", "id", "--num_paraphrases", 3)
    assert run(*asked) == 2
    told = capsys.readouterr().err
    assert f"line 3 of {path} (uuid 2) has 2" in told and told.count("\n") == 1
    assert run(*asked, "--fewer", "use") == 0
    assert run(*asked, "--fewer", "skip", out="skip") == 0
    assert "1 of 2 questions are left out" in capsys.readouterr().err


def test_choices(run, tmp_path, capsys):
    rows = [
        {"id": land, "question": f"{land} {i}?", "choices": [city, "Oslo"], "answer_index": 0}
        for i in range(2)
        for land, city in (("Peru", "Lima"), ("Mali", "Bamako"))
    ]
    path = write(tmp_path / "t.jsonl", rows)
    argv = ("--group_by", "id", "--num_paraphrases", 2, "--task", "choices")
    assert run(flex_attention_generate, path, *argv) == 0
    table = read_results(next(tmp_path.glob("results/t/*/*choices-2.feather")))
    assert table["uuid"].tolist() == ["Peru", "Mali"]
    assert table["answers"].tolist() == [["Lima"], ["Bamako"]]


def test_scores_of_gathered_questions(run, files, tmp_path, capsys):
    """uuids are the groups' ids, so that files of both forms are compared in pairs."""
    for dataset, argv, out in ((files[0], (), "a"), (files[1], LONG, "b")):
        for method in ("avg", "per_prompt"):
            flags = (*argv, "--num_paraphrases", 2, "--method", method)
            assert run(generate, dataset, *flags, out=out) == 0
    for method in ("avg", "per_prompt"):
        of_lists, of_rows = (next(tmp_path.glob(f"{x}/t/*/{method}-2.feather")) for x in "ab")
        capsys.readouterr()
        assert run_script(score, of_rows, "--baseline", of_lists, "--json") == 0
        (row,) = json.loads(capsys.readouterr().out)["files"]
        assert row["questions"] == 4
    # A result of per_prompt has a row a wording itself: its questions can be asked again.
    again = (of_rows, "--group_by", "uuid", "--num_paraphrases", 2)
    assert run(generate, *again, out="c") == 0
    table = read_results(next(tmp_path.glob("c/per_prompt-2/*/avg-2.feather")))
    assert table["paraphrases"].tolist() == [row["paraphrases"][:2] for row in QUESTIONS[:4]]


def test_debug_shows_a_gathered_question(small, files, capsys):
    asked = ("--dataset", files[1], *LONG, "--model", small.folder, "--num_paraphrases", 3)
    assert run_script(debug_flexattention, *asked, "--uuid", "u2", "--max_tokens", 1) == 0
    assert QUESTIONS[2]["paraphrases"][0] in capsys.readouterr().out


def test_paraphrases_of_gathered_questions_are_made_and_looked_through(
    small, files, tmp_path, capsys
):
    argv = ("--model", small.folder, "--max_new_tokens", 3, "--num_paraphrases", 1)
    out = tmp_path / "made.jsonl"
    made = ("--dataset", files[1], *LONG, "--output", out, "--max_samples", 2)
    assert run_script(paraphrase, *made, *argv) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["uuid"] for row in rows] == ["u0", "u1"]
    assert [row["question"] for row in rows] == [row["paraphrases"][0] for row in QUESTIONS[:2]]
    kept = tmp_path / "kept.jsonl"
    checked = ("--check", files[1], *LONG, "--drop", "--output", kept)
    assert run_script(paraphrase, *checked) == 0
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [row["uuid"] for row in rows] == [row["uuid"] for row in QUESTIONS[:4]]


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("--group_by", "id"), "--group_by belongs to --dataset FILE and ORGANISATION/NAME; demo"),
        (("--where", "kind"), "--where: 'kind' is not COLUMN=VALUE"),
        (("--where", "=a"), "--where: '=a' is not COLUMN=VALUE"),
        (("--dataset", "t.csv", "--split", "a"), "--split belongs to --dataset ORGANISATION/NAME"),
    ],
)
def test_mistakes(capsys, argv, named):
    for script in (generate, flex_attention_generate, debug_flexattention, paraphrase):
        assert run_script(script, *argv) == 2
        told = capsys.readouterr().err
        assert named in told and told.count("\n") == 1


def test_confidences_of_rows_that_are_gathered_are_refused(run, files, capsys):
    argv = (*LONG, "--method", "weighted_avg", "--confidence", "trust", "--num_paraphrases", 2)
    assert run(generate, files[1], *argv) == 2
    assert "--confidence: its column is read of a file with a row a question" in (
        capsys.readouterr().err
    )


# ---- the hub ------------------------------------------------------------------------------------

SEVERAL = """---
configs:
- config_name: main
  data_files: main.jsonl
- config_name: socratic
  data_files: socratic.jsonl
---
"""

# What a process that reaches the hub does, one case a line.
CHILD = """
import contextlib, io, json, sys
import flex_attention_generate
from self_ensemble.data import open_dataset
from self_ensemble import UserError, load_dataset
from self_ensemble.cli import download
for line in sys.stdin:
    name, how = json.loads(line)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if name == "command":
                asked = flex_attention_generate.parse_args(how).questions
                found = open_dataset(asked.dataset, asked.options)
                told = [found.name, [list(r.paraphrases) for r in found.records]]
            elif name == "fetch":
                told = [download.main(download.parse_args(how)), "see below"]
            else:
                found = load_dataset(name, **how)
                records = [[r.uuid, r.paraphrases, r.answers] for r in found.records]
                told = [found.name, records]
        except UserError as error:
            told = ["error", str(error)]
    told[1] = out.getvalue() + err.getvalue() if told[1] == "see below" else told[1]
    print(json.dumps(told), flush=True)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")

    def repository(name, **files):
        place = folder / "datasets" / name
        place.mkdir(parents=True)
        for file, rows in files.items():
            (place / "README.md").write_text("# A table\n")
            write(place / file.replace("__", "."), rows)
        return place

    write_popqa(repository("ibm-research/PopQA_robustness") / "PopQA_robustness.csv")
    (folder / "datasets/ibm-research/PopQA_robustness/README.md").write_text("license: mit\n")
    gsm = repository("qintongli/GSM-Plus", test__parquet=GSM_PLUS, testmini__parquet=GSM_PLUS[:8])
    (gsm / "data").mkdir()
    for split in ("test", "testmini"):
        (gsm / f"{split}.parquet").rename(gsm / "data" / f"{split}-00000-of-00001.parquet")
    promptset = repository("org/promptset", train__jsonl=PROMPTSET)
    (promptset / "README.md").rename(promptset / ".gitattributes")  # without a card
    repository("org/promptset@v1", train__jsonl=PROMPTSET[:10])
    gaps = [{"id": "007", "question": text} for text in ("null", "b")]
    repository("org/gaps", train__csv=gaps)
    several = repository("org/several", main__jsonl=PROMPTSET, socratic__jsonl=PROMPTSET)
    (several / "README.md").write_text(SEVERAL)
    with Hub(folder) as hub:
        yield hub


OF_POPQA = {"group_by": "id", "answer_column": "possible_answers"}
OF_PROMPTSET = {
    "group_by": "reference_prompt_id",
    "paraphrase_column": "prompt",
    "answer_column": "expected_answer",
}
OF_GSM_PLUS = {"group_by": "seed_question", "where": {"perturbation_type": KEEPING}}
PLAIN_PROMPTS = {"paraphrase_column": "prompt", "answer_column": "expected_answer"}
CASES = {
    "fetch": ("fetch", ["--dataset", "ibm-research/PopQA_robustness"]),
    "popqa": ("ibm-research/PopQA_robustness", OF_POPQA),
    "split": ("ibm-research/PopQA_robustness", OF_POPQA | {"split": "train"}),
    "gsm": ("qintongli/GSM-Plus", OF_GSM_PLUS | {"split": "test"}),
    "gsm rows": ("qintongli/GSM-Plus", {"split": "testmini"}),
    "which split": ("qintongli/GSM-Plus", OF_GSM_PLUS),
    "no split": ("qintongli/GSM-Plus", OF_GSM_PLUS | {"split": "train"}),
    "promptset": ("org/promptset", OF_PROMPTSET),
    "revision": ("org/promptset", OF_PROMPTSET | {"revision": "v1"}),
    "no revision": ("org/promptset", OF_PROMPTSET | {"revision": "v9"}),
    "no column": ("org/promptset", OF_PROMPTSET | {"group_by": "id"}),
    "several": ("org/several", OF_PROMPTSET),
    "nothing": ("org/nothing", {}),
    "gaps": ("org/gaps", {"group_by": "id"}),
    "numbers": ("org/gaps", {"group_by": "id", "where": {"question": "b"}}),
    "no card": ("fetch", ["--dataset", "org/promptset"]),
}


def documented(dataset):
    """The command of docs/data.md that asks a dataset of the hub."""
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    (line,) = re.findall(rf"^python (.*--dataset {dataset} .*)$", page, re.M)
    return "command", shlex.split(line)[1:]


CASES |= {
    "the page's popqa": documented("ibm-research/PopQA_robustness"),
    "the page's gsm": documented("qintongli/GSM-Plus"),
}


def in_a_process(environment, cases):
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input="".join(json.dumps(case) + "\n" for case in cases),
        env=environment | {"PYTHONPATH": f"{ROOT}:{ROOT / 'test/support'}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(cases), done.stderr
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def found(hub, tmp_path_factory):
    """What each case gives, and again without the hub; a list of the two."""
    home = tmp_path_factory.mktemp("home")
    online = in_a_process(hub.environment(home), CASES.values())
    offline = in_a_process(hub.offline(home), CASES.values())
    return {name: pair for name, *pair in zip(CASES, online, offline, strict=True)}


def test_popqa_robustness_of_the_hub(found):
    records = [[r.uuid, list(r.paraphrases), list(r.answers)] for r in POPQA_RECORDS]
    expected = ["ibm-research/PopQA_robustness-train", records]
    assert found["popqa"] == found["split"] == [expected, expected]
    assert "fetched" in found["fetch"][0][1]
    assert "here; not compared with the hub" in found["fetch"][1][1]
    assert "fetched" not in found["no card"][1][1]


def test_gsm_plus_of_the_hub(found):
    name, records = found["gsm"][0]
    assert name == "qintongli/GSM-Plus-test-problem understanding-distraction insertion"
    assert records == [[s, [f"{kind}: {s}" for kind in KEEPING], ["3"]] for s in SEEDS]
    assert found["gsm"][1] == found["gsm"][0]
    name, records = found["gsm rows"][1]
    assert (name, len(records)) == ("qintongli/GSM-Plus-testmini", 8)
    told = "qintongli/GSM-Plus has the splits test, testmini; give one"
    assert found["which split"] == [["error", f"--split: {told}"]] * 2
    told = "qintongli/GSM-Plus has no split train; it has test, testmini"
    assert found["no split"][0] == ["error", told]


def test_another_table_of_the_hub(found):
    name, records = found["promptset"][0]
    assert (name, [len(record[1]) for record in records]) == ("org/promptset-train", [10, 10])
    assert [len(record[1]) for record in found["revision"][0][1]] == [10]
    # Without the hub the library gives what it fetched last, whatever is asked for.
    assert "as the latest, but main is" in found["promptset"][1][1]
    assert found["revision"][1] == found["revision"][0]


def test_commands_of_the_page_ask_tables_of_the_hub(found):
    name, wordings = found["the page's popqa"][0]
    assert name == "ibm-research/PopQA_robustness-train-original-paraphrase"
    assert wordings == [[r.paraphrases[0], r.paraphrases[2]] for r in POPQA_RECORDS]
    _, wordings = found["the page's gsm"][0]
    assert wordings == [[f"{kind}: {SEEDS[0]}" for kind in KEEPING]]


def test_what_the_library_reads_of_a_csv_is_told(found):
    """It takes null for a gap and 007 for 7 (huggingface/datasets issue 4467)."""
    told = "row 1 of org/gaps (train): question is empty"
    assert found["gaps"] == [["error", told]] * 2
    assert [record[0] for record in found["numbers"][0][1]] == ["7"]


def test_what_the_hub_lacks_is_one_sentence(found):
    for name, *named in (
        ("no revision", "org/promptset has no revision 'v9' (--dataset_revision)"),
        ("no column", "--group_by: org/promptset (train) has no column 'id'; its columns are"),
        ("several", "several configurations ('main', 'socratic')", "or give --dataset the path"),
        ("nothing", "not found: the hub shows no dataset org/nothing", "or give --dataset the"),
    ):
        kind, sentence = found[name][0]
        assert kind == "error" and "\n" not in sentence, name
        assert all(part in sentence for part in named), sentence
    kind, sentence = found["nothing"][1]
    assert "HF_HUB_OFFLINE=0 ./download_resources.sh --dataset org/nothing" in sentence
