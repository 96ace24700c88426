"""The registry of fusions, and the parts that a fusion of one's own is made of."""

import pytest
import torch
from fused import PREFIX, STEPS, answer, attending, make_engine, question
from tiny import tiny_model

from self_ensemble.attention.fusion import (
    FUSIONS,
    Fusion,
    fuse_probabilities,
    partition_scores,
    register_fusion,
    weighted_partitions,
)
from self_ensemble.generation.streams import attention_streams
from self_ensemble.system.errors import UserError

J, R, K, Q, P, M, F = 2, 3, 4, 5, 6, 7, 2


@pytest.fixture
def scores():
    generator = torch.Generator().manual_seed(0)
    prefix, segments, fused = (
        torch.randn(shape, generator=generator)
        for shape in ((J, R, 1, Q, P), (J, R, K, Q, M), (J, R, 1, Q, F))
    )
    segments[:, :, 1, :, 5:] = float("-inf")  # a shorter segment
    return prefix, segments, fused


@pytest.fixture
def surest():
    """The fusion of the docstring of `register_fusion`: weights by mass."""

    @register_fusion("surest")
    def surest(prefix, segments, fused, fusion):
        scores = partition_scores(prefix, segments, fused)
        mass = scores.logsumexp(-1, keepdim=True)
        return weighted_partitions(scores, (mass * 4).softmax(2), prefix, segments)

    yield surest
    FUSIONS.remove("surest")


def test_an_unknown_fusion_lists_what_there_is():
    with pytest.raises(UserError) as error:
        Fusion("median")
    assert str(error.value) == "unknown fusion 'median': there are mean, joint"


def test_what_a_fusion_cannot_is_said():
    with pytest.raises(UserError, match="'joint' has no tau"):
        Fusion("joint", 0.5)
    assert Fusion("mean", 0.5).rope_offsets and not Fusion("joint").rope_offsets
    assert Fusion("mean").in_kernel and Fusion("joint").in_kernel


def test_joint_refuses_rope_offsets(scores):
    prefix, segments, fused = scores
    with pytest.raises(AssertionError, match="'joint' cannot have RoPE offsets"):
        fuse_probabilities(prefix.expand(-1, -1, K, -1, -1), segments, fused, Fusion("joint"))


def by_hand(scores, weights):
    """One partition after the other."""
    prefix, segments, fused = scores
    out = [torch.zeros(J, R, Q, P), torch.zeros(J, R, K, Q, M), torch.zeros(J, R, Q, F)]
    for i in range(K):
        row = torch.cat([prefix[:, :, 0], segments[:, :, i], fused[:, :, 0]], dim=-1)
        p = row.softmax(-1) * weights[..., i, :, None]
        out[0] += p[..., :P]
        out[1][:, :, i] = p[..., P : P + M]
        out[2] += p[..., P + M :]
    return out


def masses(scores):
    prefix, segments, fused = scores
    rows = [
        torch.cat([prefix[:, :, 0], segments[:, :, i], fused[:, :, 0]], -1).logsumexp(-1)
        for i in range(K)
    ]
    return torch.stack(rows, 2)  # [J, R, K, Q]


@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 0.0, 5.0)], ids=["equal", "weighted"])
@pytest.mark.parametrize("tau", [0.0, 0.7])
def test_the_mean_partition_by_partition(scores, tau, weights):
    u = torch.tensor(weights or [1.0] * K)
    w = u[:, None] * (tau * masses(scores)).exp()
    expected = by_hand(scores, w / w.sum(2, keepdim=True))
    found = fuse_probabilities(*scores, Fusion.of("mean", tau, weights, "cpu"))
    for mine, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, wanted)


def test_a_fusion_of_ones_own(scores, surest):
    fusion = Fusion("surest")
    assert not fusion.in_kernel and fusion.rope_offsets
    found = fuse_probabilities(*scores, fusion)
    w = (4 * masses(scores)).softmax(2)
    for mine, wanted in zip(found, by_hand(scores, w), strict=True):
        torch.testing.assert_close(mine, wanted)
    total = sum(p.sum(-1) for p in (found[0], found[1].sum(2), found[2]))
    torch.testing.assert_close(total, torch.ones(J, R, Q))


def test_a_fusion_of_ones_own_answers(surest):
    """The engine runs it in the layers; here one that is `mean` under another name."""

    @register_fusion("same as mean")
    def same(prefix, segments, fused, fusion):
        scores = partition_scores(prefix, segments, fused)
        return weighted_partitions(scores, 1 / segments.shape[2], prefix, segments)

    try:
        model = tiny_model("llama")
        with attending(model, "sdpa") as wrapper:
            engine = make_engine(wrapper)
            streams = [attention_streams(question(seed=s), len(PREFIX), "exact") for s in (2, 3)]
            found = [
                answer(engine, streams, Fusion(kind), steps=STEPS)
                for kind in ("mean", "same as mean", "surest")
            ]
        assert found[0] == found[1]
        assert all(len(tokens) == STEPS for tokens in found[2])
    finally:
        FUSIONS.remove("same as mean")
