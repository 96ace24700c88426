"""What a model is shown when it is asked for a paraphrase: instructions and demonstrations.

One set for questions, one for sentences with a gap. All were written for this project. An example
keeps every name of its question and says the rest in other words; where the question is written
without capitals, so is its paraphrase.
"""

from self_ensemble.data import FewShot, PromptTemplate, prompt_template
from self_ensemble.paraphrasing.words import key

QUESTION_INSTRUCTION = (
    "Ask the same question in other words. Keep its meaning and every name and number in it, "
    "do not answer it, and write one line."
)
QUESTION_EXAMPLES = (
    FewShot(
        "who painted the ceiling of the sistine chapel?",
        "which artist is the sistine chapel's ceiling by?",
    ),
    FewShot(
        "What is the boiling point of ethanol?",
        "At which temperature does ethanol start to boil?",
    ),
    FewShot(
        "what team did johan cruyff play for in 1975?",
        "in 1975, johan cruyff was a player of which club?",
    ),
    FewShot(
        "Where was Marie Curie born?",
        "Which city was the birthplace of Marie Curie?",
    ),
    FewShot(
        "what language do they speak in suriname?",
        "the people of suriname talk to each other in what language?",
    ),
    FewShot(
        'Who sings the song "Dancing Queen"?',
        'By whom is the song "Dancing Queen" performed?',
    ),
)

SENTENCE_INSTRUCTION = (
    "Say the same sentence in other words. Keep its meaning, every name and number in it, and "
    "[MASK] exactly once for the missing part; do not fill it in, and write one line."
)
SENTENCE_EXAMPLES = (
    FewShot(
        "The capital of Mongolia is [MASK].",
        "[MASK] is the city from which Mongolia is governed.",
    ),
    FewShot(
        "Frida Kahlo was born in [MASK].",
        "[MASK] is where Frida Kahlo came into the world.",
    ),
    FewShot(
        "[MASK] developed the programming language COBOL.",
        "The programming language COBOL is a creation of [MASK].",
    ),
    FewShot(
        "Zinédine Zidane plays the sport of [MASK].",
        "The sport for which people know Zinédine Zidane is [MASK].",
    ),
    FewShot(
        "The river Danube flows into [MASK].",
        "At its end the river Danube reaches [MASK].",
    ),
    FewShot(
        "Air New Zealand has its headquarters in [MASK].",
        "If you visit the head office of Air New Zealand, you go to [MASK].",
    ),
)

# Kind of question → instruction and few-shot demonstrations.
PROMPTS = {
    "questions": (QUESTION_INSTRUCTION, QUESTION_EXAMPLES),
    "sentences": (SENTENCE_INSTRUCTION, SENTENCE_EXAMPLES),
}


# What the demonstrations speak of: a candidate that says so, and whose question does not, repeats
# them.
ECHOED_NAMES = ("Dancing Queen", "Johan Cruyff", "Sistine Chapel", "Marie Curie", "Frida Kahlo")


def _echoes() -> frozenset[tuple[str, ...]]:
    said = [
        text
        for _, demonstrations in PROMPTS.values()
        for shot in demonstrations
        for text in (shot.question, shot.answer)
    ]
    return frozenset(map(key, (*said, *ECHOED_NAMES)))


ECHOES = _echoes()


def plain_templates() -> dict[str, PromptTemplate]:
    """The prompt of each kind of question."""
    return {kind: prompt_template(*prompt) for kind, prompt in PROMPTS.items()}
