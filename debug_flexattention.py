"""What attention fusion does to a few questions, step by step.

    python debug_flexattention.py
    python debug_flexattention.py --dataset questions.jsonl --model llama3.2_3b --max_samples 2
    python debug_flexattention.py --dataset webqa --model llama3.2_3b_it --uuid UUID
    python debug_flexattention.py --interactive
    python debug_flexattention.py --save debug

Shown are the prompts and where they are cut; the mask that the model's layers had; whether packed
encoding equals separate runs on this very question, and fused tokens what a paraphrase says alone
where it is the only one listened to; then, for every token of the answer, its candidates, how the
attention was shared, and what each paraphrase would have said alone and what the others without
it; at the end which paraphrases were decisive. Paraphrases are counted from 0, as --indexs counts
them. Exit status 1 if a question fails the isolation check.

--interactive stops before each step and takes n(ext), c(ontinue), p NAME (prints a quantity; p
alone lists them) and q(uit).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from self_ensemble.cli.flags import (
    add_fusion_arguments,
    add_model_arguments,
    add_prompt_arguments,
    add_question_arguments,
    add_weighting_argument,
    check_fusion_arguments,
    check_question_arguments,
    check_weighting_arguments,
    fusion_config,
    model_config,
    prompt_config,
    question_config,
)
from self_ensemble.cli.parser import Parser, run, set_up_logging
from self_ensemble.cli.types import positive_int
from self_ensemble.diagnostics.config import DebugConfig
from self_ensemble.diagnostics.session import COMMANDS, show_questions


def main(config: DebugConfig) -> None:
    if config.save is not None:
        from self_ensemble.diagnostics.debug_page import check_folder

        check_folder(config.save)
    from self_ensemble.experiment.questions import read_questions

    model = config.model
    questions = read_questions(config.questions, config.prompt, model=model.name, uuid=config.uuid)
    questions.check_weights(config.method)

    set_up_logging(config.verbose)
    from self_ensemble.data import chat_prompt_template
    from self_ensemble.diagnostics.inspection import Inspection
    from self_ensemble.generation.loading import loaded_engine
    from self_ensemble.models.loading import find_model

    template = questions.template
    source = find_model(model)
    with loaded_engine(source, attention=model.attention, capture=False) as engine:
        if config.prompt.chat_template:
            template = chat_prompt_template(engine.tokenizer, template)
        inspections = (Inspection(engine, template, r, config) for r in questions.records)
        count = len(questions.records)
        shown, complete = show_questions(inspections, count, interactive=config.interactive)
        if config.save is not None:
            save(config.save, shown, complete)
    failed = [each for each in shown if not each.isolation.passed]
    if failed:
        told = f"ISOLATION FAILED on {len(failed)} of {len(shown)} questions: see above"
        print(told, file=sys.stderr)
        sys.exit(1)


def save(folder: Path, shown: Sequence, complete: bool) -> None:
    """The page, of all questions or not at all."""
    from self_ensemble.diagnostics.debug_page import save_pages

    if not complete:
        print(f"nothing saved to {folder}: not all was shown", file=sys.stderr)
        return
    save_pages(folder, shown)
    print(f"saved {folder / 'index.html'} and its pictures", file=sys.stderr)


def parse_args(argv: Sequence[str] | None = None) -> DebugConfig:
    parser = Parser(description=__doc__)
    add_question_arguments(parser, max_samples=1)
    add_model_arguments(parser)
    add_prompt_arguments(parser)
    method = parser.add_argument_group("method")
    add_fusion_arguments(method)
    add_weighting_argument(method, "the same weights for all questions")
    showing = parser.add_argument_group("showing")
    showing.add_argument(
        "--uuid",
        metavar="UUID",
        help="the question with this uuid, as results and score.py show it",
    )
    showing.add_argument(
        "--max_tokens",
        "--max_new_tokens",
        dest="max_new_tokens",
        type=positive_int,
        default=DebugConfig.max_new_tokens,
        metavar="N",
        help="steps to follow, at most (default: %(default)s)",
    )
    showing.add_argument(
        "--verbose",
        action="store_true",
        help="whole prefixes, a larger mask, attention by layer, more candidates",
    )
    showing.add_argument(
        "--interactive", action="store_true", help=f"stop before each step; takes {COMMANDS}"
    )
    showing.add_argument(
        "--save",
        type=Path,
        metavar="FOLDER",
        help="write the pictures as PNG and all of it as one page, index.html",
    )
    args = parser.parse_args(argv, argparse.Namespace(max_samples=None))  # None: not given
    if args.uuid is not None and args.max_samples is not None:
        parser.error("--max_samples: --uuid says which question is shown")
    if args.uuid is None and args.max_samples is None:
        args.max_samples = parser.get_default("max_samples")
    check_question_arguments(parser, args)
    check_fusion_arguments(parser, args)
    check_weighting_arguments(parser, args)
    return DebugConfig(
        questions=question_config(args),
        uuid=args.uuid,
        prompt=prompt_config(args),
        model=model_config(args),
        method=fusion_config(args, weights_by=args.weights_by),
        max_new_tokens=args.max_new_tokens,
        verbose=args.verbose,
        interactive=args.interactive,
        save=args.save,
    )


if __name__ == "__main__":
    run(main, parse_args())
