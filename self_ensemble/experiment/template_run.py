"""Fill a data set's paraphrases from templates; no model is loaded."""

from __future__ import annotations

from pathlib import Path

from self_ensemble.data.records import check_all_or_none_answered
from self_ensemble.data.result_files import fingerprint, result_file
from self_ensemble.experiment.config import TemplateConfig
from self_ensemble.experiment.paraphrase_files import (
    output_stem,
    refuse_foreign,
    too_few,
    write_files,
)
from self_ensemble.paraphrasing.templates import fill_templates, read_facts, read_templates
from self_ensemble.system.console import say
from self_ensemble.system.lock import held


def fill_paraphrases(config: TemplateConfig) -> Path:
    """Writes the file of paraphrases with its manifest. Returns the path without its suffix.

    Raises:
        UserError: a table cannot be read or lacks something, or a file is there already.
    """
    templates = read_templates(config.templates)
    facts = read_facts(Path(config.dataset), config.max_samples)
    records = fill_templates(facts, templates, config.num_paraphrases)
    check_all_or_none_answered(records)
    name = Path(config.dataset).stem
    stem = output_stem(config.output, config.output_dir, name, "templates")
    if not config.overwrite:
        refuse_foreign(stem)
    rows = [(record, record.question, list(record.paraphrases)) for record in records]
    manifest = {
        "identity": {
            "method": "templates",
            "data": fingerprint([[r.uuid, r.relation, r.answers] for r in facts]),
            "templates": fingerprint([templates]),
            "num_paraphrases": config.num_paraphrases,
        },
        "num_questions": len(rows),
        "dataset": name,
        "paraphrases": sum(len(kept) for *_, kept in rows),
        "short": too_few(rows, config.num_paraphrases or 1),
    }
    stem.parent.mkdir(parents=True, exist_ok=True)
    with held(stem):
        write_files(stem, rows, [], manifest)
    say(f"wrote {result_file(stem, '.jsonl')} ({len(rows):,} questions)")
    return stem
