"""Look through the paraphrases that a file holds, and keep those that the quality filter passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from self_ensemble.data import Dataset, DatasetOptions, open_dataset
from self_ensemble.data.result_files import result_file, safe_name
from self_ensemble.experiment.config import ParaphraseCheckConfig
from self_ensemble.experiment.paraphrase_files import (
    Filtered,
    Row,
    output_stem,
    refuse_foreign,
    too_few,
    write_files,
)
from self_ensemble.paraphrasing.quality_filter import load_casing, report_csv, verdicts
from self_ensemble.system.console import say
from self_ensemble.system.lock import held
from self_ensemble.system.replacing import replace_files


@dataclass(frozen=True)
class CheckedParaphrases:
    """What the quality filter says of a file's paraphrases.

    filtered: all of them: uuid, text, and the reasons to reject it.
    rows: the questions with those that pass.
    casing: the table of words that the filter knew names by, if any.
    """

    config: ParaphraseCheckConfig
    dataset: Dataset
    filtered: list[Filtered]
    rows: list[Row]
    casing: Mapping[str, float] | None

    @property
    def have_answers(self) -> bool:
        """All questions, or none: see `records.check_all_or_none_answered`."""
        return bool(self.dataset.records[0].answers)

    def write(self) -> Path:
        """Writes the report, or with ``drop`` a file of what passes, with report and manifest.

        Returns the path without its suffix. Raises UserError where it cannot be written.
        """
        config, dataset = self.config, self.dataset
        if not config.drop:
            stem = config.output_dir / safe_name(dataset.name) / "check"
            path = result_file(stem, "_report.csv")
            replace_files({path: report_csv(self.filtered).encode()}, seal=path, keep_seal=True)
            say(f"wrote {path}")
            return stem
        stem = output_stem(config.output, config.output_dir, dataset.name, "")
        if not config.overwrite:
            refuse_foreign(stem)
        manifest = {
            "identity": {"data": dataset.fingerprint, "drop": True},
            "num_questions": len(self.rows),
            "dataset": dataset.name,
            "short": too_few(self.rows, config.num_paraphrases),
        }
        with held(stem):
            write_files(stem, self.rows, self.filtered, manifest)
        say(f"wrote {result_file(stem, '.jsonl')} (_report.csv and .json beside it)")
        return stem


def check_paraphrases(config: ParaphraseCheckConfig) -> CheckedParaphrases:
    """Puts a file's paraphrases through the filter. Raises UserError where it cannot be read."""
    options = DatasetOptions(max_samples=config.max_samples, **asdict(config.columns))
    dataset = open_dataset(config.file, options)
    casing = load_casing()
    filtered: list[Filtered] = []
    rows: list[Row] = []
    for record in dataset.records:
        found = verdicts(
            record.paraphrases, question=record.question, answers=record.answers, casing=casing
        )
        told = list(zip(record.paraphrases, found, strict=True))
        filtered += [(record.uuid, text, rejected) for text, rejected in told]
        rows.append((record, record.question, [text for text, rejected in told if not rejected]))
    return CheckedParaphrases(config, dataset, filtered, rows, casing)
