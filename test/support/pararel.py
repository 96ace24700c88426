"""A small ParaRel, in both of the layouts that `--dataset pararel` reads."""

from pathlib import Path

from writing import write

TEMPLATES = {
    "P36": [
        "The capital of [X] is [Y] .",
        "[Y] is the capital of [X].",
        "[X]'s capital is [Y].",
        "[Y], the capital of [X].",
        "The capital city of [X] is [Y].",
    ],
    "P1376": ["[X] is the capital of [Y]."],
    # As published: white space doubled within, and left at the end.
    "P279": ["[X] is a subclass of [Y].", "[X],  a type of [Y].", "[Y] kind [X] "],
    "P5": ["[X] has no facts, [Y]."],
}
FACTS = {
    "P36": [(f"Land {i}", f"City {i}") for i in range(25)],
    # One of two converse facts states what the other asks.
    "P1376": [(f"City {i}", f"Land {i}") for i in range(20)],
    # Two objects of one subject, apart; and a fact twice, as in LAMA's files.
    "P279": [("jazz", "music"), ("bebop", "jazz"), ("jazz", "art"), ("jazz", "music")],
    "P31": [("Lima", "city"), ("Peru", "country")],
}
NUM_QUESTIONS = 25 + 20 + 2  # with those that are held out as demonstrations


def template_row(pattern: str) -> dict[str, str]:
    return {"pattern": pattern, "lemma": "is", "extended_lemma": "is", "tense": "present"}


def fact_row(subject: str, answer: str, number: int) -> dict[str, str]:
    return {"sub_label": subject, "obj_label": answer, "uuid": f"fact-{number}"}


def rows_by_relation() -> tuple[dict[str, list[dict]], dict[str, list[dict]]]:
    """Facts and templates as rows, by relation."""
    facts = {
        name: [fact_row(*pair, i) for i, pair in enumerate(pairs)] for name, pairs in FACTS.items()
    }
    templates = {name: [template_row(each) for each in texts] for name, texts in TEMPLATES.items()}
    return facts, templates


def write_clone(folder: Path) -> Path:
    """As the authors publish it: a file a relation."""
    places = ("data/trex_lms_vocab", "data/pattern_data/graphs_json")
    for place, relations in zip(places, rows_by_relation(), strict=True):
        (folder / place).mkdir(parents=True)
        for name, rows in relations.items():
            write(folder / place / f"{name}.jsonl", rows)
    return folder


def write_tables(folder: Path, suffix: str = ".parquet") -> Path:
    """As two tables."""
    folder.mkdir(parents=True, exist_ok=True)
    for table, relations in zip(
        ("pararel_facts", "pararel_templates"), rows_by_relation(), strict=True
    ):
        rows = [{"relation": name, **row} for name, rows in relations.items() for row in rows]
        write(folder / f"{table}{suffix}", rows)
    return folder
