"""Tables in the columns of published datasets that have a row a wording, a few rows each.

PopQA_robustness (Ackerman et al. 2024), PromptSET (Razavi et al. 2025) and GSM-Plus (Li et al.
2024): the columns and the kinds of values are theirs, the rows are made up.
"""

import json
from pathlib import Path

from writing import write

from self_ensemble.data.records import Record

POPQA_COLUMNS = ("id", "question", "variant_id", "variant_type", "possible_answers")
POPQA = [
    dict(zip(POPQA_COLUMNS, row, strict=True))
    for row in (
        (4222362, "What is Ann Rankin's occupation?", 0, "original", ["politician", "pol"]),
        (4222362, "what is ann rankin's occupation", 1, "simple", ["politician", "pol"]),
        (4222362, "What does Ann Rankin do for a living?", 2, "paraphrase", ["politician", "pol"]),
        (9, "What is “Ü”, really?", 0, "original", ["O'Neil", 'a "b"', "c, d"]),
        (9, "what is “Ü”, really", 1, "simple", ["O'Neil", 'a "b"', "c, d"]),
        (9, "What would you call “Ü”?", 2, "paraphrase", ["O'Neil", 'a "b"', "c, d"]),
    )
]
POPQA_RECORDS = [
    Record("4222362", tuple(r["question"] for r in POPQA[:3]), ("politician", "pol")),
    Record("9", tuple(r["question"] for r in POPQA[3:]), ("O'Neil", 'a "b"', "c, d")),
]

PROMPTSET = [
    {
        "prompt_id": name,
        "reference_prompt_id": name.removeprefix("alt_")[: len("tc_11")],
        "prompt": f"Which city is the capital of {land}? ({name})",
        "expected_answer": [city, city.upper()],
        "model_answers": {"llama3_8B": f"{city}.", "mistral-nemo": None},
    }
    for number, land, city in ((11, "Peru", "Lima"), (43, "Mali", "Bamako"))
    for name in (f"tc_{number}", *(f"alt_tc_{number}{i}" for i in range(9)))
]

SEEDS = ("Ann has 2 dogs and 1 cat. How many pets?", "Bo had 5 eggs and ate 2. How many are left?")
KEEPING = ("problem understanding", "distraction insertion")
GSM_PLUS = [
    {
        "question": f"{kind}: {seed}",
        "solution": f"So it is {answer}.\n#### {answer}",
        "answer": answer,
        "perturbation_type": kind,
        "seed_question": seed,
        "seed_solution": "2 + 1 = 3\n#### 3",
        "seed_answer": "3",
    }
    for seed in SEEDS
    for kind, answer in (
        ("numerical substitution", "7"),
        ("digit expansion", "13"),
        ("integer-decimal-fraction conversion", "3.5"),
        ("adding operation", "4"),
        ("reversing operation", "2"),
        ("problem understanding", "3"),
        ("distraction insertion", "3"),
        ("critical thinking", "None"),
    )
]


def write_popqa(path: Path, printed=json.dumps) -> Path:
    """printed: how a list becomes the text of a cell."""
    rows = [row | {"possible_answers": printed(row["possible_answers"])} for row in POPQA]
    return write(path, rows)


def write_published(folder: Path) -> None:
    """The files of the three, at the paths that docs/data.md gives."""
    write_popqa(folder / "PopQA_robustness.csv")
    triviaqa = folder / "prompt-sensitivity" / "prompt_set" / "triviaqa"
    triviaqa.mkdir(parents=True)
    write(triviaqa / "triviaqa_llama3_8B_dataset_test.jsonl", PROMPTSET)
    write(folder / "gsmplus_testmini.jsonl", GSM_PLUS)
