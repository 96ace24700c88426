"""Write `choices.parquet`: the demo's test questions with four choices each.

    python demo/choices.py

The three wrong choices are answers of other facts of the same relation. Facts are drawn, not
answers, so that a common answer is as common among the wrong choices as among the right ones, and
nothing can be guessed from how common a choice is. None is the right answer or an alias of it, nor
has an alias that is one.
"""

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# As a script, Python looks for modules in this folder and not in the project's.
sys.path.insert(0, str(HERE.parent))

from demo.train import Fact, read_facts

NUM_CHOICES = 4


def make_choices(
    questions: Sequence[dict[str, Any]], facts: Sequence[Fact]
) -> list[tuple[list[str], int]]:
    """The choices of each question, and which of them, counted from 0, is right.

    A question's draw depends on its uuid alone.
    """
    by_relation: dict[str, list[Fact]] = {}
    for fact in facts:
        by_relation.setdefault(fact.relation, []).append(fact)
    made = []
    for question in questions:
        draw = random.Random(f"choices/{question['uuid']}")
        right = question["answers"][0]
        taken = set(map(str.casefold, question["answers"]))
        choices = [right]
        others = by_relation[question["relation"]]
        for fact in draw.sample(others, len(others)):
            names = {name.casefold() for name in (fact.answer, *fact.aliases)}
            if len(choices) < NUM_CHOICES and not names & taken:
                choices.append(fact.answer)
                taken |= names
        assert len(choices) == NUM_CHOICES, f"{question['uuid']}: too few other answers"
        draw.shuffle(choices)
        made.append((choices, choices.index(right)))
    return made


def main() -> None:
    import pyarrow as pa
    import pyarrow.parquet

    table = pa.parquet.read_table(HERE / "questions.parquet")
    made = make_choices(table.to_pylist(), read_facts(HERE / "facts.csv"))
    columns = {
        "uuid": table["uuid"],
        "relation": table["relation"],
        "subject": table["subject"],
        "choices": [choices for choices, _ in made],
        "answer_index": [place for _, place in made],
        "paraphrases": table["paraphrases"],
    }
    pa.parquet.write_table(pa.table(columns), HERE / "choices.parquet")


if __name__ == "__main__":
    main()
