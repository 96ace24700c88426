"""GGUF files as models: the same logits as the model they were written from, or one sentence."""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import struct

import numpy as np
import pytest
import torch
import transformers

pytest.importorskip("gguf")

from gguf_files import (
    CHAT,
    TEXT,
    all_values,
    gemma_tokenizer_values,
    make_gemma_tokenizer,
    make_tokenizer,
    model_tensors,
    model_values,
    tiny_model,
    write_gguf,
)
from transformers import AutoTokenizer
from writing import error_of

from self_ensemble import Ensemble
from self_ensemble.data.result_files import safe_name
from self_ensemble.models import gguf_config, gguf_tokenizer, loading, memory
from self_ensemble.models.aliases import ALIASES, register_alias, resolve_model
from self_ensemble.models.config import ModelConfig
from self_ensemble.models.gguf_config import rope_of
from self_ensemble.models.gguf_tokenizer import READS_TOKENIZERS
from self_ensemble.models.gguf_weights import read_weights
from self_ensemble.models.loading import find_model, load_model, load_tokenizer, load_weights

# What is not about a wrong reader needs a right one.
needs_reader = pytest.mark.skipif(
    gguf_tokenizer.is_older(transformers.__version__, READS_TOKENIZERS),
    reason=f"transformers {transformers.__version__} reads no byte-level tokenizer rightly",
)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


class Tiny:
    """A Llama, its file, and what the file was written of."""

    def __init__(self, folder, tokenizer):
        self.folder, self.tokenizer = folder, tokenizer
        self.model = tiny_model("llama", len(tokenizer), tie_word_embeddings=False)
        self.values = all_values(self.model, tokenizer, "llama")
        self.tensors = model_tensors(self.model, "llama")
        self.file = write_gguf(folder / "Tiny-0.1.Q9.gguf", self.values, self.tensors)

    def written(self, path, *, tensors=None, without=(), quantise=None, **values):
        """The file with other values (``__`` for a dot), more tensors, or without some."""
        values = {key.replace("__", "."): value for key, value in values.items()}
        kept = {name: t for name, t in self.tensors.items() if name not in without}
        return write_gguf(path, self.values | values, kept | (tensors or {}), quantise=quantise)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, tokenizer):
    return Tiny(tmp_path_factory.mktemp("gguf"), tokenizer)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.gguf"


def source_of(path, **settings):
    return find_model(ModelConfig(name=str(path), **settings))


def refusal_of(path, load=load_model):
    """One sentence that begins with the flag and names the file."""
    sentence = error_of(lambda: load(source_of(path)))
    assert sentence.startswith("--model: ") and "\n" not in sentence, sentence
    assert str(path) in sentence and len(sentence) < 700, sentence
    return sentence


@torch.no_grad()
def logits_of(model):
    model.set_attn_implementation("eager")  # sdpa leaves out a soft cap in some versions
    ids = torch.tensor([[1, *range(5, 45)]])
    return model(ids).logits


def assert_close(model, to, tolerance=2e-5):
    ours, theirs = logits_of(model), logits_of(to)
    assert theirs.std() > 0.3  # it says something
    assert (ours - theirs).abs().max() < tolerance


# ---- the same model -------------------------------------------------------------------------

# GGUF's name → transformers', and settings; those that a file does not say are transformers' own.
READ = {
    "llama": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 128}),
    "qwen3moe": (
        "qwen3_moe",
        {
            "head_dim": 128,
            "moe_intermediate_size": 768,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
        },
    ),
    "gemma2": (
        "gemma2",
        {
            "sliding_window": 7,
            "query_pre_attn_scalar": 256,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {"sliding_window": 7, "num_hidden_layers": 7, "tie_word_embeddings": True},
    ),
    "phi3": ("phi3", {"sliding_window": None}),
    "starcoder2": ("starcoder2", {}),
    "stablelm": ("stablelm", {}),
    "nemotron": ("nemotron", {}),
    "gpt2": (
        "gpt2",
        {"num_key_value_heads": 4, "n_positions": 1024, "max_position_embeddings": 1024},
    ),
}


@pytest.mark.parametrize("architecture", READ)
def test_logits_are_those_of_the_model_it_was_written_from(architecture, tokenizer, file):
    model_type, settings = READ[architecture]
    model = tiny_model(model_type, len(tokenizer), **settings)
    values = all_values(model, tokenizer, architecture)
    write_gguf(file, values, model_tensors(model, architecture))
    loaded = load_weights(source_of(file))
    assert type(loaded) is type(model) and not loaded.training
    assert_close(loaded, model)


@pytest.mark.parametrize("quantisation", ["F16", "BF16", "Q4_0", "Q5_1", "Q8_0"])
def test_quantised(tiny, file, quantisation):
    """Held against the model with the values that the quantisation leaves of its matrices."""
    import gguf

    kind = gguf.GGMLQuantizationType[quantisation]
    tiny.written(file, quantise=quantisation)
    rounded = {
        name: gguf.dequantize(gguf.quantize(t, kind), kind) if t.ndim == 2 else t
        for name, t in tiny.tensors.items()
    }
    plain = write_gguf(file.with_name("plain.gguf"), tiny.values, rounded)
    loaded = load_weights(source_of(file))
    assert_close(loaded, load_weights(source_of(plain)))
    assert (logits_of(loaded) - logits_of(tiny.model)).abs().max() > 1e-3


@needs_reader
def test_the_tokenizer_and_its_chat_template(tiny):
    model, tokenizer = load_model(source_of(tiny.file))
    for text in (TEXT, "Côte d'Ivoire\n\n 12 北京", "", "<turn> <eos>"):
        assert tokenizer(text)["input_ids"] == tiny.tokenizer(text)["input_ids"]
    ids = tokenizer(TEXT)["input_ids"]
    assert ids[0] == 1 and tokenizer.decode(ids) == tiny.tokenizer.decode(ids)
    assert tokenizer.chat_template == CHAT
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<bos>", "<eos>")
    assert model.generation_config.eos_token_id == [2]


def test_what_ends_a_turn_ends_an_answer(tiny, file):
    """transformers takes no notice of it, and an answer in the chat format would run on."""
    tiny.written(file, tokenizer__ggml__eot_token_id=3, tokenizer__ggml__eom_token_id=2)
    assert load_weights(source_of(file)).generation_config.eos_token_id == [2, 3]


def test_device_and_number_format(tiny):
    for name, dtype in (("auto", torch.float32), ("bfloat16", torch.bfloat16)):
        source = source_of(tiny.file, dtype=name)
        model = load_weights(source)
        assert (source.dtype, model.dtype, model.device.type) == (dtype, dtype, "cpu")
        source = source_of(tiny.file)
        model, _ = read_weights(source.header, source.config, dtype, "it", {})
        assert model.dtype == dtype


@needs_reader
def test_answers_are_those_of_the_safetensors_folder(tiny, tmp_path):
    folder = tmp_path / "folder"
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    questions = [["the capital of the country", "what is the capital"], ["a river", "which river"]]
    for method in ("attention", "avg"):
        ours, theirs = (
            Ensemble.from_pretrained(str(name)).generate(
                questions, method=method, max_new_tokens=6, stop=()
            )
            for name in (tiny.file, folder)
        )
        assert [a.token_ids for a in ours] == [a.token_ids for a in theirs]
        assert [a.logprob for a in ours] == pytest.approx([a.logprob for a in theirs], abs=1e-4)


# ---- which file -----------------------------------------------------------------------------


def test_names_of_a_file(tiny, tmp_path):
    assert resolve_model(str(tiny.file)) == str(tiny.file)
    assert resolve_model(str(tiny.folder)) == str(tiny.file)
    register_alias("tiny-file", str(tiny.folder))
    try:
        assert resolve_model("tiny-file") == str(tiny.file)
    finally:
        ALIASES.remove("tiny-file")
    upper = shutil.copy(tiny.file, tmp_path / "UPPER.GGUF")
    assert resolve_model(str(upper)) == str(upper)
    for name in (str(tiny.file), "Tiny-0.1.Q9.gguf", "models/Tiny-0.1.Q9.gguf"):
        assert safe_name(name) == "Tiny-0.1.Q9"
    assert resolve_model("org/Tiny-GGUF") == "org/Tiny-GGUF"
    assert safe_name("org/Tiny-GGUF") == "org--Tiny-GGUF"


@pytest.mark.parametrize("name", ["no.gguf", "models/no.gguf", "./no.GGUF", "a/b/no.gguf"])
def test_no_file_of_that_name(name):
    """It is not looked for on the hub."""
    assert error_of(resolve_model, name) == f"--model: there is no file {name}"


def test_a_folder_of_several_files(tmp_path):
    for name in ("b.gguf", "a.gguf", "mmproj.gguf", "README.md"):
        (tmp_path / name).touch()
    sentence = error_of(resolve_model, str(tmp_path))
    assert "3 .gguf files" in sentence and "a.gguf, b.gguf, mmproj.gguf" in sentence


def test_a_folder_with_a_configuration_is_read_as_before(tiny, tmp_path, small):
    folder = shutil.copytree(small.folder, tmp_path / "both")
    shutil.copy(tiny.file, folder)
    assert resolve_model(str(folder)) == str(folder)
    (folder / "model.safetensors").unlink()
    assert "give the file itself" in refusal_of(folder)


@needs_reader
def test_a_part_of_a_split_file(tiny, tmp_path, file):
    """By its name, before anything is read; and by what it says, whatever its name."""
    names = [f"big-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for name in names:
        (tmp_path / name).touch()
    for path in (tmp_path, tmp_path / names[1]):
        assert "one of 3 parts" in error_of(resolve_model, str(path))
    tiny.written(file, split__count=2)
    assert "one of 2 parts" in refusal_of(file) and "--merge" in refusal_of(file)
    whole = tiny.written(tmp_path / "m-00001-of-00001.gguf", split__count=1)
    load_model(source_of(whole))


def test_a_file_has_no_revisions(tiny):
    for path in (tiny.file, tiny.folder):
        sentence = error_of(source_of, path, revision="v2")
        assert sentence == f"--revision v2: {tiny.file} is a file, which has one state only"


def test_the_fingerprint_is_of_the_whole_content(tiny, tmp_path):
    fingerprint = source_of(tiny.file).fingerprint
    assert fingerprint == hashlib.sha256(tiny.file.read_bytes()).hexdigest()
    moved = tmp_path / "other name.gguf"
    content = bytearray(tiny.file.read_bytes())
    moved.write_bytes(content)
    assert source_of(moved).fingerprint == fingerprint
    content[-1] ^= 1
    moved.write_bytes(content)
    assert source_of(moved).fingerprint != fingerprint


@needs_reader
def test_what_lies_beside_a_file_is_not_taken(tiny, small, tmp_path, monkeypatch):
    """Neither another model's tokenizer, nor a file of the same name in the current folder."""
    place = tmp_path / "downloads"
    place.mkdir()
    file = shutil.copy(tiny.file, place / "model.gguf")
    for path in small.folder.glob("*.json"):
        if path.name != "config.json":
            shutil.copy(path, place)
    (place / "generation_config.json").write_text(json.dumps({"eos_token_id": 9}))
    here = tmp_path / "here"
    here.mkdir()
    (here / "model.gguf").write_bytes(b"another")
    for current in (here, place):
        monkeypatch.chdir(current)
        name = os.path.relpath(file)
        model, tokenizer = load_model(source_of(name))
        assert tokenizer(TEXT)["input_ids"] == tiny.tokenizer(TEXT)["input_ids"]
        assert model.generation_config.eos_token_id == [2]
        assert_close(model, tiny.model)


# ---- files that cannot be read --------------------------------------------------------------


def test_no_gguf(file):
    for content in (b"", b"GGU", b"GGML....", b"PK\x03\x04" * 99):
        file.write_bytes(content)
        assert "is no GGUF file" in refusal_of(file)


def test_a_file_cut_short_at_any_place(tiny, file):
    content = tiny.file.read_bytes()
    sizes = [4, 7, 8, 23, 24, 30, 200, 1000, len(content) // 2, len(content) - 200]
    for size in sizes:
        file.write_bytes(content[:size])
        assert re.search("is cut short|cannot be read to its end", refusal_of(file)), size
    assert "GGUF version 3" not in refusal_of(file)


def test_damaged_headers(tiny, file):
    content = tiny.file.read_bytes()
    for at, value in ((8, 2**63), (16, 2**60), (24, 2**62), (24, 2**33)):
        file.write_bytes(content[:at] + struct.pack("<Q", value) + content[at + 8 :])
        assert "cannot be read to its end" in refusal_of(file), at
    # Any byte: it is refused, or is no part of what is looked at; never a traceback.
    dice = np.random.default_rng(3)
    header = source_of(tiny.file).header.data_start
    for at in dice.integers(24, header, 25):
        damaged = bytearray(content)
        damaged[at] ^= 1 << dice.integers(8)
        file.write_bytes(damaged)
        try:
            load_model(source_of(file))
        except loading.UserError as error:
            assert "\n" not in str(error)


def test_versions_that_cannot_be_read(tiny, file):
    content = tiny.file.read_bytes()
    for version in (struct.pack("<I", 1), struct.pack("<I", 9), struct.pack(">I", 3)):
        file.write_bytes(content[:4] + version + content[8:])
        assert "GGUF version" in refusal_of(file)


@pytest.mark.parametrize("missing", [("gguf",), ("accelerate",), ("gguf", "accelerate")])
def test_packages_that_are_not_installed(tiny, monkeypatch, missing):
    monkeypatch.setattr(
        gguf_config,
        "find_spec",
        lambda name: None if name in missing else importlib.util.find_spec(name),
    )
    sentence = refusal_of(tiny.file)
    assert sentence.endswith(f"pip install {' '.join(missing)}")


@pytest.mark.parametrize("architecture", ["clip", "olmo2", "no-such"])
def test_architectures_that_transformers_does_not_read(tiny, file, architecture):
    tiny.written(file, general__architecture=architecture)
    assert f"architecture {architecture!r}" in refusal_of(file)


def test_architectures_that_the_method_is_not_for(tiny, file):
    """Read by transformers, and refused as from a folder."""
    values = {
        f"{key.replace('llama.', 't5.')}": value
        for key, value in tiny.values.items()
        if key != "general.architecture"
    }
    write_gguf(file, {"general.architecture": "t5", **values}, tiny.tensors)
    assert "encoder-decoder" in error_of(source_of, file)


def test_quantisations_that_cannot_be_dequantised(tiny, file):
    content = tiny.file.read_bytes()
    name = b"blk.0.ffn_up.weight"
    at = content.index(name) + len(name) + 4 + 16
    assert content[at : at + 4] == bytes(4)  # F32
    for kind, shown in ((15, "Q8_K"), (24, "I8"), (77, "77")):
        file.write_bytes(content[:at] + struct.pack("<I", kind) + content[at + 4 :])
        assert f"stores blk.0.ffn_up.weight as {shown}," in refusal_of(file)


def test_memory(tiny, monkeypatch):
    """The dequantised weights, and what is held beside them meanwhile."""
    needed = 4 * sum(p.numel() for p in tiny.model.parameters())
    largest = 2 * 4 * len(tiny.tokenizer) * tiny.model.config.hidden_size
    source = source_of(tiny.file)
    monkeypatch.setattr(memory, "available_memory", lambda: needed + largest + 200)  # its buffers
    load_weights(source)
    monkeypatch.setattr(memory, "available_memory", lambda: needed + largest - 1)
    monkeypatch.setattr(loading, "read_weights", None)
    assert "more while they are read" in error_of(load_weights, source)


# ---- every tensor accounted for -------------------------------------------------------------


@needs_reader
def test_missing_tensors(tiny, file):
    tiny.written(file, without=["blk.1.ffn_up.weight", "blk.1.attn_norm.weight"])
    sentence = refusal_of(file)
    assert "lack 2 tensors" in sentence and "model.layers.1.input_layernorm.weight" in sentence


@needs_reader
def test_mismatched_tensors(tiny, file):
    tiny.written(file, tensors={"blk.0.ffn_up.weight": np.zeros((32, 32), dtype=np.float32)})
    assert "mlp.up_proj.weight is [32, 32] and should be [64, 32]" in refusal_of(file)


def test_a_head_of_its_own_and_a_tied_one(tiny, file):
    tiny.written(file, without=["output.weight"])
    model = load_weights(source_of(file))
    assert model.config.tie_word_embeddings
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert not load_weights(source_of(tiny.file)).config.tie_word_embeddings


@needs_reader
def test_tensors_that_the_model_has_no_place_for(tiny, file, caplog):
    """A bias that would be left out is another model; what belongs to no layer is only told."""
    bias = {"blk.0.attn_q.bias": np.ones(32, dtype=np.float32)}
    tiny.written(file, tensors=bias)
    sentence = refusal_of(file)
    assert "1 tensors" in sentence and "blk.0.attn_q.bias" in sentence
    tiny.written(file, tensors={"blk.2.nextn.eh_proj.weight": np.ones((32, 64), dtype=np.float32)})
    assert_close(load_weights(source_of(file)), tiny.model)
    assert "blk.2.nextn.eh_proj.weight" in caplog.text


# ---- what transformers leaves out of a configuration ----------------------------------------


def llama3(factor):
    return {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def rope_factors(model):
    """As llama.cpp's converter has them: what each frequency is divided by."""
    size = model.config.head_dim
    plain = 500000.0 ** -(np.arange(0, size, 2) / size)
    return (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)


def test_the_rope_scaling_of_llama_3(tiny, tokenizer, file):
    """Its factors are a tensor, which transformers leaves out: another model at every position."""
    settings = {"head_dim": 64, "max_position_embeddings": 131072}
    model = tiny_model("llama", len(tokenizer), rope_parameters=llama3(32.0), **settings)
    plain = tiny_model(
        "llama",
        len(tokenizer),
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        **settings,
    )
    factors = rope_factors(model)
    assert [factors.min(), factors.max()] == pytest.approx([1, 32])
    values = all_values(model, tokenizer, "llama")
    tensors = model_tensors(model, "llama")
    write_gguf(file, values, tensors | {"rope_freqs.weight": factors})
    loaded = load_weights(source_of(file))
    assert loaded.config.rope_parameters == pytest.approx(model.config.rope_parameters)
    assert torch.allclose(loaded.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    assert_close(loaded, model)
    assert (logits_of(plain) - logits_of(model)).abs().max() > 1e-3
    write_gguf(file, values, tensors | {"rope_freqs.weight": factors[::-1].copy()})
    assert "not Llama 3's scaling" in refusal_of(file)


def test_the_rope_scaling_of_gemma_3(tokenizer, file):
    """Linear, and of the layers without a window alone."""
    settings = {"sliding_window": 7, "num_hidden_layers": 7, "tie_word_embeddings": True}
    ropes = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    model = tiny_model("gemma3_text", len(tokenizer), rope_parameters=ropes, **settings)
    scaling = {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
    values = all_values(model, tokenizer, "gemma3") | scaling
    write_gguf(file, values, model_tensors(model, "gemma3"))
    loaded = load_weights(source_of(file))
    assert rope_of(loaded.config, "sliding_attention")["rope_type"] == "default"
    assert_close(loaded, model)


@pytest.mark.parametrize(
    "values, named",
    [
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}, "scaling.type = yarn"),
        ({"rope__dimension_count": 4}, None),
        ({"attention__sliding_window": 9}, "sliding_window = 9, and the configuration"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50"),
        ({"logit_scale": 0.5}, "logit_scale = 0.5"),
        ({"attention__scale": 0.1}, "attention.scale = 0.1"),
        ({"attention__head_count_kv": [2, 1]}, None),
    ],
)
def test_what_a_file_says_and_transformers_does_not_take(tiny, file, values, named):
    tiny.written(file, **{f"llama__{key}": value for key, value in values.items()})
    sentence = refusal_of(file)
    assert named is None or (named in sentence and "safetensors" in sentence)


@pytest.mark.parametrize(
    "architecture, key, value",
    [
        ("starcoder2", "rope.freq_base", 999999.0),  # transformers keeps its own 10,000
        ("gemma2", "final_logit_softcapping", 20.0),
        ("gemma3", "attention.sliding_window", None),  # and its own 4,096
        ("gemma3", "rope.freq_base_swa", 5000.0),
        ("gemma3", "attention.sliding_window_pattern", 2),
        ("gemma2", "attention.sliding_window_pattern", [True, True]),
        ("phi3", "attention.sliding_window", 9),
        ("stablelm", "rope.dimension_count", 4),
    ],
)
def test_defaults_of_another_size_of_the_model(tokenizer, file, architecture, key, value):
    model_type, settings = READ[architecture]
    model = tiny_model(model_type, len(tokenizer), **settings)
    values = all_values(model, tokenizer, architecture) | {
        f"{architecture}.context_length": 131072,  # which no window is longer than
        f"{architecture}.{key}": value,
    }
    write_gguf(file, values, model_tensors(model, architecture))
    assert f"{architecture}.{key} = " in refusal_of(file)


def test_a_window_that_hides_nothing(tokenizer, file):
    """As long as the longest text."""
    model = tiny_model("phi3", len(tokenizer), sliding_window=None)
    values = all_values(model, tokenizer, "phi3") | {"phi3.attention.sliding_window": 262144}
    write_gguf(file, values, model_tensors(model, "phi3"))
    assert_close(load_weights(source_of(file)), model)


def test_query_scales_that_no_file_says(tokenizer, file):
    settings = READ["gemma2"][1] | {"num_hidden_layers": 46}
    model = tiny_model("gemma2", len(tokenizer), **settings)
    write_gguf(file, all_values(model, tokenizer, "gemma2"), {})
    assert "queries scaled by 256**-0.5" in refusal_of(file)


def test_factors_for_long_and_short_texts(tiny, file):
    tiny.written(file, tensors={"rope_factors_long.weight": np.ones(4, dtype=np.float32)})
    assert "long and short texts" in refusal_of(file)


# ---- tokenizers that are wrongly read -------------------------------------------------------


def letters(tokenizer):
    """As transformers 5.17 reads Gemma's: without merges."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["merges"] = state["model"]["merges"][:3]
    return state


def without_digits_apart(tokenizer):
    """Numbers in one piece, as 5.17 reads Llama 3's."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    digits = ["1 2", "12 3", "123 4", "5 6", "56 7"]
    for merge in digits:
        state["model"]["vocab"][merge.replace(" ", "")] = len(state["model"]["vocab"])
    state["model"]["merges"] += [merge.split() for merge in digits]
    return state


@pytest.fixture
def gemma(file):
    """A file with a tokenizer as Gemma's, and the tokenizer."""
    tokenizer = make_gemma_tokenizer()
    model = tiny_model(
        "gemma3_text",
        tokenizer.get_vocab_size(),
        sliding_window=7,
        num_hidden_layers=7,
        bos_token_id=2,
        eos_token_id=1,
    )
    values = {"general.architecture": "gemma3", **model_values(model, "gemma3")}
    values |= gemma_tokenizer_values(tokenizer)
    return write_gguf(file, values, model_tensors(model, "gemma3")), tokenizer


def test_a_tokenizer_as_gemmas(gemma):
    """By the reader itself: right in one version, and words that come out as letters in another."""
    path, stock = gemma
    assert stock.encode("a capital of").tokens == ["<bos>", "a", "▁capital", "▁of"]
    if gguf_tokenizer.is_older(transformers.__version__, READS_TOKENIZERS):
        assert "come out in pieces" in refusal_of(path, load_tokenizer)
        return
    tokenizer = load_tokenizer(source_of(path))
    for text in (TEXT, "which river, please", "a city 12"):
        assert tokenizer(text)["input_ids"] == stock.encode(text).ids


@pytest.fixture
def reader(monkeypatch, tokenizer):
    """Makes the reader give another tokenizer than the file's, in a version of transformers."""

    def give(version, state=None, **changes):
        def from_pretrained(*_, **__):
            return type(tokenizer)(
                tokenizer_object=gguf_tokenizer_of(state or tokenizer.backend_tokenizer.to_str()),
                **{"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": CHAT, **changes},
            )

        monkeypatch.setattr(AutoTokenizer, "from_pretrained", from_pretrained)
        monkeypatch.setattr(gguf_tokenizer, "version", lambda _: version)

    return give


def gguf_tokenizer_of(state):
    from tokenizers import Tokenizer

    return Tokenizer.from_str(state if isinstance(state, str) else json.dumps(state))


def test_words_that_come_out_as_letters(tiny, tokenizer, reader):
    reader("5.17.0", letters(tokenizer))
    sentence = refusal_of(tiny.file, load_tokenizer)
    assert "words that are tokens come out in pieces" in sentence
    assert "transformers 5.17.0 reads the tokenizer" in sentence
    assert sentence.endswith("5.23.0 reads it: pip install transformers==5.23.0")
    reader("5.24.1", letters(tokenizer))
    sentence = refusal_of(tiny.file, load_tokenizer)
    assert "transformers 5.24.1" in sentence and sentence.endswith("with its tokenizer.json")


def test_a_tokenizer_that_is_rightly_read_passes(tiny, reader):
    reader("5.17.0")
    load_tokenizer(source_of(tiny.file))


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"eos_token": "<bos>"}, "its EOS is token 2 and is taken for 1"),
        ({"bos_token": "<eos>"}, "its BOS is token 1 and is taken for 2"),
        ({"chat_template": None}, "its chat template is not kept"),
        ({"chat_template": CHAT + " "}, "its chat template is not kept"),
    ],
)
def test_special_tokens_and_the_chat_template(tiny, reader, changes, named):
    reader("5.17.0", **changes)
    assert named in refusal_of(tiny.file, load_tokenizer)


@pytest.mark.parametrize(
    "values, written_with_bos, named",
    [
        ({"add_bos_token": True}, False, "BOS is to be put in front, and is not"),
        ({"add_bos_token": False}, True, "BOS is not to be put in front, and is"),
        ({"add_bos_token": None}, True, "BOS is not to be put in front, and is"),
        ({"add_bos_token": None, "model": "llama"}, False, "BOS is to be put in front"),
        ({"add_bos_token": None, "pre": "llama-bpe"}, False, "BOS is to be put in front"),
    ],
)
def test_bos(tiny, file, reader, values, written_with_bos, named):
    """What a file does not say is as llama.cpp has it."""
    tiny.written(file, **{f"tokenizer__ggml__{key}": value for key, value in values.items()})
    reader("5.17.0", make_tokenizer(bos=written_with_bos).backend_tokenizer.to_str())
    assert named in refusal_of(file, load_tokenizer)


@needs_reader
def test_no_bos(tiny, file):
    tiny.written(file, tokenizer__ggml__add_bos_token=False)
    assert load_tokenizer(source_of(file))("the")["input_ids"] != [1]


def test_special_tokens_of_a_chat_template_stay_whole(tiny, tokenizer, reader):
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] != "<turn>"]
    reader("5.17.0", state)
    assert "<turn> of its chat template comes out as < t" in refusal_of(tiny.file, load_tokenizer)


@needs_reader
@pytest.mark.parametrize("pre, longest", [("llama-bpe", 3), ("qwen2", 1)])
def test_digits(tiny, tokenizer, file, reader, pre, longest):
    tiny.written(file, tokenizer__ggml__pre=pre)
    load_tokenizer(source_of(file))
    reader("5.17.0", without_digits_apart(tokenizer))
    sentence = refusal_of(file, load_tokenizer)
    assert f"1234567 is cut into 1234 567, and not after every {longest} digits" in sentence


def test_text_comes_back(tiny, tokenizer, reader):
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["normalizer"] = {"type": "Lowercase"}
    reader("5.17.0", state)
    assert 'comes back as "based on it' in refusal_of(tiny.file, load_tokenizer)
