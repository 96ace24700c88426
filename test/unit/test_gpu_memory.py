"""The demo on a GPU: recorded, and with memory that really runs out, filled up beforehand.

python -m pytest -n 0 -m gpu
"""

from contextlib import contextmanager

import pytest
import torch

from flex_attention_generate import split_and_place
from self_ensemble.attention.fusion import Fusion
from self_ensemble.data import load_dataset, prompt_template, select_paraphrases
from self_ensemble.generation.legacy import loaded_engine, only_stream
from self_ensemble.models.loading import find_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]


def answers(engine, records, batch_size):
    """Greedy answers of the demo, by index, with attention fusion."""
    dataset = load_dataset("demo", max_samples=None)
    streams = split_and_place(
        engine,
        prompt_template(dataset.instruction, dataset.few_shot),
        [record.paraphrases for record in records],
        layout="shared",
        positions="exact",
        max_new_tokens=8,
    )
    batches = engine.generate(
        streams, fusion=Fusion(), combine=only_stream, max_new_tokens=8, batch_size=batch_size
    )
    return dict(pair for batch in batches for pair in batch)


def tokens(found):
    return {index: answer.token_ids for index, answer in found.items()}


@pytest.fixture(scope="module")
def records():
    return select_paraphrases(
        load_dataset("demo", max_samples=None).records, num_paraphrases=5, indexs=None
    )


@contextmanager
def demo(attention):
    source = find_model("demo", revision=None, device="cuda", dtype="float32")
    with loaded_engine(source, attention=attention) as engine:
        yield engine


def forget(engine):
    """No memory is kept but the model's and the prefix', and none has run out."""
    engine.release()
    engine.fitting, engine.counts.out_of_memory = None, 0


def test_the_demo_is_recorded_and_answers_as_it_does_plainly(records):
    with demo("auto") as engine:
        assert engine.recording
        found = tokens(answers(engine, records, None))
        assert any(step is not None for step in engine.recorded_steps.values())
        with engine.unrecorded():
            assert tokens(answers(engine, records, None)) == found


# How much is left of what the largest batch takes: sdpa's mask grows with the square of a batch.
@pytest.mark.parametrize(("attention", "shares"), [("sdpa", [0.1]), ("flex", [0.8, 0.5, 0.3])])
def test_out_of_memory_halves_the_batch_and_loses_nothing(attention, shares, records, caplog):
    with demo(attention) as engine:
        assert engine.recording == (attention == "flex")
        expected = answers(engine, records, 16)
        forget(engine)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_reserved()
        assert tokens(answers(engine, records, 1000)) == tokens(expected)
        taken = torch.cuda.max_memory_reserved() - before
        for share in shares:
            forget(engine)
            free, _ = torch.cuda.mem_get_info()
            filling = torch.empty(free - int(share * taken), dtype=torch.uint8, device="cuda")
            found = answers(engine, records, 1000)
            del filling
            print(f"{share} of {taken >> 20} MiB: halved {engine.counts.out_of_memory} times")
            assert engine.counts.out_of_memory > 0
            assert tokens(found) == tokens(expected) and len(found) == 1000
    said = [r.getMessage() for r in caplog.records if "out of memory" in r.getMessage()]
    assert said == ["out of memory with 1000 questions at a time: halved"] * len(shares)
