"""The benchmark runs and reports what its README and scripts rely on. Its figures are not judged here."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.__main__ import benchmarks
from benchmarks.learning import ABSENT_KNOWN, ABSENT_OTHER, VARIANTS
from sam3_lora.data.vocabulary import everyday_words
from sam3_lora.synthetic.scenes import KNOWN, NOVEL

ROOT = Path(__file__).parents[2]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)


def test_quick_run_measures_every_variant_and_ends_with_the_ratio(tmp_path: Path):
    done = run("learning", "--quick", "--output", tmp_path / "learning.json")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("learning ratio=")
    assert lines[-1].endswith(" target=1.00")
    assert any(line.startswith("learning_absent ratio=") for line in lines)
    body = json.loads((tmp_path / "learning.json").read_text())
    assert [row["variant"] for row in body["rows"]] == ["base", *(variant.name for variant in VARIANTS)]
    assert all(0 <= row["segm_mAP"] <= 1 and 0 <= row["absent_fpr"] <= 1 for row in body["rows"])
    trained = {row["variant"]: row["trainable_parameters"] for row in body["rows"][1:]}
    assert trained["lora-default"] < trained["lora-all"] < trained["full"]
    assert body["versions"]["torch"]
    assert "host" not in json.dumps(body["machine"])


def test_probe_asks_what_is_neither_drawn_nor_trained():
    asked = {*ABSENT_KNOWN, *ABSENT_OTHER}
    assert asked.isdisjoint(everyday_words())
    assert asked.isdisjoint(NOVEL)
    assert set(ABSENT_KNOWN) <= set(KNOWN)


def test_list_and_unknown_names():
    assert "learning" in benchmarks()
    listed, unknown = run(), run("nothing")
    assert (listed.returncode, unknown.returncode) == (0, 2)
    assert "unknown benchmark 'nothing'" in unknown.stderr
    assert "learning" in listed.stdout
