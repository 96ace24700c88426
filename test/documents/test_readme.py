"""What the documentation tells a user to type is typed here, in a copy of the project.

Commands that generate are given fewer questions, shorter answers, and a model and a file where they
name ones that only the user has; the rest of the line is run as it stands. Installing is what
.ci/run does.
"""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from pararel import write_clone
from published import write_published
from shell import Shell

ROOT = Path(__file__).resolve().parents[2]
# Typed by test_extending.py, since its commands need the files that it shows, by
# test_lm_eval_page.py and test_inspect_ai_page.py, since what they start is slow to start, and by
# test_python.py, between the Python that stands around them.
TYPED_ELSEWHERE = ("extending.md", "inspect_ai.md", "lm_eval.md", "python.md")
DOCS = [page for page in ROOT.glob("docs/*.md") if page.name not in TYPED_ELSEWHERE]
PAGES = ["README.md", "demo/README.md", *(str(page.relative_to(ROOT)) for page in DOCS)]

# The tests themselves, what takes minutes, what needs a GPU; and the public datasets, which
# test_end_to_end.py asks a hub for, or which are cloned. Run elsewhere or by hand.
ELSEWHERE = re.compile(
    r"python -m pytest|python demo/train\.py|python benchmark/(kill|gpu|pretrained|split)\.py|"
    r".*--test-flex-attention|\./download_resources\.sh|git clone |"
    r".*--dataset (webqa|myriadlama|ibm-research/|qintongli/)|.*results/(webqa|myriadlama)/"
)
GENERATING = (
    "generate.py",
    "flex_attention_generate.py",
    "quality.py",
    "self_consistency.py",
    "throughput.py",
    "batches.py",
)
THEIRS = {
    "meta-llama/Llama-3.2-3B": str(ROOT / "demo" / "model"),
    "deepseek_r1_qwen_1.5b": "reasoning",
}
# A chat template that opens a thought, as those of reasoning models do.
THINKING = (
    "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n<think>\n' }}{% endif %}"
)


def commands() -> list[tuple[str, str]]:
    """(page, command): the lines of its shell blocks, then what its text tells to run.

    What several pages tell is typed once.
    """
    found = {}
    for page in PAGES:
        text = (ROOT / page).read_text()
        blocks = re.findall(r"^```sh\n(.*?)^```", text, re.S | re.M)
        lines = [line.strip() for block in blocks for line in block.splitlines()]
        lines += re.findall(r"`(python [^`…]+\.py\b[^`…]*)`", text)
        lines = [re.sub(r"^pip install -r \S+ && ", "", line) for line in lines]
        for line in lines:
            if line and not ELSEWHERE.match(line):
                found.setdefault(runnable(line), (page, line))
    return list(found.values())


def runnable(line: str) -> str:
    for name, ours in THEIRS.items():
        line = line.replace(name, ours)
    words = line.split()
    if words[0] == "python" and Path(words[1]).name in GENERATING:
        line = re.sub(r" --max_samples \d+", "", line) + " --max_samples 3"
        line = re.sub(r"(--max_new_tokens) \d+", r"\1 30", line)
    if Path(words[1]).name == "throughput.py":
        line += " --stock_batches 32"
    return line


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the project, with a user's own questions, ParaRel, the pages' files, a model."""
    folder = tmp_path_factory.mktemp("checkout") / "project"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "__pycache__", "results"))
    rows = [
        {
            "question": f"Capital of {place}?",
            "paraphrases": [f"Name {place}'s capital, wording {i}." for i in range(5)],
            "answers": [place],
        }
        for place in ("Mali", "Peru", "Laos")
    ]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for page in PAGES:
        shown = r"^<!-- file: (\S+) -->\n```json\n(.*?)^```"
        for name, lines in re.findall(shown, (ROOT / page).read_text(), re.S | re.M):
            (folder / name).write_text(lines)
    shutil.copytree(folder / "demo" / "model", folder / "reasoning")
    write_clone(folder / "pararel")
    write_published(folder)
    settings = folder / "reasoning" / "tokenizer_config.json"
    told = json.loads(settings.read_text()) | {"chat_template": THINKING}
    settings.write_text(json.dumps(told))
    with Shell(folder, folder, os.environ) as shell:
        yield shell


# In the order of the page: later commands score what earlier ones wrote.
@pytest.mark.parametrize(("page", "line"), commands())
def test_command(page, line, checkout):
    printed = checkout.type(runnable(line)).splitlines()
    for shown in excerpts(line):
        left_out = ("", "...")
        missing = [each for each in shown if each.strip() not in left_out and each not in printed]
        assert not missing, "not printed any more: " + "\n".join(missing)


def test_what_the_readme_says_of_python(checkout):
    """Its Python blocks are one program; a model of the hub is ours."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)
    code = "\n".join(blocks)
    for name, ours in THEIRS.items():
        code = code.replace(name, ours)
    shown = "\nprint([answer.text for answer in answers])\n"
    (checkout.folder / "from_python.py").write_text(code + shown)
    *printed, last = checkout.type("python from_python.py").splitlines()
    answered = re.fullmatch(
        r"Italy -\d\.\d+ False\nVincent van Gogh -\d\.\d+ False", "\n".join(printed[:2])
    )
    assert answered, printed
    assert sorted(printed[2:]) == ["0 Italy", "1 Vincent van Gogh"]
    assert re.fullmatch(r"\['.+'\]", last)


def test_what_is_said_of_python_and_tables(checkout):
    (code,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "data.md").read_text(), re.S | re.M
    )
    (checkout.folder / "from_tables.py").write_text(code + "print([a.text for a in answers])\n")
    assert checkout.type("python from_tables.py") == "['Italy', 'Vincent van Gogh']\n"


def test_what_is_said_of_python_and_answers_of_every_kind(checkout):
    text = (ROOT / "docs" / "answers.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    shown = """
print([answer.text for answer in voted], len(drawn))
print(scored.best("bytes"), len(scored.logprobs))
"""
    (checkout.folder / "from_answers.py").write_text(code + shown)
    *printed, voted, last = checkout.type("python from_answers.py").splitlines()
    assert [re.match(r"[A-Z][\w ]+ \(-", line)[0] for line in printed] == [
        "Italy (-",
        "Vincent van Gogh (-",
    ]
    assert voted == "['Italy', 'Vincent van Gogh'] 2"
    assert last == "0 3"


def excerpts(command: str) -> list[list[str]]:
    """The lines of each block that a page says a command printed: `<!-- printed by: … -->`."""
    marked = re.escape(f"<!-- printed by: {command} -->\n") + "```text\n(.*?)^```"
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES]
    return [block.splitlines() for text in texts for block in re.findall(marked, text, re.S | re.M)]


def test_the_readme_has_no_gap_left():
    assert not re.search(r"@[A-Z_]+@", (ROOT / "README.md").read_text())


def test_the_readme_names_what_is_pinned():
    text = (ROOT / "README.md").read_text()
    for of in ("", "-lm-eval", "-inspect", "-ray", "-dev"):
        for line in (ROOT / f"requirements{of}.txt").read_text().splitlines():
            if "==" in line:
                package, pin = line.split("==")
                row = next(row for row in text.splitlines() if re.match(rf"\|.*\b{package}\b", row))
                assert pin in row, line
