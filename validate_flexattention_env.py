"""Say whether this machine can run the toolkit, and prove what the method promises on a model.

    python validate_flexattention_env.py
    python validate_flexattention_env.py --test-flex-attention
    python validate_flexattention_env.py --model llama3.2_3b

Each line is `ok`, a `warning` (the main job runs, something else does not or was not tested) or
`failed`, with what to do. `--model` adds that model's certificate: where its tokenizer's prompts
are cut, and each of the method's promises proved on its own weights, `passed` or `failed` with the
figure.

Exit status: 0 if the main job (`flex_attention_generate.py`) would run, with that model where one
is given; 1 if anything failed; 2 for a mistake on the command line.
"""

import sys
from collections.abc import Sequence

from self_ensemble.cli.flags import add_fusion_arguments, check_fusion_arguments, fusion_config
from self_ensemble.cli.parser import Parser, run, set_up_logging
from self_ensemble.diagnostics.checks import failed
from self_ensemble.diagnostics.config import CertificateConfig, EnvironmentConfig
from self_ensemble.diagnostics.environment import check_installation, check_machine
from self_ensemble.diagnostics.environment_report import as_json, as_text
from self_ensemble.models.aliases import resolve_model


def main(config: EnvironmentConfig) -> None:
    if config.certificate is not None:
        resolve_model(config.certificate.model)  # what can be nothing is a mistake in typing
    checks = check_installation()
    usable = not failed(checks)
    checks += check_machine(torch_works=usable)
    certificates = []
    if usable:
        set_up_logging(config.verbose)
        if config.test_flex_attention:
            from self_ensemble.diagnostics.flex_check import check_flex_attention

            checks += check_flex_attention()
        if config.certificate is not None:
            from self_ensemble.diagnostics.model_check import check_model

            found, certificates = check_model(config.certificate)
            checks += found
    if config.json:
        print(as_json(checks, certificates))
    else:
        print(as_text(checks, certificates, verbose=config.verbose))
    if failed(checks):
        sys.exit(1)


def parse_args(argv: Sequence[str] | None = None) -> EnvironmentConfig:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--test_flex_attention",
        action="store_true",
        help="compile FlexAttention and run the segment mask on every device; what goes wrong is a "
        "failure, though --attention auto would do without",
    )
    parser.add_argument(
        "--model",
        help="alias of constants.py, hub id, folder, or .gguf file: load it, give its certificate",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model on the hub")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--verbose", action="store_true", help="show all tokens of all questions, and more remarks"
    )
    add_fusion_arguments(parser.add_argument_group("the fusion that the certificate is of"))
    args = parser.parse_args(argv)
    for flag in ("revision", "positions", "fusion", "fusion_tau", "weights"):
        if getattr(args, flag) != parser.get_default(flag) and args.model is None:
            parser.error(f"--{flag}: of which --model?")
    check_fusion_arguments(parser, args)
    if args.positions == "sequential":
        parser.error("--positions sequential promises nothing that a certificate could prove")
    certificate = None
    if args.model is not None:
        certificate = CertificateConfig(
            model=args.model, revision=args.revision, method=fusion_config(args)
        )
    return EnvironmentConfig(
        test_flex_attention=args.test_flex_attention,
        certificate=certificate,
        json=args.json,
        verbose=args.verbose,
    )


if __name__ == "__main__":
    run(main, parse_args())
