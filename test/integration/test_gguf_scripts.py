"""A GGUF file through both scripts: what a safetensors folder of the same model gives."""

import pytest
import transformers

pytest.importorskip("gguf")

from gguf_files import all_values, make_tokenizer, model_tensors, tiny_model, write_gguf
from small import run_script

import flex_attention_generate
import generate
from self_ensemble.cli import download
from self_ensemble.data.result_files import read_manifest, read_results
from self_ensemble.models.gguf_tokenizer import READS_TOKENIZERS, is_older

pytestmark = pytest.mark.skipif(
    is_older(transformers.__version__, READS_TOKENIZERS), reason="reads the tokenizer wrongly"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model as `tiny.Q0.gguf` and, in the folder `tiny`, as safetensors."""
    place = tmp_path_factory.mktemp("place")
    tokenizer = make_tokenizer()
    model = tiny_model("llama", len(tokenizer))
    model.save_pretrained(place / "tiny")
    tokenizer.save_pretrained(place / "tiny")
    values = all_values(model, tokenizer, "llama")
    write_gguf(place / "tiny.Q0.gguf", values, model_tensors(model, "llama"))
    return place


@pytest.mark.parametrize("script", [generate, flex_attention_generate])
@pytest.mark.parametrize("chat", [(), ("--chat_template",)])
def test_answers_are_those_of_the_folder(place, small, tmp_path, capsys, script, chat):
    results = []
    for name in ("tiny.Q0.gguf", "tiny"):
        argv = ["--dataset", small.questions, "--num_paraphrases", 3, "--max_new_tokens", 6]
        argv += ["--output_dir", tmp_path, "--model", place / name, "--stop", "none"]
        assert run_script(script, *argv, *chat) == 0, capsys.readouterr().err
        assert "Converting" not in capsys.readouterr().err  # no bar off a terminal
        folder = tmp_path / "capitals" / name.removesuffix(".gguf")
        [table] = folder.glob("*.feather")
        results.append((read_results(table), read_manifest(table.with_suffix(""))))
    (ours, our_manifest), (theirs, their_manifest) = results
    assert list(ours.generation) == list(theirs.generation)
    assert list(ours.logprob) == pytest.approx(list(theirs.logprob), abs=1e-4)
    ours, theirs = our_manifest["identity"], their_manifest["identity"]
    assert ours.pop("model") != theirs.pop("model") and ours == theirs


@pytest.mark.parametrize("script", [generate, flex_attention_generate])
def test_refused_in_one_sentence(place, small, tmp_path, capsys, script):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((place / "tiny.Q0.gguf").read_bytes()[:-500])
    assert (
        run_script(script, "--dataset", small.questions, "--num_paraphrases", 2, "--model", cut)
        == 2
    )
    out, err = capsys.readouterr()
    assert err.startswith(f"error: --model: {cut} is cut short: ") and err.count("\n") == 1
    assert out == ""


def test_there_is_nothing_to_fetch(place, capsys):
    args = download.parse_args(["--model", str(place / "tiny.Q0.gguf")])
    assert download.asked_for(args) == []
    assert "tiny.Q0.gguf: a file of this machine, nothing to fetch" in capsys.readouterr().out
