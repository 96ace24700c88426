"""Write a folder for transformers: model.generate(custom_generate=FOLDER, paraphrases=[[...]])

    python -m self_ensemble.custom_generate FOLDER

The folder needs nothing of this package, and can be pushed to the hub as it is: docs/python.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from self_ensemble.cli.parser import Parser, run
from self_ensemble.integrations.custom_generate import SUBFOLDER, write_folder


def main(config: argparse.Namespace) -> None:
    written = write_folder(config.folder, overwrite=config.overwrite)
    modules = sum(path.suffix == ".py" for path in written)
    print(f"wrote {config.folder / SUBFOLDER} ({modules} modules, {len(written)} files in all)")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m self_ensemble.custom_generate", description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="made where it is not there")
    parser.add_argument(
        "--overwrite", action="store_true", help="write files anew that this has written before"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main, parse_args())
