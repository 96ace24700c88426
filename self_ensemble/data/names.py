"""Names, texts and paths that several modules share. Importing it has no side effects."""

from pathlib import Path

# What a user's own file is asked with unless --instruction says otherwise. It names no [MASK] and
# no question mark, since a file may hold questions, fill-in sentences or both.
DEFAULT_INSTRUCTION = "Answer with a short fact and nothing else."

# Where paraphrases of questions are kept, as results/ is: below the folder the user is in.
DATA_ROOT = Path("data")
PARAPHRASE_FILE = "paraphrases.jsonl"

# Of each question's paraphrases, and of the few-shot demonstrations, so many where nothing is said.
DEFAULT_NUM_PARAPHRASES, DEFAULT_NUM_FEW_SHOT = 5, 5
# What becomes of a question with fewer paraphrases than are asked for: the first is the default.
FEWER = ("error", "use", "skip")
# Of each question of MyriadLAMA, so many of its paraphrases are drawn, with this seed.
DEFAULT_NUM_MANUAL, DEFAULT_NUM_AUTO, DEFAULT_SEED = 5, 5, 42

# Between the whole prompts of the `concat` layout.
SEPARATOR = " [SEP] "
