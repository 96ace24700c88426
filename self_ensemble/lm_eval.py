"""lm-evaluation-harness, with the model type ``self-ensemble`` in it.

    python -m self_ensemble.lm_eval --model self-ensemble --model_args pretrained=demo \\
        --include_path docs/lm_eval --tasks demo_answers

The command line is the harness's own. Needs the package lm_eval; versions that read entry points know the model type by themselves.
"""

from importlib.util import find_spec

from self_ensemble.cli.parser import run
from self_ensemble.integrations import LM_EVAL_NAME
from self_ensemble.system.errors import UserError

WHERE = "self_ensemble.integrations.lm_eval:SelfEnsembleLM"


def main(_: None = None) -> None:
    """What is typed after the module's name is lm_eval's own.

    Raises:
        UserError: lm_eval is not installed, and what the model type raises.
    """
    if find_spec("lm_eval") is None:
        raise UserError(
            "python -m self_ensemble.lm_eval needs the package lm_eval: "
            "pip install -r requirements-lm-eval.txt"
        )
    import lm_eval.models  # noqa: F401  # so that it finds no name taken
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import model_registry

    if LM_EVAL_NAME not in model_registry:  # by name: torch is imported when the model type is asked for
        model_registry.register(LM_EVAL_NAME, target=WHERE)
    cli_evaluate()


if __name__ == "__main__":
    run(main, None)
