"""Quantised safetensors: refused where their numbers would be others, or a package is missing."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig
from writing import error_of

from self_ensemble.models import quantised
from self_ensemble.models.config import ModelConfig
from self_ensemble.models.loading import find_model, load_weights
from self_ensemble.models.quantised import check_quantised, method_of


@pytest.fixture
def folder(small, tmp_path):
    return shutil.copytree(small.folder, tmp_path / "quantised")


def set_quantisation(folder, **settings):
    file = folder / "config.json"
    config = json.loads(file.read_text()) | {"quantization_config": settings}
    file.write_text(json.dumps(config))


def source_of(folder):
    return find_model(ModelConfig(name=str(folder)))


@pytest.mark.parametrize(
    "method, missing",
    [
        ("gptq", ["gptqmodel", "optimum"]),
        ("gptq", ["gptqmodel"]),
        ("awq", ["gptqmodel"]),
        ("bitsandbytes", ["bitsandbytes"]),
    ],
)
def test_packages_that_are_not_installed(folder, monkeypatch, method, missing):
    set_quantisation(folder, quant_method=method, bits=4, load_in_4bit=True)
    monkeypatch.setattr(quantised, "find_spec", lambda name: None if name in missing else name)
    sentence = error_of(source_of, folder)
    assert sentence.startswith(f"--model: {folder} is quantised by {method}, ")
    assert f"pip install {' '.join(missing)}, " in sentence
    monkeypatch.setattr(quantised, "find_spec", lambda name: name)
    source_of(folder)


def test_methods_that_transformers_does_not_know(folder):
    """It would leave them out with a warning."""
    set_quantisation(folder, quant_method="int7", bits=7)
    assert "is quantised by 'int7', which transformers" in error_of(source_of, folder)


def test_what_a_configuration_says():
    def config(settings):
        return SimpleNamespace(quantization_config=settings)

    assert method_of(SimpleNamespace()) is method_of(config(None)) is None
    assert method_of(config({"load_in_8bit": True})) == "bitsandbytes"
    assert method_of(config(BitsAndBytesConfig(load_in_4bit=True))) == "bitsandbytes"
    assert "'None', which" in error_of(check_quantised, config({"bits": 4}), "it")


@pytest.mark.parametrize("ending", ["weight_scale", "weight_scale_inv", "scales", "weight.absmax"])
def test_scales_that_the_configuration_does_not_speak_of(folder, ending):
    """Without them every weight would be some hundred times too large."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.up_proj"
    weight = tensors[f"{name}.weight"]
    scale = weight.abs().max() / 448
    tensors[f"{name}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
    tensors[f"{name}.{ending}"] = scale.reshape(1)
    save_file(tensors, file, metadata={"format": "pt"})
    sentence = error_of(load_weights, source_of(folder))
    assert f"1 tensors of that are not used, such as {name}.{ending}: " in sentence
