"""The kernels for fused tokens against plain math.

    python -m pytest -n 0 -m gpu
    python -m pytest -n 0 -m interpreter

The second needs no GPU, but Triton, which comes with torch for GPUs alone.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_cases import CASES, Case, distance

FOLDER = Path(__file__).parents[2] / "support"
# As in the benchmark: every program has all of a row's segments, and the prefix its own kernel.
FULL = {"rows": 512, "lengths": (8, 16), "partitions": 5, "kv_heads": 8, "group": 3, "size": 128}
FULL_BATCHES = (
    Case("full batch", **FULL, prefix=110, steps=(2, 1, 1), filling=None),
    Case("full batch, turned", **FULL, prefix=110, steps=(2, 1), turned=128, filling=None),
)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("case", CASES + FULL_BATCHES, ids=lambda case: case.name)
def test_the_kernels_equal_plain_math_on_a_gpu(case):
    assert distance(case) <= 1e-5
    assert distance(case, torch.bfloat16) <= 2e-2


@pytest.mark.interpreter
@pytest.mark.parametrize("cases", ["kernel_cases.py", "captured_cases.py"])
def test_they_equal_plain_math_in_the_interpreter(cases):
    """Alone, and in whole batches on the captured path."""
    ended = subprocess.run(
        [sys.executable, FOLDER / cases],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
