"""A shell in which Python starts at once: what a page tells a user to type is typed here."""

import glob
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

# Imports once what takes seconds, and runs each command in a fork of itself. There the objects of
# what is imported are nothing to collect: looking through them takes half of a short command.
DRIVER = """
import gc, json, os, runpy, sys
import datasets, pandas, scipy.stats, spacy, torch, torch._dynamo, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
torch.set_num_threads(1)
os.fsync = os.fstat  # no test cuts the power
gc.collect()
gc.freeze()
for line in sys.stdin:
    folder, root, script, *argv = json.loads(line)
    process = os.fork()
    if not process:
        try:
            os.chdir(folder)
            os.environ["PYTHONPATH"] = root  # of what the script starts
            sys.path[:1] = [os.path.dirname(script), root]
            sys.argv = [script, *argv]
            runpy.run_path(script, run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(process, 0)
    print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), file=sys.__stdout__, flush=True)
"""


class Shell:
    """Types a user's commands in a folder.

    Args:
        folder: where; made if it is not there. May be set to another between two commands.
        root: where the scripts are. As `folder`.
        environment: of the commands.
    """

    def __init__(self, folder: Path, root: Path, environment: Mapping[str, str]):
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.root = root
        self.environment = {
            **environment,
            "PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",
        }
        self.environment.pop("PYTHONPATH", None)
        self.said = tempfile.NamedTemporaryFile("w+")  # noqa: SIM115
        self.driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            cwd=folder,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
        )

    def type(self, line: str) -> str:
        """Runs a line; AssertionError, with what it said last, where its status is not 0.

        Returns:
            What a script of Python printed.
        """
        self.said.seek(0)
        self.said.truncate()
        printed: list[str] = []
        program, *argv = (word for part in shlex.split(line) for word in self._expanded(part))
        if program == "python":
            code = self._python(argv, printed)
        else:
            code = subprocess.run(
                [self.root / program if "/" in program else program, *argv],
                cwd=self.folder,
                env=self.environment | {"PYTHONPATH": str(self.root)},
                stderr=self.said,
            ).returncode
        said = Path(self.said.name).read_text()[-3000:]
        assert code == 0, f"{line}: status {code}: {said}"
        assert "Traceback" not in said, f"{line}: {said}"
        return "".join(printed)

    def _python(self, argv: list[str], printed: list[str]) -> int:
        script, *flags = argv
        command = [str(self.folder), str(self.root), str(self.root / script), *flags]
        self.driver.stdin.write(json.dumps(command) + "\n")
        self.driver.stdin.flush()
        # What the command prints comes first; the driver's word is the last.
        while not (told := self.driver.stdout.readline()).startswith('{"code": '):
            assert told, Path(self.said.name).read_text()[-3000:]
            printed.append(told)
        return json.loads(told)["code"]

    def _expanded(self, word: str) -> list[str]:
        return sorted(glob.glob(word, root_dir=self.folder)) if "*" in word else [word]

    def __enter__(self) -> "Shell":
        return self

    def __exit__(self, *_) -> None:
        self.driver.stdin.close()
        self.driver.wait()
        self.said.close()
