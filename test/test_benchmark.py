"""The benchmarks from their command lines, on the small model."""

import importlib.util
import re
from pathlib import Path

import pytest
from small import INSTRUCTION, make_tokenizer, run_script

FOLDER = Path(__file__).parent.parent / "benchmark"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


quality, throughput = load("quality"), load("throughput")


@pytest.fixture
def common(small):
    return (
        *("--dataset", small.questions, "--model", small.folder, "--instruction", INSTRUCTION),
        *("--max-new-tokens", 4),
    )


def test_quality_takes_flags_in_both_spellings():
    flags = ["--num_paraphrases", "3,4", "--max_samples", "5", "--chat_template", "--dtype=float32"]
    args = quality.parse_args([flag.replace("_", "-") for flag in flags])
    assert args == quality.parse_args(flags)
    assert args.num_paraphrases == (3, 4)
    assert args.shared == flags[2:]


def test_quality_scores_every_method(common, tmp_path, capsys):
    assert run_script(quality, *common, "--num-paraphrases", 2, "--output-dir", tmp_path) == 0
    table = capsys.readouterr().out
    names = {path.stem for path in tmp_path.rglob("*.feather")}
    assert len(names) == len(quality.LOGIT_METHODS) + len(quality.ATTENTION_METHODS)
    for name in names:
        assert name in table


@pytest.mark.parametrize("chat", [False, True])
def test_throughput(small, common, tmp_path, capsys, chat):
    given = [*common, "--num_paraphrases", 2, "--stock_batches", "3,14"]
    if chat:
        small.model.save_pretrained(tmp_path)
        tokenizer = make_tokenizer()
        tokenizer.chat_template = "{{ messages[0]['content'] }} =>"
        tokenizer.save_pretrained(tmp_path)
        given += ["--model", tmp_path, "--chat_template"]
    assert run_script(throughput, *given) == 0
    out, err = capsys.readouterr()
    named = r"(attention fusion|avg|generate\(\), batches of (?:3|14) prompts)"
    order = re.findall(rf"^{named}: [0-9.]+ questions/s$", err, re.MULTILINE)
    ours, sizes = ["attention fusion", "avg"], (3, 14, 3, 14)
    stock = [[f"generate(), batches of {size} prompts", *ours] for size in sizes]
    assert order == sum(stock, ours)
    assert re.findall(rf"^{named} +[0-9.]+ ", out, re.MULTILINE) == list(dict.fromkeys(order))


def test_throughput_prompts_are_the_chat_templates(small, common, capsys):
    """The small model has no chat template, so that honouring the flag is an error."""
    assert run_script(throughput, *common, "--num_paraphrases", 2, "--chat_template") == 2
    assert capsys.readouterr().err.startswith("error: --chat_template: the tokenizer")


@pytest.mark.parametrize("sizes", ["0", "8,0"])
def test_a_batch_of_nothing_is_told_in_one_line(common, capsys, sizes):
    assert run_script(throughput, *common, "--stock_batches", sizes) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --stock_batches: ") and error.count("\n") == 1
    assert "no prompts" in error
