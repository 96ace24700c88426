"""One page to browse: the tables, the pictures, and every question with every method's answer.

Questions on which methods disagree come first. Of choices it shows what every method gives to each.

The page is one file that loads nothing: styles, script, pictures and data stand in it, and its own
policy forbids everything else, scripts that a prediction might smuggle in too. Texts of the files
reach the page as data, and are shown as text.
"""

import json
from collections.abc import Hashable, Mapping, Sequence
from html import escape
from typing import Any

from self_ensemble.data.answers import normalize_answer
from self_ensemble.evaluation.choices import ChoiceRow
from self_ensemble.evaluation.plots import draw
from self_ensemble.evaluation.scored import ScoredPredictions
from self_ensemble.evaluation.tables import labels, legend, report_tables
from self_ensemble.system.errors import UserError
from self_ensemble.system.html import html_page, html_picture, html_table


def render_page(
    files: Sequence[ScoredPredictions],
    baseline: ScoredPredictions | None,
    report: Mapping[str, Any],
) -> str:
    """The page as HTML.

    Args:
        files, baseline: what the report is on.
        report: on these files, see report.py.

    Raises:
        UserError: several files, and one of them has no uuids to lay it beside the others.
    """
    methods = _methods(files, baseline)
    tables = [
        f"<h2>{escape(title)}</h2>{html_table(rows)}"
        for title, rows in report_tables(report).items()
    ]
    notes = [f"<p>{escape(line)}</p>" for line in [*report["notes"], *legend(report)]]
    picture = html_picture(
        draw(report, "svg"),
        "svg+xml",
        "Accuracy by method, over the number of paraphrases, and spread",
    )
    content = _data(methods, baseline)
    # Inside a script element only "<" could end the data.
    data = json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")
    body = BODY.format(
        tables="\n".join(tables),
        notes="\n".join(notes),
        picture=picture,
        introduction=_introduction(methods, content["questions"]),
        data=data,
    )
    return html_page("Scores", body, style=STYLE, script=SCRIPT)


def _methods(
    files: Sequence[ScoredPredictions], baseline: ScoredPredictions | None
) -> list[ScoredPredictions]:
    """The files and, where it is none of them, the baseline first."""
    methods = list(files)
    if baseline is not None and baseline.path not in [file.path for file in files]:
        methods.insert(0, baseline)
    for file in methods:
        if file.uuids is None and len(methods) > 1:
            raise UserError(f"{file.path} has no column `uuid`, which --html joins files by")
    return methods


def _introduction(
    methods: Sequence[ScoredPredictions], questions: Sequence[Mapping[str, Any]]
) -> str:
    """What stands above the questions, as HTML."""
    lines = []
    if len(methods) > 1:
        lines.append(_disagreement(methods, questions))
    if any(method.choices is not None for method in methods):
        lines.append(
            "Of each choice: its probability and, in brackets, its log-likelihood, by the norm "
            "that the file was scored by."
        )
    return "\n".join(f"<p>{line}</p>" for line in lines)


def _disagreement(
    methods: Sequence[ScoredPredictions], questions: Sequence[Mapping[str, Any]]
) -> str:
    count = sum(question["differ"] for question in questions)
    first = ", which come first" if count else ""
    if any(method.right.shape[1] > 1 for method in methods):
        first += "; of several paraphrases in a file the first counts"
    return f"The methods disagree on {count} of {len(questions)} questions{first}."


def _data(
    methods: Sequence[ScoredPredictions], baseline: ScoredPredictions | None
) -> dict[str, Any]:
    """What the script shows: methods, and questions with each method's answers.

    An answer is [texts, whether each is right, which of the question's distinct answers the first
    is, the number of each text's paraphrase, what each choice is given], or null where the method's
    file lacks the question. Of choices each text has [log-likelihood, probability] for each of the
    question's choices, or null where the file has another choice; of generated answers it is null.
    """
    names = labels([method.path for method in methods])
    questions: dict[str, dict[str, Any]] = {}
    for m, (method, said) in enumerate(zip(methods, _sayings(methods), strict=True)):
        keys = method.uuids or [str(i) for i in range(1, len(method.right) + 1)]
        for q, key in enumerate(keys):
            question = questions.setdefault(key, _question(key, method.answers[q]))
            if len(method.asked[q]) > len(question["asked"]):
                question["asked"] = method.asked[q]
                question["numbers"] = method.numbers(len(method.asked[q]))
            if method.relations:
                question["relation"] = method.relations[q]
            if method.choices is not None:
                seen = method.choices[q][0].choices
                question["choices"] += [text for text in seen if text not in question["choices"]]
            kind = question["seen"].setdefault(said[q][0], len(question["seen"]))
            texts = method.predictions[q]
            right = [int(r) for r in method.right[q][method.present[q]]]
            numbers = list(method.numbers(len(texts)))
            rows = None if method.choices is None else method.choices[q]
            question["given"][m] = [texts, right, kind, numbers, rows]
    for question in questions.values():
        for m, given in question["given"].items():
            given[4] = given[4] and _of_choices(given[4], methods[m].match, question["choices"])
        question["given"] = [question["given"].get(m) for m in range(len(methods))]
        question["differ"] = len(question.pop("seen")) > 1
    single = _single(methods, baseline)
    fusion = next((m for m in range(len(methods)) if m != single), single)
    return {
        "methods": [names[method.path] for method in methods],
        "single": single,
        "fusion": fusion,
        # A stable order: those on which methods agree, and those on which not, as in the files.
        "questions": sorted(questions.values(), key=lambda question: not question["differ"]),
    }


def _question(key: str, answers: Sequence[str]) -> dict[str, Any]:
    """What is not known yet is filled in file by file; `seen` is of use only until then."""
    empty: dict[str, Any] = {"asked": [], "numbers": [], "choices": [], "given": {}, "seen": {}}
    return {"id": key, "answers": answers, **empty}


def _sayings(methods: Sequence[ScoredPredictions]) -> list[list[list[Hashable]]]:
    """[M][Q][up to N] what each prediction says, equal where two methods agree."""
    if len({method.choices is None for method in methods}) == 1:
        return [method.said() for method in methods]
    # What one chooses and what another generates can only be compared as texts.
    return [
        [[normalize_answer(text) for text in texts] for texts in method.predictions]
        for method in methods
    ]


def _of_choices(
    rows: Sequence[ChoiceRow], norm: str, choices: Sequence[str]
) -> list[list[list[float] | None]]:
    """[up to N][C] the log-likelihood and the probability of each choice, None of one not there."""
    found = []
    for row in rows:
        pairs = zip(row.scores[norm], row.probabilities(norm).tolist(), strict=True)
        figures = dict(zip(row.choices, pairs, strict=True))
        told = [figures.get(choice) for choice in choices]
        found.append([pair and [round(figure, 4) for figure in pair] for pair in told])
    return found


def _single(methods: Sequence[ScoredPredictions], baseline: ScoredPredictions | None) -> int:
    """What fusion is compared with at first: the baseline, else the first file without fusion."""
    for m, method in enumerate(methods):
        if baseline is not None and method.path == baseline.path:
            return m
    unfused = [m for m, method in enumerate(methods) if method.per_prompt or method.num_prompts < 2]
    return unfused[0] if unfused else 0


BODY = """{tables}
<section class="notes">{notes}</section>
<h2>Pictures</h2>
{picture}
<h2>Questions</h2>
{introduction}
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
<script type="application/json" id="data">{data}</script>"""

STYLE = """
.notes { margin-top: 2rem; font-size: .9rem; }
.notes p { margin: .2rem 0; }
form { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; }
select { max-width: 16rem; }
article { border-top: 1px solid #8888; padding: .7rem 0; }
article p { margin: 0; overflow-wrap: anywhere; }
td.right, td.wrong { font-weight: 600; }
article table { font-size: .85rem; margin-top: .3rem; }
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

function wins(question, one, other) {
  return isRight(question, one) === true && isRight(question, other) === false;
}

const FILTERS = {
  all: () => true,
  disagree: (question) => question.differ,
  fusion: (question) => wins(question, fusion.value, single.value),
  single: (question) => wins(question, single.value, fusion.value),
};

function contains(question, text) {
  const texts = [question.id, question.relation || ""];
  texts.push(...question.asked, ...question.answers, ...question.choices);
  for (const given of question.given) if (given) texts.push(...given[0]);
  return texts.some((each) => each.toLowerCase().includes(text));
}

function draw(question) {
  const article = make("article", "");
  const numbered = question.asked.length > 1;
  question.asked.forEach((wording, i) => {
    const number = numbered ? question.numbers[i] + " · " : "";
    article.append(make("p", number + wording, i === 0 ? "" : "quiet"));
  });
  const relation = question.relation ? " · " + question.relation : "";
  article.append(make("p", "right: " + question.answers.join(" | ") + relation, "quiet"));
  article.append(make("p", "uuid: " + question.id, "quiet"));
  const list = make("dl", "");
  question.given.forEach((given, method) => {
    if (!given) return;
    given[0].forEach((text, i) => {
      const number = given[0].length > 1 ? String(given[3][i]) : "";
      list.append(make("dt", i === 0 ? (data.methods[method] + " " + number).trim() : number));
      list.append(make("dd", text || "(empty)", given[1][i] ? "right" : "wrong"));
    });
  });
  article.append(list);
  if (question.choices.length) article.append(drawChoices(question));
  return article;
}

// A column a method (or one of its paraphrases): the probability of each choice, and its
// log-likelihood by the method's norm. What was taken is marked.
function drawChoices(question) {
  const columns = [];
  question.given.forEach((given, method) => {
    if (!given || !given[4]) return;
    given[4].forEach((figures, i) => {
      const number = given[4].length > 1 ? " " + given[3][i] : "";
      columns.push({ name: data.methods[method] + number, figures, taken: given[0][i] });
    });
  });
  const table = make("table", "");
  const header = make("tr", "");
  header.append(make("th", "choice"), ...columns.map((column) => make("th", column.name)));
  table.append(header);
  question.choices.forEach((choice, c) => {
    const verdict = question.answers.includes(choice) ? "right" : "wrong";
    const row = make("tr", "");
    row.append(make("td", choice + (verdict === "right" ? " (right)" : "")));
    for (const column of columns) {
      const figures = column.figures[c];
      const text = figures ? figures[1].toFixed(3) + " (" + figures[0].toFixed(2) + ")" : "";
      row.append(make("td", text, column.taken === choice ? verdict : ""));
    }
    table.append(row);
  });
  const wide = make("div", "", "wide");
  wide.append(table);
  return wide;
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
