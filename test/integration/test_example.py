"""The example's tour of one question, and the picture of the method."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from small import stock_answer
from transformers import MistralConfig, MistralForCausalLM

import example_flexattention as example
from self_ensemble import Prompt
from self_ensemble.data import load_dataset
from self_ensemble.methods.config import DEFAULT_TAU

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


def drawing(lines) -> tuple[list[str], list[str]]:
    """The marks of the columns, and the signs of the rows."""
    [top] = [at for at, line in enumerate(lines) if re.fullmatch(r" +P+0[0-9a-zTA]+", line)]
    margin, marks = lines[top].index("P"), lines[top].strip()
    rows = lines[top + 1 : top + 1 + len(marks)]
    assert [row[3] for row in rows] == list(marks)
    return list(marks), [row[margin:] for row in rows]


def sees(q: str, kv: str) -> bool:
    """Whether tokens of these parts see each other, by the marks of the parts."""
    return kv in ("P", q) or q in "TA"


@pytest.mark.parametrize(
    "paraphrases",
    [OWN, ("a", "the capital"), ("is it " * 20, "a", *OWN)],
    ids=["own", "two", "long"],
)
def test_the_drawing_is_the_mask(small, capsys, paraphrases):
    lines = tour(capsys, small.folder, paraphrases)
    counts = token_counts(lines)
    template = Prompt.of_demo().template(small.tokenizer)
    for number, text in enumerate(paraphrases):
        whole = len(small.tokenizer(template.render(text))["input_ids"])
        assert counts["prefix"] + counts[f"segment {number}"] + counts["tail"] == whole

    marks, rows = drawing(lines)
    assert sorted(set(marks)) == sorted({"P", "T", "A", *"0123456789"[: len(paraphrases)]})
    for at, (q, row) in enumerate(zip(marks, rows, strict=True)):
        before = "".join("#" if sees(q, kv) else "." for kv in marks[:at])
        assert row[:at] == before
        assert row[at] in "#\\"  # itself; a cell of several tokens sees its earlier ones
        assert set(row[at + 1 :]) <= {"."}
    assert max(map(len, lines[1 + len(paraphrases) :])) <= 105


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
    template = Prompt.of_demo().template(small.tokenizer)
    prompts = [template.render(text) for text in OWN]

    def stock(*given):
        mean = lambda logprobs: logprobs.mean(0)  # noqa: E731
        return stock_answer(small, given, mean, limit=20).prediction

    answers = answers_of(tour(capsys, small.folder, OWN))
    alone = {f"paraphrase {number} alone": stock(prompt) for number, prompt in enumerate(prompts)}
    fused = answers.pop("attention fusion")
    assert answers == {**alone, "logit average": stock(*prompts)}
    # Attention fusion does not ask for the order, and of one paraphrase makes no other.
    assert answers_of(tour(capsys, small.folder, OWN[::-1]))["attention fusion"] == fused
    same = answers_of(tour(capsys, small.folder, OWN[:1] * 5))
    assert set(same.values()) == {alone["paraphrase 0 alone"]}


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--paraphrase", " "], "--paraphrase: ' ' is empty"),
        (["--paraphrase", "a"] * 37, "--paraphrase: 37 were given and 36 can be drawn"),
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


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_the_question_shows_what_the_example_says_of_it(tau, capsys, monkeypatch):
    monkeypatch.setitem(DEFAULT_TAU, "mean", tau)
    lines = run(capsys)
    verdicts = re.findall(r"(alone|average|fusion) .*% +(right|wrong) +(\S.*)", "\n".join(lines))
    alone = [answer for name, _, answer in verdicts if name == "alone"]
    assert len(alone) == 5
    assert len(set(alone)) > 2, "the wordings do not disagree"
    assert [verdict for name, verdict, _ in verdicts if name == "fusion"] == ["right"]
    assert max(map(len, lines)) <= 105
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
