"""Lemmas, added to a finished result. No model is loaded, nor even torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from self_ensemble.data.result_files import (
    REQUIRED_COLUMNS,
    count_finished,
    read_manifest,
    read_results,
    result_file,
    write_results,
)
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
        found = find_finished([stem], method)  # as it is now that nobody else writes it
        if found is None:
            raise _not_finished(stem)
        _, manifest = found
        count_finished(stem, there)
        _add_lemmas(stem, manifest, nlp)
    return stem


def _not_finished(stem: Path, remark: str = "") -> UserError:
    said = (
        f"--lemmaize: {result_file(stem, '.feather')} is not there or not finished; "
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
    from self_ensemble.evaluation.lemmatizer import append_lemmas, lemmaize_chunk, lemmatizer_of

    path = result_file(stem, ".feather")
    frame = read_results(path)
    missing = [f"`{name}`" for name in REQUIRED_COLUMNS if name not in frame.columns]
    if missing:
        raise UserError(
            f"{path} lacks the column {' and '.join(missing)}; "
            "--overwrite without --lemmaize makes it again"
        )
    frame = append_lemmas(frame, [lemmaize_chunk(frame, nlp)])
    manifest = manifest | {"lemmatizer": lemmatizer_of(nlp)}
    write_results(stem, frame, manifest, same_answers=True)
    say(
        f"added predict_lemma and answer_lemmas to {path} "
        f"({len(frame)} rows, {manifest['lemmatizer']['model']})"
    )
