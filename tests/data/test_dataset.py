import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

from sam3_lora.coco.schema import Annotation, Category, CocoDataset, ImageRecord
from sam3_lora.config import DatasetOptions
from sam3_lora.data.concepts import find_concepts
from sam3_lora.data.dataset import TrainingSet, epoch_batches, split_off_validation
from sam3_lora.errors import DatasetError


def build(folder: Path, annotations: list[Annotation], *, images: int = 2, **options: object) -> TrainingSet:
    for number in range(images):
        Image.new("RGB", (100, 60), (number, 0, 0)).save(folder / f"{number}.png")
    records = {n: ImageRecord(n, f"{n}.png", 100, 60) for n in range(images)}
    dataset = CocoDataset({1: Category(1, "a"), 2: Category(2, "b")}, records, annotations)
    return TrainingSet(
        dataset,
        folder,
        find_concepts(dataset, {}),
        DatasetOptions(**options),
        resolution=140,
        masks=True,
        seed=5,
    )


def box(number: int, image: int, category: int, size: float = 20.0, **values: object) -> Annotation:
    return Annotation(number, image, category, (10.0, 10.0, size, size), **values)


def test_sample_depends_on_seed_epoch_and_image_alone(tmp_path: Path):
    samples = build(tmp_path, [box(1, 0, 1)])
    first, again, later = samples[0, 0], samples[0, 0], samples[3, 0]
    assert torch.equal(first.image_CHW, again.image_CHW)
    assert torch.equal(first.boxes_N4, again.boxes_N4)
    assert first.queries == again.queries
    assert not torch.equal(first.boxes_N4, later.boxes_N4)


def test_object_lost_by_shrinking_keeps_its_query(tmp_path: Path):
    # 0.9 px wide at full scale is never trained on; 1.2 px is lost at half scale and kept at full
    samples = build(tmp_path, [box(1, 0, 1, size=0.86)], min_scale=0.5)
    for epoch in range(30):
        sample = samples[epoch, 0]
        assert len(sample.boxes_N4) == 1
        assert sample.queries[0].objects == (0,)


def test_object_below_a_pixel_at_full_scale_is_neither_target_nor_denied(tmp_path: Path):
    sample = build(tmp_path, [box(1, 0, 1, size=0.1)])[0, 0]
    assert len(sample.boxes_N4) == 0
    assert [q.text for q in sample.queries] == ["b"]


def test_crowds_are_no_targets_and_no_negatives(tmp_path: Path):
    sample = build(tmp_path, [box(1, 0, 1, is_crowd=True), box(2, 0, 2)])[0, 0]
    assert [q.text for q in sample.queries] == ["b"]


def test_too_many_objects_lose_the_smallest_and_say_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    annotations = [box(n, 0, 1, size=10.0 + n) for n in range(6)]
    with caplog.at_level(logging.WARNING):
        samples = build(tmp_path, annotations, max_ann_per_img=2)
    assert [a.id for a in samples.entries[0][1]] == [5, 4]
    assert "0.png has 6 objects" in caplog.text


def test_images_that_can_never_ask_anything_are_left_out(tmp_path: Path):
    assert len(build(tmp_path, [box(1, 0, 1)], exhaustive=False)) == 1
    assert len(build(tmp_path, [box(1, 0, 1)], negatives_per_image=0)) == 1
    assert len(build(tmp_path, [box(1, 0, 1)])) == 2


def test_nothing_to_train_on_is_an_error(tmp_path: Path):
    with pytest.raises(DatasetError) as caught:
        build(tmp_path, [], exhaustive=False)
    assert "annotate" in caught.value.hint


def test_epochs_visit_every_image_once_in_another_order():
    first, second = (list(epoch_batches(7, 3, seed=1, epoch=e)) for e in (0, 1))
    assert [len(batch) for batch in first] == [3, 3, 1]
    assert sorted(position for batch in first for _, position in batch) == list(range(7))
    assert [p for b in first for _, p in b] != [p for b in second for _, p in b]
    assert first == list(epoch_batches(7, 3, seed=1, epoch=0))
    rest = [index for batch in epoch_batches(7, 2, seed=1, epoch=0, start=3) for index in batch]
    assert rest == [index for batch in first for index in batch][3:]


@pytest.mark.parametrize(("images", "fraction", "held_out"), [(10, 0.2, 2), (2, 0.01, 1), (3, 0.99, 2)])
def test_split_is_seeded_and_leaves_both_sides_something(images: int, fraction: float, held_out: int):
    dataset = CocoDataset(
        {1: Category(1, "a")},
        {f"i{n}": ImageRecord(f"i{n}", f"{n}.png", 5, 5) for n in range(images)},
        [Annotation(n, f"i{n}", 1, (0, 0, 2, 2)) for n in range(images)],
    )
    train, validation = split_off_validation(dataset, fraction, seed=3)
    assert len(validation.images) == held_out == len(validation.annotations)
    assert set(train.images) | set(validation.images) == set(dataset.images)
    assert not set(train.images) & set(validation.images)
    assert split_off_validation(dataset, fraction, seed=3) == (train, validation)


def test_one_image_cannot_be_split():
    with pytest.raises(DatasetError, match="one image"):
        split_off_validation(CocoDataset(images={1: ImageRecord(1, "a", 5, 5)}), 0.2, seed=0)
