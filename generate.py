"""Answer questions one paraphrase at a time, or by fusing the paraphrases' logits.

    python generate.py                        average the logits of five paraphrases
    python generate.py --method per_prompt    every paraphrase on its own
    python generate.py --method origin        the original wording only

Fused at every token: avg, max, prob_avg, weighted_avg, weighted_prob_avg, weighted_max.
Fused once, by their answers: vote. Not fused: origin, per_prompt. Of one wording as many drawn
answers as others ask paraphrases: self_consistency.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from self_ensemble.cli.flags import (
    add_common_arguments,
    add_weighting_argument,
    check_common_arguments,
    check_origin_arguments,
    experiment_config,
    parse_common_arguments,
)
from self_ensemble.cli.parser import Parser, run, set_up_logging
from self_ensemble.cli.spacy_import import import_spacy_without_torch
from self_ensemble.cli.types import positive_int
from self_ensemble.experiment.confidences import read_confidences
from self_ensemble.experiment.config import ExperimentConfig
from self_ensemble.experiment.identity import logit_settings
from self_ensemble.experiment.lemmas import lemmatize_finished
from self_ensemble.experiment.names import logit_method_name
from self_ensemble.experiment.questions import read_questions
from self_ensemble.experiment.run import Run
from self_ensemble.methods.config import SELF_CONSISTENCY_SAMPLING, LogitFusionConfig
from self_ensemble.methods.names import (
    ORIGINAL_WORDING,
    SELF_CONSISTENCY,
    is_weighted,
    make_method,
    prompt_by_prompt_names,
)
from self_ensemble.models.aliases import resolve_model

# What can be imported from here too, and where it is: --help does not wait for it.
ELSEWHERE = dict.fromkeys(
    ("init_spacy", "lemmaize_predicts", "lemmaize_chunk", "append_lemmas"),
    "self_ensemble.evaluation.lemmatizer",
)


def __getattr__(name: str) -> Any:
    if name not in ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(ELSEWHERE[name]), name)


def main(config: ExperimentConfig) -> Path:
    """Run a command line. Returns the result's path without its suffix."""
    asked, model = config.method, config.model
    assert isinstance(asked, LogitFusionConfig)
    config.workers.check_installed()
    resolve_model(model.name)  # a name that can be nothing is told first
    questions = read_questions(
        config.questions, config.prompt, model=model.name, original=asked.method in ORIGINAL_WORDING
    )
    questions.check_task(config.task, config.generation)
    confidences, content = None, None
    if asked.confidence is not None:
        confidences, content = read_confidences(config.questions, asked.confidence, questions)
    settings = logit_settings(asked, content)
    if config.lemmas is not None:
        import_spacy_without_torch(config.lemmas.spacy_model)
        return lemmatize_finished(config, config.lemmas, questions, settings)

    set_up_logging(config.verbose)
    from self_ensemble.attention.fusion import Fusion
    from self_ensemble.models.loading import find_model
    from self_ensemble.workers.loading import answering_engine

    source = find_model(model)
    this = Run(config, questions, source, logit_method_name(asked), settings)
    with this.claimed() as unfinished:
        if unfinished:
            with answering_engine(source, model, config.workers, verbose=config.verbose) as engine:
                this.load(engine, Fusion())
                weights = confidences and confidences[-len(this.records) :]
                samples = asked.samples if asked.method == SELF_CONSISTENCY else None
                method = make_method(
                    asked.method, weights=weights, weights_by=asked.weights_by, samples=samples
                )
                this.write(this.answer(method, each_paraphrase=asked.method == "per_prompt"))
    return this.stem


def parse_args(argv: Sequence[str] | None = None) -> ExperimentConfig:
    parser = Parser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument(
        "--num_ensemble",
        dest="num_paraphrases",
        type=positive_int,
        default=argparse.SUPPRESS,
        metavar="N",
        help="another name of --num_paraphrases",
    )
    method = parser.add_argument_group("method")
    method.add_argument(
        "--method",
        choices=prompt_by_prompt_names(),
        default=LogitFusionConfig.method,
        help="how the paraphrases are fused (default: %(default)s)",
    )
    method.add_argument(
        "--confidence",
        metavar="COLUMN",
        help="weighted methods: a column of the dataset with a number for each paraphrase, instead "
        "of the confidence of its own answer",
    )
    add_weighting_argument(method, "weighted methods: the confidence of its own answer")
    method.add_argument(
        "--samples",
        type=positive_int,
        metavar="K",
        help="self_consistency: how many answers are drawn, and vote "
        f"(default: {LogitFusionConfig.samples})",
    )
    args = parse_common_arguments(parser, argv)
    draws = None
    if args.method == SELF_CONSISTENCY:
        draws = SELF_CONSISTENCY_SAMPLING
        if args.task == "choices":
            parser.error("--task choices: --method self_consistency draws answers and scores none")
    elif args.samples is not None:
        parser.error(f"--samples: --method {args.method} draws no number of answers")
    if args.method in ORIGINAL_WORDING:
        check_origin_arguments(parser, args)
    check_common_arguments(parser, args, draws=draws is not None)
    for flag in ("confidence", "weights_by"):
        if getattr(args, flag) is not None and not is_weighted(args.method):
            parser.error(f"--{flag}: --method {args.method} uses no weights")
    if args.confidence is not None and args.weights_by is not None:
        parser.error("--weights_by finds the weights that --confidence gives: leave one out")
    asked = LogitFusionConfig(
        method=args.method,
        confidence=args.confidence,
        weights_by=args.weights_by,
        samples=args.samples or LogitFusionConfig.samples,
    )
    return experiment_config(args, asked, draws=draws)


if __name__ == "__main__":
    run(main, parse_args())
