"""A model's certificates, as the main job would run it: plain, and with its chat template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from self_ensemble.data import (
    PromptTemplate,
    chat_prompt_template,
    choose_template,
    load_dataset,
)
from self_ensemble.diagnostics.certificate import Certificate, certify
from self_ensemble.diagnostics.checks import FAILED, OK, WARNING, Check
from self_ensemble.diagnostics.config import CertificateConfig
from self_ensemble.diagnostics.trace import fusion_of, method_of, positions_of
from self_ensemble.generation.engine import Engine
from self_ensemble.generation.loading import loaded_engine
from self_ensemble.methods.attention_fusion import AttentionFusion
from self_ensemble.models.config import ModelConfig
from self_ensemble.models.loading import find_model
from self_ensemble.system.errors import UserError


def check_model(config: CertificateConfig) -> tuple[list[Check], list[Certificate]]:
    """Load a model as the main job does; its certificates, plain and with its chat template."""
    try:
        method = method_of(config.method)
        questions, plain = demo_questions(config)
        model = ModelConfig(name=config.model, revision=config.revision, gpus_per_worker=1)
        source = find_model(model)
        with loaded_engine(source, attention=model.attention, capture=False) as engine:
            certificates = [_certificate(engine, plain, questions, method, chat=False)]
            chat, checks = _chat_template(engine, plain)
            if chat is not None:
                certificates.append(_certificate(engine, chat, questions, method, chat=True))
    except UserError as error:
        return [Check("model", FAILED, str(error), "choose another model or mend this one")], []
    said = f"{config.model} runs on {source.device}"
    runs = Check("model", OK, said, "", {"fingerprint": source.fingerprint})
    return [runs, *checks, *verdicts(certificates)], certificates


def _chat_template(
    engine: Engine, plain: PromptTemplate
) -> tuple[PromptTemplate | None, list[Check]]:
    """The model's own, if it has one that can be used; and what is wrong with it."""
    if not getattr(engine.tokenizer, "chat_template", None):
        return None, []
    try:
        return chat_prompt_template(engine.tokenizer, plain), []
    except UserError as error:
        todo = "leave --chat_template out with this model"
        return None, [Check("chat template", WARNING, str(error), todo)]


def demo_questions(config: CertificateConfig) -> tuple[list[Sequence[str]], PromptTemplate]:
    """The paraphrases of the demo's first questions, and its prompt."""
    dataset = load_dataset("demo", max_samples=config.questions)
    wordings = len(config.method.weights or range(config.wordings))
    most = min(len(record.paraphrases) for record in dataset.records)
    if not 2 <= wordings <= most:
        raise UserError(
            f"--weights: {wordings} were given; a certificate asks the demo's questions in 2 to "
            f"{most} wordings"
        )
    template = choose_template(
        dataset, instruction=None, few_shot_file=None, num_few_shot=config.few_shot
    )
    return [record.paraphrases[:wordings] for record in dataset.records], template


def _certificate(
    engine: Engine,
    template: PromptTemplate,
    questions: Sequence[Sequence[str]],
    method: AttentionFusion,
    *,
    chat: bool,
) -> Certificate:
    positions, fusion = positions_of(method, engine), fusion_of(method, engine)
    return certify(engine, template, questions, positions=positions, fusion=fusion, chat=chat)


def verdicts(certificates: Sequence[Certificate]) -> Iterator[Check]:
    """A line for each certificate."""
    for each in certificates:
        # Without --chat_template the main job asks plain prompts.
        status, todo = (
            (FAILED, "do not use it: see the certificate")
            if each.template == "plain"
            else (WARNING, "leave --chat_template out: see the certificate")
        )
        said = f"{len(each.items) - len(each.broken)} of {len(each.items)} promises kept"
        label = f"{each.template} prompt"
        if each.broken:
            yield Check(label, status, f"{said}, not {', '.join(each.broken)}", todo)
        else:
            yield Check(label, OK, said)
