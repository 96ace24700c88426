"""2,000 damaged dataset files: each is loaded, keeping every promise, or refused in one sentence.

A file that Arrow's C++ cannot stand would end the interpreter, so the files are made and read in a
child process with a limit of memory and time; it tells which file was the last.

    PYTHONPATH=. python test/unit/data/test_damaged_files.py 417          one file
"""

import csv
import gzip
import io
import json
import math
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet

from self_ensemble.data import load_dataset, load_few_shot
from self_ensemble.data.result_files import read_results
from self_ensemble.system.errors import UserError

ROOT = Path(__file__).parents[3]
NUM_FILES = 2_000
SUFFIXES = (".jsonl", ".csv", ".parquet", ".feather")
MEMORY = 6 * 2**30  # address space, of which Arrow's allocator reserves a part at once
SECONDS = 120

# Good rows in the schemas that the loaders know.
SCHEMAS = (
    [
        {
            "uuid": f"fact-{i}",
            "relation": "P36",
            "answers": [land.upper(), "x"],
            "paraphrases": [f"What is {land}?", f"[MASK] is {land}’s.", "“q”"],
            "paraphrase": "of a result",
            "prediction": land,
            "predict_lemma": ["a", "b"],
            "answer_lemmas": [["a"], ["b", "c"]],
            "logprob": -0.5,
            "truncated": False,
        }
        for i, land in enumerate(("Peru", "Côte d’Ivoire", "日本", "x, y"))
    ],
    [
        {
            "uuid": f"5d-{i}",
            "rel": "P449",
            "answers": ["NBC"],
            "manual_paraphrases": ["It was aired on [MASK].", "[MASK] aired it."],
            "auto_paraphrases": ["The launch was on [MASK]."],
            "sub_ent": "It",
            "n_manual_observed": 2,
        }
        for i in range(3)
    ],
    [
        {"url": "http://a", "question": f"who rules {i}?", "answers": ["Nobody", "Somebody"]}
        for i in range(4)
    ],
    [
        {"question": f"q{i}", "answer": "a", "paraphrase0": f"p{i}", "paraphrase1": "p\nq"}
        for i in range(3)
    ],
)

DEEP = json.loads("[" * 900 + "]" * 900)
VALUES = (
    *(
        None,
        "",
        " ",
        "\x00",
        "\ufeff",
        "\u2028",
        "NA",
        "nan",
        "\ud83d",
        "a" * 50_000,
        "\r\n",
        "é" * 9,
    ),
    *("[", "[]", "[1]", '["a"]', '["a", null]', "[" * 5_000 + "]" * 5_000, "{}", '["\\ud800"]'),
    *('[["a"]]', "[NaN]", "['a']", '["a",]', f"[{'9' * 5_000}]", "a\x1b[31mb", '"', "a,b"),
    *(0, -1, 7, True, 10**30, 10**5_000, 1e308, math.nan, math.inf, -0.0),
    *([], [[]], {}, {"a": 1}, ["a"], ["a", None], [["a"], ["b"]], [[["a"]]], DEEP, ["a", 3]),
    *([""], [" ", "a"], ["\ud83d"], ["a" * 20_000] * 3, [math.nan], [True], ["x"] * 2_000),
)
COLUMNS = (
    *(
        "answers",
        "answer",
        "choices",
        "answer_index",
        "paraphrases",
        "manual_paraphrases",
        "auto_paraphrases",
        "question",
    ),
    *("uuid", "relation", "rel", "paraphrase0", "paraphrase1", "paraphrase2", "paraphrase7"),
    *("paraphrase00", "Answers", " answers", "", "\x00", "a" * 3_000, "\n", "predict_lemma"),
    *("answer_lemmas", "logprob", "truncated", "answers.list.item", "é"),
)
# Columns of other types, all their cells the same.
ODD_ARROW = (
    *(
        (pa.large_string(), "a"),
        (pa.string_view(), "a"),
        (pa.binary(), b"\xff\xfe"),
        (pa.null(), None),
    ),
    *((pa.int64(), 2**62), (pa.int8(), -1), (pa.float64(), math.nan), (pa.float16(), 2.0)),
    *((pa.bool_(), True), (pa.date32(), date(1, 1, 1)), (pa.timestamp("ns"), datetime(2026, 1, 1))),
    *((pa.timestamp("s"), 2**60), (pa.duration("s"), 2**60), (pa.time64("us"), 1)),
    *((pa.decimal128(20, 3), Decimal("1.5")), (pa.binary(3), b"abc"), (pa.list_(pa.int64()), [1])),
    *((pa.large_list(pa.string()), ["a", "b"]), (pa.list_(pa.string(), 2), ["a", "b"])),
    *((pa.list_view(pa.string()), ["a"]), (pa.list_(pa.list_(pa.string())), [["a"], []])),
    *((pa.list_(pa.null()), [None]), (pa.list_(pa.string()), None), (pa.string(), None)),
    *((pa.struct([("a", pa.string())]), {"a": "b"}), (pa.map_(pa.string(), pa.int8()), [("a", 1)])),
    *(
        (pa.list_(pa.binary()), [b"\xff"]),
        (pa.list_(pa.string_view()), ["a"]),
        (pa.list_(pa.string()), []),
    ),
)


# Rows that are not as they should be


def mutate_rows(rng: random.Random, rows: list[dict]) -> list[dict]:
    rows = [dict(row) for row in rows]
    for _ in range(rng.choice((0, 0, 1, 1, 1, 2, 3))):
        rng.choice(ROW_MUTATIONS)(rng, rows)
    return rows


def some_cell(rng, rows):
    if rows and (row := rng.choice(rows)):
        row[rng.choice(list(row))] = rng.choice(VALUES)


def inside_a_list(rng, rows):
    row = rng.choice(rows) if rows else {}
    lists = [name for name, cell in row.items() if isinstance(cell, list) and cell]
    if lists:
        name = rng.choice(lists)
        row[name] = list(row[name])
        row[name][rng.randrange(len(row[name]))] = rng.choice(VALUES)


def other_depth(rng, rows):
    for name in {name for row in rows for name in row if rng.random() < 0.3}:
        for row in rows:
            cell = row.get(name)
            row[name] = (
                cell[0] if isinstance(cell, list) and cell and rng.random() < 0.5 else [cell]
            )


def dropped_column(rng, rows):
    names = sorted({name for row in rows for name in row})
    if names:
        gone = rng.choice(names)
        for row in rows:
            row.pop(gone, None)


def further_column(rng, rows):
    name, cell = rng.choice(COLUMNS), rng.choice(VALUES)
    for row in rows:
        row[name] = cell


def renamed_column(rng, rows):
    names = sorted({name for row in rows for name in row})
    if names:
        old, new = rng.choice(names), rng.choice(COLUMNS)
        for row in rows:
            if old in row:
                row[new] = row.pop(old)


def doubled_row(rng, rows):
    if rows:
        rows.append(dict(rng.choice(rows)))


def no_rows(rng, rows):
    rows.clear()


def other_order(rng, rows):
    rng.shuffle(rows)
    for row in rows:
        cells = list(row.items())
        rng.shuffle(cells)
        row.clear()
        row.update(cells)


def many_rows(rng, rows):
    rows *= rng.randrange(2, 40)
    rows[:] = [
        {**row, "uuid": i} if rng.random() < 0.99 else dict(row) for i, row in enumerate(rows)
    ]


ROW_MUTATIONS = (
    *(some_cell, some_cell, some_cell, inside_a_list, inside_a_list, other_depth, dropped_column),
    *(further_column, further_column, renamed_column, doubled_row, no_rows, other_order, many_rows),
)


# Rows as the bytes of a file


def content_of(rng: random.Random, suffix: str, rows: list[dict]) -> bytes:
    if suffix == ".jsonl":
        return jsonl_of(rng, rows)
    if suffix == ".csv":
        return csv_of(rng, rows)
    return arrow_of(rng, suffix, rows)


def jsonl_of(rng, rows) -> bytes:
    escaped = rng.random() < 0.5
    lines = [json.dumps(row, ensure_ascii=escaped) for row in rows]
    if lines and rng.random() < 0.1:
        lines[rng.randrange(len(lines))] = rng.choice(
            ("[]", "{}", "null", "3", '"a"', "[" * 100_000, '{"a":' * 100_000, "nan", "{'a': 1}")
        )
    if lines and rng.random() < 0.1:
        depth = rng.choice((10, 300, 900, 990, 3_000, 9_990))
        deep = (
            "[" * depth + "]" * depth if rng.random() < 0.5 else '{"a":' * depth + "1" + "}" * depth
        )
        lines[0] = f'{lines[0][:-1]}, "{rng.choice(COLUMNS[:12])}": {deep}}}'
    if lines and rng.random() < 0.05:  # a name twice in an object
        lines[0] = lines[0][:-1] + ", " + lines[0][1:]
    text = rng.choice(("\n", "\n", "\n", "\r\n", "\n\n", "\r", " ")).join(lines)
    return text.encode(errors="surrogatepass")


def csv_of(rng, rows) -> bytes:
    names = list(dict.fromkeys(name for row in rows for name in row))
    if names and rng.random() < 0.05:
        names.append(rng.choice(names))
    buffer = io.StringIO(newline="")
    writer = csv.writer(
        buffer, delimiter=rng.choice(",,,,,,,,;\t"), lineterminator=rng.choice(("\n", "\r\n"))
    )
    writer.writerow(names)
    for row in rows:
        cells = [row.get(name) for name in names]
        cells = [json.dumps(cell) if isinstance(cell, list) else cell for cell in cells]
        writer.writerow(cells[: rng.choice((None,) * 50 + (-1, 1))])
    return buffer.getvalue().encode(errors="surrogatepass")


def arrow_of(rng, suffix, rows) -> bytes:
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [arrow_column(rng, [row.get(name) for row in rows]) for name in names]
    if names and rng.random() < 0.05:
        names.append(rng.choice(names))
        columns.append(columns[0])
    table = pa.Table.from_arrays(columns, names)
    sink = pa.BufferOutputStream()
    try:
        if suffix == ".feather":
            compression = rng.choice(("uncompressed", "uncompressed", "lz4", "zstd"))
            pa.feather.write_feather(table, sink, compression=compression)
        else:
            pa.parquet.write_table(
                table,
                sink,
                compression=rng.choice(("none", "none", "snappy", "zstd", "gzip")),
                use_dictionary=rng.random() < 0.5,
                data_page_version=rng.choice(("1.0", "2.0")),
            )
    except (pa.ArrowException, NotImplementedError):  # a type that the format does not have
        return b"PAR1"
    return sink.getvalue().to_pybytes()


def arrow_column(rng, cells) -> pa.Array:
    if rng.random() < 0.06:
        kind, cell = rng.choice(ODD_ARROW)
        return pa.array([cell] * len(cells), kind)
    if rng.random() < 0.03:
        broken = pa.array([b"caf\xe9"] * len(cells), pa.binary())
        return broken.view(pa.string())
    try:
        return pa.array(cells)
    except (pa.ArrowException, OverflowError, UnicodeError, ValueError, TypeError):
        return pa.array(
            [None if cell is None else ascii(cell)[:9_000] for cell in cells], pa.string()
        )


# Bytes that are not as they should be


def mutate_bytes(rng: random.Random, content: bytes) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        content = rng.choice(BYTE_MUTATIONS)(rng, content)
    return content


def place(rng, content) -> int:
    """Anywhere, or near the end, where parquet and feather have their footers."""
    length = len(content)
    return (
        rng.randrange(max(0, length - 300), length + 1)
        if rng.random() < 0.4
        else rng.randint(0, length)
    )


def patched(rng, content):
    at = place(rng, content)
    far = rng.choice((0, 1, -1, 2**31 - 1, -(2**31), 2**20, 255, rng.getrandbits(31)))
    return content[:at] + far.to_bytes(4, "little", signed=True) + content[at + 4 :]


def flipped(rng, content):
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 20))):
        if damaged:
            damaged[min(place(rng, content), len(damaged) - 1)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def spliced(rng, content):
    start, end, at = sorted(place(rng, content) for _ in range(3))
    return content[:start] + rng.choice((b"", content[at:], content[start:at])) + content[end:]


def inserted(rng, content):
    at = place(rng, content)
    odd = (
        b"\x00",
        b"\x00" * 64,
        b"\xff",
        b"\xef\xbb\xbf",
        b"\n",
        b'"',
        b",",
        b"}",
        b"\r",
        b"\xed\xa0\x80",
    )
    return content[:at] + rng.choice(odd) + content[at:]


BYTE_MUTATIONS = (
    *(patched, patched, patched, flipped, flipped, flipped, spliced, spliced, inserted, inserted),
    lambda rng, content: content[: rng.randint(0, len(content))],
    lambda rng, content: content[: place(rng, content)],
    lambda rng, content: b"\xef\xbb\xbf" + content,
    lambda rng, content: content.decode(errors="replace").encode("utf-16"),
    lambda rng, content: content.decode(errors="replace").encode("latin-1", errors="replace"),
    lambda rng, content: gzip.compress(content, mtime=0),
    lambda rng, content: content + content,
    lambda rng, content: b"",
    lambda rng, content: rng.randbytes(rng.randrange(300)),
)


def damaged_file(number: int, folder: Path) -> Path:
    """File `number` of the series, the same every time."""
    rng = random.Random(number)
    rows = mutate_rows(rng, SCHEMAS[number // 4 % len(SCHEMAS)])
    suffix = SUFFIXES[number % 4]
    sys.set_int_max_str_digits(0)  # what is written may be longer than what Python reads
    content = content_of(rng, suffix, rows)
    sys.set_int_max_str_digits(4300)
    if rng.random() < 0.35:
        content = mutate_bytes(rng, content)
    if rng.random() < 0.02:
        suffix = rng.choice((*SUFFIXES, ".txt", "", ".CSV", ".Parquet"))
    path = folder / f"{number}{suffix}"
    path.write_bytes(content)
    return path


# What must hold


def what_became_of(loader, path: Path) -> str:
    """`loaded` or `refused`; an assertion where it is neither, as it should be."""
    try:
        loaded = loader(path)
    except UserError as error:
        check_sentence(str(error), path)
        return "refused"
    assert path.stat().st_size, "an empty file was loaded"
    CHECKS[loader](loaded)
    return "loaded"


def check_sentence(sentence: str, path: Path) -> None:
    assert str(path) in sentence, f"does not name the file: {sentence!r}"
    assert sentence.isprintable(), f"not one plain line: {sentence!r}"
    assert len(sentence) < len(str(path)) + 300, f"{len(sentence)} characters: {sentence!r}"


def check_dataset(loaded) -> None:
    uuids = [record.uuid for record in loaded.records]
    assert uuids and len(set(uuids)) == len(uuids), uuids
    assert re.fullmatch("[0-9a-f]{64}", loaded.fingerprint)
    for record in loaded.records:
        assert bool(record.answers) == bool(loaded.records[0].answers), record
        check_texts([record.uuid, *record.paraphrases, *record.answers, *record.choices])
        if record.choices:
            assert len(set(record.choices)) == len(record.choices) > 1, record
            assert set(record.answers) <= set(record.choices), record
        check_texts([text for text in (record.question, record.relation) if text is not None])


def check_few_shot(loaded) -> None:
    assert loaded
    check_texts([text for shot in loaded for text in (shot.question, shot.answer)])


def check_texts(texts: list) -> None:
    for text in texts:
        assert type(text) is str and text.strip(), repr(text)
        text.encode("utf-8")


def check_results(frame) -> None:
    assert len(frame.columns)
    for name in frame.columns:
        for cell in frame[name].tolist():
            # What Arrow makes of its own types is another's business, but a list is a list.
            assert not type(cell).__module__.startswith("numpy"), (name, type(cell))


def by_name(path):
    return load_dataset(str(path), max_samples=None)


def gathered(path):
    """As a table with a row a wording, in a column that half of the schemas have."""
    return load_dataset(str(path), group_by="uuid", paraphrase_column="paraphrase")


CHECKS = {
    by_name: check_dataset,
    load_few_shot: check_few_shot,
    read_results: check_results,
    gathered: check_dataset,
}


def run_series(numbers, folder: Path) -> Counter:
    """Every file through `load_dataset`, every third through the other loaders."""
    counts = Counter()
    for number in numbers:
        print(number, flush=True)
        path = damaged_file(number, folder)
        for loader in (by_name,) if number % 3 else CHECKS:
            counts[f"{loader.__name__} {what_became_of(loader, path)}"] += 1
        path.unlink()
    return counts


def test_every_damaged_file_is_loaded_or_refused_in_one_sentence():
    command = [sys.executable, "-X", "faulthandler", __file__]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    lines = child.stdout.splitlines() or ["nothing"]
    assert child.returncode == 0, f"file {lines[-1]}: status {child.returncode}\n{child.stderr}"
    counts = json.loads(lines[-1])
    assert sum(n for name, n in counts.items() if name.startswith("by_name")) == NUM_FILES
    # A loader that refused everything, or took everything, would pass otherwise.
    for loader, files in (("by_name", 2_000), ("load_few_shot", 667), ("read_results", 667)):
        for outcome in ("loaded", "refused"):
            assert counts[f"{loader} {outcome}"] > files * 0.2, counts
    assert counts["gathered loaded"] > 667 * 0.05 and counts["gathered refused"] > 0, counts


def main(arguments: list[str]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    numbers = [int(number) for number in arguments] or range(NUM_FILES)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run_series(numbers, Path(folder))))


if __name__ == "__main__":
    main(sys.argv[1:])
