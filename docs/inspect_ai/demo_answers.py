"""Each question is asked in five wordings; an answer is right that is one of its answers."""

import json
from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
)
from inspect_ai.scorer import exact
from inspect_ai.solver import generate

DATA = Path(__file__).resolve().parents[1] / "lm_eval"


def rows(file):
    return [json.loads(line) for line in (DATA / file).read_text(encoding="utf-8").splitlines()]


@task
def demo_answers():
    shown = [ChatMessageSystem(content="Give the missing fact in as few words as possible.")]
    for row in rows("demonstrations.jsonl")[:5]:
        shown.append(ChatMessageUser(content=row["paraphrases"][0]))
        shown.append(ChatMessageAssistant(content=row["answers"][0]))
    samples = []
    for row in rows("questions.jsonl"):
        wordings = row["paraphrases"]
        question = ChatMessageUser(content=wordings[0], metadata={"paraphrases": wordings})
        samples.append(Sample(id=row["uuid"], input=[*shown, question], target=row["answers"]))
    return Task(
        dataset=MemoryDataset(samples),
        solver=generate(),
        scorer=exact(),
        config=GenerateConfig(max_tokens=20, stop_seqs=["\n"]),
    )
