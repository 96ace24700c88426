"""What results are called, and which of the files that lie there is a method's own."""

import json
import random
from pathlib import Path

import pytest

from self_ensemble.data.result_files import result_file
from self_ensemble.experiment.names import (
    attention_method_name,
    find_finished,
    method_names,
    result_stem,
    run_name,
)
from self_ensemble.methods.config import AttentionFusionConfig, LogitFusionConfig


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
    method, rotary, learned
):
    config = AttentionFusionConfig(**method)
    exact = "left" if config.fusion == "joint" else "exact"
    assert attention_method_name(config, default_positions=exact) == rotary
    assert attention_method_name(config, default_positions="left") == learned
    assert {rotary, learned} <= {*method_names(config)}


def test_logit_fusion_is_named_by_its_method():
    assert method_names(LogitFusionConfig(method="vote")) == ("vote",)


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
