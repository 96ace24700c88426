"""The example's tour of one question, and the picture of the method."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from small import stock_answer
from transformers import MistralConfig, MistralForCausalLM

import example_flexattention as example
from self_ensemble.attention.masks import create_segment_isolation_mask, dense_mask
from self_ensemble.data import load_dataset, load_few_shot, prompt_template
from self_ensemble.data.datasets.demo import INSTRUCTION as DEMO_INSTRUCTION
from self_ensemble.system.bundled import DEMO_FEW_SHOT

ROOT = Path(__file__).parents[2]
OWN = ("What is the capital of Peru?", "Peru's capital?", "[MASK] is the capital of Peru, a land.")


def run(capsys, *argv) -> list[str]:
    """What the example prints, line by line."""
    capsys.readouterr()
    example.main(example.parse_args([str(arg) for arg in argv]))
    return capsys.readouterr().out.splitlines()


def tour(capsys, model, paraphrases) -> list[str]:
    wordings = [arg for text in paraphrases for arg in ("--paraphrase", text)]
    return run(capsys, "--model", model, *wordings)


def token_counts(lines) -> dict[str, int]:
    """Name of a part → its tokens, as printed."""
    found = (re.match(r"   (prefix|segment \d+|tail) +(\d+) tokens   ", line) for line in lines)
    return {match[1]: int(match[2]) for match in found if match}


def drawing(lines) -> tuple[list[str], list[list[str]]]:
    """The marks of the columns, and the signs of the rows."""
    width = example.MARGIN
    top = next(at for at, line in enumerate(lines) if re.fullmatch(r" +P( [1-9a-zTA])+", line))
    margin = lines[top].index("P")
    marks = lines[top].split()
    rows = [line[margin:].split(" ") for line in lines[top + 1 : top + 1 + len(marks)]]
    assert all(len(line[:margin].strip()) < width for line in lines[top + 1 : top + 1 + len(marks)])
    return marks, rows


def owners(counts: dict[str, int]) -> list[str]:
    """Whose each token of the one sequence is, by the mark of its part."""
    marks = {"prefix": "P", "tail": "T"}
    named = [
        (marks.get(name) or example.SEGMENT_MARKS[int(name.split()[1]) - 1], count)
        for name, count in counts.items()
    ]
    named.append(("A", example.ANSWER_TOKENS))
    return [mark for mark, count in named for _ in range(count)]


def sees(owner: list[str], q: int, kv: int) -> bool:
    return kv <= q and (owner[kv] in ("P", owner[q]) or owner[q] in "TA")


def blocks(owner: list[str], marks: list[str], size: int) -> list[list[int]]:
    """The tokens that each column must stand for."""
    left, cells = list(range(len(owner))), []
    for mark in marks:
        take = owner.count("P") if mark == "P" else 1 if mark in "TA" else size
        own = [token for token in left[:take] if owner[token] == mark]
        cells.append(own)
        left = left[len(own) :]
    assert left == []
    return cells


def expected_sign(owner, row, column) -> str:
    seen = [sees(owner, q, kv) for q in row for kv in column]
    return "#" if all(seen) else "\\" if any(seen) else "."


@pytest.mark.parametrize(
    "paraphrases",
    [OWN, ("a", "the capital"), ("is it " * 20, "a", *OWN)],
    ids=["own", "two", "long"],
)
def test_the_drawing_is_the_mask(small, capsys, paraphrases):
    lines = tour(capsys, small.folder, paraphrases)
    counts = token_counts(lines)
    template = prompt_template(DEMO_INSTRUCTION, load_few_shot(DEMO_FEW_SHOT))
    for number, text in enumerate(paraphrases, start=1):
        whole = len(small.tokenizer(template.render(text))["input_ids"])
        assert counts["prefix"] + counts[f"segment {number}"] + counts["tail"] == whole

    marks, rows = drawing(lines)
    size = next(
        1 if "a token of that" in line else int(re.search(r"up to (\d+) tokens", line)[1])
        for line in lines
        if "of that segment; T and A" in line
    )
    owner = owners(counts)
    cells = blocks(owner, marks, size)
    assert rows == [[expected_sign(owner, row, column) for column in cells] for row in cells]
    assert max(map(len, lines[1 + len(paraphrases) :])) <= 100


def parts_and_mask(lengths, prefix_length=4, tail_length=2):
    parts = example.list_parts(prefix_length, lengths, tail_length)
    ranges = [(p.tokens.start, p.tokens.stop) for p in parts if p.mark in example.SEGMENT_MARKS]
    mask_mod = create_segment_isolation_mask(ranges, ranges[-1][1], prefix_length=prefix_length)
    total = parts[-1].tokens.stop
    return parts, dense_mask(mask_mod, total, total)


def test_a_leak_is_drawn():
    parts, mask = parts_and_mask([2, 3, 2])
    _, before = drawing(example.draw_mask(mask, parts))
    mask[7, 4] = True  # the second token of segment 2 sees the first of segment 1
    _, after = drawing(example.draw_mask(mask, parts))
    changed = [
        (row, column)
        for row, signs in enumerate(after)
        for column, sign in enumerate(signs)
        if sign != before[row][column]
    ]
    assert changed == [(4, 1)]
    assert (before[4][1], after[4][1]) == (".", "#")


@pytest.mark.parametrize("prefix_length", [0, 300])
@pytest.mark.parametrize("count, length", [(1, 1), (1, 500), (5, 40), (35, 60)])
def test_the_drawing_fits_a_terminal(count, length, prefix_length):
    parts, mask = parts_and_mask([length] * (count - 1) + [1], prefix_length)
    lines = example.draw_mask(mask, parts)
    assert max(map(len, lines)) <= 97  # printed with three spaces in front
    assert len(lines) <= max(40, count + 10)


def states_line(lines) -> list[float]:
    [line] = [line for line in lines if "under this mask" in line]
    return [float(number) for number in re.findall(r"\d[\d.]*(?:e[+-]\d+)?", line)]


def test_the_mask_isolates_the_model(small, capsys):
    isolated, mixed = states_line(tour(capsys, small.folder, OWN))
    assert isolated < 1e-4
    assert mixed > 1e-2


def test_a_window_that_bites_is_not_shown_as_isolation(small, capsys, tmp_path):
    config = MistralConfig(
        vocab_size=len(small.tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=9,
    )
    torch.manual_seed(3)
    MistralForCausalLM(config).save_pretrained(tmp_path)
    small.tokenizer.save_pretrained(tmp_path)
    lines = tour(capsys, tmp_path, OWN)
    assert len(drawing(lines)[0]) > 10
    assert not any("under this mask" in line for line in lines)


def answers_of(lines) -> dict[str, str]:
    """Name → answer, as printed without a verdict."""
    found = (
        re.match(
            r"   (paraphrase \d+ alone|logit average|attention fusion) +\d+ +[\d.]+%\s*(.*)", x
        )
        for x in lines
    )
    return {match[1]: match[2].strip() for match in found if match}


def test_the_answers_are_those_of_stock_forwards(small, capsys):
    template = prompt_template(DEMO_INSTRUCTION, load_few_shot(DEMO_FEW_SHOT))
    prompts = [template.render(text) for text in OWN]

    def stock(*given):
        mean = lambda logprobs: logprobs.mean(0)  # noqa: E731
        return stock_answer(small, given, mean, limit=example.MAX_NEW_TOKENS).prediction

    answers = answers_of(tour(capsys, small.folder, OWN))
    alone = {
        f"paraphrase {number} alone": stock(prompt)
        for number, prompt in enumerate(prompts, start=1)
    }
    fused = answers.pop("attention fusion")
    assert answers == {**alone, "logit average": stock(*prompts)}
    # Attention fusion does not ask for the order, and of one paraphrase makes no other.
    assert answers_of(tour(capsys, small.folder, OWN[::-1]))["attention fusion"] == fused
    same = answers_of(tour(capsys, small.folder, OWN[:1] * 5))
    assert set(same.values()) == {alone["paraphrase 1 alone"]}


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--paraphrase", " "], "--paraphrase: ' ' is empty"),
        (["--paraphrase", "a"] * 36, "--paraphrase: 36 were given and 35 can be drawn"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, argv, said):
    with pytest.raises(SystemExit) as exit_info:
        example.parse_args(argv)
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == f"error: {said} (see --help)\n"


def test_the_question_is_one_of_the_demo():
    records = load_dataset("demo", max_samples=None).records
    [record] = [
        r for r in records if r.paraphrases[: len(example.PARAPHRASES)] == example.PARAPHRASES
    ]
    assert record.answers == example.ANSWERS


def test_the_question_shows_what_the_example_says_of_it(capsys):
    lines = run(capsys)
    verdicts = re.findall(r"(alone|average|fusion) .*% +(right|wrong) +(\S.*)", "\n".join(lines))
    alone = [answer for name, _, answer in verdicts if name == "alone"]
    assert len(alone) == 5
    assert len(set(alone)) > 2, "the wordings do not disagree"
    assert [verdict for name, verdict, _ in verdicts if name == "fusion"] == ["right"]
    assert max(map(len, lines)) <= 100
    assert "\n".join(lines).endswith(example.CLOSING)


# ---- docs/method.svg ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def draw_method():
    spec = importlib.util.spec_from_file_location("draw_method", ROOT / "docs" / "draw_method.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_picture_is_the_one_drawn(draw_method):
    assert draw_method.PICTURE.read_text(encoding="utf-8") == draw_method.draw()


def test_the_picture_shows_the_mask(draw_method):
    owner = [index for index, part in enumerate(draw_method.PARTS) for _ in part.tokens]
    last_segment = len(draw_method.SEGMENTS)
    wanted = [
        draw_method.PARTS[owner[kv]].colour
        if kv <= q and (owner[kv] in (0, owner[q]) or owner[q] > last_segment)
        else draw_method.HIDDEN
        for q in range(len(owner))
        for kv in range(len(owner))
    ]
    cells = re.findall(
        r'width="15" height="15" rx="2" fill="(#\w+)"', "\n".join(draw_method.draw_mask())
    )
    assert cells == wanted
