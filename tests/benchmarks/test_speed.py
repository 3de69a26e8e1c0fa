"""The benchmarks of speed run at a small size and end with their ratios. Their figures are not judged here."""

import json
from pathlib import Path

import pytest

from benchmarks.train_cpu import OURS, REFERENCE
from tests.benchmarks.test_learning import run


def test_measures_every_way_to_train_against_the_reference(tmp_path: Path):
    done = run("train-cpu", "--tiny", "--steps", 1, "--prompts", 2, "--output", tmp_path / "train-cpu.json")
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-2:]
    assert last[0].startswith("train-cpu-vision-detector ratio=")
    assert last[1].startswith("train-cpu-detector ratio=")
    rows = json.loads((tmp_path / "train-cpu.json").read_text())["rows"]
    assert [row["step"] for row in rows] == ["vision+detector", "last quarter+detector", "detector", "reference"]
    assert all(row["seconds"] > 0 and row["trainable_parameters"] > 0 for row in rows)


def test_the_gpu_benchmark_runs_at_a_small_size_on_the_cpu(tmp_path: Path):
    arguments = ("--tiny", "--device", "cpu", "--steps", 1, "--images", 1, "--output", tmp_path / "train-gpu.json")
    done = run("train-gpu", *arguments)
    assert done.returncode == 0, done.stderr
    assert "train-gpu-vision-detector ratio=" in done.stdout
    rows = json.loads((tmp_path / "train-gpu.json").read_text())["rows"]
    assert [row["step"] for row in rows] == [*(name for name in OURS for _ in range(3)), REFERENCE]
    assert all(row["tflops"] > 0 for row in rows if row["step"] != REFERENCE and row["recomputed"] == "off")


@pytest.mark.slow
def test_startup_is_measured_by_phase(tmp_path: Path):
    done = run("startup", "--tiny", "--folder", tmp_path, "--output", tmp_path / "startup.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("startup ratio=")
    rows = json.loads((tmp_path / "startup.json").read_text())["rows"]
    assert [row["state"] for row in rows] == ["cold", "warm", "warm"]
    assert all(0 < row["build and load"] < row["all"] for row in rows)


@pytest.mark.slow
def test_scaling_compares_one_process_with_two(tmp_path: Path):
    done = run("scale-ddp", "--steps", 2, "--output", tmp_path / "scale-ddp.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("scale-ddp ratio=")
    assert [row["steps"] for row in json.loads((tmp_path / "scale-ddp.json").read_text())["rows"]] == [2, 2]


def test_the_loader_is_compared_with_the_model(tmp_path: Path):
    arguments = ("--tiny", "--workers", 0, 1, "--images", 4, "--steps", 1, "--output", tmp_path / "loader.json")
    done = run("loader", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("loader ratio=")
    rows = json.loads((tmp_path / "loader.json").read_text())["rows"]
    assert [row["workers"] for row in rows] == [0, 1] * 3 + ["model"]
    assert [row["kept"] for row in rows] == [kept for kept in ("nothing", "memory", "files") for _ in (0, 1)] + [
        "memory"
    ]
    assert all(row["images_per_second"] > 0 for row in rows)


@pytest.mark.slow
def test_compiled_blocks_are_compared_with_eager_ones(tmp_path: Path):
    done = run("compile", "--tiny", "--steps", 1, "--queries", 1, 2, "--output", tmp_path / "compile.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("compile-detr-encoder ratio=")
    rows = json.loads((tmp_path / "compile.json").read_text())["rows"]
    assert all(row["eager_seconds"] > 0 and row["graphs"] >= 1 for row in rows)
