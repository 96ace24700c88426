"""How well the quality filter tells good paraphrases from bad ones, on judged paraphrases.

    python benchmark/paraphrase_filter.py judgements.jsonl
    python benchmark/paraphrase_filter.py judgements.jsonl --model SmolLM2-135M-Instruct --missed
    python benchmark/paraphrase_filter.py --lists facts.parquet manual_paraphrases --sample 300

Of each label and source: how many rows each check rejects, all together without the model, and with
it. With a model, its threshold is also chosen on four fifths of the questions and tried on the
last fifth, in turn: the largest at which at most 1% of the good ones are rejected. `--lists` takes
paraphrases that are good by their making, the first of each row being the question.
"""

import argparse
import csv
import json
import random
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from self_ensemble.paraphrasing.prompts import ECHOES
from self_ensemble.paraphrasing.quality_filter import CHECKS, Thresholds, rejections
from self_ensemble.paraphrasing.rejections import Judgement, Rejection

FOLDS = 5
GRID = [step / 100 for step in range(61)]
MOST_GOOD_REJECTED = 0.01
SEED = 0

Row = Mapping[str, Any]  # question, answers, paraphrase, label, source
Group = tuple[str, str]


def read_judgements(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_lists(path: Path, column: str, sample: int | None) -> list[Row]:
    """Every further paraphrase of each row, against the first one; `sample` of them at random."""
    import pandas as pd

    table = pd.read_parquet(path)
    answers = table["answers"] if "answers" in table else [()] * len(table)
    rows = [
        {"question": first, "answers": list(right), "paraphrase": text, "label": "good"}
        | {"source": path.stem, "masks": (0, 1)}
        for (first, *others), right in zip(table[column], answers, strict=True)
        for text in others
    ]
    return rows if sample is None else random.Random(SEED).sample(rows, min(sample, len(rows)))


def judged(rows: Sequence[Row], args: argparse.Namespace) -> list[Judgement] | list[None]:
    if args.model is None:
        return [None] * len(rows)
    from self_ensemble.generation.loading import loaded_engine
    from self_ensemble.models.config import ModelConfig
    from self_ensemble.models.loading import find_model
    from self_ensemble.paraphrasing.judge import judge

    source = find_model(ModelConfig(name=args.model, device=args.device, dtype=args.dtype))
    with loaded_engine(source, attention="auto") as engine:
        begun = time.perf_counter()
        pairs = [(row["question"], row["paraphrase"]) for row in rows]
        found = judge(engine, pairs, batch_size=args.batch_size)
        seconds = time.perf_counter() - begun
    print(f"judged {len(rows)} paraphrases in {seconds:.1f} s: {len(rows) / seconds:.1f} a second")
    return found


def found_in(row: Row, judgement: Judgement | None, **more: Any) -> tuple[Rejection, ...]:
    return rejections(
        row["paraphrase"],
        question=row["question"],
        answers=row["answers"],
        echoes=ECHOES,
        masks=row.get("masks"),
        judgement=judgement,
        **more,
    )


def chosen_threshold(rows: Sequence[Row], judgements: Sequence[Judgement]) -> float:
    good = [
        judgement.explained
        for row, judgement in zip(rows, judgements, strict=True)
        if row["label"].startswith("good")
    ]
    allowed = MOST_GOOD_REJECTED * len(good)
    return max(t for t in GRID if sum(value < t for value in good) <= allowed)


def out_of_fold(rows: Sequence[Row], judgements: Sequence[Judgement]) -> tuple[list[bool], list]:
    """Whether each row is rejected with a threshold that its question had no part in."""
    folds = [zlib.crc32(row["question"].encode()) % FOLDS for row in rows]
    chosen = []
    for fold in range(FOLDS):
        others = [at for at in range(len(rows)) if folds[at] != fold]
        chosen.append(
            chosen_threshold([rows[at] for at in others], [judgements[at] for at in others])
        )
    rejected = [
        bool(found_in(row, judgement, thresholds=Thresholds(explained=chosen[fold])))
        for row, judgement, fold in zip(rows, judgements, folds, strict=True)
    ]
    return rejected, chosen


def counts(groups: Sequence[Group], rejected: Sequence[bool]) -> dict[Group, int]:
    found = dict.fromkeys(sorted(set(groups)), 0)
    for group, is_rejected in zip(groups, rejected, strict=True):
        found[group] += is_rejected
    return found


def main(args: argparse.Namespace) -> None:
    rows = (
        read_judgements(args.judgements)
        if args.lists is None
        else read_lists(Path(args.lists[0]), args.lists[1], args.sample)
    )
    groups = [(row["source"], row["label"]) for row in rows]
    judgements = judged(rows, args)
    alone = [found_in(row, None) for row in rows]
    table = {"rows": counts(groups, [True] * len(rows))}
    both = [found_in(row, judgement) for row, judgement in zip(rows, judgements, strict=True)]
    for check in CHECKS:
        failed = [
            check in {each.check for each in (*one, *two)}
            for one, two in zip(alone, both, strict=True)
        ]
        if any(failed):
            table[check] = counts(groups, failed)
    table["all, no model"] = counts(groups, [bool(found) for found in alone])
    if args.model is not None:
        table["all, model"] = counts(groups, [bool(found) for found in both])
        rejected, chosen = out_of_fold(rows, judgements)
        table["all, out of fold"] = counts(groups, rejected)
        print(f"thresholds chosen out of fold: {', '.join(map(str, chosen))}")
    show(table)
    if args.csv is not None:
        write(args.csv, table)
    if args.missed:
        for row, found, group in zip(rows, both, groups, strict=True):
            if bool(found) == row["label"].startswith("good"):
                print(f"{group[1]} | {row['question']} | {row['paraphrase']} | {found}")


def show(table: Mapping[str, Mapping[Group, int]]) -> None:
    columns = list(table["rows"])
    print(" ".join(["check".ljust(20), *(f"{label} ({source})" for source, label in columns)]))
    for name, row in table.items():
        cells = (f"{row[group]:>{len(group[0]) + len(group[1]) + 3}}" for group in columns)
        print(" ".join([name.ljust(20), *cells]))


def write(path: Path, table: Mapping[str, Mapping[Group, int]]) -> None:
    columns = list(table["rows"])
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["check", *(f"{label} ({source})" for source, label in columns)])
        writer.writerows([name, *(row[each] for each in columns)] for name, row in table.items())


def read_table(path: Path) -> list[list[str]]:
    """The lines of what `write` wrote, its header first."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def markdown(table: Sequence[Sequence[str]]) -> str:
    """As docs/paraphrases.md has it: nothing for 0, and checks as code."""
    header, *lines = table
    rows = [header, ["---"] * len(header)]
    rows += [
        [f"`{name}`" if name in CHECKS else name, *("" if cell == "0" else cell for cell in cells)]
        for name, *cells in lines
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("judgements", nargs="?", type=Path, help="jsonl of judged paraphrases")
    parser.add_argument("--lists", nargs=2, metavar=("FILE.parquet", "COLUMN"))
    parser.add_argument("--sample", type=int, metavar="N", help="of --lists, so many at random")
    parser.add_argument("--model", help="whose judgement is looked at as well")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--csv", type=Path, help="the table, as a file")
    parser.add_argument("--missed", action="store_true", help="print what is told wrongly")
    args = parser.parse_args()
    if (args.judgements is None) == (args.lists is None):
        parser.error("give a file of judgements, or --lists")
    main(args)
