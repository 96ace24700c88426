"""The demo's tables: enough facts and wordings, told once, in one form, no answer given away."""

import csv
import io
import re
import unicodedata
from collections import Counter, defaultdict

import pytest

from self_ensemble.system.bundled import DEMO_DIR

# Relations whose answers are short codes: the letters of "in" or "no" occur in any sentence, and a
# code is made from the letters of what it stands for.
CODES = {
    "country_tld": "two letters, also of common words and often of the country's own name",
    "element_symbol": "one or two letters, often the first ones of the element's name",
    "us_state_abbreviation": "two letters of the state's name",
}


def read_table(name: str) -> list[dict[str, str]]:
    with (DEMO_DIR / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


FACTS = read_table("facts.csv")
TEMPLATES = read_table("templates.csv")
RELATIONS = sorted({fact["relation"] for fact in FACTS})


def of(relation: str, rows: list[dict[str, str]] = FACTS) -> list[dict[str, str]]:
    return [row for row in rows if row["relation"] == relation]


def aliases(fact: dict[str, str]) -> list[str]:
    return fact["aliases"].split("|") if fact["aliases"] else []


def folded(text: str) -> str:
    """The letters and digits of a text, without case, accents, spaces and punctuation."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in decomposed if c.isalnum())


def tell_apart(text: str) -> str:
    """As `folded`, but keeping signs that make a different name, as in C and C++."""
    return folded(text.replace("+", "plus").replace("#", "sharp"))


def twice(items) -> list:
    return [item for item, count in Counter(items).items() if count > 1]


def duplicates_by_fold(texts) -> list[set[str]]:
    groups = defaultdict(set)
    for text in texts:
        groups[tell_apart(text)].add(text)
    return [group for group in groups.values() if len(group) > 1]


def test_there_are_enough_facts_and_wordings():
    assert len(FACTS) >= 1500
    assert len(RELATIONS) >= 12
    assert {template["relation"] for template in TEMPLATES} == set(RELATIONS)
    assert {template["kind"] for template in TEMPLATES} == {"fill", "question"}
    for relation in RELATIONS:
        kinds = Counter(template["kind"] for template in of(relation, TEMPLATES))
        assert kinds.total() >= 20, relation
        assert min(kinds["fill"], kinds["question"]) >= 5, relation


@pytest.mark.parametrize(
    ("name", "columns", "order"),
    [
        ("facts.csv", ["relation", "subject", "answer", "aliases"], ("relation", "subject")),
        ("templates.csv", ["relation", "template", "kind"], ("relation", "kind", "template")),
    ],
)
def test_a_table_is_sorted_and_in_the_one_form_the_csv_module_writes(name, columns, order):
    rows = read_table(name)
    assert list(rows[0]) == columns
    assert rows == sorted(rows, key=lambda row: [row[column] for column in order])
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    assert (DEMO_DIR / name).read_bytes() == text.getvalue().encode("utf-8")


def test_fields_are_filled_and_without_stray_spaces():
    for row in FACTS + TEMPLATES:
        for column, value in row.items():
            assert value or column == "aliases", row
            assert value == " ".join(value.split()), row
            assert value == unicodedata.normalize("NFC", value), row
    for fact in FACTS:
        assert "|" not in fact["subject"] + fact["answer"], fact
        assert all(alias and alias == alias.strip() for alias in aliases(fact)), fact


def test_a_fact_is_told_once():
    assert not twice((fact["relation"], tell_apart(fact["subject"])) for fact in FACTS)


def test_a_template_is_written_once():
    assert not twice(folded(template["template"]) for template in TEMPLATES)


def test_aliases_are_other_names_than_the_answer():
    for fact in FACTS:
        assert not twice([fact["answer"], *aliases(fact)]), fact


@pytest.mark.parametrize("relation", RELATIONS)
def test_an_answer_is_spelt_in_one_way(relation):
    assert not duplicates_by_fold(fact["answer"] for fact in of(relation))


def test_templates_have_their_slots_and_marks():
    for template in TEMPLATES:
        text = template["template"]
        assert text.count("{subject}") == 1, text
        assert text.count("[MASK]") == (template["kind"] == "fill"), text
        assert text.endswith("?" if template["kind"] == "question" else "."), text
        rest = text.replace("{subject}", "").replace("[MASK]", "")
        assert not set("{}[]|") & set(rest), text


def test_a_sentence_does_not_begin_in_lower_case():
    """Subjects such as "gold" or "the Bahamas" need a template that begins with another word."""
    for relation in RELATIONS:
        if any(fact["subject"][0].islower() for fact in of(relation)):
            for template in of(relation, TEMPLATES):
                assert not template["template"].startswith("{subject}"), template
    for template in TEMPLATES:
        assert not template["template"][0].islower(), template


def test_a_subject_does_not_end_in_a_mark_that_the_sentence_sets():
    """Many templates end in the subject: "R.U.R." would give a sentence with two full stops."""
    assert not [fact for fact in FACTS if fact["subject"][-1] in ".?!,;:"]


@pytest.mark.parametrize("relation", [r for r in RELATIONS if r not in CODES])
def test_no_wording_gives_its_answer_away(relation):
    texts = [
        template["template"].replace("[MASK]", "").casefold()
        for template in of(relation, TEMPLATES)
    ]
    for fact in of(relation):
        subject, answer = fact["subject"].casefold(), fact["answer"].casefold()
        for text in texts:
            wording = text.replace("{subject}", subject)
            assert answer not in wording, (wording, answer)


def test_relations_that_are_excused_exist():
    assert set(CODES) <= set(RELATIONS)
    assert all(CODES.values())


def test_elements_are_numbered_from_1_to_118_once_each():
    numbers = {fact["subject"]: fact["answer"] for fact in of("element_number")}
    assert sorted(numbers.values(), key=int) == [str(number) for number in range(1, 119)]
    symbols = {fact["subject"]: fact["answer"] for fact in of("element_symbol")}
    assert set(symbols) == set(numbers)
    assert not twice(symbols.values())
    assert all(re.fullmatch("[A-Z][a-z]?", symbol) for symbol in symbols.values())


def test_domains_and_state_codes_are_two_letters_that_belong_to_one_place():
    for relation, pattern in (("country_tld", "[a-z]{2}"), ("us_state_abbreviation", "[A-Z]{2}")):
        codes = [fact["answer"] for fact in of(relation)]
        assert not twice(codes)
        assert all(re.fullmatch(pattern, code) for code in codes), relation


def test_the_states_of_the_us_are_fifty():
    states = {fact["subject"] for fact in of("us_state_abbreviation")}
    assert len(states) == 50
    assert {fact["subject"] for fact in of("us_state_capital")} == states


def test_calling_codes_are_digits_and_shared_by_the_us_and_canada_only():
    codes = {fact["subject"]: fact["answer"] for fact in of("country_calling_code")}
    assert all(re.fullmatch("[1-9][0-9]{0,3}", code) for code in codes.values())
    assert twice(codes.values()) == ["1"]
    assert codes["Canada"] == codes["the United States"] == "1"
    for fact in of("country_calling_code"):
        for alias in aliases(fact):
            assert folded(alias) == fact["answer"], fact


def test_a_city_is_the_capital_of_one_country_or_state():
    for relation in ("country_capital", "us_state_capital"):
        assert not twice(fact["answer"] for fact in of(relation)), relation


def test_a_country_goes_by_one_name_in_all_relations():
    names = {fact["subject"] for fact in FACTS if fact["relation"].startswith("country_")}
    assert not duplicates_by_fold(name.removeprefix("the ") for name in names)


def test_continents_are_continents():
    continents = {"Africa", "Asia", "Europe", "North America", "South America", "Oceania"}
    for relation in ("country_continent", "river_continent"):
        assert {fact["answer"] for fact in of(relation)} <= continents, relation
