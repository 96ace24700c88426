"""The pages in docs/: what they say of the code is held against the code."""

import ast
import contextlib
import csv
import io
import itertools
import json
import re
from argparse import SUPPRESS
from pathlib import Path
from urllib.parse import unquote

import pytest
from small import INSTRUCTION, NAMED_TAU, run_script, write_jsonl

import flex_attention_generate
import generate
import paraphrase
import score
from self_ensemble.data import load_dataset
from self_ensemble.data.result_files import read_manifest
from self_ensemble.paraphrasing.quality_filter import verdicts

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "demo" / "README.md", *sorted(DOCS.glob("*.md"))]
CODE = [*ROOT.glob("*.py"), *ROOT.glob("self_ensemble/**/*.py")]
MADE_AGAIN = "make it again: python docs/make_reference.py"


@pytest.fixture(scope="module")
def reference():
    """docs/make_reference.py as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        import make_reference

        yield make_reference


# ---- what is made from the code -----------------------------------------------------------------


def test_the_reference_is_the_one_made(reference):
    assert reference.REFERENCE.read_text(encoding="utf-8") == reference.reference(), MADE_AGAIN


def test_the_architecture_lists_the_files_that_there_are(reference):
    text = reference.ARCHITECTURE.read_text(encoding="utf-8")
    assert text == reference.architecture(text), MADE_AGAIN


def test_the_picture_of_the_flow_is_the_one_drawn(reference):
    import draw_flow

    assert draw_flow.PICTURE.read_text(encoding="utf-8") == draw_flow.draw()
    assert all((ROOT / "self_ensemble" / name).is_dir() for name in draw_flow.STEPS)


def test_help_tells_the_defaults_that_are_taken(reference):
    for module in reference.SCRIPTS:
        parser = reference.parser_of(module)
        for action in parser._actions:
            nothing = action.default is None or action.default is False  # 0 is a default
            if nothing or action.default in (SUPPRESS, []):
                continue
            told, _ = reference.split_default(action.help % vars(action))
            assert told is not None, (module, action.dest)
            assert re.match(rf"{re.escape(str(action.default))}(\b|$)", told), (module, action.dest)


def test_every_flag_says_what_it_does(reference):
    for module in reference.SCRIPTS:
        for _, (names, _, _, what) in reference.flags_of(module):
            assert what, (module, names)


def keys_of(manifests, *path) -> set[str]:
    """All keys that the manifests have at a place."""
    keys = set()
    for manifest in manifests:
        for name in path:
            manifest = manifest[name]
        keys |= manifest.keys()
    return keys


@pytest.fixture(scope="module")
def runs(small, tmp_path_factory):
    """A folder of results: plain, extended, with lemmas, weighted."""
    folder = tmp_path_factory.mktemp("runs")

    def run(script, *argv):
        flags = ("--instruction", INSTRUCTION)
        if "self_consistency" not in argv:
            flags += ("--num_paraphrases", 2)
        if "--task" not in argv:
            flags += ("--max_new_tokens", 2)
        where = ("--dataset", small.questions, "--model", small.folder, "--output_dir", folder)
        assert run_script(script, *where, *flags, *argv) == 0
        name = f"flex_attention{NAMED_TAU}" if script is flex_attention_generate else argv[1]
        if "--weights_by" in argv:
            name += "-entropy1"
        part = "-choices" if "--task" in argv else "-t1" if "--temperature" in argv else ""
        return read_manifest(folder / "capitals" / "tiny-llama" / f"{name}{part}-2.json")

    drawn = ("--temperature", 1, "--stop", "none", "--extract", "all", "--fewer", "use")
    rows = [json.loads(line) for line in small.questions.read_text().splitlines()]
    rows = [row | {"choices": [*row["answers"], "Oslo"]} for row in rows]
    with_choices = write_jsonl(folder / "capitals.jsonl", rows)
    scored = ("--task", "choices", "--choice_norm", "mean", "--dataset", with_choices)
    with contextlib.redirect_stderr(io.StringIO()):
        run(flex_attention_generate, "--max_samples", 1)
        run(flex_attention_generate, "--max_samples", 2)
        manifests = [
            run(
                flex_attention_generate, "--max_samples", 2, "--lemmaize", "--spacy_model", "lookup"
            ),
            run(generate, "--method", "weighted_avg", "--max_samples", 2, "--part_rows", 1),
            run(generate, "--method", "weighted_avg", "--weights_by", "entropy:1"),
            run(generate, "--method", "avg", "--max_samples", 2, *drawn),
            run(generate, "--method", "avg", "--max_samples", 2, *scored),
            run(generate, "--method", "self_consistency", "--samples", 2, "--temperature", 1),
        ]
    return folder, manifests


def test_the_manifests_keys(reference, runs):
    _, manifests = runs
    # What only a run on two machines has, one that shows what it asks, or one whose questions have
    # unlike numbers of paraphrases, or one with workers: test_resume.py, test_scripts.py and
    # test_workers.py see to these.
    others = {"begun_with", "asked_examples", "left_out", "with_fewer", "workers", "computed_by"}
    assert keys_of(manifests) == reference.MANIFEST.keys() - others
    assert keys_of(manifests, "identity") == reference.IDENTITY.keys()
    assert keys_of(manifests, "identity", "method") == reference.SETTINGS.keys()
    for key in ("counts", "attention", "versions"):
        for name in keys_of(manifests, key):
            told = name if key == "versions" else f"`{name}`"
            assert told in reference.MANIFEST[key].lower(), (key, name)


def test_the_columns_of_a_score(reference, runs, capsys):
    folder, _ = runs
    files = sorted(folder.glob("*/*/*.feather"))
    assert run_script(score, *files, "--csv", "--by", "relation") == 0
    header, *_ = csv.reader(io.StringIO(capsys.readouterr().out))
    always = len(reference.SCORE_COLUMNS)
    assert header[:always] == list(reference.SCORE_COLUMNS)
    further = list(reference.FURTHER_SCORE_COLUMNS)
    assert [name for name in further if name in header] == header[always:]


def test_the_keys_of_a_paraphrase_file(reference, small, tmp_path, capsys):
    output = tmp_path / "reworded.jsonl"
    where = ("--dataset", small.questions, "--model", small.folder, "--output", output)
    flags = ("--max_samples", 1, "--num_paraphrases", 1, "--max_new_tokens", 2)
    assert run_script(paraphrase, *where, *flags) == 0
    manifest = read_manifest(tmp_path / "reworded.json")
    assert manifest.keys() == reference.PARAPHRASE_MANIFEST.keys() - {
        *("begun_with", "workers", "computed_by")
    }
    assert manifest["identity"].keys() == reference.PARAPHRASE_IDENTITY.keys()
    capsys.readouterr()
    assert run_script(
        paraphrase, "--check", output, "--drop", "--output", tmp_path / "o.jsonl"
    ) in (
        0,
        1,
    )
    assert read_manifest(tmp_path / "o.json").keys() == {
        *("identity", "num_questions", "dataset", "short"),
    }


def test_variables_that_the_code_reads_are_told(reference):
    told = " ".join(variable for variable, _, _ in reference.VARIABLES)
    for path in CODE:
        code = path.read_text(encoding="utf-8")
        read = re.findall(r"environ(?:\.get|\.setdefault)?[(\[]\s*\"(\w+)\"(?!\]\s*=)", code)
        for name in read:
            assert f"`{name}`" in told, (path.name, name)


# ---- what pages quote ---------------------------------------------------------------------------


def texts_of_the_code() -> list[str]:
    """Every text in the scripts and modules, with … for what is put in when it is told."""
    found = []
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr) or is_text(node):
                found += [re.sub(r"%[sd]", "…", text) for text in written(node)]
    return found


def is_text(node) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def written(node) -> list[str]:
    """What a text may come out as: of two where it says one or the other."""
    if is_text(node):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return ["".join(parts) for parts in itertools.product(*map(written, node.values))]
    if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.IfExp):
        return [*written(node.value.body), *written(node.value.orelse)]
    return ["…"]


def says(text: str, message: str) -> bool:
    """Whether the text is the message, whose … may be anything."""
    parts = message.split("…")
    if max(parts, key=len) not in text:  # the quick way to say no
        return False
    return re.fullmatch(".*".join(map(re.escape, parts)), text, re.S) is not None


def quoted(page: Path) -> list[str]:
    lines = page.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith(">")]


def test_quoted_messages_are_those_of_the_code():
    texts, count = texts_of_the_code(), 0
    for line in quoted(DOCS / "debugging.md"):
        message = re.fullmatch(r"> `(?:error: |interrupted: )?(.+)`", line)
        assert message, f"not a quoted message: {line}"
        assert any(says(text, message[1]) for text in texts), f"the code does not say: {line}"
        count += 1
    assert count > 50


def test_the_configurations_are_those_of_vscode():
    text = (DOCS / "debugging.md").read_text(encoding="utf-8")
    there = json.loads((ROOT / ".vscode" / "launch.json").read_text())["configurations"]
    table = re.search(r"^\| configuration \| runs \|\n(.*?)\n\n", text, re.S | re.M)[1]
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()[1:]]
    assert rows == [
        [each["name"], f"`{' '.join([Path(each.get('program', 'pytest')).name, *each['args']])}`"]
        for each in there
    ]


def test_the_example_of_a_questions_file_is_a_good_one(tmp_path):
    text = (DOCS / "quick_start.md").read_text(encoding="utf-8")
    path = tmp_path / "questions.jsonl"
    path.write_text(re.search(r"^```json\n(.*?)^```", text, re.S | re.M)[1])
    (record,) = load_dataset(str(path), max_samples=None).records
    assert len(record.paraphrases) == 5
    asked = {"question": record.question, "answers": record.answers}
    assert not any(verdicts(record.paraphrases, **asked)), "the quality filter finds something"


def test_names_in_the_pages_are_there():
    """What stands as code and looks like a function of a module, or like a file, is one."""
    text = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
    for module, name in re.findall(r"`(\w+)\.(\w+)`", text):
        path = ROOT / f"{module}.py"
        if path.is_file() and name != "py":
            assert re.search(rf"^(def|class) {name}\b", path.read_text(), re.M), (module, name)
    for name, file in re.findall(r"`([\w.]+)` (?:in |\()`([\w/]+\.py)`", text):
        code = file_of(file).read_text(encoding="utf-8")
        *owner, function = name.split(".")
        assert all(f"class {each}" in code for each in owner), (file, name)
        assert re.search(rf"\b(def |class ){function}\b|^{function}\b", code, re.M), (file, name)
    for name in re.findall(r"`([\w/]+\.(?:py|ipynb|sh))`", text):
        # In a table of files a name stands under its folder's.
        listed = "/" not in name and f"| `{name}` |" in text
        assert file_of(name) or name in SHOWN or listed, name


# Files that extending.md lets the reader write.
SHOWN = {
    "again.py",
    "ask.py",
    "capitals.py",
    "with_alias.py",
    "trimmed.py",
    "longest.py",
    "surest.py",
}


def file_of(name: str) -> Path | None:
    """The file that a page names: from the top, or inside the package or the tests."""
    folders = (ROOT, ROOT / "self_ensemble", ROOT / "test")
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


# ---- links --------------------------------------------------------------------------------------


def without_code(text: str) -> str:
    text = re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
    return re.sub(r"`[^`\n]*`", lambda code: "`" + "x" * (len(code[0]) - 2) + "`", text)


def anchors_of(page: Path) -> set[str]:
    """As GitHub makes them of headings; the second of a name gets -1, and so on."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    anchors, seen = set(), {}
    for heading in re.findall(r"^#+ +(.+?)\s*$", text, re.M):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        anchor = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        number = seen[anchor] = seen.get(anchor, -1) + 1
        anchors.add(f"{anchor}-{number}" if number else anchor)
    return anchors


def links_of(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in links_of(page):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / unquote(path)).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert unquote(anchor) in anchors_of(target), link


def test_every_page_can_be_reached_from_the_readme():
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        found = {(page.parent / link.partition("#")[0]).resolve() for link in links_of(page)}
        ahead += [each for each in found - reached if each.suffix == ".md" and each.is_file()]
    assert set(PAGES) <= reached
