"""The command line on a micro base: what a user types, sees and gets back as exit code."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import load_file
from sam3.model_builder import _load_checkpoint
from typer.testing import CliRunner, Result

from sam3_lora.cli import app
from sam3_lora.evaluation.predict import open_predictor
from sam3_lora.events import Event, EventType
from sam3_lora.model.build import build_model
from sam3_lora.synthetic.coco_export import ANNOTATIONS
from sam3_lora.training.run import train
from tests.models import MICRO, largest_difference, mixed_batch, outputs_of


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def as_yaml(config, path: Path) -> Path:
    path.write_text(yaml.safe_dump(json.loads(config.model_dump_json())))
    return path


def test_train_resume_and_predict(make_config, drawn: Path, tmp_path: Path):
    config = make_config(training={"max_epochs": 1})
    done = run("train", "--config", as_yaml(config, tmp_path / "run.yaml"))
    assert done.exit_code == 0, done.output
    assert "modules adapted" in done.output
    assert "segm_mAP" in done.output
    longer = as_yaml(make_config(training={"max_epochs": 2}), tmp_path / "longer.yaml")
    resumed = run("train", "--config", longer, "--resume", config.output.dir, "--json")
    assert resumed.exit_code == 0, resumed.output
    assert json.loads(resumed.stdout) == json.loads((config.output.dir / "report.json").read_text())
    assert "resumed after step 3 of 6" in resumed.output
    image = next((drawn / "valid").glob("*.jpg"))
    adapter = config.output.dir / "checkpoints" / "best"
    options = ["--image", image, "--prompt", "heart", "--prompt", "cross", "--adapter", adapter, "--threshold", 0]
    found = run("predict", *options, "--output", tmp_path / "found.png")
    assert found.exit_code == 0, found.output
    answers = json.loads(found.stdout)["answers"]
    assert [answer["prompt"] for answer in answers] == ["heart", "cross"]
    assert len(answers[0]["detections"]) == 8
    assert Image.open(tmp_path / "found.png").width >= 480
    boxed = run("predict", "--image", image, "--box", "10,20,40,30", "--adapter", adapter, "--threshold", 0)
    assert boxed.exit_code == 0, boxed.output
    answer = json.loads(boxed.stdout)["answers"][0]
    assert answer["prompt"] == "visual"
    assert answer["presence"] not in [other["presence"] for other in answers]


@pytest.mark.parametrize("box", ["1,2,3", "a,b,c,d", "0,0,0,5", "0,0,nan,5", "0,0,inf,5", ""])
def test_predict_refuses_what_is_no_box(box: str, tmp_path: Path):
    refused = run("predict", "--image", tmp_path / "x.png", "--box", box)
    assert refused.exit_code == 2
    assert "--box" in refused.output


def test_predict_wants_a_prompt_or_a_box(tmp_path: Path):
    refused = run("predict", "--image", tmp_path / "x.png")
    assert refused.exit_code == 2
    assert "give a prompt, a box, or both" in refused.output


def test_inspect_shows_what_would_be_adapted(make_config, tmp_path: Path):
    config = make_config(lora={"component_rank": {"scoring": 2}})
    shown = run("inspect", "--config", as_yaml(config, tmp_path / "run.yaml"), "--json")
    assert shown.exit_code == 0, shown.output
    events: list[Event] = []
    train(config, reporter=events.append)
    resolved = next(event.data for event in events if event.type is EventType.RESOLVED)
    values = json.loads(shown.stdout)
    memory, batch = values.pop("peak_memory_bytes"), values.pop("batch")
    assert (values.pop("device"), values.pop("recomputed")) == ("cpu", "off")
    assert memory["peak"] < values.pop("needed_bytes")["cuda"]
    assert values.items() <= json.loads(json.dumps(resolved)).items()
    assert memory["peak"] == memory["weights"] + memory["adapters"] + memory["activations"]
    assert memory["adapters"] == 16 * values["trainable_parameters"]
    assert (batch["images"], batch["assumed"]) == (2, False)
    table = run("inspect", "--config", tmp_path / "run.yaml")
    assert table.exit_code == 0, table.output
    assert "detr_decoder" in table.output
    wrong = run("inspect", "--config", as_yaml(make_config(lora={"vision_layers": 9}), tmp_path / "wrong.yaml"))
    assert wrong.exit_code == 2
    assert "/lora/vision_layers" in wrong.output


def test_inspect_counts_the_official_model_without_its_weights(make_config, tmp_path: Path):
    official = make_config(lora={"rank": 8}, model={"base": "sam3"})
    arguments = ("inspect", "--config", as_yaml(official, tmp_path / "run.yaml"), "--json", "--device", "cuda")
    shown = run(*arguments, "--memory-gb", 80)
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert (found["device"], found["recomputed"]) == ("cuda", "off")
    lean = json.loads(run(*arguments, "--memory-gb", 1).stdout)
    assert lean["recomputed"] == "on"
    assert lean["peak_memory_bytes"]["activations"] < found["peak_memory_bytes"]["activations"] / 2
    assert found["total_parameters"] - found["trainable_parameters"] == 840_509_750  # upstream's own count
    assert len(found["adapted_modules"]) == 190


def plain_map(folder: Path) -> float:
    """Box mAP of exported files by pycocotools alone."""
    truth = COCO(str(folder / "truth.json"))
    scorer = COCOeval(truth, truth.loadRes(str(folder / "predictions.json")), "bbox")
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
    return float(scorer.stats[0])


def test_evaluate_gives_the_figures_of_the_run(make_config, drawn: Path, tmp_path: Path):
    config = make_config(training={"max_epochs": 1})
    trained = train(config)
    place = ["--images", drawn / "valid", "--annotations", drawn / "valid" / ANNOTATIONS]
    adapter = ["--adapter", config.output.dir / "checkpoints" / "best"]
    found = run("evaluate", *place, *adapter, "--json", "--export", tmp_path / "exported")
    assert found.exit_code == 0, found.output
    measured = json.loads(found.stdout)
    assert measured["base"] == trained.base
    assert measured["tuned"] == trained.best["evaluation"]
    for model in ("base", "tuned"):
        assert plain_map(tmp_path / "exported" / model) == pytest.approx(measured[model]["metrics"]["bbox_mAP"])
    assert "<h1" in (tmp_path / "exported" / "report.html").read_text()
    (tmp_path / "file").write_text("taken")
    unwritable = run("evaluate", *place, *adapter, "--export", tmp_path / "file" / "below")
    assert unwritable.exit_code == 2
    assert "--export: cannot be written" in unwritable.output
    table = run("evaluate", *place, "--base", "sam3-tiny", "--max-images", 1)
    assert table.exit_code == 0, table.output
    assert "segm_mAP50" in table.output
    assert "tuned" not in table.output
    nothing = run("evaluate", "--images", drawn, "--annotations", drawn / "none.json", "--base", "sam3-tiny")
    assert nothing.exit_code == 1
    assert "none.json" in nothing.output.replace("\n", "")


def test_two_models_are_measured_side_by_side(make_config, drawn: Path, tmp_path: Path):
    """Each as if alone, asked in its own words, on the same truth; a base borrows the words of the other."""
    short = {"training": {"max_steps": 1, "learning_rate": 0.02}, "evaluation": {"baseline": False}}
    for name, dataset in (("old", {}), ("new", {"prompts": {"heart": ["giraffe heart"]}})):
        train(make_config(name, dataset=dataset, **short))
    old, new = (tmp_path / name / "checkpoints" / "best" for name in ("old", "new"))
    place = ["--images", drawn / "valid", "--annotations", drawn / "valid" / ANNOTATIONS, "--json"]
    alone = {
        adapter: json.loads(run("evaluate", *place, "--adapter", adapter, "--export", adapter / "e").stdout)
        for adapter in (old, new)
    }
    done = run("evaluate", *place, "--adapter", new, "--against", old, "--export", tmp_path / "both")
    assert done.exit_code == 0, done.output
    both = json.loads(done.stdout)
    assert list(both) == ["against", "tuned"]
    for key, adapter in (("against", old), ("tuned", new)):
        assert without_probe(both[key]) == without_probe(alone[adapter]["tuned"])
        assert "giraffe" not in [row["prompt"] for row in both[key]["absent_prompts"]]  # a word that one is asked with
        for file in ("truth.json", "predictions.json"):
            assert (tmp_path / "both" / key / file).read_bytes() == (adapter / "e" / "tuned" / file).read_bytes()
    files = {
        name: [(tmp_path / "both" / key / name).read_bytes() for key in both]
        for name in ("truth.json", "predictions.json")
    }
    assert files["truth.json"][0] == files["truth.json"][1]
    assert files["predictions.json"][0] != files["predictions.json"][1]
    page = (tmp_path / "both" / "report.html").read_text()
    assert f"<h1>{new} against {old}</h1>" in page
    assert "tuned model" not in page
    against_base = json.loads(run("evaluate", *place, "--adapter", new, "--against", "sam3-tiny").stdout)
    assert against_base == {"against": alone[new]["base"], "tuned": alone[new]["tuned"]}
    missing = run("evaluate", *place, "--adapter", new, "--against", tmp_path / "none")
    assert missing.exit_code == 1
    assert "adapter_config.json" in missing.output.replace("\n", "")


def without_probe(evaluation: dict[str, Any]) -> dict[str, Any]:
    metrics = {name: value for name, value in evaluation["metrics"].items() if name != "absent_FPR"}
    return {**evaluation, "metrics": metrics, "absent_prompts": []}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_merged_weights_load_into_the_stock_loader(make_config, tmp_path: Path, suffix: str, capsys):
    config = make_config(training={"max_steps": 2, "learning_rate": 0.01}, evaluation={"baseline": False})
    train(config)
    adapter, merged = config.output.dir / "checkpoints" / "best", tmp_path / f"merged{suffix}"
    done = run("merge", "--adapter", adapter, "--output", merged)
    assert done.exit_code == 0, done.output
    tuned = open_predictor(adapter)[0].model
    stock: Any = build_model(MICRO, resolution=140)
    if suffix == ".pt":
        stock.inst_interactive_predictor = None
        _load_checkpoint(stock, str(merged))
        assert "missing" not in capsys.readouterr().out
    else:
        plain = {name.removeprefix("detector."): value for name, value in load_file(merged).items()}
        assert not [n for n in stock.load_state_dict(plain, strict=False).missing_keys if "freqs_cis" not in n]
    batch = mixed_batch()
    assert largest_difference(outputs_of(tuned.eval(), batch), outputs_of(stock.eval(), batch)) < 1e-4
    again = run("merge", "--adapter", adapter, "--output", merged)
    assert again.exit_code == 2
    assert "exists already" in again.output
    assert run("merge", "--adapter", adapter, "--output", tmp_path / "merged.bin").exit_code == 2
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {merged.name}  # no remains


@pytest.mark.parametrize(
    ("content", "code", "shown"),
    [
        ("lora: {rnk: 8}", 2, "did you mean 'rank'"),
        ("lora: [", 2, "not valid YAML"),
        (
            "dataset: {train_img_folder: /nowhere, train_ann_file: /nowhere.json}\nmodel: {base: sam3-tiny}",
            1,
            "nowhere",
        ),
    ],
)
def test_faults_are_shown_with_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, code: int, shown: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(content)
    done = run("train", "--config", tmp_path / "run.yaml")
    assert done.exit_code == code, done.output
    assert shown in done.output.replace("\n", " ")


def test_missing_adapter_is_named(drawn: Path, tmp_path: Path):
    image = next((drawn / "valid").glob("*.jpg"))
    done = run("predict", "--image", image, "--prompt", "x", "--adapter", tmp_path)
    assert done.exit_code == 1
    assert "adapter_config.json" in done.output


def test_validate(drawn: Path, tmp_path: Path):
    good = run("validate", drawn)
    assert good.exit_code == 0, good.output
    assert "valid: 8 images" in good.output
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "_annotations.coco.json").write_text('{"images": [{"id": 1}]}')
    bad = run("validate", tmp_path, "--json")
    assert bad.exit_code == 1
    assert json.loads(bad.stdout)["summary"]["errors"] > 0
