"""One page to browse: the tables, the pictures, and every question with every method's answer.

The page is one file that loads nothing: styles, script, pictures and data stand in it, and its own
policy forbids everything else, scripts that a prediction might smuggle in too. Texts of the files
reach the page as data, and are shown as text.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from self_ensemble.data.answers import normalize_answer
from self_ensemble.evaluation.plots import draw
from self_ensemble.evaluation.scored import Scored
from self_ensemble.evaluation.tables import labels, legend, report_tables
from self_ensemble.system.errors import UserError


def render_page(files: Sequence[Scored], baseline: Scored | None, report: Mapping[str, Any]) -> str:
    """The page as HTML.

    Args:
        files, baseline: what the report is on.
        report: from score.py.

    Raises:
        UserError: several files, and one of them has no uuids to lay it beside the others.
    """
    methods = _methods(files, baseline)
    tables = [
        f"<h2>{escape(title)}</h2>{html_table(rows)}"
        for title, rows in report_tables(report).items()
    ]
    notes = [f"<p>{escape(line)}</p>" for line in [*report["notes"], *legend(report)]]
    picture = base64.b64encode(draw(report, "svg")).decode()
    # Inside a script element only "<" could end the data.
    data = json.dumps(_data(methods, baseline), ensure_ascii=False).replace("<", "\\u003c")
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )
    return PAGE.format(
        policy=policy,
        style=STYLE,
        tables="\n".join(tables),
        notes="\n".join(notes),
        picture=f"data:image/svg+xml;base64,{picture}",
        data=data,
        script=SCRIPT,
    )


def _methods(files: Sequence[Scored], baseline: Scored | None) -> list[Scored]:
    """The files and, where it is none of them, the baseline first."""
    alone = baseline is not None and baseline.path not in [file.path for file in files]
    methods = [baseline, *files] if alone else list(files)
    for file in methods:
        if file.uuids is None and len(methods) > 1:
            raise UserError(f"{file.path} has no column `uuid`, which --html joins files by")
    return methods


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """Cells as texts, the header first."""
    header, *body = [[escape(cell) for cell in row] for row in rows]
    lines = ["<tr>" + "".join(f"<th scope=col>{cell}</th>" for cell in header) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body]
    return "<div class=wide><table>" + "\n".join(lines) + "</table></div>"


def _data(methods: Sequence[Scored], baseline: Scored | None) -> dict[str, Any]:
    """What the script shows: methods, and questions with each method's answers.

    An answer is [texts, whether each is right, which of the question's distinct answers the first
    is], or null where the method's file lacks the question.
    """
    names = labels([method.path for method in methods])
    questions: dict[str, dict[str, Any]] = {}
    for m, method in enumerate(methods):
        keys = method.uuids or [str(i) for i in range(1, len(method.right) + 1)]
        for q, key in enumerate(keys):
            question = questions.setdefault(
                key,
                {"id": key, "asked": [], "answers": method.answers[q], "given": {}, "seen": {}},
            )
            if len(method.asked[q]) > len(question["asked"]):
                question["asked"] = method.asked[q]
            if method.relations:
                question["relation"] = method.relations[q]
            texts = method.predictions[q]
            kind = question["seen"].setdefault(normalize_answer(texts[0]), len(question["seen"]))
            question["given"][m] = [texts, [int(r) for r in method.right[q]], kind]
    for question in questions.values():
        question["given"] = [question["given"].get(m) for m in range(len(methods))]
        del question["seen"]
    single = _single(methods, baseline)
    fusion = next((m for m in range(len(methods)) if m != single), single)
    return {
        "methods": [names[method.path] for method in methods],
        "single": single,
        "fusion": fusion,
        "questions": list(questions.values()),
    }


def _single(methods: Sequence[Scored], baseline: Scored | None) -> int:
    """What fusion is compared with at first: the baseline, else the first file without fusion."""
    for m, method in enumerate(methods):
        if baseline is not None and method.path == baseline.path:
            return m
    unfused = [m for m, method in enumerate(methods) if method.per_prompt or method.num_prompts < 2]
    return unfused[0] if unfused else 0


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Scores</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<h1>Scores</h1>
{tables}
<section class="notes">{notes}</section>
<h2>Pictures</h2>
<img alt="Accuracy by method, over the number of paraphrases, and spread" src="{picture}">
<h2>Questions</h2>
<form>
<label>show <select id="filter">
<option value="all">all questions</option>
<option value="disagree">methods disagree</option>
<option value="fusion">fusion right where single is wrong</option>
<option value="single">single right where fusion is wrong</option>
</select></label>
<label>fusion <select id="fusion"></select></label>
<label>single <select id="single"></select></label>
<label>containing <input id="search" type="search"></label>
</form>
<p id="count" role="status"></p>
<div id="questions"></div>
<p><button id="more" type="button">more</button></p>
<noscript>The list of questions needs JavaScript; the tables above do not.</noscript>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { border-bottom: 1px solid; font-weight: 600; }
.notes { margin-top: 2rem; font-size: .9rem; }
.notes p { margin: .2rem 0; }
img { max-width: 100%; background: white; }
form { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; }
select { max-width: 16rem; }
article { border-top: 1px solid #8888; padding: .7rem 0; }
article p { margin: 0; overflow-wrap: anywhere; }
.quiet { opacity: .7; font-size: .85rem; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: 0 1rem; margin: 0; }
dt, dd { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }
.right::before { content: "\\2713  "; color: #00805a; }
.wrong::before { content: "\\2717  "; color: #d04a00; }
"""

# Texts are set as textContent, never as markup. Of a file with a row a paraphrase, the first
# paraphrase's answer is what the filters ask about.
SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const [filter, fusion, single, search] =
  ["filter", "fusion", "single", "search"].map((id) => document.getElementById(id));
const PAGE_SIZE = 50;
let chosen = [];
let shown = 0;

function make(tag, text, className) {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className) element.className = className;
  return element;
}

function isRight(question, method) {
  const given = question.given[method];
  return given ? given[1][0] === 1 : null;
}

function disagree(question) {
  return new Set(question.given.filter(Boolean).map((given) => given[2])).size > 1;
}

function wins(question, one, other) {
  return isRight(question, one) === true && isRight(question, other) === false;
}

const FILTERS = {
  all: () => true,
  disagree: disagree,
  fusion: (question) => wins(question, fusion.value, single.value),
  single: (question) => wins(question, single.value, fusion.value),
};

function contains(question, text) {
  const texts = [question.id, question.relation || "", ...question.asked, ...question.answers];
  for (const given of question.given) if (given) texts.push(...given[0]);
  return texts.some((each) => each.toLowerCase().includes(text));
}

function draw(question) {
  const article = make("article", "");
  article.append(make("p", question.asked[0] || question.id));
  for (const wording of question.asked.slice(1)) article.append(make("p", wording, "quiet"));
  const relation = question.relation ? " · " + question.relation : "";
  article.append(make("p", "right: " + question.answers.join(" | ") + relation, "quiet"));
  const list = make("dl", "");
  question.given.forEach((given, method) => {
    if (!given) return;
    given[0].forEach((text, i) => {
      list.append(make("dt", i === 0 ? data.methods[method] : ""));
      list.append(make("dd", text || "(empty)", given[1][i] ? "right" : "wrong"));
    });
  });
  article.append(list);
  return article;
}

function more() {
  const next = chosen.slice(shown, shown + PAGE_SIZE);
  document.getElementById("questions").append(...next.map(draw));
  shown += next.length;
  document.getElementById("more").hidden = shown === chosen.length;
}

function update() {
  const text = search.value.trim().toLowerCase();
  const keep = FILTERS[filter.value];
  const found = (question) => !text || contains(question, text);
  chosen = data.questions.filter((question) => keep(question) && found(question));
  document.getElementById("count").textContent =
    chosen.length + " of " + data.questions.length + " questions";
  document.getElementById("questions").replaceChildren();
  shown = 0;
  more();
}

for (const select of [fusion, single]) {
  data.methods.forEach((name, method) => {
    const option = make("option", name);
    option.value = method;
    select.append(option);
  });
  select.value = data[select.id];
}
for (const control of [filter, fusion, single]) control.addEventListener("change", update);
search.addEventListener("input", update);
document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
document.getElementById("more").addEventListener("click", more);
update();
"""
