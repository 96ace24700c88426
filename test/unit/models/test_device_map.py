"""Over which GPUs a model's layers are spread: by sizes, without any GPU."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_model

from self_ensemble.models import device_map, loading
from self_ensemble.models.config import ModelConfig
from self_ensemble.models.device_map import find_device_map, make_device_map, spread
from self_ensemble.models.devices import layer_names
from self_ensemble.models.loading import find_model, load_weights
from self_ensemble.models.memory import tensor_bytes
from self_ensemble.system.errors import UserError
from self_ensemble.workers.config import WorkersConfig

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("outside", "layers", "room", "expected"),
    [
        (0, [1] * 6, [9, 9], [0, 0, 0, 1, 1, 1]),
        (0, [1] * 6, [3, 3], [0, 0, 0, 1, 1, 1]),  # to the last byte
        (0, [1] * 6, [18, 9], [0, 0, 0, 0, 1, 1]),  # in proportion
        (3, [1] * 6, [6, 6], [0, 0, 1, 1, 1, 1]),  # what is outside counts as taken
        (3, [1] * 4, [3, 9], [1, 1, 1, 1]),  # no room for any beside it
        (0, [1] * 6, [2, 2, 2], [0, 0, 1, 1, 2, 2]),
        (0, [1] * 6, [3, 2], None),
        (4, [1], [3, 9], None),
        (0, [4, 4], [6, 2], None),  # enough together, but no layer is divided
    ],
)
def test_spread(outside, layers, room, expected):
    assert spread(outside, layers, room) == expected


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "gpt_neox"])
def test_every_weight_has_a_place(name):
    """A layer where it is asked to be, all else on the first GPU; no weight left out or twice."""
    model = tiny_model(name)
    layers = layer_names(model)
    assert len(layers) == model.config.num_hidden_layers
    found = make_device_map(model, [0, 1, 1, 2])
    for weight, _ in [*model.named_parameters(), *model.named_buffers()]:
        [(place, gpu)] = [
            (at, gpu) for at, gpu in found.items() if weight == at or weight.startswith(f"{at}.")
        ]
        assert gpu == ([0, 1, 1, 2][layers.index(place)] if place in layers else 0), weight


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many GPUs."""

    def has(count):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return has


def find(memory, gpus=None, device=CUDA):
    """The GPUs that a tiny model's layers are on, with so many times its bytes free on each."""
    model = tiny_model("llama")
    size = tensor_bytes(model)
    asked = []

    def of(gpu):
        asked.append(gpu)
        return int(memory[gpu] * size)

    found = find_device_map("it", model.config, torch.float32, device, gpus, of)
    return sorted(set(found.values())), asked


def test_as_few_gpus_as_hold_it(machine):
    machine(4)
    assert find([1.2] * 4) == ([], [0])  # the others are not even asked
    assert find([1.05] * 4)[0] == [0, 1]  # nine tenths are for weights
    assert find([0.7] * 4)[0] == [0, 1]
    assert find([0.5] * 4)[0] == [0, 1, 2]
    assert find([0.5, 5, 5, 5])[0] == [0, 1]
    assert find([1.05, 0, 0, 0])[0] == []  # barely, where there is no other room
    with pytest.raises(UserError, match=r"4 GPUs have .* must stay free"):
        find([0.2] * 4)


def test_as_many_gpus_as_are_asked_for(machine):
    machine(4)
    assert find([9] * 4, gpus=1) == ([], [])
    assert find([9] * 4, gpus=2)[0] == [0, 1]
    assert find([9] * 4, gpus=4)[0] == [0, 1, 2, 3]
    with pytest.raises(UserError, match="2 GPUs have"):
        find([0.2] * 4, gpus=2)
    with pytest.raises(UserError, match="--gpus_per_worker 5: this machine has 4 GPUs"):
        find([9] * 4, gpus=5)


def test_one_device_is_never_spread(machine):
    machine(1)
    assert find([0.1]) == ([], [])  # the memory check refuses it, as ever
    machine(4)
    assert find([0.1] * 4, device=torch.device("cpu")) == ([], [])


def test_a_model_whose_layers_nobody_knows(machine, monkeypatch):
    machine(2)
    monkeypatch.setattr(device_map, "layer_names", lambda model: [])
    with pytest.raises(UserError, match="does not say what the layers of it are"):
        find([0.7] * 2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gpus_per_worker": 0}, "0 is no whole number above 0"),
        ({"gpus_per_worker": True}, "True is no whole number"),
        ({"gpus_per_worker": 2, "device": "cpu"}, "--device cpu is one device"),
        ({"gpus_per_worker": 2, "device": "cuda:1"}, "choose among GPUs with CUDA_VISIBLE_DEVICES"),
    ],
)
def test_mistakes(settings, said):
    with pytest.raises(UserError, match=said):
        ModelConfig(**settings)


@pytest.mark.parametrize(
    ("gpus", "each", "expected"), [(1, 1, False), (2, 1, True), (2, 2, False), (4, 2, True)]
)
def test_workers_auto(machine, gpus, each, expected):
    machine(gpus)
    assert WorkersConfig(number="auto").needs_ray(CUDA, lambda: each) is expected


def test_weights_are_loaded_by_the_map(small, monkeypatch, caplog):
    """The same weights; the machine's memory, into which they never go, is not asked."""
    source = find_model(ModelConfig(name=str(small.folder), device="cpu"))
    expected = load_weights(source).state_dict()
    monkeypatch.setattr(loading, "find_device_map", lambda *asked: {"": "cpu"})
    monkeypatch.setattr(loading, "check_fits", None)
    model = load_weights(source)
    assert not model.training
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    [said] = [r.getMessage() for r in caplog.records if r.name == "self_ensemble.models.loading"]
    assert "are spread over 1 GPUs" in said and "CUDA graphs" in said


def test_a_quantised_model_is_not_spread(small):
    source = find_model(ModelConfig(name=str(small.folder), device="cpu"))
    source.config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(UserError, match="is quantised, and such models are not spread"):
        load_weights(replace(source, gpus=2))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, None),
        ({"device": "cpu"}, 1),
        ({"gpus_per_worker": 1}, 1),
    ],
)
def test_who_may_be_spread(settings, expected):
    assert find_model(ModelConfig(**settings)).gpus == expected


def test_gpus_that_are_not_there(machine, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--gpus_per_worker 2: there is no GPU"):
        find_model(ModelConfig(gpus_per_worker=2))
