"""What results are called, and which file holds what a method made.

    results/<dataset>/<model>/avg-5.feather                     run_name("avg", count=5)
    results/<dataset>/<model>/diversity/avg-0_2_4.feather       the same with indexs=[0, 2, 4]
    results/<dataset>/<model>/avg-choices-5.feather             --task choices
    results/<dataset>/<model>/avg-t0.7-seed1-5.feather          --temperature 0.7 --sample_seed 1
    results/<dataset>/<model>/self_consistency-t0.7-8.feather   --samples 8

A name leaves out what is the default. The default positions are a property of the model, so that
`flex_attention-5` may hold ``exact`` positions or ``left`` ones: the file's manifest says which.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from self_ensemble.data.result_files import read_manifest, result_file, safe_name
from self_ensemble.experiment.config import ExperimentConfig, MethodConfig
from self_ensemble.methods.config import AttentionFusionConfig, LogitFusionConfig


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
    """`flex_attention[-layout][-positions][-fusion]`: only what differs from the defaults is named.

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
    return "-".join(parts)


def method_names(method: MethodConfig) -> tuple[str, ...]:
    """Every name that the method's result has with one model or another."""
    if isinstance(method, LogitFusionConfig):
        return (method.method,)
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
    stems: Sequence[Path], method: Mapping[str, Any]
) -> tuple[Path, dict[str, Any]] | None:
    """The finished result whose manifest says that the method made it; None where there is none.

    Args:
        stems: where it may lie.
        method: what its manifest must say of the method's positions, if anything.

    Returns:
        The stem and the manifest.

    Raises:
        UserError: a manifest cannot be read.
    """
    for stem in stems:
        manifest = read_manifest(stem)
        if manifest is None or not result_file(stem, ".feather").exists():
            continue
        positions = identity_part(manifest, "method").get("positions")
        if method.get("positions", positions) == positions:
            return stem, manifest
    return None


def identity_part(manifest: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A part of a manifest's identity that has parts of its own; empty where it has none."""
    part = manifest["identity"].get(name)
    return part if isinstance(part, dict) else {}
