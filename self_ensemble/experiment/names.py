"""What results are called, and which file holds what a method made.

    results/<dataset>/<model>/avg-5.feather                     run_name("avg", count=5)
    results/<dataset>/<model>/diversity/avg-0_2_4.feather       the same with indexs=[0, 2, 4]
    results/<dataset>/<model>/avg-choices-5.feather             --task choices
    results/<dataset>/<model>/avg-t0.7-seed1-5.feather          --temperature 0.7 --sample_seed 1
    results/<dataset>/<model>/self_consistency-t0.7-8.feather   --samples 8
    results/<dataset>/<model>/flex_attention-tau1-5.feather     --fusion_tau 1
    results/<dataset>/<model>/flex_attention-w1_2-2.feather     --fusion_tau 0 --weights 1,2
    results/<dataset>/<model>/weighted_avg-entropy2-5.feather   --weights_by entropy:2

A name leaves out what is the default, except for tau: it is named where it is not 0, so that
`flex_attention-5` is the plain mean in every release. The default positions are a property of the
model, so that a name without any may hold ``exact`` positions or ``left`` ones: the file's manifest
says which.

Releases before this one named neither tau nor weights. What they called `flex_attention-5` is found
and extended by the flags that it was made with: `earlier_method_name`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from self_ensemble.data.identities import identity_differences
from self_ensemble.data.result_files import fingerprint, has_table, read_manifest, safe_name
from self_ensemble.experiment.config import ExperimentConfig, MethodConfig
from self_ensemble.methods.config import AttentionFusionConfig, LogitFusionConfig
from self_ensemble.methods.names import is_weighted
from self_ensemble.methods.weighting import parse_weighting

# What is said of a result that is passed over.
EARLIER_DEFAULT = "tau 0, which was the default: --fusion_tau 0 asks for it"
# How long a name's list of weights may be; of a longer one it has a fingerprint.
MAX_WEIGHTS = 48


def run_name(
    method: str, parts: Sequence[str] = (), *, count: int, indexs: Sequence[int] | None = None
) -> str:
    """`<method>[-part...]-<n>`, or with chosen paraphrases `<method>[-part...]-0_2_4`.

    count: of the paraphrases that are asked, or of the answers that are drawn of one.
    """
    which = _index_list(indexs) if indexs is not None else str(count)
    return "-".join([method, *parts, which])


def task_parts(config: ExperimentConfig) -> tuple[str, ...]:
    """What of the task is named: that choices are scored, or by what answers are drawn.

    Not all that an answer depends on: the manifest says it, and whether a file is another run's.
    """
    if config.task.name == "choices":
        return ("choices",)
    sampling = config.generation.sampling
    if sampling is None:
        return ()
    parts = (f"t{sampling.temperature:g}",)
    return (*parts, f"seed{sampling.seed}") if sampling.seed else parts


def _index_list(indexs: Sequence[int]) -> str:
    return "_".join(str(i) for i in indexs)


def attention_method_name(method: AttentionFusionConfig, *, default_positions: str) -> str:
    """`flex_attention[-layout][-positions][-fusion]`, and what `weight_parts` has.

    Only what differs from the defaults is named.

    default_positions: of the model under this fusion.
    """
    names_positions = method.positions not in (None, default_positions)
    return _attention_name(method, names_positions=names_positions)


def _attention_name(method: AttentionFusionConfig, *, names_positions: bool) -> str:
    parts = ["flex_attention"]
    if method.layout != AttentionFusionConfig.layout:
        parts.append(method.layout)
    if names_positions:
        assert method.positions is not None
        parts.append(method.positions)
    if method.fusion != AttentionFusionConfig.fusion:
        parts.append(method.fusion)
    return "-".join((*parts, *weight_parts(method)))


def logit_method_name(method: LogitFusionConfig) -> str:
    """`<method>`, and what `weight_parts` has."""
    return "-".join((method.method, *weight_parts(method)))


def weight_parts(method: MethodConfig) -> tuple[str, ...]:
    """What is named of how paraphrases are weighted: `tau0.5`, `w1_2_0.5`, `entropy1`."""
    parts = []
    if isinstance(method, AttentionFusionConfig):
        if method.tau_used:
            parts.append(f"tau{_number(method.tau_used)}")
        if method.weights is not None:
            weights = "_".join(map(_number, method.weights))
            is_long = len(weights) > MAX_WEIGHTS
            parts.append(f"w{fingerprint(weights)[:8] if is_long else weights}")
    elif not is_weighted(method.method):
        return ()
    if method.weights_by is not None:
        weighting = parse_weighting(method.weights_by)
        parts.append(f"{weighting.name}{_number(weighting.strength)}")
    return tuple(parts)


def _number(value: float) -> str:
    """All of its digits: two numbers never have one name."""
    return repr(float(value)).removesuffix(".0")


def earlier_method_name(name: str, method: MethodConfig) -> str:
    """What a method of this name was called by releases that named no weights."""
    return name.removesuffix("".join(f"-{part}" for part in weight_parts(method)))


def is_earlier_default(
    there: Mapping[str, Any], here: Mapping[str, Any], method: MethodConfig
) -> bool:
    """Whether identities differ by the tau alone that was the default, where none is asked for."""
    if not isinstance(method, AttentionFusionConfig) or method.tau is not None:
        return False
    plain = {**here, "method": {**here["method"], "tau": 0.0}}
    return not identity_differences(there, plain)


def method_names(method: MethodConfig) -> tuple[str, ...]:
    """Every name that the method's result has with one model or another."""
    if isinstance(method, LogitFusionConfig):
        return (logit_method_name(method),)
    named = () if method.positions is None else (_attention_name(method, names_positions=True),)
    return (*named, _attention_name(method, names_positions=False))


def result_stem(
    output_dir: str | Path,
    dataset_name: str,
    model_name: str,
    run_name: str,
    *,
    indexs: Sequence[int] | None = None,
) -> Path:
    """Path of a result without its suffix: `<output_dir>/<dataset>/<model>/[diversity/]<run>`.

    Args:
        output_dir: as the user gave it.
        dataset_name, model_name: names, hub ids or paths; made safe, see `safe_name`.
        run_name: from `run_name`, with the same `indexs`.
        indexs: the paraphrases chosen with --indexs; such runs lie under `diversity/`.

    Returns:
        A path below output_dir, whatever the names hold. Nothing is made on disk.
    """
    folder = Path(output_dir) / safe_name(dataset_name) / safe_name(model_name)
    if indexs is not None:
        assert run_name.endswith(f"-{_index_list(indexs)}"), (run_name, indexs)
        folder /= "diversity"
    return folder / safe_name(run_name)


def find_finished(
    stems: Sequence[Path], method: Mapping[str, Any], *, earlier: Sequence[Path] = ()
) -> tuple[Path, dict[str, Any]] | None:
    """The finished result whose manifest says that the method made it; None where there is none.

    Args:
        stems: where it may lie.
        method: what its manifest must say of the method's positions, if anything.
        earlier: where it may lie under the name that an earlier release gave it, and others too;
            its manifest must say all of the method.

    Returns:
        The stem and the manifest.

    Raises:
        UserError: a manifest cannot be read.
    """
    for stem in (*stems, *earlier):
        manifest = read_manifest(stem)
        if manifest is None or not has_table(stem, manifest):
            continue
        made_by = identity_part(manifest, "method")
        positions = made_by.get("positions")
        if method.get("positions", positions) != positions:
            continue
        asked = made_by | dict(method)
        if stem in stems or not identity_differences({"method": made_by}, {"method": asked}):
            return stem, manifest
    return None


def identity_part(manifest: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A part of a manifest's identity that has parts of its own; empty where it has none."""
    part = manifest["identity"].get(name)
    return part if isinstance(part, dict) else {}
