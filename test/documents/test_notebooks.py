"""The notebooks run from top to bottom."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")  # GPU hosts lack it
nbclient = pytest.importorskip("nbclient")

FOLDER = Path(__file__).resolve().parent


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.ipynb")))
def test_notebook(name):
    notebook = nbformat.read(FOLDER / name, as_version=4)
    resources = {"metadata": {"path": FOLDER}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    assert all(cell.get("execution_count") for cell in notebook.cells if cell.cell_type == "code")
