"""The likelihood judge: its figures against stock forwards, and what the filter makes of them."""

import pytest
import torch
from small import run_script, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer

import paraphrase
from self_ensemble.generation import loading
from self_ensemble.models.config import ModelConfig
from self_ensemble.models.loading import find_model
from self_ensemble.paraphrasing.judge import NOTHING, TEMPLATE, judge
from self_ensemble.paraphrasing.quality_filter import Thresholds, rejections
from self_ensemble.paraphrasing.rejections import Judgement
from self_ensemble.system.bundled import DEMO_MODEL

PAIRS = [
    ("What is the capital of Peru?", "Which city governs Peru?"),
    ("what is the capital of mali?", "In Mali's case,  which city\nis the capital?"),
    ("What is the capital of Peru?", "What is the capital of Peru, please?"),
]


@pytest.fixture(scope="module")
def judged():
    source = find_model(ModelConfig(name=str(DEMO_MODEL), dtype="float32"))
    with loading.loaded_engine(source, attention="auto") as engine:
        yield judge(engine, PAIRS, batch_size=2)


def logprobs_behind(model, tokenizer, paraphrase, question):
    """Of the question's tokens, from one forward of the whole text."""
    prompt = TEMPLATE.render(" ".join(paraphrase.split()))
    ids = tokenizer(f"{prompt} {question}")["input_ids"]
    start = len(tokenizer(prompt)["input_ids"])
    with torch.no_grad():
        found = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return [found[at - 1, ids[at]].item() for at in range(start, len(ids))]


def test_the_figures_are_those_of_a_stock_forward(judged):
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    for (question, text), found in zip(PAIRS, judged, strict=True):
        behind = logprobs_behind(model, tokenizer, text, question)
        alone = logprobs_behind(model, tokenizer, NOTHING, question)
        assert found.explained == pytest.approx(1 - sum(behind) / sum(alone), abs=1e-4)


def test_nothing_to_judge():
    assert judge(None, [], batch_size=1) == []


HOLLAND = ("which language is spoken in holland?", "what do people speak in the netherlands?")


@pytest.mark.parametrize(
    ("paraphrase", "question", "explained", "expected"),
    [
        # A model of 135 M parameters finds Germany as likely behind Austria.
        (*HOLLAND, 0.9, {"lost_name", "added_name"}),
        (*HOLLAND, 0.1, {"lost_name", "added_name", "unlikely"}),
        ("what rules peru?", "what governs peru?", 0.1, {"unlikely"}),
        ("what rules peru?", "what governs peru?", 0.3, set()),
        ("[MASK] rules peru.", "[MASK] governs peru.", 0.1, {"unlikely"}),
        ("[MASK] rules peru.", "what governs peru?", 0.1, {"lost_mask"}),
    ],
)
def test_a_judgement_rejects_and_excuses_nothing(paraphrase, question, explained, expected):
    judgement = Judgement(explained)
    found = rejections(paraphrase, question=question, answers=(), judgement=judgement)
    assert {each.check for each in found} == expected
    assert all(each.value == 0.1 for each in found if each.check == "unlikely")


def test_thresholds_are_asked_for():
    asked = {"question": "what governs peru?", "answers": (), "judgement": Judgement(0.4)}
    assert not rejections("what rules peru?", **asked)
    [found] = rejections("what rules peru?", **asked, thresholds=Thresholds(explained=0.5))
    assert (found.check, found.value) == ("unlikely", 0.4)


def test_check_with_a_model_writes_a_report_of_its_own(tmp_path, capsys):
    """And two files of one name in two folders have two reports."""
    rows = [{"question": "Who?", "paraphrases": ["zurzer of it", "Which one?"], "answers": ["x"]}]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        file = write_jsonl(tmp_path / name / "own.jsonl", rows)
        argv = ["--check", file, "--output_dir", tmp_path / "data"]
        assert run_script(paraphrase, *argv) == 0
    without = {path: path.read_bytes() for path in (tmp_path / "data/own").iterdir()}
    assert len(without) == 2
    assert run_script(paraphrase, *argv, "--model", "demo") == 0
    [report] = {*(tmp_path / "data/own").iterdir()} - {*without}
    assert report.name.endswith("-demo_report.csv")
    assert all(path.read_bytes() == content for path, content in without.items())
    assert "unlikely" in capsys.readouterr().out
