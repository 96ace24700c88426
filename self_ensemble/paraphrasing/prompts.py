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
        "the ceiling of the sistine chapel was painted by whom?",
    ),
    FewShot(
        "What is the boiling point of ethanol?",
        "At what temperature does ethanol boil?",
    ),
    FewShot(
        "what team did johan cruyff play for in 1975?",
        "which team was johan cruyff playing for in 1975?",
    ),
    FewShot(
        "Where was Marie Curie born?",
        "In what place was Marie Curie born?",
    ),
    FewShot(
        "what language do they speak in suriname?",
        "which language is spoken in suriname?",
    ),
    FewShot(
        'Who sings the song "Dancing Queen"?',
        'Which artist sings "Dancing Queen"?',
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


# In a chat format the question is a message by itself, behind those of `demonstration_messages`.
ALONE = PromptTemplate("", "")


def demonstration_messages() -> dict[str, list[dict[str, str]]]:
    """The demonstrations of each kind of question as turns of a chat, the instruction in the first.

    Models that were trained on chats answer what is asked last; of demonstrations that stand in one
    message with it, small ones take up anything.
    """
    found = {}
    for kind, (instruction, demonstrations) in PROMPTS.items():
        messages: list[dict[str, str]] = []
        for shot in demonstrations:
            opening = f"{instruction}\n\n" if not messages else ""
            messages += [
                {"role": "user", "content": opening + shot.question},
                {"role": "assistant", "content": shot.answer},
            ]
        found[kind] = messages
    return found
