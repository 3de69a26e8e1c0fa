import errno
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sam3_lora.errors import (
    AdapterError,
    CheckpointError,
    ConfigError,
    DatasetError,
    DivergedError,
    NothingTrainedError,
    OutOfMemoryError,
    StorageFullError,
)
from sam3_lora.events import EventType, Level
from sam3_lora.training import run, setup
from sam3_lora.training.run import InterruptedRunError, Stop, train
from sam3_lora.training.step import Stepper
from tests.training.recorder import Recorder, stop_after


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_run_writes_what_it_promises(make_config):
    events = Recorder()
    config = make_config(output={"tensorboard": True})
    report = train(config, reporter=events)
    folder = config.output.dir
    assert (report.steps, report.epochs, report.stopped_early) == (6, 2, False)
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"best", "epoch_1", "epoch_2"}
    assert (folder / "logs" / "training.log").read_text().count("saved checkpoints/") >= 3
    assert list((folder / "logs").glob("events.out.tfevents.*"))
    points = [json.loads(line) for line in (folder / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert [p["step"] for p in points if "train/loss" in p] == [1, 2, 3, 4, 5, 6]
    assert [p["step"] for p in points if "val/segm_mAP" in p] == [3, 6]
    for name, metrics in (("base", report.base["metrics"]), ("tuned", report.best["evaluation"]["metrics"])):
        assert json.loads((folder / "evaluation" / name / "evaluation.json").read_text())["metrics"] == metrics
        assert (folder / "evaluation" / name / "predictions.json").stat().st_size > 0
    assert not (folder / "evaluation" / ".latest").exists()
    page = (folder / "report.html").read_text()
    assert "giraffe" in page
    assert (folder / "samples" / "index.json").exists()
    followed = [json.loads((folder / "epoch_samples" / n / "index.json").read_text()) for n in ("1", "2")]
    assert [row["file_name"] for row in followed[0]] == [row["file_name"] for row in followed[1]]
    assert list(followed[0][0]["panels"]) == ["image", "truth", "base", "tuned"]
    complete = [event.data["place"] for event in events.of(EventType.ARTIFACT)]
    assert complete[0] == "evaluation/base"
    assert {"evaluation/tuned", "epoch_samples/1", "epoch_samples/2"} == set(complete[1:-3])
    assert complete[-3:] == ["report.json", "report.html", "samples"]
    assert json.loads((folder / "report.json").read_text())["steps"] == 6
    resolved = json.loads((folder / "config.resolved.json").read_text())
    assert (resolved["dataset"]["resolution"], resolved["training"]["device"]) == (140, "cpu")
    assert report.base is not None
    assert set(report.base["metrics"]) == set(report.best["evaluation"]["metrics"])
    assert events[-1].type is EventType.RESULT
    phases = [event.data["phase"] for event in events.of(EventType.PHASE)]
    assert phases[:4] == ["starting", "loading_model", "evaluating", "training"]
    assert phases[-1] == "finalizing"
    assert sorted(events.losses()) == [1, 2, 3, 4, 5, 6]
    progress = [event.data for event in events.of(EventType.PROGRESS) if "eta_s" in event.data][-1]
    assert (progress["step"], progress["steps"], progress["percent"]) == (6, 6, 100.0)
    kinds = [(e.data["kind"], e.data["folder"]) for e in events.of(EventType.CHECKPOINT)]
    assert ("best", "checkpoints/best") in kinds
    assert ("epoch", "checkpoints/epoch_2") in kinds


def test_of_a_long_run_some_epochs_are_drawn_and_none_of_the_run_that_was_here_before(make_config, monkeypatch):
    monkeypatch.setattr(run, "DRAWN_EPOCHS", 2)
    config = make_config(training={"max_epochs": 5, "max_steps": 13}, evaluation={"baseline": False})
    old = config.output.dir / "epoch_samples" / "4"
    old.mkdir(parents=True)
    train(config)
    assert {path.name for path in old.parent.iterdir()} == {"3", "5"}  # every third, and the last


def test_training_goes_on_where_its_samples_cannot_be_drawn(make_config):
    events = Recorder()
    config = make_config(training={"max_epochs": 1})
    config.output.dir.mkdir(parents=True)
    (config.output.dir / "epoch_samples").write_text("in the way")
    assert train(config, reporter=events).best["value"] is not None
    warnings = [event.message for event in events.of(EventType.MESSAGE) if event.level is Level.WARNING]
    assert any(text.startswith("no samples of epoch 1: ") for text in warnings)


def test_training_lowers_the_loss(make_config):
    events = Recorder()
    train(
        make_config(
            training={"max_epochs": 12, "learning_rate": 3e-3, "max_grad_norm": 1.0, "lr_scheduler": "constant"},
            dataset={"min_scale": 1.0},
            evaluation={"every_epochs": 100, "baseline": False},
        ),
        reporter=events,
    )
    losses = list(events.losses().values())
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])


def test_same_seed_same_run_other_seed_other_run(make_config):
    quick = {"evaluation": {"baseline": False, "every_epochs": 9}}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(make_config(name, training={"seed": seed, "max_epochs": 1}, **quick))
    folders = [make_config(name).output.dir / "checkpoints" / "epoch_1" for name in "abc"]
    assert same(adapter(folders[0]), adapter(folders[1]))
    assert not same(adapter(folders[0]), adapter(folders[2]))


KEPT_FEATURES = {
    "lora": {"vision_layers": 1},
    "dataset": {"augmented_views": 2},
    "training": {"use_amp": True, "cache_features": "on"},
}


@pytest.mark.parametrize(("interrupted_after", "sections"), [(1, {}), (3, {}), (4, {}), (4, KEPT_FEATURES)])
def test_resumed_run_equals_an_uninterrupted_one(make_config, interrupted_after: int, sections: dict[str, Any]):
    whole, first, second = Recorder(), Recorder(), Recorder()
    train(make_config("whole", **sections), reporter=whole)
    config = make_config("parts", **sections)
    with pytest.raises(InterruptedRunError) as caught:
        train(config, reporter=first, should_stop=stop_after(interrupted_after, first))
    assert caught.value.checkpoint == config.output.dir / "checkpoints" / f"step_{interrupted_after}"
    rest = make_config("rest", **sections)  # elsewhere: all that is needed is in the checkpoint
    report = train(rest, reporter=second, resume=config.output.dir)
    assert {**first.losses(), **second.losses()} == whole.losses()
    lines = [(make_config(n).output.dir / "logs" / "metrics.jsonl").read_text().splitlines() for n in ("whole", "rest")]
    steps = [[p["step"] for p in map(json.loads, part) if "train/loss" in p] for part in lines]
    assert steps[0] == steps[1] == [1, 2, 3, 4, 5, 6]
    expected = make_config("whole").output.dir / "checkpoints" / "epoch_2"
    assert same(adapter(rest.output.dir / "checkpoints" / "epoch_2"), adapter(expected))
    whole_report = json.loads((make_config("whole").output.dir / "report.json").read_text())
    for key in ("steps", "epochs", "best", "base", "skipped_steps"):
        assert report.to_dict()[key] == whole_report[key], key


def test_resuming_with_another_batch_size_goes_on_in_the_same_epoch(make_config):
    events = Recorder()
    config = make_config()
    with pytest.raises(InterruptedRunError):
        train(config, reporter=events, should_stop=stop_after(1, events))  # 2 of 6 images
    report = train(make_config(training={"batch_size": 3}), resume=config.output.dir)
    assert report.steps == 1 + 2 + 2  # the other 4 images, then 6


def test_more_epochs_may_follow_a_finished_run(make_config):
    config = make_config(training={"max_epochs": 1})
    train(config)
    longer = make_config(training={"max_epochs": 2, "lr_scheduler": "cosine"})
    assert train(longer, resume=config.output.dir).steps == 6


def test_resuming_with_other_settings_names_each_difference(make_config):
    config = make_config(training={"max_epochs": 1})
    train(config)
    other = make_config(lora={"rank": 8}, training={"learning_rate": 5e-4, "max_epochs": 1})
    with pytest.raises(CheckpointError) as caught:
        train(other, resume=config.output.dir)
    assert "lora.rank (4 then, 8 now)" in caught.value.message
    assert "training.learning_rate" in caught.value.message


@pytest.mark.parametrize("damage", ["truncate", "delete"])
def test_damaged_checkpoint_is_refused(make_config, damage: str):
    config = make_config(training={"max_epochs": 1})
    train(config)
    state = config.output.dir / "checkpoints" / "epoch_1" / "training_state.pt"
    if damage == "truncate":
        state.write_bytes(state.read_bytes()[:-100])
    else:
        (state.parent / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        train(config, resume=state.parent)


def test_nothing_to_resume_is_an_error(make_config, tmp_path: Path):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train(make_config(), resume=tmp_path)


def test_finish_early_evaluates_saves_and_succeeds(make_config):
    events = Recorder()
    config = make_config(training={"max_epochs": 50})
    report = train(config, reporter=events, should_stop=stop_after(4, events, Stop.FINISH))
    assert report.stopped_early
    assert report.steps == 4
    assert report.best is not None
    assert (config.output.dir / "checkpoints" / "best" / "adapter_model.safetensors").is_file()


def test_interruption_before_the_first_step_saves_nothing(make_config):
    with pytest.raises(InterruptedRunError) as caught:
        train(make_config(), should_stop=lambda: Stop.INTERRUPT)
    assert caught.value.checkpoint is None


def test_accumulation_divides_by_the_number_of_micro_batches(make_config):
    """One step over k equal micro-batches has the gradient of one of them, not k times it."""
    norms = {}
    for name, accumulation, epochs in (("one", 1, 1), ("three", 3, 1)):
        events = Recorder()
        train(
            make_config(
                name,
                training={
                    "gradient_accumulation_steps": accumulation,
                    "max_epochs": epochs,
                    "learning_rate": 1e-12,
                    "mask_points": None,  # sampled points would be others in another step
                },
                lora={"dropout": 0.0},
                evaluation={"baseline": False, "every_epochs": 9},
            ),
            reporter=events,
        )
        points = [e.data["values"] for e in events.of(EventType.METRICS) if "train/loss" in e.data["values"]]
        norms[name] = [(p["train/loss"], p["train/grad_norm"]) for p in points]
    assert (len(norms["one"]), len(norms["three"])) == (3, 1)
    assert norms["three"][0][0] == pytest.approx(sum(loss for loss, _ in norms["one"]) / 3, rel=1e-4)
    assert norms["three"][0][1] <= max(norm for _, norm in norms["one"]) * 1.001  # a mean is no longer than its parts


def test_non_finite_steps_are_skipped_counted_and_end_the_run(make_config, poison: Callable[[int], None]):
    poison(3)
    config = make_config(training={"max_nonfinite_steps": 2}, evaluation={"baseline": False})
    with pytest.raises(DivergedError, match="2 steps in a row"):
        train(config)
    best = adapter(config.output.dir / "checkpoints" / "best")
    assert all(torch.isfinite(value).all() for value in best.values())


def test_out_of_memory_names_what_to_lower(make_config, monkeypatch: pytest.MonkeyPatch):
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Stepper, "_backward", exhausted)
    with pytest.raises(OutOfMemoryError) as caught:
        train(make_config(evaluation={"baseline": False}))
    assert caught.value.code == "gpu_oom"
    assert "dataset.resolution" in caught.value.hint


def test_steps_that_all_fail_are_no_success(make_config, poison: Callable[[int], None]):
    poison(1)
    config = make_config(training={"max_nonfinite_steps": 100}, evaluation={"baseline": False})
    with pytest.raises(NothingTrainedError, match="not one optimiser step"):
        train(config)


def test_full_disk_is_named_and_leaves_the_last_good_checkpoint(make_config, monkeypatch: pytest.MonkeyPatch):
    saved = []

    def fill(state: object, path: Path) -> None:
        if saved:
            path.write_bytes(b"half of")
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(path)
        original(state, path)

    original = torch.save
    config = make_config(evaluation={"baseline": False})
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fill)
        with pytest.raises(StorageFullError, match="disk is full"):
            train(config)
    assert {p.name for p in (config.output.dir / "checkpoints").iterdir()} == {"best", "epoch_1"}
    events = Recorder()
    train(config, reporter=events, resume=config.output.dir)
    assert min(events.losses()) == 4


def test_progress_is_told_while_the_model_is_asked(make_config):
    events = Recorder()
    train(make_config(training={"max_epochs": 1}), reporter=events)
    asked = [e.data for e in events.of(EventType.PROGRESS) if "images_total" in e.data]
    assert [data["images_total"] for data in asked if data["images_done"] == data["images_total"]] == [2, 6, 2]
    assert asked[0].items() >= {"epoch": 1, "epochs": 1, "step": 0, "steps": 3, "percent": 0.0, "loss": None}.items()


def test_early_stopping_and_retention(make_config, monkeypatch: pytest.MonkeyPatch):
    config = make_config(
        training={"max_epochs": 9, "learning_rate": 1e-12, "keep_checkpoints": 1},
        evaluation={"early_stopping_patience": 2, "baseline": False},
    )
    report = train(config)
    assert report.epochs == 3  # the first is the best; two more without gain
    assert {p.name for p in (config.output.dir / "checkpoints").iterdir()} == {"best", "epoch_3"}


def test_validation_is_split_off_where_none_is_given(make_config):
    report = train(
        make_config(
            dataset={"val_img_folder": None, "val_ann_file": None, "val_fraction": 0.34}, training={"max_epochs": 1}
        )
    )
    assert report.best["evaluation"]["images"] == 2
    assert "held out" in report.notices[0]


def test_run_without_validation_says_so_and_keeps_the_last(make_config):
    config = make_config(
        dataset={"val_img_folder": None, "val_ann_file": None, "val_fraction": 0.0}, training={"max_epochs": 1}
    )
    report = train(config)
    assert report.best["value"] is None
    assert report.base is None
    assert "no validation" in report.notices[0]
    best = adapter(config.output.dir / "checkpoints" / "best")
    assert same(best, adapter(config.output.dir / "checkpoints" / "epoch_1"))


def test_where_the_metric_is_not_defined_the_last_counts_as_the_best_and_that_is_said(
    make_config, drawn: Path, tmp_path: Path
):
    coco = json.loads((drawn / "train" / "_annotations.coco.json").read_text())
    for annotation in coco["annotations"]:
        del annotation["segmentation"]
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps(coco))
    dataset = {"train_ann_file": str(boxes), "val_ann_file": str(boxes), "val_img_folder": str(drawn / "train")}
    events = Recorder()
    report = train(make_config(dataset=dataset, evaluation={"baseline": False}), reporter=events)
    assert (report.best["value"], report.best["epoch"]) == (None, 2)
    warnings = [event.message for event in events.of(EventType.MESSAGE) if event.level is Level.WARNING]
    assert [text for text in warnings if "segm_mAP is not defined" in text] == [run.UNDEFINED.format("segm_mAP")]


def test_loader_processes_give_the_same_run(make_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    long = tmp_path / ("x" * 90)  # longer than a unix socket's path may be, as a job's workspace is
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    quick = {"evaluation": {"baseline": False, "every_epochs": 9}}
    train(make_config("inline", training={"max_epochs": 1}, **quick))
    train(make_config("loaded", training={"max_epochs": 1, "num_workers": 2}, **quick))
    one, other = (make_config(n).output.dir / "checkpoints" / "epoch_1" for n in ("inline", "loaded"))
    assert same(adapter(one), adapter(other))


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image_is_named(make_config, drawn: Path, tmp_path: Path, workers: int):
    import shutil

    shutil.copytree(drawn, tmp_path / "copy")
    for image in (tmp_path / "copy" / "train").glob("*.jpg"):
        image.write_bytes(b"broken")
    folder = tmp_path / "copy" / "train"
    config = make_config(
        dataset={"train_img_folder": str(folder), "train_ann_file": str(folder / "_annotations.coco.json")},
        training={"num_workers": workers},
        evaluation={"baseline": False},
    )
    with pytest.raises(DatasetError, match=r"^cannot read image scene_\d+\.jpg"):
        train(config)


@pytest.mark.parametrize(
    ("sections", "pointer"),
    [
        ({"dataset": {"resolution": 100}}, "/dataset/resolution"),
        ({"dataset": {"prompts": {"ring": ["a ring"]}}}, "/dataset/prompts"),
        ({"training": {"use_amp": True, "amp_dtype": "float16"}}, "/training/amp_dtype"),
        ({"training": {"device": "cuda"}}, "/training/device"),
        ({"lora": {"vision_layers": 9}}, "/lora/vision_layers"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="two of these are faults only without CUDA")
def test_settings_that_do_not_fit_are_named(make_config, sections: dict, pointer: str):
    with pytest.raises(ConfigError) as caught:
        train(make_config(**sections))
    assert [fault["pointer"] for fault in caught.value.errors] == [pointer]


def test_starting_from_an_earlier_adapter_goes_on_from_its_weights(make_config):
    quick = {"evaluation": {"baseline": False, "every_epochs": 9}}
    first = make_config("first", training={"max_steps": 2}, **quick)
    train(first)
    earlier = first.output.dir / "checkpoints" / "best"
    still = {"max_steps": 1, "learning_rate": 1e-12}
    second = make_config("second", training=still, model={"adapter": str(earlier)}, **quick)
    train(second)
    one, other = adapter(earlier), adapter(second.output.dir / "checkpoints" / "best")
    assert all(torch.allclose(one[name], other[name], atol=1e-9) for name in one)
    assert any(value.abs().max() > 0 for name, value in other.items() if name.endswith(".b"))


def test_starting_from_an_adapter_of_other_shape_names_each_difference(make_config):
    first = make_config("first", training={"max_steps": 1}, evaluation={"baseline": False})
    train(first)
    earlier = str(first.output.dir / "checkpoints" / "best")
    other = make_config("second", lora={"rank": 2, "target_modules": ["qkv"]}, model={"adapter": earlier})
    with pytest.raises(AdapterError) as caught:
        train(other)
    assert "lora.rank (4 there, 2 here)" in caught.value.message
    assert "lora.target_modules" in caught.value.message


def test_time_limit_ends_early_and_well(make_config):
    events = Recorder()
    config = make_config(training={"max_epochs": 50, "max_seconds": 1e-6})
    report = train(config, reporter=events)
    assert report.stopped_early
    assert report.steps == 1
    assert report.best is not None
    assert any("max_seconds" in event.message for event in events)
    assert (config.output.dir / "checkpoints" / "best" / "adapter_model.safetensors").is_file()


def test_few_shot_says_how_many_images_it_uses(make_config):
    report = train(make_config(dataset={"limit_images": 3}, training={"max_epochs": 1}))
    assert report.steps == 2  # of 2 and 1 images
    assert "3 of 6 annotated training images" in report.notices[0]


def test_a_device_that_only_emulates_bfloat16_trains_in_float32_and_says_so(make_config, monkeypatch):
    quick = {"evaluation": {"baseline": False, "every_epochs": 9}}
    plain = make_config("plain", training={"max_steps": 1}, **quick)
    train(plain)
    monkeypatch.setattr(setup, "computes_bfloat16", lambda device_type: False)
    events = Recorder()
    mixed = make_config("mixed", training={"max_steps": 1, "use_amp": True}, **quick)
    train(mixed, reporter=events)
    assert any("no instructions for bfloat16" in e.message and e.level == "warning" for e in events)
    assert events.of(EventType.RESOLVED)[0].data["config"]["training"]["use_amp"] is False
    best = Path("checkpoints", "best")
    assert same(adapter(plain.output.dir / best), adapter(mixed.output.dir / best))
