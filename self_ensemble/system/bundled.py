"""Where the files lie that come with the toolkit: the demo's model and questions."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
# Installed, the demo lies in the package; in a checkout, beside it.
DEMO_DIR = next(path for path in (PACKAGE / "demo", PACKAGE.parent / "demo") if path.is_dir())
DEMO_MODEL = DEMO_DIR / "model"
DEMO_QUESTIONS = DEMO_DIR / "questions.parquet"
DEMO_CHOICES = DEMO_DIR / "choices.parquet"
DEMO_FEW_SHOT = DEMO_DIR / "few_shot.jsonl"
