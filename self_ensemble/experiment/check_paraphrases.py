"""Look through the paraphrases that a file holds, and keep those that the quality filter passes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from self_ensemble.data import Dataset, DatasetOptions, Record, open_dataset
from self_ensemble.data.result_files import result_file, safe_name
from self_ensemble.experiment.config import ParaphraseCheckConfig
from self_ensemble.experiment.paraphrase_files import (
    Row,
    output_stem,
    refuse_foreign,
    too_few,
    write_files,
)
from self_ensemble.paraphrasing.judge import Pair, judge
from self_ensemble.paraphrasing.prompts import ECHOES
from self_ensemble.paraphrasing.quality_filter import FILTER_VERSION, verdicts
from self_ensemble.paraphrasing.rejections import Judgement
from self_ensemble.paraphrasing.report import Filtered, report_csv
from self_ensemble.paraphrasing.words import words
from self_ensemble.system.console import say
from self_ensemble.system.lock import held
from self_ensemble.system.replacing import replace_files

# Hexadecimal digits of a path's hash: files of one name in several folders have their own reports.
PATH_DIGITS = 8


@dataclass(frozen=True)
class CheckedParaphrases:
    """What the quality filter says of a file's paraphrases.

    filtered: all of them: uuid, text, and what is wrong with it.
    rows: the questions with those that pass.
    model: name and fingerprint of the one that judged them, or None.
    """

    config: ParaphraseCheckConfig
    dataset: Dataset
    filtered: list[Filtered]
    rows: list[Row]
    model: dict[str, str] | None

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
            stem = self._report_stem()
            path = result_file(stem, "_report.csv")
            replace_files({path: report_csv(self.filtered).encode()}, seal=path, keep_seal=True)
            say(f"wrote {path}")
            return stem
        stem = output_stem(config.output, config.output_dir, dataset.name, "")
        if not config.overwrite:
            refuse_foreign(stem)
        manifest = {
            "identity": {
                "data": dataset.fingerprint,
                "drop": True,
                "quality_filter": FILTER_VERSION,
                "judge": self.model and self.model["fingerprint"],
            },
            "num_questions": len(self.rows),
            "dataset": dataset.name,
            "short": too_few(self.rows, config.num_paraphrases),
        }
        with held(stem):
            write_files(stem, self.rows, self.filtered, manifest)
        say(f"wrote {result_file(stem, '.jsonl')} (_report.csv and .json beside it)")
        return stem

    def _report_stem(self) -> Path:
        """Named after the file, its folder and the model: no other file's report has this name."""
        file = Path(self.config.file)
        digest = hashlib.sha256(os.fsencode(file.resolve())).hexdigest()[:PATH_DIGITS]
        by = f"-{safe_name(self.model['name'])}" if self.model else ""
        folder = self.config.output_dir / safe_name(self.dataset.name)
        return folder / f"{safe_name(file.name)}-{digest}{by}"


def check_paraphrases(config: ParaphraseCheckConfig) -> CheckedParaphrases:
    """Puts a file's paraphrases through the filter.

    With a model its judgement of each is looked at as well.

    Raises:
        UserError: the file cannot be read, or the model cannot be found or loaded.
    """
    options = DatasetOptions(max_samples=config.max_samples, **asdict(config.columns))
    dataset = open_dataset(config.file, options)
    judgements, model = _judge(config, dataset.records)
    filtered: list[Filtered] = []
    rows: list[Row] = []
    for record in dataset.records:
        found = verdicts(
            record.paraphrases,
            question=record.question,
            answers=record.answers,
            echoes=ECHOES,
            judgements=[judgements.get((_meant(record), text)) for text in record.paraphrases],
        )
        told = list(zip(record.paraphrases, found, strict=True))
        filtered += [(record.uuid, text, rejected) for text, rejected in told]
        rows.append((record, record.question, [text for text, rejected in told if not rejected]))
    return CheckedParaphrases(config, dataset, filtered, rows, model)


def _meant(record: Record) -> str:
    """What the paraphrases of a question are to mean, see `verdicts`."""
    return record.paraphrases[0] if record.question is None else record.question


def _judge(
    config: ParaphraseCheckConfig, records: list[Record]
) -> tuple[Mapping[Pair, Judgement], dict[str, str] | None]:
    """What the model says of each question and paraphrase, and which model that is."""
    if config.model is None:
        return {}, None
    from self_ensemble.generation.loading import loaded_engine
    from self_ensemble.models.loading import find_model

    pairs = dict.fromkeys(
        (_meant(record), text)
        for record in records
        for text in record.paraphrases
        if words(text) and text != _meant(record)
    )
    source = find_model(config.model)
    with loaded_engine(source, attention=config.model.attention) as engine:
        found = judge(engine, list(pairs), batch_size=config.batch_size)
    model = {"name": source.name, "fingerprint": source.fingerprint}
    return dict(zip(pairs, found, strict=True)), model
