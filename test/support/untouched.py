"""What a library may not change in the process that imports and calls it.

    python untouched.py import        imports self_ensemble, and says what that changed
    python untouched.py all           imports torch and transformers first, then all of the package;
                                      lets the demo's model answer; and where lm_eval is there,
                                      imports it and what is for it

Prints one line of JSON: {"changed": [...], "imported": [...], "seconds": ...}, or what each part of
all of it changed: {"modules": [...], "call": [...], "lm_eval": [...]}.
"""

import json
import locale
import logging
import os
import pkgutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def globals_of_the_process() -> Iterator[tuple[str, Any]]:
    """(name, value): whatever a library could change, torch's where torch is imported."""
    yield from (("os.environ", item) for item in sorted(os.environ.items()))
    yield "sys.path", list(sys.path)
    yield "sys hooks", (sys.excepthook, sys.unraisablehook, sys.stdout, sys.stderr)
    yield "working directory", os.getcwd()
    yield "locale", locale.setlocale(locale.LC_ALL)
    yield "signals", [signal.getsignal(number) for number in signal.valid_signals()]
    yield "warnings.filters", list(warnings.filters)
    root = logging.getLogger()
    yield "root logger", (root.level, list(root.handlers), logging.root.manager.disable)
    if "torch" in sys.modules:
        yield from globals_of_torch()
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        bar = transformers_logging.is_progress_bar_enabled()
        yield "transformers' logging", (transformers_logging.get_verbosity(), bar)


def globals_of_torch() -> Iterator[tuple[str, Any]]:
    import torch
    import torch._dynamo.config
    import torch._inductor.config

    yield "torch threads", (torch.get_num_threads(), torch.get_num_interop_threads())
    yield "torch defaults", (torch.get_default_dtype(), torch.get_default_device())
    yield "torch grad", (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    yield "torch random state", torch.get_rng_state().tolist()
    yield "torch determinism", torch.are_deterministic_algorithms_enabled()
    yield "torch matmul precision", torch.get_float32_matmul_precision()
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    yield "torch backends", (cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark)
    kernels = (cuda.flash_sdp_enabled(), cuda.math_sdp_enabled(), cuda.mem_efficient_sdp_enabled())
    yield "torch sdpa kernels", (*kernels, cuda.cudnn_sdp_enabled())
    for config in (torch._dynamo.config, torch._inductor.config):
        for name, value in config.get_config_copy().items():
            yield f"{config.__name__}.{name}", value


def changes(action: Callable[[], object]) -> list[str]:
    """What is not as it was before `action`, foreign modules included."""
    before = list(globals_of_the_process())
    modules = dict(sys.modules)
    action()
    names = {name for name, _ in before}
    after = [(name, value) for name, value in globals_of_the_process() if name in names]
    found = {name for name, value in before if (name, value) not in after}
    found |= {name for name, value in after if (name, value) not in before}
    found |= {f"sys.modules[{n!r}]" for n, was in modules.items() if sys.modules.get(n) is not was}
    return sorted(found)


OF_OTHERS = tuple(f"self_ensemble.integrations.{name}" for name in ("lm_eval", "inspect_ai"))


def import_all() -> None:
    """All of the package but what needs packages of others."""
    import self_ensemble

    for module in pkgutil.walk_packages(self_ensemble.__path__, "self_ensemble."):
        if ".kernels." in module.name and find_spec("triton") is None:
            continue
        if not module.name.startswith(OF_OTHERS):
            __import__(module.name)


def import_lm_eval() -> None:
    import self_ensemble.integrations.lm_eval  # noqa: F401


def import_package() -> None:
    import self_ensemble  # noqa: F401


def call() -> None:
    """Answers by all kinds of methods; one of them is left unfinished."""
    from self_ensemble.ensemble import Ensemble

    ensemble = Ensemble.from_pretrained("demo", device="cpu")
    asked = [["The capital of Peru is [MASK].", "Which city is the capital of Peru?"]]
    for method in ("attention", "avg", "weighted_avg", "vote"):
        ensemble.generate(asked, method=method, max_new_tokens=3)
    next(ensemble.stream(asked, max_new_tokens=3))


def timed_import() -> dict[str, Any]:
    known, taken = set(sys.modules), []

    def timed() -> None:
        begun = time.perf_counter()
        import_package()
        taken.append(time.perf_counter() - begun)

    changed = changes(timed)
    imported = sorted({name.partition(".")[0] for name in set(sys.modules) - known})
    return {"changed": changed, "imported": imported, "seconds": taken[0]}


def all_of_it() -> dict[str, list[str]]:
    """What others change themselves when first used comes before what of ours uses them."""
    import torch._dynamo
    import transformers.modeling_utils  # noqa: F401

    found = {"modules": changes(import_all)}
    from transformers import AutoModelForCausalLM, AutoTokenizer

    demo = Path(__file__).resolve().parents[2] / "demo" / "model"
    plain, _ = AutoModelForCausalLM.from_pretrained(demo), AutoTokenizer.from_pretrained(demo)
    plain.generate(torch.tensor([[1]]), max_new_tokens=1)
    found["call"] = changes(call)
    if find_spec("lm_eval") is not None:
        import lm_eval.models.huggingface  # noqa: F401

        found["lm_eval"] = changes(import_lm_eval)
    return found


if __name__ == "__main__":
    print(json.dumps({"import": timed_import, "all": all_of_it}[sys.argv[1]]()))
