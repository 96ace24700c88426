"""The tables of README.md and docs/evidence.md, made of benchmark/pretrained.csv.

    python benchmark/pretrained_documents.py
    python benchmark/pretrained_documents.py --set pararel-test --prompt few-shot

Prints Markdown. pretrained.py makes the CSV; the documents are tested to hold these very lines.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]

from pretrained import DATA_SETS, TABLE

from self_ensemble.cli.parser import Parser, run

MODELS = {"smollm2": "SmolLM2-135M-Instruct", "gemma": "Gemma-3-270m"}
# README's rows: a method as pretrained.py is told it, and what README calls it.
README_SET, README_COUNTS = "myriadlama-test", ("5", "10")
README_METHODS = {
    "one": "one paraphrase (mean of N)",
    "avg": "`avg`",
    "prob_avg": "`prob_avg`",
    "max": "`max`",
    "attention:tau=1": "**attention fusion**",
    "weighted_avg:weights_by=entropy:2": "`weighted_avg --weights_by entropy:2`",
    "weighted_max:weights_by=entropy:1": "`weighted_max --weights_by entropy:1`",
    "attention:tau=1,weights_by=entropy:1": "**attention fusion** `--weights_by entropy:1`",
}

Row = Mapping[str, str]


def of(rows: Iterable[Row], **wanted: str) -> list[Row]:
    """Those with these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """The first row is the header."""
    lines = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def readme_table(rows: Iterable[Row]) -> str:
    """Exact match of few methods, and the difference to `avg` with its 95% interval."""
    rows = of(rows, prompt="few-shot", set=README_SET)
    columns = [(model, count) for model in MODELS for count in README_COUNTS]
    header = ["exact match, %", f"decode rows a token, N = {' and '.join(README_COUNTS)}"]
    header += [f"{MODELS[model]}, N = {count}" for model, count in columns]
    cells = [header]
    for method, label in README_METHODS.items():
        own = of(rows, method=method)
        found = [of(own, model=model, N=count) for model, count in columns]
        cells.append([label, decode_rows(own), *(accuracy(row) for [row] in found)])
    return markdown(cells)


def decode_rows(rows: Iterable[Row]) -> str:
    """`5.0, 10.0`: at README's N, the mean over the models."""
    each = [[float(row["rows_per_token"]) for row in of(rows, N=count)] for count in README_COUNTS]
    return ", ".join(f"{sum(rates) / len(rates):.1f}" for rates in each)


def accuracy(row: Row) -> str:
    """`16.85 (+1.85 [+0.98, +2.74])`; a minus sign is a real one."""
    exact = f"{float(row['exact']):.2f}"
    if not row["difference"]:
        return exact
    difference, low, high = (f"{float(row[name]):+.2f}" for name in ("difference", "low", "high"))
    return f"{exact} ({difference} [{low}, {high}])".replace("-", "−")


def evidence_tables(rows: Iterable[Row], prompt: str, of_set: str) -> str:
    """A table a model of all its methods and N."""
    rows = of(rows, prompt=prompt, set=of_set)
    tables = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = of(rows, model=model)
        counts = sorted({row["N"] for row in own}, key=int)
        asked = {row["N"]: row["questions"] for row in own}
        cells = [["", *(f"N = {count} ({asked[count]} questions)" for count in counts)]]
        for method in dict.fromkeys(row["method"] for row in own):
            found = [of(own, method=method, N=count) for count in counts]
            cells.append([f"`{method}`", *(accuracy(row[0]) if row else "" for row in found)])
        tables.append(f"{MODELS.get(model, model)}, {of_set}, {prompt}:\n\n{markdown(cells)}")
    return "\n\n".join(tables)


def main(args) -> None:
    from pretrained_table import read_csv

    rows = read_csv(TABLE)
    if args.set is None:
        print(readme_table(rows))
    else:
        print(evidence_tables(rows, args.prompt, args.set))


def parse_args(argv: Sequence[str] | None = None):
    parser = Parser(description=__doc__)
    parser.add_argument("--set", choices=(*DATA_SETS, "demo", "lab"), help="(default: README's)")
    parser.add_argument("--prompt", choices=("few-shot", "chat template"), default="few-shot")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main, parse_args())
