"""Inspect, with the model API ``self-ensemble`` in it.

    python -m self_ensemble.inspect_ai eval docs/inspect_ai/demo_answers.py \\
        --model self-ensemble/demo

The command line is Inspect's own. Needs the package inspect_ai; where self-ensemble is installed,
Inspect finds it by itself.
"""

from importlib.util import find_spec

from self_ensemble.cli.parser import run
from self_ensemble.system.errors import UserError


def main(_: None = None) -> None:
    """Register the model API, and hand over to Inspect, which reads what was typed.

    Raises:
        UserError: inspect_ai is not installed; and what the model API raises.
    """
    if find_spec("inspect_ai") is None:
        raise UserError(
            "python -m self_ensemble.inspect_ai needs the package inspect_ai: "
            "pip install -r requirements-inspect.txt, or pip install 'self-ensemble[inspect_ai]'"
        )
    from inspect_ai._cli.main import main as inspect_main

    import self_ensemble.integrations.inspect_ai_registry  # noqa: F401  registers

    inspect_main()


if __name__ == "__main__":
    run(main, None)
