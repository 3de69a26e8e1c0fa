"""The notebook runs from top to bottom against a service that is really running."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.e2e.guides import ROOT
from tests.stack import started

NOTEBOOK = ROOT / "examples" / "tune_and_look.ipynb"


@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    with started(tmp_path, tmp_path / "data") as service:
        monkeypatch.setenv("SAM3_API_URL", service.url)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    nbformat.write(notebook, tmp_path / "executed.ipynb")
    shown = [kind for cell in notebook.cells for each in cell.get("outputs", ()) for kind in each.get("data", ())]
    assert shown.count("image/png") == 2, "the curves and the overlay"
    said = "".join(each.get("text", "") for cell in notebook.cells for each in cell.get("outputs", ()))
    assert "segm_mAP" in said
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        file.name for file in (tmp_path / "adapter").iterdir()
    }
