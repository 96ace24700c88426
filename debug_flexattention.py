"""What attention fusion does to a few questions, step by step.

    python debug_flexattention.py
    python debug_flexattention.py --dataset questions.jsonl --model llama3.2_3b --max_samples 2
    python debug_flexattention.py --interactive
    python debug_flexattention.py --save debug

Shown are the prompts and where they are cut; the mask that the model's layers had; whether packed
encoding equals separate runs on this very question, and fused tokens what a paraphrase says alone
where it is the only one listened to; then, for every token of the answer, its candidates, how the
attention was shared, and what each paraphrase would have said alone and what the others without
it; at the end which paraphrases were decisive. Paraphrases are counted from 1; with --indexs the
index, from 0, stands behind. Exit status 1 if a question fails the isolation check.

--interactive stops before each step and takes n(ext), c(ontinue), p NAME (prints a quantity; p
alone lists them) and q(uit).
"""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from self_ensemble.cli.flags import (
    add_fusion_arguments,
    add_model_arguments,
    add_prompt_arguments,
    add_question_arguments,
    check_fusion_arguments,
    check_question_arguments,
    fusion_config,
    prompt_config,
    question_config,
)
from self_ensemble.cli.parser import Parser, run, set_up_logging
from self_ensemble.cli.types import positive_int
from self_ensemble.system.errors import UserError
from self_ensemble.system.files import nearest_existing, temporary_path

COMMANDS = "n(ext), c(ontinue), p NAME, q(uit)"


class Quit(Exception):
    """The user has seen enough."""


class Stops:
    """Asks before each step what to do, until told to continue.

    The end of the input quits. Where it is no terminal its lines are repeated, so that the output
    reads like a session.
    """

    def __init__(self, interactive: bool):
        self.asking = interactive

    def before(self, stage: str, inspection) -> None:
        """Returns when the stage is to be shown. Raises Quit."""
        while self.asking:
            try:
                command, _, name = input(f"[{stage}] > ").strip().partition(" ")
            except EOFError:
                print()
                raise Quit from None
            if not sys.stdin.isatty():
                print(f"{command} {name}".strip())
            if command in ("", "n", "next"):
                return
            if command in ("c", "continue"):
                self.asking = False
            elif command in ("q", "quit"):
                raise Quit
            elif command in ("p", "print"):
                print_lines(inspection.show(name.strip()))
            else:
                print_lines([f"{command!r} is none of {COMMANDS}"])


def print_lines(lines: Sequence[str]) -> None:
    # At once: a Ctrl-C ends the program with what is still in a buffer.
    print("\n".join(f"   {line}".rstrip() for line in lines), flush=True)


def show_question(inspection, title: str, stops: Stops) -> None:
    """All there is to see of a question. Raises Quit."""
    print(f"{title}: {inspection.title}")
    for stage, show in inspection.stages():
        stops.before(stage, inspection)
        print(f"\n[{stage}]")
        print_lines(show())
    print()


def main(args) -> None:
    if args.save is not None:
        check_free(args.save.resolve())
    from self_ensemble.experiment.questions import check_weights, read_questions

    questions = read_questions(question_config(args), prompt_config(args), model=args.model)
    check_weights(fusion_config(args), questions)

    set_up_logging(args.verbose)
    from self_ensemble.data import chat_prompt_template
    from self_ensemble.diagnostics.inspection import Inspection
    from self_ensemble.generation.loading import loaded_engine
    from self_ensemble.methods.attention_fusion import AttentionFusion
    from self_ensemble.models.loading import find_model

    source = find_model(args.model, revision=args.revision, device=args.device, dtype=args.dtype)
    positions = args.positions or source.positions_for(args.fusion)
    settings = AttentionFusion(
        positions=positions, fusion=args.fusion, tau=args.fusion_tau, weights=args.weights
    )
    with loaded_engine(source, attention=args.attention, capture=False) as engine:
        template, chat = questions.template, args.chat_template
        if chat:
            template = chat_prompt_template(engine.tokenizer, template)
        shown, stops = [], Stops(args.interactive)
        try:
            for number, record in enumerate(questions.records, start=1):
                inspection = Inspection(
                    engine,
                    template,
                    record,
                    settings,
                    max_new_tokens=args.max_new_tokens,
                    verbose=args.verbose,
                    chat=chat,
                    indexs=args.indexs,
                )
                title = f"question {number} of {len(questions.records)}"
                show_question(inspection, title, stops)
                shown.append(inspection)
        except Quit:
            if args.save is not None:
                print(f"nothing saved to {args.save}: not all was shown", file=sys.stderr)
        else:
            if args.save is not None:
                from self_ensemble.diagnostics.debug_page import save_pages

                save_pages(args.save, shown)
                print(f"saved {args.save / 'index.html'} and its pictures", file=sys.stderr)
        failed = [each for each in shown if not each.isolation.passed]
    if failed:
        print(
            f"ISOLATION FAILED on {len(failed)} of {len(shown)} questions: see above",
            file=sys.stderr,
        )
        sys.exit(1)


def check_free(folder: Path) -> None:
    """Raises UserError where --save cannot draw or write or would overwrite, before all else."""
    if find_spec("matplotlib") is None:
        raise UserError(
            "--save: the pictures are drawn by matplotlib, which is not installed: pip install "
            "matplotlib, or leave --save out"
        )
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"--save: {folder} is there already; name a new or an empty folder")
    # Nothing is made above it yet: the run may fail, or be quit.
    above = nearest_existing(folder.parent)
    trial = temporary_path(above / folder.name)
    try:
        trial.mkdir()
        trial.rmdir()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--save: cannot write to {above}: {reason}") from None


def parse_args(argv: Sequence[str] | None = None):
    parser = Parser(description=__doc__)
    add_question_arguments(parser, max_samples=1)
    add_model_arguments(parser)
    add_prompt_arguments(parser)
    add_fusion_arguments(parser.add_argument_group("method"))
    showing = parser.add_argument_group("showing")
    showing.add_argument(
        "--max_tokens",
        "--max_new_tokens",
        dest="max_new_tokens",
        type=positive_int,
        default=10,
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
    args = parser.parse_args(argv)
    check_question_arguments(parser, args)
    check_fusion_arguments(parser, args)
    return args


if __name__ == "__main__":
    run(main, parse_args())
