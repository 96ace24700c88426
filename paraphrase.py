"""Make paraphrases of questions with a model, or look through paraphrases that are there.

    python paraphrase.py --dataset webqa --model llama3.2_3b_it --num_paraphrases 5 --drop
    python paraphrase.py --dataset questions.jsonl --output reworded.jsonl
    python paraphrase.py --method templates templates.csv --dataset facts.csv
    python paraphrase.py --check questions.jsonl

Every paraphrase passes a quality filter: copies, leaked answers, lost names and masks, runaway text
are reported, and with --drop taken out and drawn again.
"""

from collections.abc import Sequence
from pathlib import Path

from self_ensemble.cli.paraphrase_flags import add_paraphrase_arguments, parse_paraphrase_args
from self_ensemble.cli.parser import Parser, run, set_up_logging
from self_ensemble.data.result_files import read_manifest, result_file
from self_ensemble.experiment.check_paraphrases import check_paraphrases
from self_ensemble.experiment.config import (
    ParaphraseCheckConfig,
    ParaphraseRunConfig,
    TemplateConfig,
)
from self_ensemble.experiment.paraphrase_run import ParaphraseRun, questions_to_paraphrase
from self_ensemble.experiment.template_run import fill_paraphrases
from self_ensemble.paraphrasing.report import Filtered, report_lines
from self_ensemble.system.console import say

# Of the process, where a question ends up with too few paraphrases; so many are named.
SHORT_STATUS, SHOWN_SHORT = 1, 20

AnyConfig = ParaphraseRunConfig | ParaphraseCheckConfig | TemplateConfig


def make(config: ParaphraseRunConfig) -> Path:
    """Draw paraphrases of a dataset's questions. Returns the path without its suffix."""
    config.workers.check_installed()
    dataset = questions_to_paraphrase(config)
    set_up_logging(config.verbose)
    from self_ensemble.models.loading import find_model
    from self_ensemble.workers.loading import answering_engine

    source = find_model(config.model)
    this = ParaphraseRun(config, dataset, source)
    with this.claimed() as unfinished:
        if unfinished:
            with answering_engine(
                source, config.model, config.workers, verbose=config.verbose
            ) as engine:
                this.load(engine)
                this.sample_all()
            show_report(this.filtered, have_answers=this.have_answers)
            this.write()
    max_attempts = config.paraphrases.max_attempts
    end_if_short(this.stem, config.paraphrases.num_paraphrases, max_attempts=max_attempts)
    return this.stem


def check(config: ParaphraseCheckConfig) -> Path:
    """Look through a file's own paraphrases. Returns the path of the report without its suffix."""
    checked = check_paraphrases(config)
    show_report(checked.filtered, have_answers=checked.have_answers)
    stem = checked.write()
    if config.drop:
        end_if_short(stem, config.num_paraphrases, max_attempts=None)
    return stem


def show_report(filtered: Sequence[Filtered], *, have_answers: bool) -> None:
    """The quality filter's report, on stdout."""
    print("\n".join(report_lines(filtered, have_answers=have_answers)))


def end_if_short(stem: Path, wanted: int, *, max_attempts: int | None) -> None:
    """A file with too few paraphrases is no success: the questions are named, and the status 1.

    max_attempts: how often each was drawn; None where nothing is.
    """
    manifest = read_manifest(stem)
    assert manifest is not None, stem
    short = manifest["short"]
    for uuid, count in list(short.items())[:SHOWN_SHORT]:
        say(f"question {uuid} has {count} of {wanted} paraphrases")
    if short:
        say(
            f"{len(short)} questions have too few: `short` in {result_file(stem, '.json')}; asked "
            f"for {wanted}, the generating scripts take what these have with --fewer use, and "
            "leave them out with --fewer skip"
        )
        if max_attempts is not None:
            say(
                "the same command draws nothing more; with --overwrite and a larger "
                f"--max_attempts, such as {2 * max_attempts}, it draws more often, and with "
                "--overwrite and without --drop it keeps all that it draws"
            )
        raise SystemExit(SHORT_STATUS)


def fill(config: TemplateConfig) -> Path:
    """Fill in templates. Returns the path without its suffix."""
    stem = fill_paraphrases(config)
    end_if_short(stem, config.num_paraphrases or 1, max_attempts=None)
    return stem


def main(config: AnyConfig) -> Path:
    """Run a command line. Returns the path of what it wrote, without suffix."""
    if isinstance(config, TemplateConfig):
        return fill(config)
    return check(config) if isinstance(config, ParaphraseCheckConfig) else make(config)


def parse_args(argv: Sequence[str] | None = None) -> AnyConfig:
    parser = Parser(description=__doc__)
    add_paraphrase_arguments(parser)
    return parse_paraphrase_args(parser, argv)


if __name__ == "__main__":
    run(main, parse_args())
