"""The quality filter: each reason by cases with it and cases without it, and what words are."""

import csv
import io
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from self_ensemble.paraphrasing import prompts as rewording
from self_ensemble.paraphrasing import quality_filter, report
from self_ensemble.paraphrasing.names import added_names, kept_weight, lost_names, names
from self_ensemble.paraphrasing.rejections import Rejection
from self_ensemble.paraphrasing.words import key, words


def found(paraphrase, question, answers=("Zanzibar",), **more):
    """The checks that fail, each once."""
    wrong = quality_filter.rejections(paraphrase, question=question, answers=answers, **more)
    return tuple(dict.fromkeys(each.check for each in wrong))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  “Côte d’Ivoire”, 2.", "the cote divoire 2"),
        ("NEW-YORK (ci\u00adty)\tof\u00a0Straße\u200b!", "new york city of strasse"),
        ("ﬁve Ｗide it´s it's", "five wide its its"),
        ("$9.99 and C++ or C#", "9 99 and c++ or c"),
        ("東京 は", "東 京 は"),
        ("がか", "が か"),
        ("हिन्दी", "हिन्दी"),
        (" \n?!—", ""),
    ],
)
def test_words(text, expected):
    assert words(text) == tuple(expected.split())


OF_MEANING = quality_filter.CHECKS[quality_filter.CHECKS.index("lost_name") :]


def found_in_text(paraphrase, question, **more):
    """Without the checks of meaning, which have tests of their own."""
    return tuple(c for c in found(paraphrase, question, **more) if c not in OF_MEANING)


# paraphrase, question → checks; the answer is Zanzibar
CASES = [
    ("Which islands belong to Tanzania?", "What islands does Tanzania own?", ""),
    ("", "Who?", "empty"),
    ("?! ...", "Who?", "empty"),
    ("Who is\nit?", "Who was that?", "many_lines"),
    ("Who is it?\n", "Who was that?", ""),
    ("Who is\u2028it?", "Who was that?", "many_lines"),
    ("who " + "would have thought of it being such a long story to tell", "Who?", ""),
    ("who would have thought of it being such a long story to tell us", "Who?", "too_long"),
    ("who who who was it", "Who was that?", "repeats"),
    ("who who was it", "Who was that?", ""),
    ("who was the man who was the man of it", "Who was that?", "repeats"),
    ("who was the man who was the boy of it", "Who was that?", ""),
    ("by whom was Bye Bye Bye made", "Who wrote Bye Bye Bye?", ""),
    ("Q: who was it?", "Who was that?", "echo"),
    ("who was it? A: him", "Who was that?", "echo"),
    ("who was it? answer 2 : him", "Who was that?", "echo"),
    ("<think> who was it", "Who was that?", "echo"),
    ("who was it<|eot_id|>", "Who was that?", "echo"),
    ("who was it [/INST]", "Who was that?", "echo"),
    ("Sure, in other words: ", "Who was that?", "echo"),
    ("that was, by name:", "Who is this, please:", ""),
    ("what is vitamin A: a drug?", "which thing is vitamin A?", ""),
    ("Answer: a Play is by whom?", "Answer: a Play was written by whom?", ""),
    ("WHO was that", "Who was that?", "copy_of_question"),
    ("who was the that!", "Who was that?", "copy_of_question"),
    ("who wás thät", "Who was that?", "copy_of_question"),
    ("which island is zanzibar?", "Which island is it?", "answer_leaked"),
    ("which islands are Zanzibars?", "Which island is it?", ""),
    ("is it zanzibar again?", "Is Zanzibar an island?", ""),
    ("What is called [MASK]?", "[MASK] is what it is called.", ""),
    ("What is called that?", "[MASK] is what it is called.", "lost_mask"),
    ("[MASK] is called [MASK]", "[MASK] is what it is called.", "lost_mask"),
    ("What is it [MASK]?", "What is called so?", "lost_mask"),
    ("What is called [mask]?", "[MASK] is what it is called.", "lost_mask"),
]


@pytest.mark.parametrize(("paraphrase", "question", "expected"), CASES)
def test_checks_of_the_text(paraphrase, question, expected):
    assert found_in_text(paraphrase, question) == tuple(expected.split())


# paraphrase, question → check and what it failed by; the answer is Zanzibar
MEANINGS = [
    (
        "who sang for Johansen",
        "Who sang with Johanna?",
        [("lost_name", "johanna"), ("added_name", "johansen")],
    ),
    (
        "who is the king of oman",
        "who is the king of jordan",
        [("lost_name", "jordan"), ("added_name", "oman")],
    ),
    (
        "who won in 1991?",
        "who won the cup in 1990?",
        [("lost_name", "1990"), ("added_name", "1991")],
    ),
    ("what is the smolfin of the cup?", "what does the cup show?", [("added_name", "smolfin")]),
    ("you get what?", "what are views on health care?", [("lost_words", "")]),
    ("is peru an island?", "what is peru?", [("not_a_question", "yes or no")]),
    ("peru is an island.", "what is peru?", [("not_a_question", "a statement")]),
    ("the land by which peru is ruled.", "what rules peru?", [("not_a_question", "a statement")]),
    ("could you tell me what peru is?", "what is peru?", []),
    ("name the king of peru.", "who is the king of peru?", []),
    ("peru's king is who?", "who is the king of peru?", []),
    ("by whom is peru led?", "who leads peru?", []),
    ("In [MASK] is Peru.", "where is Peru?", [("lost_mask", "")]),
    (
        "when was peru founded?",
        "where was peru founded?",
        [("other_interrogative", "a time, not a place")],
    ),
    ("when peru was founded, who led it?", "who led peru when it was founded?", []),
    ("in which year was peru founded?", "when was peru founded?", []),
    ("which place is peru's capital?", "where is peru's capital?", []),
    ("who did not lead peru?", "who led peru?", [("negation", "not")]),
    ("peru is led by none other than whom?", "who leads peru?", []),
    ("where was tom raised?", "where was tom buried?", [("contrast", "raised for buried")]),
    ("where did tom die?", "where was tom born?", [("contrast", "die for born")]),
    ("what is tom's birthplace?", "where was tom born?", []),
    ("who led peru before tom?", "who led peru under tom?", [("contrast", "before for under")]),
    ("what city is tom in?", "what country is tom in?", [("contrast", "city for country")]),
    ("what city in the country is tom in?", "what country is tom in?", []),
    ("who did tom kill?", "who killed tom?", [("swapped_roles", "killed")]),
    ("who killed tom?", "who did tom kill?", [("swapped_roles", "killed")]),
    ("by whom was tom killed?", "who killed tom?", []),
]


@pytest.mark.parametrize(("paraphrase", "question", "expected"), MEANINGS)
def test_checks_of_the_meaning_say_by_what(paraphrase, question, expected):
    wrong = quality_filter.rejections(paraphrase, question=question, answers=["Zanzibar"])
    assert [(each.check, each.what) for each in wrong] == expected


def test_every_check_has_a_case_and_a_name():
    seen = {check for *_, expected in CASES for check in expected.split()}
    seen |= {check for *_, expected in MEANINGS for check, _ in expected}
    elsewhere = {"truncated", "refused", "copy_of_another", "unlikely"}
    assert seen | elsewhere == set(quality_filter.CHECKS)
    assert all(f"| {check} |" in quality_filter.__doc__ for check in quality_filter.CHECKS)


PERU = "who is the president of peru"


@pytest.mark.parametrize(
    ("paraphrase", "question", "expected"),
    [
        ("Sure! Who leads peru as president", PERU, "echo"),
        ("Sure", PERU, "echo"),
        ("Of course, I'd put it so: who leads peru", PERU, "echo"),
        ("Certainly here is one", PERU, "echo"),
        ("Here is a paraphrase: who heads peru", PERU, "echo"),
        ("Here's another version who heads peru", PERU, "echo"),
        ("Here is the question in other words - who heads peru", PERU, "echo"),
        ("1. who leads peru", PERU, "echo"),
        ("2) who leads peru", PERU, "echo"),
        ("- who leads peru", PERU, "echo"),
        ("Rephrased with other nouns: who leads peru", PERU, "echo"),
        ("put in other words: who leads peru", PERU, "echo"),
        ("One could ask: who leads peru", PERU, "echo"),
        (f'"{PERU}" can be rephrased as: who leads peru', PERU, "echo"),
        (f"the question, {PERU.upper()}, again", PERU, "echo"),
        ("I cannot answer that about peru", PERU, "refused"),
        ("I’m sorry, but who leads peru", PERU, "refused"),
        ("I can't rephrase who leads peru", PERU, "refused"),
        ("As an AI, I do not know peru", PERU, "refused"),
        # of the question itself, or a sentence's own
        ("Sure Thing is a song of whom", "who made Sure Thing", ""),
        ("Sure, Sure is a song of whom", "who made Sure, Sure?", ""),
        ("Sorry is a song of whom", "by whom is Sorry sung?", ""),
        ("I Can't Explain is by which band?", "who wrote I Can't Explain?", ""),
        ("Here is where the river ends: [MASK].", "The river ends in [MASK].", ""),
        ("Here the version of [MASK] is kept.", "[MASK] is kept there.", ""),
        ("1. FC Union is at home where?", "Where does 1. FC Union play?", ""),
        ("1.5 is the half of which number?", "What is 1.5 the half of?", ""),
        ("in 1975. where was it?", "where was it in 1975", ""),
        ("so who was that man?", "Who was that?", ""),
        ("could you say who leads peru", PERU, ""),
        ("What is another way of saying hello?", "How else is hello said?", ""),
    ],
)
def test_announcements_and_refusals(paraphrase, question, expected):
    assert found_in_text(paraphrase, question) == tuple(expected.split())


@pytest.mark.parametrize(
    ("question", "paraphrases", "lost"),
    [
        ("Which island is it?", ["It is [MASK].", "What is it?", "[MASK] is [MASK]."], [0, 0, 1]),
        ("[MASK] is an island.", ["It is [MASK].", "What is it?", "[MASK] is [MASK]."], [0, 1, 1]),
        ("[MASK] is [MASK] by name.", ["[MASK] and [MASK]", "It is [MASK]."], [0, 1]),
        (None, ["It is [MASK].", "What is it?", "It is so.", "Is it [MASK] [MASK]?"], [0, 0, 1, 1]),
    ],
)
def test_a_file_may_mix_questions_and_sentences_with_a_gap(question, paraphrases, lost):
    found = quality_filter.verdicts(paraphrases, question=question, answers=())
    assert ["lost_mask" in {w.check for w in wrong} for wrong in found] == list(map(bool, lost))


def test_truncated_and_several_at_once_in_order():
    assert found("who is it", "Who was that?", truncated=True) == ("truncated",)
    several = found_in_text("A: Zanzibar\nA: Zanzibar", "Is Kim [MASK]?", truncated=True)
    assert several == (
        *("many_lines", "truncated", "echo"),
        *("answer_leaked", "lost_mask"),
    )


@pytest.mark.parametrize(
    ("answer", "paraphrase", "question", "leaks"),
    [
        ("New York", "is it in New York City?", "Where is it?", True),
        ("New York", "is the York new?", "Where is it?", False),
        ("The Hague", "is it hague or not?", "Where is it?", True),
        ("US", "can you tell us the land?", "Which land is it?", False),
        ("US", "is it the US?", "Which land is it?", True),
        ("is", "what is the land?", "Which land was it?", False),
        ("of", "the land of [MASK]", "[MASK] was its land", False),
        ("The", "the land", "a land", False),
        ("!", "the land!", "a land", False),
        ("1945", "the war of 1945", "the war", True),
        ("東京", "首都は東京ですか", "首都はどこですか", True),
        ("Beyoncé", "did beyonce sing it?", "Who sang it?", True),
    ],
)
def test_leaked_answer(answer, paraphrase, question, leaks):
    assert quality_filter.leaks(answer, paraphrase, question) == leaks


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        # by their capitals
        ("Where was Marie Curie born?", "marie curie"),
        ("[MASK] is where Frida Kahlo lived.", "frida kahlo"),
        ("Which of O'Neill's plays is it, Anna Christie?", "oneill anna christie"),
        ("What did she do in 1903 and the 20th century?", "1903 20th"),
        ('Who sings "all of me"?', ""),
        ('Who sings "blue moon rising"?', "blue moon rising"),
        ("Who sings «la mer» or “sea of love”?", "la mer sea love"),
        ("Am I in Rome? Where is Berlin?", "rome berlin"),
        # the first word of a sentence
        ("Paris is a capital.", "paris"),
        ("Encyclopedias list it under Egypt.", "egypt"),
        ("Who lives in [MASK]? Paris does.", "paris"),
        ("Whenever The Dream is performed, it is by [MASK].", "dream"),
        ('In the words "sung by", whose name follows in Egypt?', "egypt"),
        # no capitals, or nothing but capitals
        ("what did justin bieber's brother play in the uk?", "justin bieber uk"),
        ("What Did Justin Bieber Play In Egypt?", "justin bieber egypt"),
        ("WHAT DID JUSTIN BIEBER PLAY", "justin bieber"),
        ("what is skyfall", "skyfall"),
        ("what does the missouri bisect", "missouri"),
        ("who is the king of jordan", "king jordan"),
        ("what do zoologists call it in paris", "paris"),
        ("In English, what is a young dog called?", ""),
        ("日本の首都はどこですか", ""),
    ],
)
def test_names(question, expected):
    assert names(question) == tuple(expected.split())


@pytest.mark.parametrize(
    ("name", "said", "kept"),
    [
        ("Mexico", "the Mexican flag", True),
        ("Italy", "what do Italians eat", True),
        ("China", "the Chinese wall", True),
        ("Egypt", "egyptian kings", True),
        ("Iceland", "what do Icelanders eat", True),
        ("Austria", "the flag of Australia", False),
        ("Iran", "the flag of Iraq", False),
        ("Johnson", "Johnston's flag", False),
        ("1945", "the year 1946", False),
        ("1980s", "the year 1980", False),
        ("Bob", "Bobs flag", False),
        ("Kahlo", "Kahlo's flag", True),
        ("Kahlo", "the flag that Kahlo' s", True),
        ("Jones", "Jones' flag", True),
        ("Spider-Man", "the flag of Spiderman", True),
        ("Spiderman", "the flag of Spider-Man", True),
        ("Kim", "the skimming of it", False),
        ("Kim", "Kim's flag", True),
        ("Beyoncé", "the flag of BEYONCE", True),
        # short forms
        ("United States of America", "the flag of the USA", True),
        ("USA", "the flag of the United States of America", True),
        ("Lord of the Rings", "the flag in LOTR", True),
        ("Florida", "the flag of FL", True),
        ("AZ", "the flag of Arizona", True),
        ("Indiana", "the flag in it", False),
        ("Louis II", "the flag of Louis the 2nd", True),
    ],
)
def test_kept_name(name, said, kept):
    assert bool(lost_names(said, f"What is it of {name}?")) != kept


@pytest.mark.parametrize(
    ("question", "said", "added"),
    [
        ("where do the celtics practice", "where do the Boston Celtics practice", ""),
        ("where do the celtics practice", "where in Boston do the celtics practice", "boston"),
        ("who won it in 1990", "who won it in 1990 and 1991", "1991"),
        ("who won it", "who was the victor of it at the statehouse", ""),
        ("what is the flag of usa", "what is the flag of the united states of america", ""),
        ("who won it", "who won the zurzer of it", "zurzer"),
        ("who plays roxanne", "Who plays Johnny Blaze", "johnny"),
    ],
)
def test_added_name(question, said, added):
    assert added_names(said, question) == tuple(added.split())


def test_rare_words_and_names_weigh_more():
    question = "what instruments does bieber use"
    kept = [kept_weight(f"what {word}", question) for word in ("use", "instrument", "bieber")]
    assert 0 < kept[0] < kept[1] < kept[2] < 1
    assert kept_weight("bieber uses instruments", question) == 1
    assert kept_weight("you get what", "what") == 1


def test_copies_of_each_other():
    verdicts = quality_filter.verdicts(
        [
            "Whose flag is it?",
            "A: What flag is it?",  # worse than the next, which so is no copy
            "what flag is it",
            "whose  FLAG is it",
            "What flag is it!",
            "Zanzibar: what flag?",
            "zanzibar, what flag",
        ],
        question="Which flag is it?",
        answers=["Zanzibar"],
    )
    copy, leak = "copy_of_another", "answer_leaked"
    in_text = [[w.check for w in wrong if w.check not in OF_MEANING] for wrong in verdicts]
    assert in_text == [[], ["echo"], [], [copy], [copy], [leak], [copy, leak]]
    assert verdicts[3][-1].what == "Whose flag is it?"


def test_without_a_question_the_first_paraphrase_stands_for_it():
    verdicts = quality_filter.verdicts(
        ["Zanzibar is in [MASK].", "zanzibar is in [MASK]", "In which land? [MASK]", "In [MASK]."],
        question=None,
        answers=["Tanzania", "Zanzibar"],
    )
    checks = [[each.check for each in wrong] for wrong in verdicts]
    lost = ["lost_name"]
    assert checks == [[], ["copy_of_question", "copy_of_another"], lost, lost]


SPELLED = st.text(st.sampled_from("abcßéÅ1東ж"), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(SPELLED, min_size=1, max_size=6), st.data())
def test_a_copy_is_known_however_it_is_written(texts, data):
    """Case, articles, punctuation, spaces and the form of accents never make another text."""
    written = []
    for text in texts:
        for article in data.draw(st.lists(st.sampled_from(["a", "The", "AN"]), max_size=1)):
            written.append(article)
        forms = [text, text.upper(), text.lower(), unicodedata.normalize("NFD", text)]
        written.append(data.draw(st.sampled_from(forms)))
    gap = st.sampled_from([" ", "  ", ", ", " - ", "\u00a0", "; “"])
    said = "".join(word + data.draw(gap) for word in written)
    original = " ".join(texts)
    assert key(said) == key(original)
    assert "copy_of_question" in found(said, original)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40), st.lists(st.text(max_size=8), max_size=2))
def test_any_text_is_judged(paraphrase, question, answers):
    reasons = found(paraphrase, question, answers)
    assert list(reasons) == [reason for reason in quality_filter.CHECKS if reason in reasons]
    assert key(paraphrase) != key(question) or {
        "empty",
        "copy_of_question",
    } & {*reasons}


@pytest.mark.parametrize(
    "examples", [rewording.QUESTION_EXAMPLES, rewording.SENTENCE_EXAMPLES], ids=["?", "[MASK]"]
)
def test_the_prompts_own_examples_pass(examples):
    for shot in examples:
        assert found(shot.answer, shot.question) == ()
        assert shot.question.islower() == shot.answer.islower()


def test_an_example_of_the_prompt_is_an_echo():
    echoes = {key("Where is Lima?"), key("Dancing Queen")}
    for text in ("where is LIMA", "who sings 'dancing queen' in rome"):
        assert found(text, "Where is Rome?", echoes=echoes)[0] == "echo"
    assert "echo" not in found(
        "who sings Dancing Queen", "by whom is dancing queen?", echoes=echoes
    )
    assert key("dancing queen") in rewording.ECHOES


def test_report():
    lost = (Rejection("lost_name", "x"), Rejection("lost_words", value=0.25))
    filtered = [
        ("u1", "fine", ()),
        ("u1", 'a "b",\nc' + "d" * 80, (Rejection("many_lines", value=2), *lost)),
        ("u2", "x" * 80, lost[:1]),
        ("u3", "y", ()),
    ]
    lines = report.report_lines(filtered)
    assert max(map(len, lines)) <= 100
    cells = {line.split()[0]: line.split() for line in lines}
    assert cells["lost_name"][1:3] == ["2", "0.5000"]
    assert cells["many_lines"][1:3] == ["1", "0.2500"]
    assert cells["many_lines"][3:] == ["'a", '"b",\\nc' + "d" * 43 + "..."]
    assert cells["empty"] == ["empty", "0", "0.0000"]
    assert lines[-1].split() == ["any", "of", "these", "2", "0.5000", "of", "4", "paraphrases"]
    rows = list(csv.DictReader(io.StringIO(report.report_csv(filtered), newline="")))
    assert [(r["uuid"], r["check"], r["what"], r["value"]) for r in rows] == [
        ("u1", "many_lines", "", "2"),
        ("u1", "lost_name", "x", ""),
        ("u1", "lost_words", "", "0.25"),
        ("u2", "lost_name", "x", ""),
    ]
    assert {r["paraphrase"] for r in rows} == {text for _, text, wrong in filtered if wrong}


def test_without_answers_no_leak_is_looked_for():
    question, leaking = "which island is zanzibar?", "Is Zanzibar the island of Unguja?"
    assert "answer_leaked" in found(leaking, question, answers=("Unguja",))
    assert "answer_leaked" not in found(leaking, question, answers=())
    for have_answers, told in ((True, "0"), (False, "-")):
        lines = report.report_lines([("u", leaking, ())], have_answers=have_answers)
        assert max(map(len, lines)) <= 100
        [line] = [line for line in lines if line.startswith("answer_leaked")]
        assert line.split()[1] == told
        assert ("the questions have no answers" in line) != have_answers
