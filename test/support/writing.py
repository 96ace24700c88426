"""Files of questions, results and scores, and the sentence that a bad one is refused with."""

import csv
import json

import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from self_ensemble.cli.remedies import told
from self_ensemble.system.errors import UserError


def write(path, rows):
    """`rows` as a file of the format that the name of `path` says."""
    if path.suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        path.write_text("".join(lines), encoding="utf-8")
    elif path.suffix == ".csv":
        columns = list(rows[0])
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for row in rows:
                cells = (row[column] for column in columns)
                writer.writerow([json.dumps(c) if isinstance(c, list) else c for c in cells])
    elif path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        pa.feather.write_feather(pa.Table.from_pylist(rows), path)
    return path


def error_of(function, *args, **settings):
    """The sentence of a mistake, as the scripts print it."""
    with pytest.raises(UserError) as caught:
        function(*args, **settings)
    sentence = told(caught.value)
    assert "\n" not in sentence and len(sentence) < 500, sentence
    return sentence


def write_table(path, *, uuids, predictions, answers, paraphrases=None):
    frame = pd.DataFrame({"uuid": uuids, "prediction": predictions, "answers": answers})
    if paraphrases is not None:
        frame["paraphrase"] = paraphrases
    frame.to_feather(path)
    return str(path)


def write_plain(path, right, *, first=0):
    """A file whose question i is right where right[i]; uuids count from `first`."""
    return write_table(
        path,
        uuids=[f"q{first + i}" for i in range(len(right))],
        predictions=["Paris" if r else "Rome" for r in right],
        answers=[["Paris", "City of Light"]] * len(right),
    )


def write_per_prompt(path, right):
    """right: [Q][N]; a wrong answer is one of its own, so that only right ones agree."""
    cells = [(i, n, r) for i, row in enumerate(right) for n, r in enumerate(row)]
    return write_table(
        path,
        uuids=[f"q{i}" for i, _, _ in cells],
        predictions=["the Paris." if r else f"wrong {n}" for _, n, r in cells],
        answers=[["Paris", "City of Light"]] * len(cells),
        paraphrases=[f"wording {n} of {i}" for i, n, _ in cells],
    )


def write_choices(path, scores, *, answers, choices, norms=None, **columns):
    """A file of --task choices: a row a list of log-likelihoods, of which the highest is predicted.

    norms: the lists of the other norms, by name; where not given they are those of the sum.
    """
    taken = [max(range(len(row)), key=lambda i, row=row: (row[i], -i)) for row in scores]
    frame = pd.DataFrame(
        {
            "uuid": [f"q{i}" for i in range(len(scores))],
            "answers": answers,
            "choices": choices,
            **{f"choice_{n}": (norms or {}).get(n, scores) for n in ("sum", "mean", "bytes")},
            "prediction": [texts[i] for texts, i in zip(choices, taken, strict=True)],
        }
        | columns
    )
    frame.to_feather(path)
    return str(path)


def make_frame(texts, *, version="new"):
    rows = len(texts)
    return pd.DataFrame(
        {
            "uuid": [f"{version}-{i}" for i in range(rows)],
            "paraphrases": [[text, f"{text}?"] for text in texts],
            "answers": [[text] for text in texts],
            "prediction": texts,
            "generation": [text + "\n\nQ: more" for text in texts],
            "logprob": [-0.1 * i for i in range(rows)],
            "truncated": [i % 2 == 0 for i in range(rows)],
        }
    )


def make_manifest(num_questions=3, **identity):
    return {"identity": {"method": "avg", "n": 5, **identity}, "num_questions": num_questions}
