"""What results are called, and which of the files that lie there is a method's own."""

import json
import random
from pathlib import Path

import pytest

from self_ensemble.data.result_files import result_file, safe_name
from self_ensemble.experiment.names import (
    attention_method_name,
    earlier_method_name,
    find_finished,
    method_names,
    result_stem,
    run_name,
)
from self_ensemble.methods.config import DEFAULT_TAU, AttentionFusionConfig, LogitFusionConfig


@pytest.mark.parametrize("tau", [0.0, 1.0])
@pytest.mark.parametrize(
    ("method", "rotary", "learned"),
    [
        ({}, "flex_attention", "flex_attention"),
        ({"layout": "concat"}, "flex_attention-concat", "flex_attention-concat"),
        ({"positions": "exact"}, "flex_attention", "flex_attention-exact"),
        ({"positions": "left"}, "flex_attention-left", "flex_attention"),
        ({"fusion": "joint"}, "flex_attention-joint", "flex_attention-joint"),
        ({"positions": "left", "fusion": "joint"}, "flex_attention-joint", "flex_attention-joint"),
        (
            {"layout": "concat", "positions": "sequential", "fusion": "joint"},
            "flex_attention-concat-sequential-joint",
            "flex_attention-concat-sequential-joint",
        ),
    ],
)
def test_attention_fusion_is_named_by_what_differs_from_the_models_defaults(
    method, rotary, learned, tau, monkeypatch
):
    """And by its tau, whether that is the default or not."""
    monkeypatch.setitem(DEFAULT_TAU, "mean", tau)
    if tau and "fusion" not in method:
        rotary, learned = f"{rotary}-tau1", f"{learned}-tau1"
    config = AttentionFusionConfig(**method)
    exact = "left" if config.fusion == "joint" else "exact"
    assert attention_method_name(config, default_positions=exact) == rotary
    assert attention_method_name(config, default_positions="left") == learned
    assert {rotary, learned} <= {*method_names(config)}


ONES = (1.0,) * 30
WEIGHTED = {
    "tau0.5": {"tau": 0.5},
    "tau-0.5": {"tau": -0.5},
    "tau0.1234567890123": {"tau": 0.1234567890123},
    "w1_2_0.5": {"tau": 0, "weights": (1, 2.0, 0.5)},
    "tau1-w1_2": {"tau": 1.0, "weights": (1, 2)},
    "entropy1": {"tau": 0, "weights_by": "entropy:1.0"},
    "tau0.5-entropy0.25": {"tau": 0.5, "weights_by": "entropy:0.25"},
    "joint-w1_2": {"fusion": "joint", "weights": (1.0, 2.0)},
    "joint-entropy2": {"fusion": "joint", "weights_by": "entropy:2"},
    "we08eee76": {"tau": 0, "weights": ONES},
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_are_named(name):
    config = AttentionFusionConfig(**WEIGHTED[name])
    found = attention_method_name(config, default_positions="exact")
    assert found == f"flex_attention-{name}" == safe_name(found)
    earlier = "flex_attention-joint" if config.fusion == "joint" else "flex_attention"
    assert earlier_method_name(found, config) == earlier


def test_other_weights_have_other_names():
    configs = [AttentionFusionConfig(tau=tau) for tau in (0, 1e-7, 1.0000001, 1e22, 1)]
    weights = (ONES, (2.0, *ONES[1:]), (1, 2), (12,), (1, 2.0000001))
    configs += [AttentionFusionConfig(weights=each) for each in weights]
    configs += [AttentionFusionConfig(weights_by=f"entropy:{b}") for b in (1, 1.0000001, 0.1)]
    names = [attention_method_name(each, default_positions="exact") for each in configs]
    assert len({*names}) == len(names)
    assert all(safe_name(run_name(name, count=30)) == f"{name}-30" for name in names)


def test_logit_fusion_is_named_by_its_method():
    assert method_names(LogitFusionConfig(method="vote")) == ("vote",)
    config = LogitFusionConfig(method="weighted_avg", weights_by="entropy:2")
    assert method_names(config) == ("weighted_avg-entropy2",)
    assert earlier_method_name("weighted_avg-entropy2", config) == "weighted_avg"
    assert method_names(LogitFusionConfig(weights_by="entropy:2")) == ("avg",)  # which uses none


@pytest.mark.parametrize("made_with", [{}, {"tau": 0.5}, {"weights": [1.0, 2.0]}])
@pytest.mark.parametrize("asked", [{}, {"tau": 0.5}, {"weights": (1.0, 2.0)}])
def test_what_an_earlier_release_made_is_found_by_all_of_its_method(tmp_path, made_with, asked):
    usual = {"positions": "exact", "tau": 0.0, "weights": None}
    stem = finished(tmp_path, "flex_attention", "exact")
    manifest = json.loads(result_file(stem, ".json").read_text())
    manifest["identity"]["method"] = usual | made_with
    result_file(stem, ".json").write_text(json.dumps(manifest))
    method = {**usual, **asked, "weights_by": None}
    found = find_finished([tmp_path / "none"], method, earlier=[stem])
    same = made_with.keys() == asked.keys()
    assert (found is not None) == same
    assert find_finished([tmp_path / "none"], {**method, "weights_by": "a"}, earlier=[stem]) is None
    del method["positions"]  # which are not known without the model
    assert (find_finished([tmp_path / "none"], method, earlier=[stem]) is not None) == same


def finished(folder: Path, name: str, positions: str) -> Path:
    """A result as far as its manifest tells."""
    manifest = {"identity": {"method": {"positions": positions}}, "num_questions": 1}
    stem = folder / name
    result_file(stem, ".json").write_text(json.dumps(manifest))
    result_file(stem, ".feather").touch()
    return stem


@pytest.mark.parametrize("default", ["exact", "left"])
@pytest.mark.parametrize("positions", [None, "exact", "left", "right"])
def test_a_finished_file_is_found_without_the_model(tmp_path, default, positions):
    """All positions lie side by side, named as a model with these defaults names them."""
    stems = {}
    for made_with in ("exact", "left", "right"):
        config = AttentionFusionConfig(positions=made_with)
        name = attention_method_name(config, default_positions=default)
        stems[made_with] = finished(tmp_path, name, made_with)
    names = method_names(AttentionFusionConfig(positions=positions))
    known = {} if positions is None else {"positions": positions}
    found = find_finished([tmp_path / name for name in names], known)
    assert found is not None and found[0] == stems[positions or default]


@pytest.mark.parametrize("missing", [".json", ".feather"])
def test_an_unfinished_file_is_not_found(tmp_path, missing):
    stem = finished(tmp_path, "flex_attention", "exact")
    result_file(stem, missing).unlink()
    assert find_finished([stem], {}) is None


def test_stem_of_a_plain_run_and_of_chosen_paraphrases():
    plain = result_stem("out", "demo", "demo", run_name("avg", count=5))
    assert plain == Path("out/demo/demo/avg-5")
    chosen = [0, 2, 4]
    name = run_name("avg", count=3, indexs=chosen)
    stem = result_stem("out", "demo", "demo", name, indexs=chosen)
    assert stem == Path("out/demo/demo/diversity/avg-0_2_4")
    with pytest.raises(AssertionError):
        result_stem("out", "demo", "demo", "avg-3", indexs=chosen)


def test_stem_stays_under_output_dir_whatever_the_names_hold(tmp_path):
    rng = random.Random(0)
    pieces = ["..", ".", "/", "\\", "~", "a", "\0", "\n", "-", " ", "é", "\udc80", "x" * 300]
    for _ in range(500):
        names = ["".join(rng.choices(pieces, k=rng.randrange(6))) for _ in range(3)]
        stem = result_stem(tmp_path, *names)
        assert len(stem.relative_to(tmp_path).parts) == 3, names
        assert stem.resolve().is_relative_to(tmp_path.resolve()), names
        stem.parent.mkdir(parents=True, exist_ok=True)
        result_file(stem, ".feather").touch()
