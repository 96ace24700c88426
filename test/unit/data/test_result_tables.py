"""Tables in pieces are the same tables: their rows, their order, their bytes."""

import io
from itertools import repeat

import pyarrow as pa
import pyarrow.feather
import pytest
from writing import make_frame, make_manifest

from self_ensemble.data import result_tables
from self_ensemble.data.result_files import even_parts, read_results, write_results
from self_ensemble.data.result_tables import (
    in_pieces,
    in_schema,
    schema_with,
    table_of,
    write_feather,
)


def numbers(count: int) -> pa.Table:
    return pa.table({"n": pa.array(range(count))})


@pytest.mark.parametrize("given", [[7], [1] * 7, [3, 0, 4], [2, 5]])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_pieces_have_the_size_and_all_rows(given, size):
    whole, tables, at = numbers(7), [], 0
    for count in given:
        tables.append(whole.slice(at, count))
        at += count
    pieces = list(in_pieces(tables, repeat(size)))
    assert [len(piece) for piece in pieces] == even_parts(7, size)
    assert pa.concat_tables(pieces).equals(whole)


def test_pieces_of_unlike_sizes():
    pieces = list(in_pieces([numbers(4), numbers(5)], iter([2, 5, 2])))
    assert [piece["n"].to_pylist() for piece in pieces] == [[0, 1], [2, 3, 0, 1, 2], [3, 4]]


def test_even_parts():
    assert even_parts(7, 3) == [3, 3, 1] and even_parts(6, 3) == [3, 3] and even_parts(2, 3) == [2]


@pytest.mark.parametrize("step", [1000, 65_536, 100_000, 140_000])
def test_feather_in_pieces_is_the_whole(step):
    """Of more rows than a record batch has, with missing texts and lists."""
    count = 140_000
    texts = [None if i % 3 == 0 else f"text {i % 11}" for i in range(count)]
    whole = table_of({"uuid": texts, "answers": [["a"] * (i % 3) for i in range(count)]})
    files = []
    for _ in range(2):
        files.append(io.BytesIO())
        pieces = (whole.slice(at, step) for at in range(0, count, step))
        write_feather(pieces, whole.schema, files[-1])
    assert files[0].getvalue() == files[1].getvalue()
    assert pa.feather.read_table(files[0]).equals(whole)
    if step == count:
        expected = io.BytesIO()
        pa.feather.write_feather(whole, expected, compression="zstd")
        assert files[0].getvalue() == expected.getvalue()


def test_a_csv_of_several_pieces(tmp_path, monkeypatch):
    frame = make_frame(["a", "b,\n", "", "d", "e"])
    write_results(tmp_path / "whole", frame, make_manifest())
    monkeypatch.setattr(result_tables, "ROWS_AT_ONCE", 2)
    write_results(tmp_path / "pieces", frame, make_manifest())
    whole, pieces = ((tmp_path / f"{name}.csv").read_bytes() for name in ("whole", "pieces"))
    assert whole == pieces
    assert read_results(tmp_path / "pieces.feather").equals(read_results(tmp_path / "whole.csv"))


def test_a_table_that_lacks_columns_is_empty_there():
    schema = schema_with(table_of({"uuid": ["a"]}).schema, ["choices", "uuid", "logprob"])
    assert schema.names == ["uuid", "choices", "logprob"]
    table = in_schema(table_of({"logprob": [1], "uuid": ["b"]}), schema)
    assert table.to_pylist() == [{"uuid": "b", "choices": None, "logprob": 1.0}]
