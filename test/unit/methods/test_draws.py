"""What each method draws: by which keys, and what it takes greedily all the same."""

import pytest
from small import QUESTIONS

from self_ensemble import Ensemble
from self_ensemble.generation.config import GenerationConfig, SamplingConfig
from self_ensemble.methods.base import Asked, asking
from self_ensemble.methods.names import make_method

PARAPHRASES = [row["paraphrases"][:2] for row in QUESTIONS[:3]]
UUIDS = ["a", "b", "c"]
ONCE = [(uuid, 0) for uuid in UUIDS]
EACH = [(uuid, k) for uuid in UUIDS for k in range(2)]

# method → the keys of its passes' draws; None: the likeliest tokens
KEYS = {
    "attention": {"attention fusion": ONCE},
    "avg": {"avg": ONCE},
    "max": {"max": ONCE},
    # A paraphrase's confidence is that of its likeliest answer.
    "weighted_avg": {"each paraphrase": None, "weighted_avg": ONCE},
    "vote": {"each paraphrase": EACH},
    "per_prompt": {"each paraphrase": EACH},
    "origin": {"each paraphrase": ONCE},
    "self_consistency": {"self_consistency": [(uuid, k) for uuid in UUIDS for k in range(3)]},
}


def passes(small, method, sampling):
    """The requests of a method, by their names."""
    ensemble, requests = Ensemble(small.model, small.tokenizer), {}

    def ask(name, request, **settings):
        requests[name] = request
        return asking(ensemble.engine)(name, request, **settings)

    asked = Asked(
        engine=ensemble.engine,
        template=ensemble.prompt.template(small.tokenizer),
        questions=PARAPHRASES,
        uuids=UUIDS,
        ask=ask,
        config=GenerationConfig(max_new_tokens=4, stop=("e",), sampling=sampling),
    )
    settings = {"samples": 3} if method == "self_consistency" else {}
    outcomes = list(make_method(method, **settings).answer(asked))
    assert sorted(outcome.question for outcome in outcomes) == [0, 1, 2]
    return requests


@pytest.mark.parametrize("method", KEYS)
def test_keys_of_draws(small, method):
    requests = passes(small, method, SamplingConfig(temperature=0.5, top_p=0.9, seed=7))
    assert requests.keys() == KEYS[method].keys()
    for name, keys in KEYS[method].items():
        sampling = requests[name].sampling
        assert requests[name].stop == ("e",)
        if keys is None:
            assert sampling is None
        else:
            assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.5, 0.9, 7)
            assert list(sampling.keys) == keys


@pytest.mark.parametrize("method", KEYS)
def test_without_sampling_only_self_consistency_draws(small, method):
    requests = passes(small, method, None)
    drawn = {name for name, request in requests.items() if request.sampling is not None}
    assert drawn == ({"self_consistency"} if method == "self_consistency" else set())
