"""spaCy for a command line that needs no torch."""

import sys
from contextlib import suppress

from self_ensemble.evaluation.lemmatizer import LOOKUP, PREFERRED_MODEL


def import_spacy_without_torch(model: str | None) -> None:
    """Import spaCy, which imports torch where it is installed: seconds that lemmas do not need.

    For a script, since spaCy then does without torch until the process ends. Nothing is done where
    torch is imported already, or where a model of the user's own lemmatises: it may be a
    transformer. That there is no spaCy is told by whoever needs it.

    model: as `evaluation.lemmatizer.init_spacy` takes it.
    """
    if "torch" in sys.modules or model not in (None, PREFERRED_MODEL, LOOKUP):
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # to an import: it is not installed
    try:
        with suppress(ImportError):
            import spacy  # noqa: F401
    finally:
        del sys.modules["torch"]
