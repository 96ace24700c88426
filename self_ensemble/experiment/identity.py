"""What a run's result depends on, and so which file is its own.

Part of the identity: data, model, prompt, paraphrases, method, dtype, and what is done with the
questions (the task, and where answers are generated limit, stops, sampling and extraction). No part
of it: device, batch size, attention backend, and how many questions are asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from self_ensemble.data import PromptTemplate, chat_prompt_template
from self_ensemble.data.identities import as_written
from self_ensemble.experiment.config import ExperimentConfig, MethodConfig
from self_ensemble.experiment.names import (
    earlier_method_name,
    identity_part,
    method_names,
    result_stem,
    run_name,
    task_parts,
)
from self_ensemble.experiment.questions import Questions
from self_ensemble.methods.config import FUSION_NAMES, AttentionFusionConfig, LogitFusionConfig
from self_ensemble.methods.names import SELF_CONSISTENCY, is_weighted
from self_ensemble.methods.own_code import source_of
from self_ensemble.methods.registries import LOGIT_METHODS, VOTES
from self_ensemble.methods.weighting import WEIGHTINGS, parse_weighting

if TYPE_CHECKING:  # torch takes seconds to import
    from self_ensemble.models.loading import ModelSource


def attention_settings(method: AttentionFusionConfig) -> dict[str, Any]:
    """Attention fusion's part of the identity; without positions where they are not known yet."""
    positions = {} if method.positions is None else {"positions": method.positions}
    return {
        "name": "flex_attention",
        "layout": method.layout,
        **positions,
        "fusion": method.fusion,
        "tau": method.tau_used,
        "weights": method.weights,
        "weights_by": _weighting_entry(method.weights_by),
        **_fusion_source(method.fusion),
    }


def _fusion_source(name: str) -> dict[str, str]:
    if name in FUSION_NAMES:  # without torch
        return {}
    from self_ensemble.attention.fusion import FUSIONS

    return source_of(FUSIONS.get(name).fuse)


def _weighting_entry(text: str | None) -> str | dict[str, str] | None:
    if text is None:
        return None
    weighting = parse_weighting(text)
    source = source_of(WEIGHTINGS.get(weighting.name))
    return {"name": str(weighting), **source} if source else str(weighting)


def logit_settings(method: LogitFusionConfig, content: str | None) -> dict[str, Any]:
    """Logit fusion's part of the identity. content: the fingerprint of the column --confidence."""
    settings: dict[str, Any] = {"name": method.method, **_method_source(method.method)}
    if method.method == SELF_CONSISTENCY:
        return settings | {"samples": method.samples}
    if not is_weighted(method.method):
        return settings
    if method.weights_by is not None:
        return settings | {"weights_by": _weighting_entry(method.weights_by)}
    if method.confidence is None:
        return settings | {"confidence": "own answer"}
    return settings | {"confidence": {"column": method.confidence, "fingerprint": content}}


def _method_source(name: str) -> dict[str, str]:
    if name in LOGIT_METHODS:
        return source_of(LOGIT_METHODS.get(name).reduce)
    return source_of(VOTES.get(name)) if name in VOTES else {}


def run_template(
    config: ExperimentConfig, questions: Questions, source: ModelSource
) -> PromptTemplate:
    """The prompt as the model gets it."""
    if not config.prompt.chat_template:
        return questions.template
    from self_ensemble.models.loading import load_tokenizer

    return chat_prompt_template(load_tokenizer(source), questions.template, config.task.extract)


def run_identity(
    config: ExperimentConfig,
    questions: Questions,
    source: ModelSource,
    template: PromptTemplate,
    method: dict[str, Any],
) -> dict[str, Any]:
    """The identity of a run, once its model is found; JSON types.

    template: from `run_template`. method: the method's part.
    """
    rendered = {}
    if config.prompt.chat_template:
        # A chat template may print what changes from day to day, such as the date.
        rendered = {"rendered_head": template.head, "rendered_tail": template.tail}
    identity = {
        "data": questions.dataset.fingerprint,
        # Not its name: a folder has as many names as there are paths to it.
        "model": source.fingerprint,
        "prompt": prompt_identity(config, questions) | rendered,
        "paraphrases": paraphrase_identity(questions),
        "method": method,
        "dtype": str(source.dtype).removeprefix("torch."),
        **task_identity(config, questions),
    }
    return as_written(identity)


def known_identity(
    config: ExperimentConfig,
    questions: Questions,
    method: dict[str, Any],
    manifest: Mapping[str, Any],
) -> dict[str, Any]:
    """What is known of a run's identity without its model; the rest is taken from a manifest."""
    known = {
        "data": questions.dataset.fingerprint,
        # What a chat template makes of it is not known without the tokenizer.
        "prompt": identity_part(manifest, "prompt") | prompt_identity(config, questions),
        "paraphrases": paraphrase_identity(questions),
        "method": identity_part(manifest, "method") | method,
        **task_identity(config, questions),
    }
    if config.model.dtype != "auto":
        known["dtype"] = config.model.dtype
    return known


def task_identity(config: ExperimentConfig, questions: Questions) -> dict[str, Any]:
    """What is done with the questions; entries that mean what their absence means are in it."""
    task, generation = config.task, config.generation
    identity: dict[str, Any] = {"task": task.name, "fewer": config.questions.options.fewer}
    if task.name == "choices":
        choices = questions.dataset.choices_fingerprint
        return identity | {"choices": choices, "choice_norm": task.choice_norm}
    return identity | {
        "max_new_tokens": generation.max_new_tokens,
        # Whichever is complete first ends an answer, in whatever order they were given.
        "stop": None if generation.stop is None else sorted(generation.stop),
        "sampling": None if generation.sampling is None else asdict(generation.sampling),
        "extract": str(task.extract),
    }


def prompt_identity(config: ExperimentConfig, questions: Questions) -> dict[str, Any]:
    template = questions.template
    chat_template = config.prompt.chat_template
    return {"head": template.head, "tail": template.tail, "chat_template": chat_template}


def paraphrase_identity(questions: Questions) -> list[int] | int:
    return list(questions.indexs) if questions.indexs else questions.num_paraphrases


def result_stems(config: ExperimentConfig, questions: Questions) -> list[Path]:
    """Where the result lies, with one model or another."""
    return [stem_of(config, questions, name) for name in method_names(config.method)]


def earlier_stems(config: ExperimentConfig, questions: Questions) -> list[Path]:
    """Where an earlier release put the result, where that is elsewhere."""
    names = method_names(config.method)
    earlier = [earlier_method_name(name, config.method) for name in names]
    return [stem_of(config, questions, name) for name in earlier if name not in names]


def answers_asked(method: MethodConfig, questions: Questions) -> int:
    """How many answers the method makes one of: of the paraphrases, or the drawn ones."""
    if isinstance(method, LogitFusionConfig) and method.method == SELF_CONSISTENCY:
        return method.samples
    return questions.num_paraphrases


def stem_of(config: ExperimentConfig, questions: Questions, method_name: str) -> Path:
    name = run_name(
        method_name,
        task_parts(config),
        count=answers_asked(config.method, questions),
        indexs=questions.indexs,
    )
    return result_stem(
        config.output.folder,
        questions.dataset.name,
        config.model.name,
        name,
        indexs=questions.indexs,
    )
