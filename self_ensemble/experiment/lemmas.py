"""Lemmas, added to a finished result. No model is loaded, nor even torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from self_ensemble.data.result_files import (
    REQUIRED_COLUMNS,
    count_finished,
    read_manifest,
    remove_unlisted,
    result_path,
    table_files,
    write_result_tables,
)
from self_ensemble.data.result_tables import LEMMA_COLUMNS, read_tables, schema_with, table_of
from self_ensemble.experiment.config import ExperimentConfig, LemmaConfig
from self_ensemble.experiment.identity import earlier_stems, known_identity, result_stems
from self_ensemble.experiment.names import (
    EARLIER_DEFAULT,
    find_finished,
    is_earlier_default,
)
from self_ensemble.experiment.questions import Questions
from self_ensemble.system.console import say
from self_ensemble.system.errors import UserError
from self_ensemble.system.files import remove_leftovers
from self_ensemble.system.lock import held

if TYPE_CHECKING:
    import pyarrow
    from spacy.language import Language


def lemmatize_finished(
    config: ExperimentConfig,
    lemmas: LemmaConfig,
    questions: Questions,
    method: dict[str, Any],
) -> Path:
    """Add lemmas to the finished result of a configuration.

    Args:
        config, questions: of the run that made the result.
        lemmas: what lemmatises.
        method: the method's part of the identity, as far as it is known without the model.

    Returns:
        The result's path without its suffix.

    Raises:
        UserError: there is no finished result, it belongs to another run, or nothing lemmatises.
    """
    from self_ensemble.evaluation.lemmatizer import init_spacy

    stems, earlier = result_stems(config, questions), earlier_stems(config, questions)
    found = find_finished(stems, method, earlier=earlier)
    if found is None:
        raise _not_finished(stems[0], _remark(config, questions, method, earlier))
    stem, manifest = found
    there = manifest["identity"]
    count_finished(stem, there | known_identity(config, questions, method, manifest))
    nlp = init_spacy(lemmas.spacy_model)
    with held(stem):
        remove_leftovers(stem)
        remove_unlisted(stem)
        found = find_finished([stem], method)  # as it is now that nobody else writes it
        if found is None:
            raise _not_finished(stem)
        _, manifest = found
        count_finished(stem, there)
        _add_lemmas(stem, manifest, nlp)
    return stem


def _not_finished(stem: Path, remark: str = "") -> UserError:
    said = (
        f"--lemmaize: {result_path(stem)} is not there or not finished; "
        "run without --lemmaize first"
    )
    return UserError(said + remark)


def _remark(
    config: ExperimentConfig, questions: Questions, method: dict[str, Any], earlier: Sequence[Path]
) -> str:
    """Where a result of the earlier default lies beside, that it does."""
    for stem in earlier:
        manifest = read_manifest(stem)
        if manifest is not None:
            there = manifest["identity"]
            here = there | known_identity(config, questions, method, manifest)
            if is_earlier_default(there, here, config.method):
                return f" ({stem.name} has {EARLIER_DEFAULT})"
    return ""


def _add_lemmas(stem: Path, manifest: dict[str, Any], nlp: Language) -> None:
    from self_ensemble.evaluation.lemmatizer import lemmatizer_of

    path, files = result_path(stem), table_files(stem, manifest)
    schema, rows = None, [0] * len(files)
    for number, file in enumerate(files):
        for table in read_tables([file]):
            schema = schema or table.schema
            rows[number] += len(table)
    missing = [f"`{name}`" for name in REQUIRED_COLUMNS if schema and name not in schema.names]
    if missing or schema is None:
        raise UserError(
            f"{path} lacks the column {' and '.join(missing)}; "
            "--overwrite without --lemmaize makes it again"
        )
    manifest = manifest | {"lemmatizer": lemmatizer_of(nlp)}
    write_result_tables(
        stem,
        (_with_lemmas(table, nlp) for table in read_tables(files)),
        schema_with(schema, LEMMA_COLUMNS),
        manifest,
        part_rows=rows if "parts" in manifest else None,
        same_answers=True,
    )
    say(
        f"added predict_lemma and answer_lemmas to {path} "
        f"({sum(rows)} rows, {manifest['lemmatizer']['model']})"
    )


def _with_lemmas(table: pyarrow.Table, nlp: Language) -> pyarrow.Table:
    """The table with the lemmas of its rows, new or replaced."""
    import pyarrow as pa

    from self_ensemble.evaluation.lemmatizer import lemmaize_chunk

    lemmas = lemmaize_chunk(table.select(["prediction", "answers"]).to_pydict(), nlp)
    made = table_of(dict(zip(LEMMA_COLUMNS, lemmas, strict=True)))
    schema = schema_with(table.schema, LEMMA_COLUMNS)
    columns = {name: (made if name in LEMMA_COLUMNS else table)[name] for name in schema.names}
    return pa.table(columns, schema=schema)
