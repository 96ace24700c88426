"""Answer questions by fusing their paraphrases in the attention.

All paraphrases of a question are encoded in one pass, each seeing the shared prompt and itself
only. The answer's tokens attend to all of them: one decoded row does the work of N.

    python flex_attention_generate.py
    python flex_attention_generate.py --model llama3.2_3b --dataset questions.jsonl
    python flex_attention_generate.py --layout concat --fusion joint --positions sequential
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from self_ensemble.cli.flags import (
    add_common_arguments,
    add_fusion_arguments,
    add_weighting_argument,
    check_common_arguments,
    check_fusion_arguments,
    check_weighting_arguments,
    experiment_config,
    fusion_config,
    parse_common_arguments,
)
from self_ensemble.cli.parser import Parser, run, set_up_logging
from self_ensemble.cli.spacy_import import import_spacy_without_torch
from self_ensemble.experiment.config import ExperimentConfig
from self_ensemble.experiment.identity import attention_settings
from self_ensemble.experiment.lemmas import lemmatize_finished
from self_ensemble.experiment.names import attention_method_name
from self_ensemble.experiment.questions import read_questions
from self_ensemble.experiment.run import Run
from self_ensemble.methods.config import LAYOUTS, AttentionFusionConfig
from self_ensemble.models.aliases import resolve_model

if TYPE_CHECKING:  # torch takes seconds to import
    from self_ensemble.attention.fusion import Fusion
    from self_ensemble.generation.decode import Answer
    from self_ensemble.generation.engine import Engine
    from self_ensemble.methods.base import Template

# What can be imported from here too, and where it is: --help does not wait for it.
ELSEWHERE = {
    "concatenate_paraphrases_with_positions": "self_ensemble.attention.segments",
    "create_segment_isolation_mask": "self_ensemble.attention.masks",
    "FlexAttentionWrapper": "self_ensemble.attention.patching",
    **dict.fromkeys(
        ("init_spacy", "lemmaize_predicts", "lemmaize_chunk", "append_lemmas"),
        "self_ensemble.evaluation.lemmatizer",
    ),
}


def __getattr__(name: str) -> Any:
    if name not in ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(ELSEWHERE[name]), name)


def flex_attention_generation(
    engine: Engine,
    template: Template,
    questions: Sequence[Sequence[str]],
    *,
    layout: str,
    positions: str,
    fusion: Fusion,
    max_new_tokens: int,
    batch_size: int | None,
) -> Iterator[list[tuple[int, Answer]]]:
    """The whole method: split, encode once in isolation, fuse from the tail on, decode greedily.

    Args:
        engine: around a model, see `generation.attaching.make_engine`.
        template: what a paraphrase becomes a prompt by.
        questions: the N paraphrases of each question.
        layout: ``shared`` (prefix once, N segments, tail) or ``concat`` (whole prompts joined).
        positions: ``exact``, ``left``, ``right`` or ``sequential``; see `attention.positions`.
        fusion: how the partitions of a fused token are combined.
        max_new_tokens: the limit of generated tokens.
        batch_size: questions a batch; None chooses.

    Yields:
        Batches of (index of the question, answer).

    Raises:
        UserError: the tokenizer, the model or the lengths do not allow it.
    """
    from self_ensemble.generation.config import GenerationConfig
    from self_ensemble.methods.attention_fusion import AttentionFusion

    method = AttentionFusion(layout=layout, positions=positions, fusion=fusion.kind)
    config = GenerationConfig(max_new_tokens, batch_size)
    request = replace(method.request(engine, template, questions, config), fusion=fusion)
    return engine.generate(request, batch_size=batch_size)


def main(config: ExperimentConfig) -> Path:
    """Run a command line. Returns the result's path without its suffix."""
    asked, model = config.method, config.model
    assert isinstance(asked, AttentionFusionConfig)
    config.workers.check_installed()
    resolve_model(model.name)  # a name that can be nothing is told first
    questions = read_questions(config.questions, config.prompt, model=model.name)
    questions.check_task(config.task, config.generation)
    questions.check_weights(asked)
    if config.lemmas is not None:
        import_spacy_without_torch(config.lemmas.spacy_model)
        return lemmatize_finished(config, config.lemmas, questions, attention_settings(asked))

    set_up_logging(config.verbose)
    from self_ensemble.methods.attention_fusion import AttentionFusion, default_positions_on
    from self_ensemble.models.loading import find_model
    from self_ensemble.workers.loading import answering_engine

    source = find_model(model)
    default = default_positions_on(source.config, asked.fusion)
    name = attention_method_name(asked, default_positions=default)
    method = AttentionFusion(**asdict(asked) | {"positions": asked.positions or default})
    this = Run(config, questions, source, name, attention_settings(method))
    with this.claimed() as unfinished:
        if unfinished:
            with answering_engine(source, model, config.workers, verbose=config.verbose) as engine:
                this.load(engine, method.fusion_on(engine.device))
                this.write(this.answer(method))
    return this.stem


def parse_args(argv: Sequence[str] | None = None) -> ExperimentConfig:
    parser = Parser(description=__doc__)
    add_common_arguments(parser)
    method = parser.add_argument_group("method")
    method.add_argument(
        "--layout",
        choices=LAYOUTS,
        default=AttentionFusionConfig.layout,
        help="shared: the common prompt once, then the paraphrases; concat: whole prompts joined, "
        "as first described (default: %(default)s)",
    )
    add_fusion_arguments(method)
    add_weighting_argument(method, "the same weights for all questions")
    args = parse_common_arguments(parser, argv)
    check_common_arguments(parser, args)
    check_fusion_arguments(parser, args)
    check_weighting_arguments(parser, args)
    if args.weights_by is not None and args.layout == "concat":
        parser.error(
            "--weights_by: under --layout concat no paraphrase's own first token is known; use "
            "shared"
        )
    asked = fusion_config(args, layout=args.layout, weights_by=args.weights_by)
    return experiment_config(args, asked)


if __name__ == "__main__":
    run(main, parse_args())
