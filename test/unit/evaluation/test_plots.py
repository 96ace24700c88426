"""Pictures: made whole, the same each time, and of the right points. Eyes judge the rest."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest
from writing import write_per_prompt, write_plain

from score import main, parse_args
from self_ensemble.evaluation import plots
from self_ensemble.evaluation.plots import draw, picture_format
from self_ensemble.evaluation.report import make_report
from self_ensemble.system.errors import UserError


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    return [
        write_plain(tmp_path / "avg $x$ <a>.feather", rng.random(50) < 0.6),
        write_per_prompt(tmp_path / "per_prompt-3.feather", rng.random((50, 3)) < 0.5),
        write_per_prompt(tmp_path / "per_prompt-10.feather", rng.random((50, 10)) < 0.5),
        write_plain(tmp_path / "all.feather", [True] * 50),
        write_plain(tmp_path / "none.feather", [False] * 50),
    ]


NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:e-?\d+)?")


def test_the_same_scores_are_the_same_picture(files):
    """To the last digits of what the layout's solver finds, which also name an SVG's clips."""
    report = make_report(files, files[0])
    for form, magic in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        picture, again = draw(report, form), draw(report, form)
        assert picture.startswith(magic) and again.startswith(magic)
        if form == "svg":
            pictures = [re.sub(rb"\bp[0-9a-f]{10}\b", b"", svg) for svg in (picture, again)]
            assert NUMBER.sub(b"", pictures[0]) == NUMBER.sub(b"", pictures[1])
            one, two = ([float(number) for number in NUMBER.findall(svg)] for svg in pictures)
            assert len(one) > 1000 and one == pytest.approx(two, abs=1e-3)
    ElementTree.fromstring(draw(report, "svg"))


def test_panels_are_those_that_the_report_has_figures_for(files, monkeypatch):
    drawn = []
    for name in ("_draw_accuracy", "_draw_curves", "_draw_spread"):
        whole = getattr(plots, name)

        def spy(axis, *figures, whole=whole, name=name):
            whole(axis, *figures)
            drawn.append((name, axis))

        monkeypatch.setattr(plots, name, spy)
    draw(make_report(files[3:4], None), "png")
    assert [name for name, _ in drawn] == ["_draw_accuracy"]
    drawn.clear()
    report = make_report(files, files[0])
    draw(report, "png")
    (_, accuracy), (_, curves), (_, spread) = drawn
    assert [label.get_text() for label in accuracy.get_yticklabels()] == [
        r"avg \$x\$ <a>",
        "per_prompt-3 (mean of 3)",
        "per_prompt-10 (mean of 10)",
        "all",
        "none",
    ]
    shown = [line.get_xdata()[0] for line in accuracy.lines if line.get_marker() == "o"]
    assert shown == [file["accuracy"] for file in report["files"]]
    assert curves.get_xticks().tolist() == [3, 10]
    [line] = [line for line in curves.lines if line.get_marker() == "o"]
    assert line.get_ydata().tolist() == [file["accuracy"] for file in report["files"][1:3]]
    points = spread.collections[0].get_offsets()[:, 0]
    each = report["files"][1]["per_prompt"]["each"]
    assert points.tolist() == [share["accuracy"] for share in each]


def test_files_of_fewer_questions_are_marked(tmp_path, monkeypatch):
    rng, panels = np.random.default_rng(0), {}
    for name in ("_draw_accuracy", "_draw_curves"):
        whole = getattr(plots, name)

        def spy(axis, *figures, whole=whole, name=name):
            whole(axis, *figures)
            panels[name] = axis

        monkeypatch.setattr(plots, name, spy)
    files = []
    for method, number, count in (("avg", 3, 50), ("avg", 5, 20), ("max", 3, 50), ("max", 5, 50)):
        files.append(write_plain(tmp_path / f"{method}-{number}.feather", rng.random(count) < 0.6))
        asked = [[f"wording {n}" for n in range(number)]] * count
        pd.read_feather(files[-1]).assign(paraphrases=asked).to_feather(files[-1])
    draw(make_report(files, None), "png")
    rows = [label.get_text() for label in panels["_draw_accuracy"].get_yticklabels()]
    assert rows[:2] == ["avg-3 (50 questions)", "avg-5 (20 questions)"]
    labels = panels["_draw_curves"].get_legend_handles_labels()[1]
    assert labels == ["avg (20 to 50 questions)", "max (50 questions)"]


def test_a_picture_is_written_whole_or_not_at_all(files, tmp_path, capsys):
    path = tmp_path / "a.PNG"
    main(parse_args([files[0], "--plot", str(path)]))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "match" in capsys.readouterr().out
    with pytest.raises(
        UserError, match=r"--plot a\.gif: its suffix is none of \.png, \.svg, \.pdf"
    ):
        picture_format("a.gif")
    with pytest.raises(UserError, match=r"cannot write .*nowhere/a\.png: No such file"):
        main(parse_args([files[0], "--plot", str(tmp_path / "nowhere" / "a.png")]))
    assert not list(tmp_path.glob("*.tmp"))
