"""Every setting is in the identity, or declared to be one that no answer depends on.

Elsewhere answers of one temperature were given for another since a cache's key did not hold it
(EleutherAI/lm-evaluation-harness#3881, 567-labs/instructor#2585).
"""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from self_ensemble.data import Dataset, DatasetOptions, PromptTemplate, Record
from self_ensemble.data.extraction import Extraction
from self_ensemble.data.identities import identity_differences
from self_ensemble.experiment.config import ExperimentConfig, TaskConfig
from self_ensemble.experiment.identity import (
    attention_settings,
    known_identity,
    logit_settings,
    run_identity,
    stem_of,
)
from self_ensemble.experiment.questions import Questions
from self_ensemble.generation.config import GenerationConfig, SamplingConfig
from self_ensemble.methods.config import AttentionFusionConfig, LogitFusionConfig
from self_ensemble.methods.weighting import WEIGHTINGS

SOURCE = SimpleNamespace(fingerprint="f", dtype="torch.float32")
RECORDS = [Record("u", ("p", "q"), ("a",), choices=("a", "b"))]
ATTENTION = ExperimentConfig(method=AttentionFusionConfig())
LOGITS = ExperimentConfig(method=LogitFusionConfig())
WEIGHTED = ExperimentConfig(method=LogitFusionConfig(method="weighted_avg"))
CHOICES = replace(LOGITS, task=TaskConfig(name="choices"))

# What answers depend on: a value that is not the default.
TOLD: dict[str, Any] = {
    "generation.max_new_tokens": 7,
    "generation.stop": ("\n\n",),
    "generation.sampling": SamplingConfig(),
    "generation.sampling.temperature": 0.5,
    "generation.sampling.top_p": 0.5,
    "generation.sampling.seed": 1,
    "task.name": "choices",
    "task.extract": Extraction("all"),
    "task.choice_norm": "mean",
    "questions.options.fewer": "use",
    "prompt.chat_template": True,
    "method.layout": "concat",
    "method.positions": "right",
    "method.fusion": "joint",
    "method.tau": 0.5,
    "method.weights": (1.0, 2.0),
    "method.weights_by": "entropy:1",
    "method.method": "max",
    "method.confidence": "trust",
    "method.samples": 9,
}
# Of the questions, of which fingerprint and number are in the identity; of the prompt, which is in
# it as a text; of the model, whose fingerprint and number format are.
READ = ("questions.dataset", "questions.options", "prompt", "model")
# Where a result lies, how fast it comes, and what is done with it later.
FREE = ("output", "lemmas", "verbose", "workers", "generation.batch_size")


def settings_of(config: ExperimentConfig) -> dict[str, Any]:
    method = config.method
    if isinstance(method, AttentionFusionConfig):
        return attention_settings(method)
    return logit_settings(method, "content")


def identity_of(config: ExperimentConfig) -> dict[str, Any]:
    template = PromptTemplate("head", "tail")
    return run_identity(config, questions(), SOURCE, template, settings_of(config))


def questions() -> Questions:
    return Questions(Dataset("d", RECORDS), RECORDS, PromptTemplate("h", "t"), 2)


def set_at(config, path: str, value):
    name, _, rest = path.partition(".")
    return replace(config, **{name: set_at(getattr(config, name), rest, value) if rest else value})


def leaves(value, path="") -> list[str]:
    if not is_dataclass(value) or isinstance(value, Extraction):
        return [path]
    names = (field.name for field in fields(value))
    return [p for n in names for p in leaves(getattr(value, n), f"{path}.{n}".lstrip("."))]


def begins(path: str, names) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in names)


def test_every_setting_is_told_read_or_free():
    drawing = set_at(LOGITS, "generation.sampling", SamplingConfig())
    paths = {path for config in (ATTENTION, LOGITS, drawing) for path in leaves(config)}
    undecided = {p for p in paths if p not in TOLD and not begins(p, (*READ, *FREE))}
    assert not undecided, "is it part of the identity?"
    assert TOLD.keys() <= paths


def usual_of(path: str) -> ExperimentConfig:
    """A configuration in which the setting is used."""
    if path.startswith("generation.sampling."):
        return set_at(LOGITS, "generation.sampling", SamplingConfig())
    if path == "task.choice_norm":
        return CHOICES
    if path == "method.confidence":
        return set_at(LOGITS, "method.method", "weighted_avg")
    if path == "method.samples":
        return set_at(LOGITS, "method.method", "self_consistency")
    is_logits = path in ("method.method", "method.confidence")
    return LOGITS if is_logits or not path.startswith("method.") else ATTENTION


@pytest.mark.parametrize("path", TOLD)
def test_what_answers_depend_on_is_in_the_identity(path):
    usual = usual_of(path)
    changed = set_at(usual, path, TOLD[path])
    assert identity_differences(identity_of(usual), identity_of(changed))
    assert identity_differences(identity_of(changed), identity_of(usual))


def test_what_no_answer_depends_on_is_not():
    for path, value in {
        "generation.batch_size": 3,
        "output.overwrite": True,
        "output.folder": Path("x"),
        "verbose": True,
        "task.choice_norm": "mean",  # under --task generate
        "method.samples": 9,  # of avg
    }.items():
        assert identity_of(set_at(LOGITS, path, value)) == identity_of(LOGITS), path
    for path, value in {
        "generation.max_new_tokens": 3,
        "generation.stop": (),
        "task.extract": Extraction("all"),
    }.items():
        assert identity_of(set_at(CHOICES, path, value)) == identity_of(CHOICES), path


def test_the_identity_of_a_run_with_default_settings_is_that_of_the_last_release():
    assert list(identity_of(LOGITS)) == [
        *("data", "model", "prompt", "paraphrases", "method", "dtype", "max_new_tokens")
    ]


@pytest.mark.parametrize("usual", [ATTENTION, WEIGHTED])
def test_a_users_weighting_is_told_by_its_source(usual):
    """And by its strength in one spelling."""
    entries = []
    for function in (
        lambda logits, strength: logits[..., 0],
        lambda logits, strength: logits.amax(-1),
    ):
        WEIGHTINGS.register("own")(function)
        try:
            config = set_at(usual, "method.weights_by", "own:1.0")
            entries.append(identity_of(config)["method"]["weights_by"])
        finally:
            WEIGHTINGS.remove("own")
    assert [each["name"] for each in entries] == ["own:1", "own:1"]
    assert entries[0] != entries[1]
    given = [set_at(usual, "method.weights_by", text) for text in ("entropy:2", "entropy:2.0")]
    assert [identity_of(each)["method"]["weights_by"] for each in given] == ["entropy:2"] * 2


def test_the_order_of_stops_is_none():
    given = [GenerationConfig(stop=stop) for stop in (("a", "b"), ("b", "a"), ("b", "a", "b"))]
    found = [identity_of(replace(LOGITS, generation=each))["stop"] for each in given]
    assert found == [["a", "b"]] * 3


@pytest.mark.parametrize("path", [*TOLD])
def test_lemmas_are_added_to_a_result_of_the_same_settings_alone(path):
    """Without the model: what is not known of it is taken from the manifest."""
    if path in ("prompt.chat_template", "method.positions"):
        return  # known with the model, or by the name of the file
    usual = usual_of(path)
    changed = set_at(usual, path, TOLD[path])
    for there, here in ((usual, changed), (changed, usual)):
        manifest = {"identity": identity_of(there)}
        known = known_identity(here, questions(), settings_of(here), manifest)
        assert identity_differences(manifest["identity"], manifest["identity"] | known), path
        same = known_identity(there, questions(), settings_of(there), manifest)
        assert not identity_differences(manifest["identity"], manifest["identity"] | same)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (LOGITS, "avg-2"),
        (CHOICES, "avg-choices-2"),
        (replace(ATTENTION, task=TaskConfig(name="choices")), "flex_attention-choices-2"),
        (set_at(LOGITS, "generation.sampling", SamplingConfig(temperature=0.7)), "avg-t0.7-2"),
        (set_at(LOGITS, "generation.sampling", SamplingConfig()), "avg-t1-2"),
        (set_at(LOGITS, "generation.sampling", SamplingConfig(seed=3)), "avg-t1-seed3-2"),
    ],
)
def test_names(config, name):
    method = "avg" if isinstance(config.method, LogitFusionConfig) else "flex_attention"
    assert stem_of(config, questions(), method) == Path("results/d/demo") / name
    chosen = replace(questions(), indexs=(1, 0))
    stem = stem_of(config, chosen, method)
    assert stem == Path("results/d/demo/diversity") / f"{name[:-2]}-1_0"


def test_a_dataset_option_is_a_flag_of_the_questions():
    """Those that choose wordings or records change data or paraphrases; these are all."""
    names = {field.name for field in fields(DatasetOptions)}
    assert names == {
        *("max_samples", "original", "needs_few_shot", "num_paraphrases", "indexs", "fewer"),
        *("model", "data_dir", "dataset_revision", "split", "paraphrase_model"),
        *("group_by", "paraphrase_column", "answer_column", "where"),
        *("num_manual", "num_auto", "seed"),
    }
