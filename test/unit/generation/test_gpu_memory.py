"""The demo on a GPU: captured, and with memory that really runs out, filled up beforehand.

python -m pytest -n 0 -m gpu
"""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from self_ensemble.data import load_dataset, prompt_template, select_paraphrases
from self_ensemble.generation.config import GenerationConfig
from self_ensemble.generation.loading import loaded_engine
from self_ensemble.methods.attention_fusion import AttentionFusion
from self_ensemble.models.config import ModelConfig
from self_ensemble.models.loading import find_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]


@pytest.fixture(scope="module")
def records():
    return select_paraphrases(
        load_dataset("demo", max_samples=None).records, num_paraphrases=5, indexs=None
    )


def ask(engine, records):
    """The demo's questions, fused in the attention."""
    dataset = load_dataset("demo", max_samples=None)
    template = prompt_template(dataset.instruction, dataset.few_shot)
    questions = [record.paraphrases for record in records]
    return AttentionFusion().request(engine, template, questions, GenerationConfig(8))


def tokens(generation):
    return {index: answer.token_ids for batch in generation for index, answer in batch}


@contextmanager
def demo(attention):
    source = find_model(ModelConfig(device="cuda", dtype="float32"))
    with loaded_engine(source, attention=attention) as engine:
        yield engine


def test_the_demo_is_captured_and_answers_as_it_does_plainly(records):
    with demo("auto") as engine:
        request = ask(engine, records)
        assert engine.decode_path(request.fusion) == "one kernel, recorded"
        found = tokens(engine.generate(request))
        assert tokens(engine.generate(replace(request, capture=False))) == found


# How much is left of what the largest batch takes: sdpa's mask grows with the square of a batch.
@pytest.mark.parametrize(("attention", "shares"), [("sdpa", [0.1]), ("flex", [0.8, 0.5, 0.3])])
def test_out_of_memory_halves_the_batch_and_loses_nothing(attention, shares, records, caplog):
    with demo(attention) as engine:
        assert engine.captures == (attention == "flex")
        request = ask(engine, records)
        expected = tokens(engine.generate(request, batch_size=16))
        engine.release()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_reserved()
        assert tokens(engine.generate(request, batch_size=1000)) == expected
        taken = torch.cuda.max_memory_reserved() - before
        for share in shares:
            engine.release()
            free, _ = torch.cuda.mem_get_info()
            filling = torch.empty(free - int(share * taken), dtype=torch.uint8, device="cuda")
            generation = engine.generate(request, batch_size=1000)
            found = tokens(generation)
            del filling
            halved = generation.stats.out_of_memory
            print(f"{share} of {taken >> 20} MiB: halved {halved} times")
            assert halved > 0
            assert found == expected and len(found) == 1000
    said = [r.getMessage() for r in caplog.records if "out of memory" in r.getMessage()]
    assert said == ["out of memory with 1000 questions at a time: halved"] * len(shares)
