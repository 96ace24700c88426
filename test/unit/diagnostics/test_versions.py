"""Which versions count as tested: a checkout's pins, or an installed package's own ranges."""

import tomllib
from pathlib import Path

from self_ensemble.diagnostics import versions
from self_ensemble.diagnostics.checks import FAILED, OK, WARNING
from self_ensemble.diagnostics.environment import check_packages
from self_ensemble.diagnostics.versions import read_pins, read_ranges, version_ranges

ROOT = Path(__file__).parents[3]
REQUIRES = [
    "torch>=2.11",
    "transformers >= 5.17",
    'datasets>=4.0; extra == "hub"',
    'spacy>=3.8; extra == "lemmas"',
    'self-ensemble[hub,lemmas]; extra == "all"',
    'nothing-like-it>=1.0; extra == "more"',
    'spacy>=3.9; extra == "more"',
]


def test_a_checkout_has_pins():
    pins = read_pins((ROOT / "requirements.txt").read_text())
    assert version_ranges() == pins and len(pins) > 8
    torch = next(each for each in pins if each.package == "torch")
    assert (torch.oldest, str(torch)) == ("2.11.0", f"2.11.0 to {torch.newest}")
    assert torch.install == f"pip install torch=={torch.newest}"
    assert [torch.has(version) for version in ("2.10", "2.11.3", "99.0")] == [False, True, False]


def test_ranges_of_metadata():
    ranges = {each.package: each for each in read_ranges(REQUIRES)}
    assert list(ranges) == ["torch", "transformers", "datasets", "spacy", "nothing-like-it"]
    assert [each.extra for each in ranges.values()] == [None, None, "hub", "lemmas", "more"]
    torch = ranges["torch"]
    assert str(torch) == "2.11 or newer" and torch.install == "pip install 'torch>=2.11'"
    assert torch.has("2.11.0+cpu") and torch.has("3.0") and not torch.has("2.10.9")


def test_an_installed_package_is_checked_against_its_own_metadata(monkeypatch, tmp_path):
    monkeypatch.setattr(versions, "PACKAGE", tmp_path / "site-packages" / "self_ensemble")
    monkeypatch.setattr(versions, "requires", lambda name: REQUIRES)
    checks = {check.name: check for check in check_packages()}
    assert list(checks) == [each.package for each in read_ranges(REQUIRES)]
    assert checks["torch"].status == OK and checks["torch"].found.endswith("with 2.11 or newer")
    assert checks["nothing-like-it"].status == WARNING  # what an extra brings may be absent
    assert "the extra 'more'" in checks["nothing-like-it"].found
    missing = "torch-that-nobody-has>=2.0"
    monkeypatch.setattr(versions, "requires", lambda name: [missing])
    [check] = check_packages()
    assert (check.status, check.todo) == (FAILED, f"pip install '{missing}'")


def test_what_is_read_is_what_the_project_declares():
    """The ranges of pyproject.toml, as an installer copies them into the metadata."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == versions.DISTRIBUTION
    ranges = {each.package: each for each in read_ranges(project["dependencies"])}
    assert len(ranges) == len(project["dependencies"])
    for tested in version_ranges():
        if tested.package in ranges:
            assert ranges[tested.package].has(tested.newest)
