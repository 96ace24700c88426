"""The page: its data, that it loads nothing, and (marked browser) that it works in Chromium."""

import base64
import hashlib
import json
import re

import numpy as np
import pandas as pd
import pytest
from chromium import open_in_chromium
from writing import make_manifest, write_choices, write_per_prompt

from score import main, parse_args
from self_ensemble.evaluation.page import render_page
from self_ensemble.evaluation.report import report_on
from self_ensemble.evaluation.scored import score_predictions
from self_ensemble.system.errors import UserError

HOSTILE = "</script><script>console.error('broken out')</script><img src=x onerror=alert(1)>&amp;"


def write_method(path, predictions, **columns):
    """Question i is answered rightly with right<i>."""
    n = len(predictions)
    frame = pd.DataFrame(
        {
            "uuid": [f"q{i}" for i in range(n)],
            "paraphrases": [[f"wording {k} of {i}?" for k in range(2)] for i in range(n)],
            "answers": [[f"right{i}", f"<b>{HOSTILE}"] for i in range(n)],
            "prediction": predictions,
            **columns,
        }
    )
    frame.to_feather(path)
    return str(path)


def page_of(paths, baseline=None):
    files = [score_predictions(path) for path in paths]
    reference = score_predictions(baseline) if baseline else None
    return render_page(files, reference, report_on(files, reference))


def data_of(page):
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
    return json.loads(text)


@pytest.fixture
def methods(tmp_path):
    """fusion, single and a third: 120 questions; (right, right) as `truth` says, [120, 2]."""
    truth = np.random.default_rng(0).random((120, 2)) < (0.7, 0.5)
    fusion, single = (
        [f"right{i}" if right else f"{HOSTILE} {m}" for i, right in enumerate(truth[:, m])]
        for m in range(2)
    )
    asked = [[f"alone {i}?"] for i in range(120)]
    paths = [
        write_method(
            tmp_path / "fusion.feather", fusion, relation=[f"<i>P{i}" for i in range(120)]
        ),
        write_method(tmp_path / "single.feather", single, paraphrases=asked),
        write_method(tmp_path / "third.feather", fusion[:100]),
    ]
    return paths, truth


def test_the_data_are_every_methods_answers(methods):
    paths, truth = methods
    data = data_of(page_of(paths))
    assert data["methods"] == ["fusion", "single", "third"]
    assert (data["fusion"], data["single"]) == (0, 1)  # single was asked in one wording
    # Those on which the methods disagree come first: both wrong, they are wrong in different ways.
    order = sorted(range(120), key=lambda i: truth[i].all())
    assert [question["id"] for question in data["questions"]] == [f"q{i}" for i in order]
    for i, question in zip(order, data["questions"], strict=True):
        assert question["differ"] == (not truth[i].all())
        assert question["numbers"] == [0, 1]
        assert question["asked"] == [f"wording 0 of {i}?", f"wording 1 of {i}?"]
        assert question["relation"] == f"<i>P{i}"
        fusion, single, third = question["given"]
        assert [fusion[1], single[1]] == [[int(right)] for right in truth[i]]
        assert third == (fusion if i < 100 else None)
        assert (fusion[2] == single[2]) == truth[i].all()


def test_the_page_opens_with_how_many_questions_the_methods_disagree_on(methods):
    paths, truth = methods
    count = (~truth.all(axis=1)).sum()
    sentence = (
        f"<h2>Questions</h2>\n<p>The methods disagree on {count} of 120 questions, which come"
    )
    assert sentence in page_of(paths)
    assert "The methods disagree on 0 of 120 questions." in page_of([paths[0], paths[0]])
    assert "disagree on" not in page_of(paths[:1])  # one file has nobody to disagree with


def test_a_page_of_choices_has_what_every_method_gives_to_each(tmp_path):
    """Of a file that has the choices in another order, too."""
    columns = {"answers": [["A"], ["b"]], "choices": [["A", "B"], ["a", "b"]]}
    one = write_choices(tmp_path / "one.feather", [[-1.0, -2.0], [-1.0, -2.0]], **columns)
    columns["choices"] = [["B", "A"], ["b", "a"]]
    other = write_choices(tmp_path / "other.feather", [[-3.0, -1.0], [-1.0, -1.0]], **columns)
    page = page_of([one, other])
    data = data_of(page)
    # On q0 both take A, which normalised would be nothing; on q1 b is first in the other file.
    assert [question["id"] for question in data["questions"]] == ["q1", "q0"]
    q1, q0 = data["questions"]
    assert "disagree on 1 of 2 questions" in page
    assert q0["choices"] == ["A", "B"]
    assert [given[:3] for given in q0["given"]] == [[["A"], [1], 0]] * 2
    assert q0["given"][0][4] == [[[-1.0, 0.7311], [-2.0, 0.2689]]]
    assert q0["given"][1][4] == [[[-1.0, 0.8808], [-3.0, 0.1192]]]
    assert [given[0] for given in q1["given"]] == [["a"], ["b"]]
    assert q1["given"][1][4] == [[[-1.0, 0.5], [-1.0, 0.5]]]
    columns = {"answers": [["A"]], "choices": [["A", "The"]]}
    pair = [
        write_choices(tmp_path / f"{i}.feather", [scores], **columns)
        for i, scores in enumerate(([-1.0, -2.0], [-2.0, -1.0]))
    ]
    assert "disagree on 1 of 1 questions" in page_of(pair)  # though both normalise to nothing
    generated = write_method(tmp_path / "generated.feather", ["the A!", "x"])
    frame = pd.read_feather(generated).assign(answers=[["A"], ["b"]])
    frame.to_feather(generated)
    [question] = [q for q in data_of(page_of([one, generated]))["questions"] if q["id"] == "q0"]
    assert question["given"][1][4] is None


def test_paraphrases_have_the_numbers_that_indexs_counts(tmp_path):
    path = write_per_prompt(tmp_path / "per_prompt-4_2.feather", [[1, 0], [1, 1]])
    assert [q["numbers"] for q in data_of(page_of([path]))["questions"]] == [[0, 1]] * 2
    (tmp_path / "per_prompt-4_2.json").write_text(json.dumps(make_manifest(2, paraphrases=[4, 2])))
    for question in data_of(page_of([path]))["questions"]:
        assert question["numbers"] == question["given"][0][3] == [4, 2]


def test_a_question_of_fewer_paraphrases_shows_those_that_it_has(tmp_path):
    path = write_per_prompt(tmp_path / "per_prompt-2.feather", [[1], [0, 1]])
    shown = {q["id"]: (q["given"][0], q["numbers"]) for q in data_of(page_of([path]))["questions"]}
    assert shown["q0"] == ([["the Paris."], [1], 0, [0], None], [0])
    assert shown["q1"] == ([["wrong 0", "the Paris."], [0, 1], 0, [0, 1], None], [0, 1])


def test_a_baseline_is_the_single_method_and_on_the_page_once(methods):
    paths, _ = methods
    for given in (paths, paths[:2]):
        data = data_of(page_of(given, paths[2]))
        assert data["methods"][data["single"]] == "third"
        assert data["methods"].count("third") == 1


def test_texts_do_not_become_markup_and_nothing_is_loaded(methods, tmp_path):
    path = write_method(tmp_path / "<u>&.feather", ["x", "y"])
    out = tmp_path / "page.html"
    main(parse_args([methods[0][0], "--by", "relation", "--html", str(out)]))
    page = out.read_text()
    assert "&lt;i&gt;P0" in page
    assert "<i>" not in page
    assert len(re.findall("<script", page)) == 2
    without_data = re.sub(r'<script type="application/json".*?</script>', "", page)
    assert "onerror" in page
    assert "onerror" not in without_data
    assert not re.search(r"""(src|href)=["']?(?!data:)[^"'>\s]""", without_data)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttp", without_data)
    assert "default-src 'none'" in page
    assert "<u>" not in page_of([path])


def test_the_policy_lets_the_pages_own_script_run(methods):
    page = page_of(methods[0])
    script = re.search(r"<script>(.*?)</script>", page, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page)[1]
    assert policy.endswith(f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'")


def test_one_file_needs_no_uuid_and_several_do(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prediction": "a", "answers": ["a"], "question": "A?"}\n' * 2)
    questions = data_of(page_of([str(path)]))["questions"]
    assert [(q["id"], q["asked"]) for q in questions] == [("1", ["A?"]), ("2", ["A?"])]
    with pytest.raises(UserError, match=r"a\.jsonl has no column `uuid`, which --html joins"):
        page_of([str(path), write_method(tmp_path / "b.feather", ["x"])])


def choose(**values):
    """Sets the controls as a user does, and presses the button for more to the end."""
    lines = [
        f"document.getElementById('{name}').value = {value!r};"
        f"document.getElementById('{name}').dispatchEvent(new Event("
        f"'{'input' if name == 'search' else 'change'}'));"
        for name, value in values.items()
    ]
    more = "document.getElementById('more')"
    return "\n".join([*lines, f"for (let i = 0; i < 9 && !{more}.hidden; i++) {more}.click();"])


@pytest.mark.browser
def test_the_page_works_in_chromium(methods, tmp_path):
    paths, truth = methods
    page = page_of(paths, paths[1])
    dom, messages = open_in_chromium(page, tmp_path)
    assert messages == []
    assert dom.count("<article>") == 50  # the first; the button brings the rest
    assert "120 of 120 questions" in dom
    assert "<i>" not in dom  # no text became markup
    assert len(re.findall(r"<img(?! src=x)", dom)) == 1

    fusion, single = truth.T
    expected = {
        "all": 120,
        "disagree": (~(fusion & single)).sum(),  # both wrong, they are wrong in different ways
        "fusion": (fusion & ~single).sum(),
        "single": (single & ~fusion).sum(),
    }
    for value, count in expected.items():
        dom, messages = open_in_chromium(page, tmp_path, choose(filter=value))
        assert messages == []
        assert f"{count} of 120 questions" in dom
        assert dom.count("<article>") == count
    # The first questions that a reader sees are those on which the methods disagree.
    assert f"disagree on {expected['disagree']} of 120 questions" in page
    dom, _ = open_in_chromium(page, tmp_path)
    shown = [int(uuid) for uuid in re.findall(r"uuid: q(\d+)", dom)]
    assert not truth[shown[: min(50, expected["disagree"])]].all(axis=1).any()
    swapped, _ = open_in_chromium(page, tmp_path, choose(filter="fusion", fusion="1", single="0"))
    assert swapped.count("<article>") == expected["single"]
    found, _ = open_in_chromium(page, tmp_path, choose(search="RIGHT11"))
    assert found.count("<article>") == 11  # right11 and right110 to right119
    # What would be seen if something were wrong, and that the policy stops foreign scripts.
    assert open_in_chromium(page, tmp_path, "nothing.at.all")[1]
    foreign = page.replace("</body>", "<script>document.title = 'taken'</script></body>")
    dom, messages = open_in_chromium(foreign, tmp_path)
    assert "taken</title>" not in dom
    assert any("Content Security Policy" in message for message in messages)
