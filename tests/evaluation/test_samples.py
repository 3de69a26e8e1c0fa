import json
from pathlib import Path

from PIL import Image

from tests.evaluation.test_report import BOXES, FAR, Data


def test_samples_are_the_worst_images_as_files_with_their_figures(tmp_path: Path):
    data = Data(tmp_path, images=4)
    (data.images / "4.png").unlink()
    data.model("base", [])
    data.model("tuned", [*data.found(1, *BOXES), *data.found(2, *BOXES[:2]), *data.found(2, FAR, score=0.8)])
    data.write(samples=tmp_path / "samples", worst=4)
    index = json.loads((tmp_path / "samples" / "index.json").read_text())
    assert [row["file_name"] for row in index] == ["3.png", "4.png", "2.png", "1.png"]
    second = index[2]
    assert (second["objects"], second["missed"], second["false_alarms"]) == (
        3,
        {"base": 3, "tuned": 1},
        {"base": 0, "tuned": 1},
    )
    assert [found["score"] for found in second["instances"]["tuned"]] == [0.9, 0.9, 0.8]
    assert index[1]["panels"] == {}
    files = {panel["file"] for row in index for panel in row["panels"].values()}
    assert {path.name for path in (tmp_path / "samples").iterdir()} == files | {"index.json"}
    for name, panel in second["panels"].items():
        with Image.open(tmp_path / "samples" / panel["file"]) as picture:
            assert (picture.format, picture.size) == ("JPEG", (panel["width"], panel["height"])), name
    assert list(second["panels"]) == ["image", "truth", "base", "tuned"]


def test_an_image_without_a_mistake_is_a_sample_but_not_in_the_report(tmp_path: Path):
    data = Data(tmp_path, images=1)
    data.model("tuned", data.found(1, *BOXES))
    page = data.write(samples=tmp_path / "samples")
    assert page.worst == []
    (row,) = json.loads((tmp_path / "samples" / "index.json").read_text())
    assert (row["missed"], sorted(row["panels"])) == ({"tuned": 0}, ["image", "truth", "tuned"])
