"""Features of frozen blocks are kept where images come again; training learns the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from sam3_lora.config import RunConfig
from sam3_lora.data import dataset
from sam3_lora.errors import ConfigError
from sam3_lora.evaluation import coco_metrics
from sam3_lora.events import Event, EventType
from sam3_lora.training.run import train

SAME_VIEWS: dict[str, Any] = {"min_scale": 1.0}
DETECTOR: dict[str, Any] = {"apply_to_vision_encoder": False, "dropout": 0.0}


def losses(config: RunConfig) -> list[float]:
    found: list[float] = []

    def report(event: Event) -> None:
        if event.type is EventType.METRICS and "train/loss" in event.data["values"]:
            found.append(event.data["values"]["train/loss"])

    train(config, reporter=report)
    return found


@pytest.mark.parametrize("lora", [DETECTOR, {"vision_layers": 1, "dropout": 0.0}])
@pytest.mark.parametrize("use_amp", [False, True])
@pytest.mark.parametrize(
    "dataset", [SAME_VIEWS, {"augmented_views": 1, "horizontal_flip": 0.5, "color_jitter": 0.2}], ids=["plain", "views"]
)
def test_losses_are_those_without_a_cache(
    make_config: Callable[..., RunConfig], lora: dict[str, Any], use_amp: bool, dataset: dict[str, Any]
):
    each = [
        losses(make_config(kind, lora=lora, dataset=dataset, training={"use_amp": use_amp, "cache_features": kind}))
        for kind in ("off", "on")
    ]
    assert len(each[0]) == 6
    assert each[0] == pytest.approx(each[1], rel=5e-3 if use_amp else 1e-4)


def test_another_run_uses_the_files_even_where_one_is_damaged(make_config: Callable[..., RunConfig], tmp_path: Path):
    adapters = []
    for name in ("first", "second", "third"):
        config = make_config(
            name, lora=DETECTOR, dataset=SAME_VIEWS, output={"feature_cache": str(tmp_path / "features")}
        )
        train(config)
        adapters.append(load_file(config.output.dir / "checkpoints" / "best" / "adapter_model.safetensors"))
        files = sorted((tmp_path / "features").rglob("*.safetensors"))
        assert len(files) == 6 + 2  # images of training and of validation
        files[0].write_bytes(files[0].read_bytes()[:-1])
    for other in adapters[1:]:
        assert all(value.equal(other[name]) for name, value in adapters[0].items())


@pytest.mark.parametrize("kept", ["memory", "folder"])
@pytest.mark.parametrize("workers", [0, 1])
def test_images_are_read_once_where_their_features_are_kept(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: str, workers: int
):
    log = tmp_path / "read"  # loader processes write it, too
    for module in (dataset, coco_metrics):

        def read(file: Path, *, original: Any = module.read_rgb, **options: Any) -> Any:
            with log.open("a") as lines:
                lines.write(f"{file}\n")
            return original(file, **options)

        monkeypatch.setattr(module, "read_rgb", read)
    folder = {"feature_cache": str(tmp_path / "features")} if kept == "folder" else {}
    # a loader works ahead: the second epoch begins before the first one's features are all there
    settings = {"max_epochs": 4, "num_workers": workers, "batch_size": 1}
    train(make_config(lora=DETECTOR, dataset=SAME_VIEWS, training=settings, output=folder))
    training = [line for line in log.read_text().splitlines() if "/train/" in line]
    validation = [line for line in log.read_text().splitlines() if "/valid/" in line]
    assert len(set(training)) == 6
    assert len(training) == 6 if workers == 0 else 6 <= len(training) < 4 * 6
    assert len(validation) == len(set(validation)) == 2


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"dataset": SAME_VIEWS}, "lora.vision_layers"),
        ({"lora": DETECTOR}, "dataset.augmented_views"),
        ({"lora": DETECTOR, "dataset": SAME_VIEWS, "training": {"frozen_dropout": True}}, "training.frozen_dropout"),
    ],
)
def test_a_cache_that_could_keep_nothing_is_refused(
    make_config: Callable[..., RunConfig], sections: dict[str, Any], named: str
):
    with pytest.raises(ConfigError, match=named) as caught:
        train(make_config(**{**sections, "training": {**sections.get("training", {}), "cache_features": "on"}}))
    assert caught.value.errors[0]["pointer"] == "/training/cache_features"


def test_a_folder_that_cannot_be_made_is_a_named_error(make_config: Callable[..., RunConfig], tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"output\.feature_cache"):
        train(make_config(lora=DETECTOR, output={"feature_cache": str(tmp_path / "file")}))
