"""Names, texts and paths that several modules share. Importing it has no side effects."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
# Installed, the demo lies in the package; in a checkout, beside it.
DEMO_DIR = next(path for path in (PACKAGE / "demo", PACKAGE.parent / "demo") if path.is_dir())
DEMO_MODEL = DEMO_DIR / "model"
DEMO_QUESTIONS = DEMO_DIR / "questions.parquet"
DEMO_FEW_SHOT = DEMO_DIR / "few_shot.jsonl"
# The demo model is trained with this very text: changing it means training again.
DEMO_INSTRUCTION = "Give the missing fact in as few words as possible."

# What a user's own file is asked with unless --instruction says otherwise. It names no [MASK] and
# no question mark, since a file may hold questions, fill-in sentences or both.
DEFAULT_INSTRUCTION = "Answer with a short fact and nothing else."

WEBQA_REPOSITORY = "stanfordnlp/web_questions"
MYRIADLAMA_REPOSITORY = "iszhaoxin/MyriadLAMA"

# What --dataset takes besides the path of a file; those of the hub with their repositories.
HUB_DATASETS = {"webqa": WEBQA_REPOSITORY, "myriadlama": MYRIADLAMA_REPOSITORY}
DATASET_NAMES = ("demo", *HUB_DATASETS)


def hub_dataset_name(repository: str) -> str:
    """What --dataset calls a repository of the hub."""
    return next((name for name, known in HUB_DATASETS.items() if known == repository), repository)


WEBQA_INSTRUCTION = "Answer the question with a short fact and nothing else."
# The very text that MyriadLAMA's published predictions were made with: to be comparable.
MYRIADLAMA_INSTRUCTION = "Based on the context, predict the [MASK] in the sentence in one word."

# Where paraphrases of questions are kept, as results/ is: below the folder the user is in.
DATA_ROOT = Path("data")
PARAPHRASE_FILE = "paraphrases.jsonl"

# Of each question's paraphrases, and of the solved examples, so many where nothing is said.
DEFAULT_NUM_PARAPHRASES, DEFAULT_NUM_FEW_SHOT = 5, 5
# Of each question of MyriadLAMA, so many of its paraphrases are drawn, with this seed.
DEFAULT_NUM_MANUAL, DEFAULT_NUM_AUTO, DEFAULT_SEED = 5, 5, 42

# Between the whole prompts of the `concat` layout.
SEPARATOR = " [SEP] "
