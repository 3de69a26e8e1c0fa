"""What may not be in the code at all: whatever runs, or grows without bounds, what a file of somebody else says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.shared.queue import celery_app
from service.shared.settings import Settings

ROOT = Path(__file__).parents[2]
PACKAGES = ("sam3_lora", "service", "worker", "migrations")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
MODULES = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "xml", "defusedxml", "lxml",
    "pandas", "commands", "pty", "telnetlib", "ftplib",
}  # fmt: skip
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput"}
SAFE_OPTIONS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
YAML = {"yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.full_load_all"}
EXTRACTORS = {"extractall", "unpack_archive"}  # ours is `sam3_lora.coco.archive.extract`


def dangers(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from _dangerous_modules([alias.name for alias in node.names])
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from _dangerous_modules([node.module])
        elif isinstance(node, ast.Call):
            yield from _dangers_of(node)


def _dangerous_modules(names: list[str]) -> Iterator[str]:
    return (f"import {name}" for name in names if name.partition(".")[0] in MODULES)


def _dangers_of(call: ast.Call) -> Iterator[str]:
    called = ast.unparse(call.func)
    options = {each.arg: each.value.value for each in call.keywords if isinstance(each.value, ast.Constant)}
    if called in CALLS | YAML or called.rpartition(".")[2] in EXTRACTORS:
        yield called
    option, wanted = SAFE_OPTIONS.get(called, ("", None))
    if options.get(option) is not wanted:
        yield f"{called} without {option}={wanted}"
    if any(each.arg == "shell" for each in call.keywords) and options.get("shell") is not False:
        yield f"{called} with a shell"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_can_run_what_a_file_says(path: Path) -> None:
    assert list(dangers(path.read_text())) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from pickle import loads", "import xml.etree.ElementTree", "eval('1')", "os.system('x')",
        "torch.load(p)", "torch.load(p, weights_only=False)", "np.load(p)", "np.load(p, allow_pickle=True)",
        "yaml.load(t)", "subprocess.run('x', shell=True)", "z.extractall(p)", "shutil.unpack_archive(p)",
    ],
)  # fmt: skip
def test_each_danger_is_noticed(text: str) -> None:
    assert list(dangers(text))


def test_the_queue_takes_and_sends_json_alone(tmp_path: Path) -> None:
    configuration = celery_app(Settings(data_dir=tmp_path)).conf
    assert configuration.accept_content == ["json"]
    assert configuration.task_serializer == "json"
    assert configuration.result_backend is None
