"""What all tests share: no network, one thread, and a small model in a folder."""

import gc
import os
import sys
from importlib.util import find_spec

# Read when huggingface_hub is imported. A test that is to reach a hub is run with it set to 0.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Two processes of tests on two cores: what they start would wait for each other's threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

# What imports torch is imported where it is used: the process that only hands tests out to others
# has them wait for it.
from self_ensemble.system import console as progress

PARTS = """\
a part:   python -m pytest test/unit | test/integration | test/documents
a file:   python -m pytest -n 0 test/unit/attention/test_fusion.py
left out: python -m pytest -n 0 -m slow | interpreter (needs triton) | gpu | browser | network
"""


def pytest_addoption(parser):
    """Where pytest-xdist is not installed, what pyproject.toml asks of it is no error."""
    if find_spec("xdist") is None:
        group = parser.getgroup("xdist")
        group._addoption("-n")  # as pytest-xdist does: small letters are not for others
        group.addoption("--dist")
        group.addoption("--no-loadscope-reorder", action="store_true")


def pytest_configure(config):
    """Only the tests marked gpu see a GPU: the others mean the CPU where they say auto."""
    if "not gpu" in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.fsync = fsync_to_nowhere


def pytest_unconfigure():
    os.fsync = FSYNC


FSYNC = os.fsync


def fsync_to_nowhere(descriptor):
    """No test cuts the power: what is waited for is the disk, thousands of times.

    What is synced, when and before what, tests look at all the same. Child processes sync.
    """
    os.fstat(descriptor)  # OSError where it is none


def pytest_terminal_summary(terminalreporter, config):
    if not config.option.file_or_dir:
        terminalreporter.section("how to run a part")
        terminalreporter.write(PARTS)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """On a busy machine nothing is quick, and tests compare what is said."""
    monkeypatch.setattr(progress, "QUIET_SECONDS", 600)


@pytest.fixture(scope="module")
def models_kept():
    """Scripts that run in this process load a model once: each gives it back as it was."""
    from self_ensemble.generation import loading

    load, kept = loading.load_model, {}

    def load_once(source):
        key = source.path, source.fingerprint, source.dtype, source.device
        if key not in kept:
            kept[key] = load(source)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_model", load_once)
        yield


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A random Llama with its tokenizer, and a file of questions. Nobody writes there."""
    from small import SmallModel

    return SmallModel.saved(tmp_path_factory.mktemp("small"))


@pytest.fixture
def modules_cache(tmp_path, monkeypatch):
    """Where transformers keeps its copies of code, in this process, empty."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)


def pytest_collection_finish():
    """What is imported stays: to look for garbage in it takes longer than most tests."""
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
