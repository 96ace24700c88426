"""Memory that really runs out, on a GPU that is filled up beforehand.

python -m pytest -n 0 -m gpu
"""

import pytest
import torch

from attention import Fusion
from dataset import load_dataset, prompt_template, select_paraphrases
from engine import only_stream
from flex_attention_generate import split_and_place
from loading import find_model, loaded_engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]

# What the mask of all 1,000 questions in one batch takes is more than ten times as much.
LEFT_FREE = 1 << 30


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


def test_out_of_memory_halves_the_batch_and_loses_nothing(caplog):
    records = select_paraphrases(
        load_dataset("demo", max_samples=None).records, num_paraphrases=5, indexs=None
    )
    source = find_model("demo", revision=None, device="cuda", dtype="float32")
    with loaded_engine(source, attention="sdpa") as engine:
        expected = answers(engine, records, 16)
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        filling = torch.empty(free - LEFT_FREE, dtype=torch.uint8, device="cuda")
        engine.counts.out_of_memory = 0
        found = answers(engine, records, 1000)
        del filling
    assert engine.counts.out_of_memory > 0
    assert [r.getMessage() for r in caplog.records if "out of memory" in r.getMessage()] == [
        "out of memory with 1000 questions at a time: halved"
    ]
    assert len(found) == 1000
    different = [i for i in found if found[i].token_ids != expected[i].token_ids]
    print(f"halved {engine.counts.out_of_memory} times; {len(different)} of 1000 differ")
    assert not different
