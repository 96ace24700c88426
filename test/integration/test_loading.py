"""Models that cannot be loaded or cannot work, and what attention runs in those that can."""

import json
import logging
import re
import shutil

import pytest
import torch
from small import run_script
from tiny import COMMON, tiny_model
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import flex_attention_generate
import generate
from self_ensemble.attention import backends, checks
from self_ensemble.attention.checks import check_architecture
from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.data.result_files import read_manifest, read_results
from self_ensemble.generation import batching
from self_ensemble.generation.loading import loaded_engine
from self_ensemble.methods.attention_fusion import default_positions_on
from self_ensemble.models import backend, loading, memory
from self_ensemble.models.config import ModelConfig
from self_ensemble.system.errors import UserError

SCRIPTS = [generate, flex_attention_generate]


@pytest.fixture
def run(small, tmp_path, capsys):
    """Runs a script on the small questions: exit status, stderr, and what was written."""

    def run(script, *argv):
        capsys.readouterr()
        output = tmp_path / "out"
        code = run_script(
            script,
            *("--dataset", small.questions, "--num_paraphrases", 2, "--max_new_tokens", 4),
            *("--max_samples", 3, "--output_dir", output, *argv),
        )
        out, err = capsys.readouterr()
        assert out == ""
        return code, err, [path for path in output.rglob("*") if path.is_file()]

    return run


def assert_refused(result, *named):
    code, err, written = result
    assert (code, written) == (2, [])
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert len(err) < 600, err
    for part in named:
        assert part in err, err


# ---- damaged folders ------------------------------------------------------------------------


def edit_config(folder, **changes):
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def cut_weights(folder, size):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])


def pickle_weights(folder):
    (folder / "model.safetensors").rename(folder / "weights")
    torch.save({"lm_head.weight": torch.zeros(3)}, folder / "pytorch_model.bin")
    (folder / "weights").unlink()


def own_code(folder, **changes):
    marker = folder / "ran"
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Config: pass\n")
    edit_config(folder, auto_map={"AutoConfig": "own.Config"}, **changes)


def tokenizer_of_another(folder):
    """With 30,000 tokens more than the model has rows for."""
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"extra{i}": 1000 + i for i in range(30_000)}
    file.write_text(json.dumps(tokenizer))


# What is done to the folder, and what the sentence must hold beside the folder's name.
DAMAGES = {
    "no config": (lambda f: (f / "config.json").unlink(), ["holds no config.json"]),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), ["not a valid JSON"]),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), ["cannot load"]),
    "no model type": (lambda f: edit_config(f, model_type=None), ["model_type"]),
    "unknown model type": (lambda f: edit_config(f, model_type="lama"), ["`lama`"]),
    "wrong kind of value": (lambda f: edit_config(f, hidden_size="abc"), ["hidden_size", "'abc'"]),
    "heads that do not divide": (lambda f: edit_config(f, num_attention_heads=5), ["(5)"]),
    "unknown activation": (lambda f: edit_config(f, hidden_act="elu9"), ["'elu9'"]),
    "code of its own": (lambda f: own_code(f, model_type="own"), ["Python code of its own"]),
    "no tokenizer": (
        lambda f: [file.unlink() for file in f.glob("tokenizer*")],
        ["holds no tokenizer.json"],
    ),
    "tokenizer is no JSON": (lambda f: (f / "tokenizer.json").write_text("{"), ["the tokenizer"]),
    "empty tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), ["the tokenizer"]),
    "tokenizer of another model": (tokenizer_of_another, ["30150", "152", "not belong together"]),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ["no .safetensors"]),
    "pickled weights": (pickle_weights, ["no .safetensors", "pickled"]),
    "empty weights": (lambda f: cut_weights(f, 0), ["the weights"]),
    "half a header": (lambda f: cut_weights(f, 40), ["the weights"]),
    "truncated weights": (lambda f: cut_weights(f, -64), ["the weights"]),
    "missing tensors": (
        lambda f: edit_config(f, num_hidden_layers=3),
        ["lack 9 tensors", "model.layers.2.input_layernorm.weight"],
    ),
    "larger vocabulary": (
        lambda f: edit_config(f, vocab_size=200),
        ["lm_head.weight is [152, 32]", "[200, 32]"],
    ),
    "smaller vocabulary": (
        lambda f: edit_config(f, vocab_size=100),
        ["lm_head.weight is [152, 32]", "[100, 32]"],
    ),
    "quantised by a package that is not there": (
        lambda f: edit_config(f, quantization_config={"quant_method": "gptq", "bits": 4}),
        ["gptq", "pip install"],
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_folder(small, tmp_path, run, name):
    damage, named = DAMAGES[name]
    folder = shutil.copytree(small.folder, tmp_path / "damaged")
    damage(folder)
    assert_refused(run(generate, "--model", folder), "--model: ", str(folder), *named)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "model, named",
    [
        ("nowhere", ["'nowhere' is no folder"]),
        ("org/nowhere", ["cannot load org/nowhere"]),
        ("llama3.2_1b", ["cannot load llama3.2_1b"]),
        ("./not/there", ["'./not/there' is no folder"]),
        ("", ["'' is no folder"]),
    ],
)
def test_unknown_model(run, script, model, named):
    code, err, written = run(script, "--model", model)
    assert (code, written) == (2, []) and err.startswith("error: ") and err.count("\n") == 1
    for part in ("--model: ", *named):
        assert part in err


@pytest.mark.parametrize("dtype, size", [("float32", 4), ("bfloat16", 2)])
def test_a_model_that_memory_cannot_hold(small, run, monkeypatch, dtype, size):
    """Refused with both figures before a weight is read."""
    needed = size * sum(p.numel() for p in small.model.parameters())
    calls = []
    monkeypatch.setattr(memory, "available_memory", lambda: needed + 200)  # some for its buffers
    monkeypatch.setattr(memory, "GIB", 1)
    argv = ["--model", small.folder, "--dtype", dtype]
    assert run(generate, *argv)[0] == 0
    monkeypatch.setattr(memory, "available_memory", lambda: needed - 1)
    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", calls.append)
    code, err, _ = run(generate, *argv, "--overwrite")
    assert code == 2 and err.count("\n") == 1 and not calls
    figures = [float(number) for number in re.findall(r"(\d+\.\d) GiB", err)]
    assert needed <= figures[0] <= needed + 200 and figures[1] == needed - 1
    assert dtype in err


def test_memory_of_files_that_were_read_counts_as_free(tmp_path, monkeypatch):
    """In a control group, as a container is one."""
    figures = {"memory.max": 16 * 2**20, "memory.current": 15 * 2**20}
    for name, value in figures.items():
        (tmp_path / name).write_text(str(value))
    stat = f"anon {2**20}\nactive_file {3 * 2**20}\ninactive_file {7 * 2**20}\n"
    (tmp_path / "memory.stat").write_text(stat)
    monkeypatch.setattr(memory, "CONTROL_GROUP", tmp_path)
    assert memory.available_memory() == 11 * 2**20


def test_what_large_models_take():
    """Of the Llama-3.2-3B shape, tied: 3.21e9 weights."""
    config = LlamaConfig(
        hidden_size=3072,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=8192,
        vocab_size=128256,
        tie_word_embeddings=True,
    )
    assert memory.weight_bytes(config, torch.bfloat16) == pytest.approx(2 * 3.2127e9, rel=1e-4)


def test_a_file_is_no_model(small, run):
    file = small.folder / "model.safetensors"
    assert_refused(run(generate, "--model", file), str(file), "config.json")


def test_a_folder_has_no_revisions(small, run):
    refused = run(generate, "--model", small.folder, "--revision", "v2")
    assert_refused(refused, "--revision v2", str(small.folder))


def test_harmless_oddities_of_a_folder(small, tmp_path, run, caplog):
    """Code that is not needed is not run, what lies around is no harm, what is unused is told."""
    folder = shutil.copytree(small.folder, tmp_path / "odd")
    own_code(folder, num_hidden_layers=1, eos_token_id=[1, 5000])
    (folder / "generation_config.json").write_text("{")
    (folder / "folder.json").mkdir()
    code, _, written = run(generate, "--model", folder)
    assert code == 0 and len(written) == 3
    assert not (folder / "ran").exists()
    [said] = [r.getMessage() for r in caplog.records if r.name == "self_ensemble.models.loading"]
    assert "hold 9 tensors" in said and "model.layers.1.input_layernorm.weight" in said


def test_a_token_behind_the_models_vocabulary(small, tmp_path, run):
    """Some models' tokenizers have one for pictures: harmless, until a prompt holds it."""
    folder = shutil.copytree(small.folder, tmp_path / "extended")
    tokenizer = type(small.tokenizer).from_pretrained(folder)
    tokenizer.add_tokens(["<picture>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    for script in SCRIPTS:
        refused = run(script, "--model", folder, "--instruction", "Look: <picture>")
        assert_refused(refused, "'<picture>' (152)", "vocabulary of 152")
    assert run(generate, "--model", folder)[0] == 0


# ---- architectures that cannot work ---------------------------------------------------------

SMALL = {key: COMMON[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers")}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 4, "mamba_n_groups": 1}
# architecture → settings, and why it is refused
UNFIT = {
    "bloom": ({"n_layer": 2, "n_head": 4}, "attention interface"),
    "mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 2}, "attention interface"),
    "falcon": ({"alibi": True}, "alibi"),
    "mamba": ({"state_size": 4, "num_hidden_layers": 2}, "'linear_attention'"),
    "mamba2": (
        {"state_size": 4, "num_heads": 4, "head_dim": 16, "n_groups": 1},
        "'linear_attention'",
    ),
    "bamba": ({**MAMBA, "attn_layer_indices": [1]}, "'linear_attention'"),
    "jamba": (
        {
            "use_mamba_kernels": False,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "mamba_d_state": 4,
        },
        "'linear_attention'",
    ),
    "falcon_h1": ({**MAMBA, "mamba_d_ssm": 32, "mamba_d_head": 8}, "'hybrid'"),
    "minimax": ({"num_local_experts": 2}, "'linear_attention'"),
    "recurrent_gemma": (
        {"lru_width": 32, "attention_window_size": 16},
        "linear",  # by its layers' kind, or before transformers names that by their count
    ),
    "rwkv": ({"attention_hidden_size": 32}, "attention interface"),
    "llama4_text": ({"num_local_experts": 2, "intermediate_size_mlp": 48}, "'chunked_attention'"),
    "gpt_oss": ({"num_local_experts": 4}, "'s_aux'"),
    "t5": ({"d_model": 32, "d_ff": 32, "d_kv": 8, "num_heads": 4}, "encoder-decoder"),
    "bart": (
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
        },
        "encoder-decoder",
    ),
    "bert": ({}, "look ahead"),
    "diffllama": ({}, "attends 8 times"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_unfit_architecture(small, tmp_path, run, name):
    settings, reason = UNFIT[name]
    given = COMMON | {"vocab_size": len(small.tokenizer)} | settings
    if name == "falcon":
        del given["head_dim"]
    config = CONFIG_MAPPING[name](**given)
    auto = AutoModelForSeq2SeqLM if name in ("t5", "bart") else AutoModelForCausalLM
    torch.manual_seed(0)
    auto.from_config(config).save_pretrained(tmp_path / "model")
    small.tokenizer.save_pretrained(tmp_path / "model")
    refused = run(flex_attention_generate, "--model", tmp_path / "model")
    assert_refused(refused, "not supported", f"{name.removesuffix('_text')}", reason)


def test_unfit_architectures_are_refused_before_their_weights_load(tmp_path):
    for name in ("mamba", "falcon_h1", "llama4_text", "t5"):
        CONFIG_MAPPING[name](**SMALL).save_pretrained(tmp_path / name)
        with pytest.raises(UserError, match="not supported"):
            find(tmp_path / name)


def test_a_fit_model_is_not_refused_in_any_dtype():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        with FlexAttentionWrapper(tiny_model("gemma2").to(dtype), "eager") as wrapper:
            check_architecture(wrapper)


def test_tokens_that_meet_outside_the_attention_are_noticed():
    """A layer that adds the token before, as convolutions and states do."""
    model = tiny_model("llama")
    mlp = model.model.layers[1].mlp
    plain = mlp.forward
    mlp.forward = lambda x: plain(x) + 0.1 * x.roll(1, dims=1)
    with FlexAttentionWrapper(model, "eager") as wrapper:
        with pytest.raises(UserError, match="tokens meet in it outside the attention"):
            check_architecture(wrapper)
        assert model.config._attn_implementation.startswith("self_ensemble")


# ---- device, dtype, what attention runs -----------------------------------------------------


def find(folder, **settings):
    return loading.find_model(ModelConfig(name=str(folder), **({"device": "cpu"} | settings)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_no_such_device(small, run, device):
    for script in SCRIPTS:
        refused = run(script, "--model", small.folder, "--device", device)
        assert_refused(refused, f"--device: {device} is not there", "0 GPUs")


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes_on_a_cpu(small, tmp_path, run, script, dtype):
    code, _, written = run(script, "--model", small.folder, "--dtype", dtype, "--device", "cpu")
    assert code == 0 and len(written) == 3
    [feather] = [path for path in written if path.suffix == ".feather"]
    assert read_manifest(feather)["identity"]["dtype"] == dtype
    rows = read_results(feather)
    assert len(rows) == 3 and (rows["logprob"] <= 0).all()


def test_auto_device_and_dtype(small):
    source = find(small.folder, device="auto")
    if not torch.cuda.is_available():
        assert (source.device, source.dtype) == (torch.device("cpu"), torch.float32)
    assert default_positions_on(source.config, "mean") == "exact"


def test_sdpa_cannot_cap_scores(tmp_path, small, run):
    model = tiny_model("gemma2", vocab_size=len(small.tokenizer))
    model.save_pretrained(tmp_path / "gemma2")
    small.tokenizer.save_pretrained(tmp_path / "gemma2")
    for script in SCRIPTS:
        refused = run(script, "--model", tmp_path / "gemma2", "--attention", "sdpa")
        assert_refused(refused, "--attention sdpa", "caps its attention scores", "eager or flex")
    code, _, written = run(generate, "--model", tmp_path / "gemma2")
    assert code == 0
    assert read_manifest(written[0])["attention"]["encode"] == "eager"


def break_flex(monkeypatch):
    def broken(device):
        raise RuntimeError("no compiler is here\nand a long story")

    monkeypatch.setattr(backends, "compiled_flex_attention", broken)


def test_flex_asked_for_and_not_to_be_had(small, run, monkeypatch):
    break_flex(monkeypatch)
    for script in SCRIPTS:
        refused = run(script, "--model", small.folder, "--attention", "flex")
        assert_refused(refused, "--attention flex", "RuntimeError: no compiler is here")


def test_flex_that_computes_something_else_is_not_had(small, run, monkeypatch):
    def wrong(device):
        return lambda query, key, value, **_: query + 1

    monkeypatch.setattr(backends, "compiled_flex_attention", wrong)
    refused = run(generate, "--model", small.folder, "--attention", "flex")
    assert_refused(refused, "--attention flex", "its result is off by")


@pytest.mark.parametrize("error", [AssertionError(), KeyError("x"), SystemError("\n")])
def test_flex_may_fail_in_any_way(small, monkeypatch, error):
    def broken(device):
        raise error

    monkeypatch.setattr(backends, "compiled_flex_attention", broken)
    with FlexAttentionWrapper(small.model, "eager") as wrapper:
        check_architecture(wrapper)
        assert checks.flex_problem(wrapper).startswith(type(error).__name__)


@pytest.mark.parametrize("name, stand_in", [("llama", "sdpa"), ("gemma2", "eager")])
@pytest.mark.parametrize("script", SCRIPTS)
def test_auto_falls_back_says_so_once_and_writes_it_down(
    small, tmp_path, run, monkeypatch, caplog, script, name, stand_in
):
    """The same mask and the same answers, as where auto never tried."""
    folder = tmp_path / name
    tiny_model(name, vocab_size=len(small.tokenizer)).save_pretrained(folder)
    small.tokenizer.save_pretrained(folder)
    argv = ("--model", folder, "--num_paraphrases", 4, "--batch_size", 1, "--overwrite")
    code, _, written = run(script, *argv)
    [feather] = [path for path in written if path.suffix == ".feather"]
    assert code == 0
    assert read_manifest(feather)["attention"]["fallback"] is None
    expected = read_results(feather)

    break_flex(monkeypatch)
    monkeypatch.setattr(backend, "prefers_flex", lambda device: True)
    assert run(script, *argv)[0] == 0
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1 and said[0].getMessage() == (
        "FlexAttention does not run here (RuntimeError: no compiler is here): "
        f"the same mask runs through {stand_in}"
    )
    ran = read_manifest(feather)["attention"]
    assert (ran["asked"], ran["encode"]) == ("auto", stand_in)
    assert ran["fallback"] == "RuntimeError: no compiler is here"
    assert read_results(feather).equals(expected)


def test_a_gpu_prefers_flex():
    assert backend.prefers_flex(torch.device("cuda:1"))
    assert not backend.prefers_flex(torch.device("cpu"))


@pytest.mark.parametrize("asked", ["eager", "sdpa", "auto"])
def test_backend_as_asked(small, run, asked):
    code, _, written = run(generate, "--model", small.folder, "--attention", asked)
    assert code == 0
    ran = read_manifest(written[0])["attention"]
    assert (ran["asked"], ran["encode"]) == (asked, "sdpa" if asked == "auto" else asked)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_runs_where_it_is_asked_for(small, run, monkeypatch):
    """Eager FlexAttention stands in for the compiled one, and is counted."""
    calls = []
    eager = backends._eager_flex()

    def counted(*args, **settings):
        calls.append(settings["block_mask"].seq_lengths)
        return eager(*args, **settings)

    monkeypatch.setattr(backends, "compiled_flex_attention", lambda device: counted)
    monkeypatch.setattr(batching, "FLEX_BUCKET", 64)
    code, _, written = run(generate, "--model", small.folder, "--attention", "flex")
    assert code == 0 and read_manifest(written[0])["attention"]["encode"] == "flex"
    assert calls[0] == (256, 256) and len(calls) > 2  # the trial, then the encoding


# ---- fingerprints ---------------------------------------------------------------------------


def test_fingerprint_is_of_the_content(small, tmp_path):
    original = loading.folder_fingerprint(small.folder)
    same = shutil.copytree(small.folder, tmp_path / "same")
    (same / "README.md").write_text("notes")
    assert loading.folder_fingerprint(same) == original
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        other = shutil.copytree(small.folder, tmp_path / name)
        content = bytearray((other / name).read_bytes())
        content[-9] ^= 1
        (other / name).write_bytes(content)
        assert loading.folder_fingerprint(other) != original, name


def test_fingerprint_sees_one_byte_of_a_large_file(tmp_path):
    size = 9_000_001
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(size))
    original = loading.folder_fingerprint(tmp_path)
    for position in (0, size // 2, 4_321_987, size - 1):
        with file.open("r+b") as edited:
            edited.seek(position)
            edited.write(b"\1")
            edited.flush()
            assert loading.folder_fingerprint(tmp_path) != original, position
            edited.seek(position)
            edited.write(b"\0")
        assert loading.folder_fingerprint(tmp_path) == original
    with file.open("ab") as edited:
        edited.write(b"\0")
    assert loading.folder_fingerprint(tmp_path) != original


def test_wrapper_of_loaded_engine_leaves_no_trace(small):
    source = find(small.folder)
    with loaded_engine(source, attention="eager") as loaded:
        model = loaded.model
        assert model.config._attn_implementation.startswith("self_ensemble")
        assert not model.training and next(model.parameters()).dtype == torch.float32
    assert model.config._attn_implementation == "sdpa"
