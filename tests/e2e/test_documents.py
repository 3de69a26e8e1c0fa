"""Documents hold what runs: every block is run by a test, or says why not; and the site is built of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from tests.e2e import guides
from tests.e2e.guides import ADDRESS, ROOT, example, examples
from tests.stack import Service

if TYPE_CHECKING:
    pass

MADE = ROOT / "docs" / "reference"  # by `make generate`, with commands in the abstract
DOCUMENTS = sorted(
    file.relative_to(ROOT).as_posix()
    for file in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"))
    if not file.is_relative_to(MADE)
)
BLOCK = re.compile(r"^(<!-- [^\n]* -->)?\n```(\w+)\n", re.MULTILINE)
SHOWN_ONLY = {"mermaid", "text", "json"}
RUN_HERE = [file for file in DOCUMENTS if file != "README.md" and (ROOT / file).read_text().count("test: commands -->")]
# Documents whose commands need more than a service: their own tests run them.
ELSEWHERE = {"docs/client.md": "test_client_guide.py", "docs/transformers.md": "test_transformers_guide.py"}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_is_run_by_a_test_or_says_why_not(document: str) -> None:
    tests = {file.name: file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py")}
    for marker, language in BLOCK.findall("\n" + (ROOT / document).read_text(encoding="utf-8")):
        if language in SHOWN_ONLY:
            continue
        if re.fullmatch(r"<!-- not run: .{8,} -->", marker):
            continue
        kind = re.fullmatch(r"<!-- test: ([\w-]+) -->", marker)
        assert kind is not None, f"a block of {language} without a marker: {marker}"
        if kind[1] == "commands" and document in RUN_HERE:
            continue
        runs = [name for name, text in tests.items() if document in text and f'"{kind[1]}"' in text]
        assert runs, f"no test runs {kind[1]} of {document}"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("document", sorted(set(RUN_HERE) - set(ELSEWHERE)))
def test_commands_run_as_they_are_written(document: str, service: Service, tmp_path: Path) -> None:
    """All of a document in one shell, in order, in an empty folder beside a service."""
    if document == "docs/tutorial.md":
        (tmp_path / "run.yaml").write_text(example("docs/tutorial.md", "yaml"))
    (tmp_path / "deploy" / "prometheus").mkdir(parents=True)  # as in the repository
    blocks = "".join(examples(document, "commands"))
    script = "set -xeuo pipefail\n" + re.sub(r"^[$>] ", "", blocks, flags=re.MULTILINE)
    script = script.replace(ADDRESS, service.url)
    done = guides.run(script, tmp_path, service.url, SAM3_DATA_DIR=str(service.data_dir))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    if document == "docs/tutorial.md":
        for written in ("found.png", "report.html", "adapter/adapter_model.safetensors"):
            assert (tmp_path / written).stat().st_size > 0


def test_the_environment_of_the_tutorial_is_where_make_puts_it() -> None:
    assert example("docs/tutorial.md", "setup") == "$ source .venv/bin/activate\n"
    assert re.search(r"^VENV := \.venv$", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_the_site_is_built_without_a_broken_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path / "site"))
    build(config)  # strict: a warning is an error
    assert (tmp_path / "site" / "reference" / "http.html").stat().st_size > 100_000
