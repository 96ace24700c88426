"""lm-evaluation-harness, with the model type ``self-ensemble`` in it.

    python -m self_ensemble.lm_eval --model self-ensemble --model_args pretrained=demo \\
        --include_path docs/lm_eval --tasks demo_answers

The command line is the harness's own. Needs the package lm_eval; versions of it that read entry
points know the model type by themselves.
"""

from importlib.util import find_spec

from self_ensemble.cli.parser import run
from self_ensemble.integrations import LM_EVAL_NAME
from self_ensemble.system.errors import UserError

# By name: torch is imported when the model type is asked for.
MODEL_TYPE = "self_ensemble.integrations.lm_eval:SelfEnsembleLM"


def main(_: None = None) -> None:
    """Register the model type, and hand over to the harness, which reads what was typed.

    Raises:
        UserError: lm_eval is not installed; and what the model type raises.
    """
    if find_spec("lm_eval") is None:
        raise UserError(
            "python -m self_ensemble.lm_eval needs the package lm_eval: "
            "pip install -r requirements-lm-eval.txt, or pip install 'self-ensemble[lm_eval]'"
        )
    from lm_eval.__main__ import cli_evaluate

    register()
    cli_evaluate()


def register() -> None:
    """Add the model type to those of the harness."""
    # Its own are there after this import, which the harness leaves out where one is registered.
    import lm_eval.models  # noqa: F401
    from lm_eval.api.registry import model_registry

    if LM_EVAL_NAME not in model_registry:
        model_registry.register(LM_EVAL_NAME, target=MODEL_TYPE)


if __name__ == "__main__":
    run(main, None)
