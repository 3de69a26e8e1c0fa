import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as rle_codec

from sam3_lora.coco import schema
from sam3_lora.coco.validate import validate
from sam3_lora.synthetic.__main__ import main
from sam3_lora.synthetic.coco_export import write_dataset
from sam3_lora.synthetic.scenes import KNOWN, NOVEL, draw_scene


def test_scene_is_a_function_of_its_generator():
    one, again = (draw_scene(np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(one.pixels, again.pixels)
    assert [o.polygon for o in one.objects] == [o.polygon for o in again.objects]
    assert not np.array_equal(one.pixels, draw_scene(np.random.default_rng(4)).pixels)


def test_masks_are_disjoint_and_boxes_tight():
    rng = np.random.default_rng(0)
    for _ in range(30):
        scene = draw_scene(rng, count=(2, 5))
        assert sum(o.mask.astype(int) for o in scene.objects).max() == 1
        for item in scene.objects:
            left, top, right, bottom = (int(v) for v in item.box_xyxy)
            assert item.mask[top:bottom, left:right].sum() == item.mask.sum()
            assert item.mask[:, left].any()
            assert item.mask[bottom - 1].any()


def test_novel_shapes_are_never_drawn_unasked():
    rng = np.random.default_rng(1)
    drawn = {item.shape for _ in range(200) for item in draw_scene(rng).objects}
    assert drawn == set(KNOWN)
    assert not drawn & set(NOVEL)


def test_clutter_is_what_blurs_and_textures():
    plain = draw_scene(np.random.default_rng(2), clutter=0.0)
    background = ~sum(o.mask for o in plain.objects).astype(bool)
    corner = plain.pixels[background][:50]
    assert np.ptp(corner, axis=0).max() == 0
    assert np.ptp(draw_scene(np.random.default_rng(2), clutter=1.0).pixels[background], axis=0).max() > 0


def test_written_dataset_is_valid_and_true(tmp_path: Path):
    write_dataset(tmp_path / "data", concepts=["heart", "cross"], train=12, valid=3, seed=1)
    report = validate(tmp_path / "data").to_dict()
    assert (report["status"], report["summary"]["errors"], report["summary"]["warnings"]) == ("valid", 0, 0)
    assert report["summary"]["images"] == 15
    dataset = schema.load(tmp_path / "data" / "train" / "_annotations.coco.json")
    assert [c.name for c in dataset.categories.values()] == ["heart", "cross"]
    for annotation in dataset.annotations:
        mask = rle_codec.decode(rle_codec.merge(rle_codec.frPyObjects(annotation.segmentation, 140, 140)))
        x, y, w, h = annotation.bbox
        inside = mask[int(y) : int(y + h), int(x) : int(x + w)].sum()
        assert inside / mask.sum() > 0.8  # the box is of the visible part; up to 12 % may be covered


@pytest.mark.parametrize("argument", ["--concepts", "--train"])
def test_bad_arguments_are_refused(tmp_path: Path, argument: str):
    with pytest.raises(SystemExit):
        main([str(tmp_path / "a.zip"), argument, "nonsense"])


def test_command_writes_an_archive(tmp_path: Path):
    import zipfile

    main([str(tmp_path / "a.zip"), "--train", "2", "--valid", "1", "--concepts", "gear"])
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        body = json.loads(archive.read("train/_annotations.coco.json"))
    assert [c["name"] for c in body["categories"]] == ["gear"]
