"""Facts as cloze statements: what MyriadLAMA and ParaRel have in common.

    fill("[X] is in [Y].", "Lima", "line 3 of P17.jsonl")     # "Lima is in [MASK]."

A template has `[X]` in the subject's place and `[Y]` in the answer's (Petroni et al. 2019,
"Language Models as Knowledge Bases?").
"""

from self_ensemble.data.cells import show
from self_ensemble.system.errors import UserError

SUBJECT, OBJECT = "[X]", "[Y]"
# The very text that MyriadLAMA's published predictions were made with: to be comparable.
INSTRUCTION = "Based on the context, predict the [MASK] in the sentence in one word."


def check_template(template: str, where: str) -> None:
    """Raises UserError where one of the two places is missing."""
    for slot in (SUBJECT, OBJECT):
        if slot not in template:
            raise UserError(f"{where}: the template {show(template)} has no {slot}")


def fill(template: str, subject: str, where: str) -> str:
    """`[X] is in [Y].` -> `Lima is in [MASK].`"""
    check_template(template, where)
    return template.replace(OBJECT, "[MASK]").replace(SUBJECT, subject)
