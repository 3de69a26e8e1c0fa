"""The guide to transformers, with the small base as a published one: what it finds is what the service finds."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from transformers import CLIPTokenizer, Sam3ImageProcessor, Sam3Processor

from sam3_lora.client import Client
from sam3_lora.model.upstream import vocabulary_path
from sam3_lora.model.weights import architecture_of, load_base
from sam3_lora.synthetic.__main__ import main as draw
from tests.e2e import guides
from tests.e2e.guides import example
from tests.lora.huggingface_base import huggingface_base
from tests.stack import started

GUIDE = "docs/transformers.md"
pytestmark = pytest.mark.timeout(600)


def processor() -> Sam3Processor:
    """As that of the published model, of the vocabulary that CLIP was published with."""
    with gzip.open(vocabulary_path(), "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    vocabulary = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    pairs = [tuple(merge.split()) for merge in merges]
    return Sam3Processor(Sam3ImageProcessor(), CLIPTokenizer(vocab=vocabulary, merges=pairs))


def test_the_guide(tmp_path: Path) -> None:
    draw([str(tmp_path / "shapes.zip"), "--train", "8", "--valid", "2", "--concepts", "circle"])  # the base knows it
    (tmp_path / "photo.jpg").write_bytes(zipfile.ZipFile(tmp_path / "shapes.zip").read("valid/scene_0001.jpg"))
    base = load_base("sam3-tiny")
    arch = architecture_of("sam3-tiny")
    huggingface_base(base, arch).save_pretrained(tmp_path / "base")
    processor().save_pretrained(tmp_path / "base")
    config = {"training": {"max_epochs": 2, "learning_rate": 3e-3, "use_amp": False}}
    with started(tmp_path, tmp_path / "data") as service, Client(service.url) as client:
        dataset = client.datasets.upload(tmp_path / "shapes.zip").wait()
        job = client.jobs.create(dataset, base_model="sam3-tiny", config=config).wait()
        model = job.model()
        job.download(tmp_path / "runs" / "first" / "checkpoints" / "best")
        (answer,) = model.predict(tmp_path / "photo.jpg", ["circle"], min_score=0.3).results
        for line in example(GUIDE, "commands").splitlines():
            done = guides.run(line.removeprefix("$ "), tmp_path, service.url, model=model.id)
            assert done.returncode == 0, done.stderr
    assert answer.detections

    script = (
        example(GUIDE, "python")
        .replace("heart", "circle")
        .replace('"facebook/sam3", 1008', f'"base", {arch.image_size}')
    )
    # The small base reads shorter prompts than the 32 tokens that transformers' processor makes for SAM3.
    shorter = (
        f'for name in ("input_ids", "attention_mask"):\n    inputs[name] = inputs[name][:, :{arch.text_context}]\n'
    )
    script = script.replace("with torch.no_grad()", shorter + "with torch.no_grad()")
    for folder in ("adapter", "adapter-of-run"):
        if folder != "adapter":
            shutil.rmtree(tmp_path / "adapter")
            (tmp_path / folder).rename(tmp_path / "adapter")
        command = [sys.executable, "-c", script]
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found = sorted((eval(line.replace(" [", ", [", 1)) for line in done.stdout.splitlines()), reverse=True)
        ours = sorted(((each.score, each.box) for each in answer.detections), reverse=True)
        assert len(found) == len(ours)
        for (score, box), (our_score, our_box) in zip(found, ours, strict=True):
            assert score == pytest.approx(our_score, abs=0.01)
            assert box == pytest.approx(our_box, abs=1.0)
