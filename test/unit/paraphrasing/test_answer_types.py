"""The type of answer that a question asks for: rewordings that keep it, and drafts that do not."""

import pytest

from self_ensemble.paraphrasing.answer_types import asked_for, changed_answer_type

GOOD = [
    ("Which actor portrays Tom?", "who plays tom?"),
    ("By which composer was the opera written?", "who wrote the opera?"),
    ("What is the name of the person who leads Peru?", "who leads peru?"),
    ("Which team won the cup?", "who won the cup?"),
    ("Which country sold the island?", "who sold the island?"),
    ("Which country does he come from?", "who does he play for?"),
    ("Where does Tom work?", "who does tom work for?"),
    ("Whose territory is the mountain on?", "in which country is the mountain?"),
    ("Tom was born in what town?", "where was tom born?"),
    ("What is the name of the city where Tom died?", "where did tom die?"),
    ("What is Tom's birthplace?", "where was tom born?"),
    ("Which university did Tom attend?", "where did tom study?"),
    ("What is the capital of Peru?", "where is the capital of peru?"),
    ("Name the year in which Tom died.", "when did tom die?"),
    ("On what date did Tom die?", "when did tom die?"),
    ("At what age did Tom marry?", "how old was tom when he married?"),
    ("How many years did it take?", "how long did it take?"),
    ("What is the population of Peru?", "how many people live in peru?"),
    ("What does an apple cost?", "how much is an apple?"),
    ("For what reason did Tom leave?", "why did tom leave?"),
    ("What caused the war?", "why did the war begin?"),
    ("How did Tom die?", "what happened to tom?"),
    ("Which language do people of Peru speak?", "what do people in peru speak?"),
    ("What is the state flower of Ohio?", "which flower stands for ohio?"),
    ("Which state flower did they choose?", "what did they choose when they met?"),
    ("Which country music singer wrote it?", "who wrote it?"),
    ("What time zone is Peru in?", "what is the timezone of peru?"),
    ("Where and when was Tom born?", "when was tom born?"),
    ("What is the name of the actor's dog?", "which animal does the actor own?"),
    ("What is the actor's birthplace?", "where was the actor born?"),
    ("What is the author known for?", "why is tom famous?"),
    ("What is the president salary?", "how much does the president earn?"),
    ("When he died, who followed?", "who followed when he died?"),
    ("Where is [MASK]?", "when was it?"),
]
BAD = [
    ("In what year did Ann wed?", "who did ann marry?", "a time, not a person"),
    ("Ann married on what date?", "who did ann marry?", "a time, not a person"),
    ("In which country does the actor play?", "who plays tom?", "a place, not a person"),
    ("In which film does Tom play?", "who plays tom?", "a work, not a person"),
    ("Where is Peru's king?", "who is peru's king?", "a place, not a person"),
    ("In what sport did Ann start?", "where did ann start?", "a sport, not a place"),
    ("What is the capital of Tom?", "where is tom from?", "a capital, not a place"),
    ("Which phone maker company is Acme?", "where is acme based?", "a group, not a place"),
    ("What is the exchange rate?", "where can i change money?", "a number, not a place"),
    ("What is the last name of Tom?", "where did tom die?", "a name, not a place"),
    ("What is the name of the man who shot Tom?", "where was tom shot?", "a person, not a place"),
    ("How long did the war last?", "when was the war?", "a duration, not a time"),
    ("By whom was it built?", "when was it built?", "a person, not a time"),
    ("When did Tom die?", "what happened after tom died?", "a time, not an event"),
    ("How many people live there?", "who lives there?", "a number, not a person"),
    ("When did he leave?", "why did he leave?", "a time, not a reason"),
    ("How did the war end?", "when did the war end?", "a manner, not a time"),
    ("Which country is Peru?", "what time zone is peru in?", "a place, not a time zone"),
    ("In what country is Peru?", "which currency has peru?", "a place, not a currency"),
    ("Tell me the name of the town where he died.", "when did he die?", "a place, not a time"),
]


@pytest.mark.parametrize(("paraphrase", "question"), GOOD)
def test_rewordings_ask_for_the_same_type(paraphrase, question):
    assert changed_answer_type(paraphrase, question) == ""
    assert changed_answer_type(question, paraphrase) == ""


@pytest.mark.parametrize(("paraphrase", "question", "expected"), BAD)
def test_another_type_is_named(paraphrase, question, expected):
    assert changed_answer_type(paraphrase, question) == expected


@pytest.mark.parametrize(
    "text", ["what did he do?", "which one is it?", "how good is it?", "", "who"]
)
def test_what_is_not_sure_has_no_type(text):
    assert (asked_for(text) is None) == (text != "who")
