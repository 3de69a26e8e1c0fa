"""The report from exported files: its figures, its order, and that no name in it becomes markup."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_codec
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sam3_lora.evaluation import curves, matching, report
from sam3_lora.evaluation.coco_metrics import NO_MASKS
from sam3_lora.evaluation.report import Pair, write_report

WIDTH, HEIGHT = 100, 60
BOXES = [(5, 5, 20, 20), (40, 5, 20, 20), (70, 30, 20, 20)]
FAR = (5, 38, 20, 20)  # overlaps none of them
METRICS = {"segm_mAP": 0.25, "segm_mAP50": 0.5, "bbox_mAP": 0.75, "cgF1": 0.125, "IL_FPR": 0.5, "absent_FPR": 0.0625}
HOSTILE = [
    "<script>alert(1)</script>",
    "\"quoted\" 'name' & <marquee>bold</marquee>",
    "<img src=x onerror=alert(1)>",
    "long" * 500,
    "שלום עולם",
    "🦒🦒",
    "a $x$ b",
    "\u202egnp.exe",
    "half \ud800",
    "{{ 7 * 7 }}",
]


def rle(box: tuple[int, int, int, int]) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    x, y, w, h = box
    mask[y : y + h, x : x + w] = 1
    encoded = rle_codec.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


class Data:
    """Images of three objects of category 1, and folders of two models' files about them."""

    def __init__(self, folder: Path, *, images: int = 4, masks: bool = True, names: tuple[str, ...] = ("cat", "dog")):
        self.images, self.evaluations, self.output = folder / "images", folder / "evaluation", folder / "report.html"
        self.masks = masks
        self.images.mkdir()
        self.truth: dict[str, Any] = {
            "images": [
                {"id": i, "width": WIDTH, "height": HEIGHT, "file_name": f"{i}.png"} for i in range(1, images + 1)
            ],
            "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)],
            "annotations": [],
        }
        for image in self.truth["images"]:
            Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 90)).save(self.images / image["file_name"])
            for box in BOXES:
                self.add(image["id"], box)

    def add(self, image: int, box: tuple[int, int, int, int], *, category: int = 1, crowd: int = 0) -> None:
        entry = {**self._entry(image, category, box), "area": box[2] * box[3], "iscrowd": crowd}
        self.truth["annotations"].append({"id": len(self.truth["annotations"]) + 1, **entry})

    def found(self, image: int, *boxes: tuple[int, int, int, int], category: int = 1, score: float = 0.9):
        return [{**self._entry(image, category, box), "score": score} for box in boxes]

    def _entry(self, image: int, category: int, box: tuple[int, int, int, int]) -> dict[str, Any]:
        entry = {"image_id": image, "category_id": category, "bbox": list(box)}
        return {**entry, "segmentation": rle(box)} if self.masks else entry

    def model(self, name: str, predictions: list[dict[str, Any]], **evaluation: Any) -> None:
        rows = [
            {"ids": [c["id"]], "name": c["name"], "segm_mAP": 0.5, "bbox_mAP": 0.5} for c in self.truth["categories"]
        ]
        metrics = dict(METRICS) if self.masks else {**METRICS, "segm_mAP": None, "segm_mAP50": None}
        body = {
            "metrics": metrics,
            "per_category": rows,
            "images": len(self.truth["images"]),
            "notes": [],
            **evaluation,
        }
        folder = self.evaluations / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in (("truth", self.truth), ("predictions", predictions), ("evaluation", body)):
            (folder / f"{file}.json").write_text(json.dumps(content), encoding="utf-8")

    def write(self, **options: Any) -> Page:
        write_report(self.evaluations, self.output, **{"images": self.images, "title": "Tuned sam3", **options})
        return Page(self.output.read_text(encoding="utf-8"))


class Page(HTMLParser):
    """What a browser would make of the page: elements, rows of table cells by section, texts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source, self.tags, self.open, self.all_text = text, [], [], ""
        self.rows: dict[str, list[list[str]]] = {}
        self.headings: list[tuple[str, str]] = []
        self.section = ""
        self.feed(text)
        self.close()
        self.text = " ".join(self.all_text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "path", "use") or "svg" in self.open:
            self.open.append(tag)
        if tag == "h2":
            self.section = dict(attrs)["id"] or ""
        if tag in ("h1", "h2", "h3"):
            self.headings.append((tag, ""))
        if tag == "tr":
            self.rows.setdefault(self.section, []).append([])
        if tag in ("td", "th"):
            self.rows[self.section][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert tag in self.open, f"</{tag}> closes nothing"
        while self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.all_text += data
        if self.open and {"td", "th"} & set(self.open):
            row = self.rows[self.section][-1]
            row[-1] = " ".join(f"{row[-1]} {data}".split())
        if self.open and self.open[-1] in ("h1", "h2", "h3", "bdi") and {"h1", "h2", "h3"} & set(self.open):
            self.headings[-1] = (self.headings[-1][0], self.headings[-1][1] + data)

    @property
    def images(self) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.tags if tag == "img"]

    @property
    def worst(self) -> list[str]:
        return [text for tag, text in self.headings if tag == "h3"][:-1]  # the last is the notes'


@pytest.fixture
def data(tmp_path: Path) -> Data:
    """The tuned model finds all on image 1, then less and less; the base nothing but a false alarm each."""
    made = Data(tmp_path)
    tuned = [*made.found(1, *BOXES), *made.found(2, *BOXES[:2]), *made.found(3, *BOXES[:2], FAR), *made.found(4, FAR)]
    made.model("tuned", tuned)
    base = {**METRICS, "segm_mAP": 0.125, "IL_FPR": 0.25, "cgF1": 0.125}
    made.model("base", [entry for i in range(1, 5) for entry in made.found(i, FAR)], metrics=base)
    return made


def test_metrics_are_those_given_and_say_what_is_better(data: Data):
    rows = {row[0]: row[1:4] for row in data.write().rows["metrics"]}
    assert rows["segm_mAP"] == ["0.125", "0.250", "+0.125 better"]
    assert rows["IL_FPR"] == ["0.250", "0.500", "+0.250 worse"]
    assert rows["cgF1"] == ["0.125", "0.125", "±0.000 same"]


@pytest.mark.parametrize(
    ("base", "tuned", "words"),
    [
        (0.2, 0.5, "Better than the base model by 0.300 on 4 images. With so few images"),
        (0.5, 0.2, "Worse than the base model by 0.300"),
        (0.5, 0.5001, "No difference from the base model"),
        (None, 0.5, "not defined for the base model"),
        (0.5, None, "nothing can be said"),
        (0.01, 0.02, "The score itself is still low"),
    ],
)
def test_the_headline_is_honest(data: Data, base: float | None, tuned: float | None, words: str):
    for name, value in (("base", base), ("tuned", tuned)):
        data.model(name, [], metrics={**METRICS, "bbox_mAP": value})
    assert (words if tuned != 0.02 else "The tuned model found nothing") in data.write(metric="bbox_mAP").text


def test_more_false_alarms_on_absent_things_are_told_at_the_top(data: Data):
    rows = [
        {"prompt": "giraffe", "false_alarms": 5, "images": 20},
        {"prompt": "cactus", "false_alarms": 0, "images": 0},
    ]
    data.model("tuned", [], metrics={**METRICS, "absent_FPR": 0.25}, absent_prompts=rows)
    data.model("base", [], absent_prompts=[{"prompt": "giraffe", "false_alarms": 1, "images": 20}])
    page = data.write()
    assert "absent_FPR 0.062 → 0.250" in page.text
    assert page.rows["probe"][1:] == [["giraffe", "1 of 20 (5 %)", "5 of 20 (25 %)"], ["cactus", "–", "–"]]


def test_categories_come_worst_first_and_undefined_ones_last_with_the_reason(tmp_path: Path):
    data = Data(tmp_path, names=("cat", "dog", "cow", "empty"))
    data.add(1, FAR, category=2)
    data.add(2, FAR, category=3)
    values = {"cat": 0.75, "dog": 0.25, "cow": 0.5, "empty": None}
    rows = [{"ids": [i], "name": name, "segm_mAP": value} for i, (name, value) in enumerate(values.items())]
    data.model("tuned", [], per_category=rows)
    data.model("base", [], per_category=[{**row, "segm_mAP": 0.5} for row in rows[:3]])
    assert data.write().rows["categories"][1:] == [
        ["dog", "1", "0.500", "0.250", "−0.250 worse"],
        ["cow", "1", "0.500", "0.500", "±0.000 same"],
        ["cat", "12", "0.500", "0.750", "+0.250 better"],
        ["empty – : no objects in these images", "0", "–", "–", "–"],
    ]


def coco_eval(folder: Path, kind: str) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "truth.json"))
        scorer = COCOeval(truth, truth.loadRes(str(folder / "predictions.json")), kind)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return scorer


@pytest.mark.parametrize("kind", ["segm", "bbox"])
def test_the_curve_is_that_of_plain_pycocotools(data: Data, kind: str):
    shifted = [(x + 6, y, w, h) for x, y, w, h in BOXES]
    predictions = [*data.found(1, *shifted, score=0.8), *data.found(2, FAR, BOXES[0], score=0.7)]
    predictions += [*data.found(3, BOXES[1], FAR, score=0.3), *data.found(4, FAR, category=2)]
    data.model("tuned", predictions)
    expected = coco_eval(data.evaluations / "tuned", kind)
    line = matching.precision_over_recall(matching.match(data.truth, predictions, kind))
    assert line is not None
    np.testing.assert_array_equal(line[0], expected.params.recThrs)
    np.testing.assert_allclose(line[1], expected.eval["precision"][0, :, 0, 0, -1])  # of the one category with objects
    assert line[1].mean() == pytest.approx(expected.stats[1])  # AP50
    assert 0 < line[1].mean() < 1
    if kind == "segm":
        assert f"tuned, mean {line[1].mean():.3f}" in data.write().text


def test_worst_images_come_by_mistakes_then_by_the_surest_false_alarm(tmp_path: Path):
    data = Data(tmp_path, images=6)
    data.add(6, FAR, crowd=1)  # neither to be found, nor a false alarm where it is
    predictions = [
        *data.found(1, *BOXES),  # right
        *data.found(2, *BOXES[:2], score=0.6),  # one missed
        *data.found(3, *BOXES, FAR, score=0.7),  # one false alarm
        *data.found(4, FAR, score=0.6),  # three missed, one false alarm
        *data.found(5, *BOXES, FAR, score=0.8),  # a surer false alarm
        *data.found(6, *BOXES, FAR),  # right
        *data.found(6, FAR, category=2, score=0.49),  # not confident
    ]
    data.model("tuned", predictions)
    page = data.write()
    assert page.worst == ["4.png", "5.png", "3.png", "2.png"]
    assert "3 objects. Tuned: 3 missed, 1 false alarm." in page.text
    assert data.write(worst=1).worst == ["4.png"]
    assert data.write(worst=0).worst == []


def test_a_detection_below_the_threshold_finds_nothing(tmp_path: Path):
    data = Data(tmp_path, images=1)
    data.model("tuned", data.found(1, *BOXES, score=0.4))
    assert "Tuned: 3 missed, 0 false alarms." in data.write().text


def test_each_image_is_shown_as_truth_base_and_tuned(data: Data):
    page = data.write()
    assert [attrs["alt"].partition(" with ")[0] for attrs in page.images] == ["4.png"] * 3 + ["3.png"] * 3 + [
        "2.png"
    ] * 3
    panels = []
    for attrs in page.images[:3]:
        header, _, body = attrs["src"].partition(",")
        assert header == "data:image/jpeg;base64"
        panels.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(body))), dtype=int))
    assert {panel.shape for panel in panels} == {(288, 480, 3)}
    changed = [np.abs(panel - 90).max(-1) > 20 for panel in panels]
    x, y = (round((BOXES[2][0] + 15) * 4.8), round((BOXES[2][1] + 15) * 4.8))
    assert [bool(panel[y, x]) for panel in changed] == [True, False, False]  # tinted in the truth alone


def test_boxes_where_there_are_no_masks(tmp_path: Path):
    data = Data(tmp_path, masks=False)
    data.model("tuned", data.found(1, *BOXES), notes=[NO_MASKS])
    page = data.write(metric="bbox_mAP")
    assert page.worst == ["2.png", "3.png", "4.png"]
    assert "Boxes at IoU 0.5" in page.text
    assert "Mask metrics are not defined" in page.text
    assert len(page.images) == 6
    assert page.rows["metrics"][1][:2] == ["segm_mAP", "–"]


def test_an_object_without_a_mask_among_others_can_be_found_too(tmp_path: Path):
    data = Data(tmp_path, images=2)
    del data.truth["annotations"][0]["segmentation"]
    data.model("tuned", [*data.found(1, *BOXES), *data.found(2, *BOXES[1:])])
    page = data.write()
    assert page.worst == ["2.png"]
    assert 'if "segmentation" in a]' in page.text


def test_base_missing(data: Data):
    for path in (data.evaluations / "base").iterdir():
        path.unlink()
    page = data.write()
    assert "There is no result of the base model" in page.text
    assert page.rows["categories"][0] == ["Category", "Objects", "Tuned"]
    assert len(page.images) == 6


def test_a_base_evaluated_on_other_data_is_left_out(data: Data):
    data.truth["images"].pop()
    data.truth["annotations"] = data.truth["annotations"][:-3]
    data.model("base", [])
    page = data.write()
    assert "evaluated on other data" in page.text
    assert "There is no result of the base model" in page.text


def test_nothing_found_and_nothing_to_find(tmp_path: Path):
    data = Data(tmp_path, images=2)
    data.model("tuned", [], metrics={**METRICS, "segm_mAP": 0.0})
    page = data.write()
    assert "found nothing at all" in page.text
    assert page.worst == ["1.png", "2.png"]
    data.truth["annotations"] = []
    data.model("tuned", [], metrics=dict.fromkeys(METRICS), notes=["no concept has an object"])
    page = data.write()
    assert "There is no curve" in page.text
    assert "no concept has an object" in page.text
    assert page.worst == []


def test_training_curves_mark_the_best_and_the_base(data: Data):
    points = [{"step": step, "train/loss": 1.0 / step} for step in range(1, 1001)]
    points += [{"step": 0, "base/segm_mAP": 0.11}, {"step": 500, "val/segm_mAP": None}]
    points += [
        {"step": 250, "val/segm_mAP": 0.3},
        {"step": 750, "val/segm_mAP": 0.7},
        {"step": 1000, "val/segm_mAP": 0.6},
    ]
    text = data.write(curves=points).text
    assert "best: 0.700 at step 750" in text
    assert "base: 0.110" in text
    assert "training loss" in text
    assert "Training loss" not in data.write(curves=[{"step": 1, "train/loss": float("nan")}]).text
    assert "best: 0.300 at step 250" in (curves.plot_metric(points, "segm_mAP", lower_is_better=True) or "")


def test_no_name_becomes_markup(tmp_path: Path):
    data = Data(tmp_path, images=len(HOSTILE), names=tuple(HOSTILE))
    for number, name in enumerate(HOSTILE, start=1):
        data.truth["images"][number - 1]["file_name"] = name
        data.add(number, FAR, category=number)
    rows = [{"prompt": name, "false_alarms": 1, "images": 2} for name in HOSTILE]
    for model in ("base", "tuned"):
        data.model(model, [], absent_prompts=rows, notes=HOSTILE)
    first = data.images / "1.png"
    first.rename(data.images / "a $x$ b")
    points = [{"step": 1, "val/<script>$x$": 0.5}]
    page = data.write(
        title=HOSTILE[0], facts={name: name for name in HOSTILE}, metric="<script>$x$", curves=points, worst=99
    )
    kinds = {tag for tag, _ in page.tags}
    assert not kinds & {"script", "marquee", "iframe", "object", "embed", "link", "base"}
    assert all(attrs["src"].startswith("data:image/jpeg") for attrs in page.images)
    assert len(page.images) == 3
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    for name in HOSTILE:
        shown = name.replace("\ud800", "?")
        assert shown in [row[0] for row in page.rows["categories"]]
        assert shown in [row[0] for row in page.rows["probe"]]
        if re.search("[<>&]", name):
            assert name not in page.source
    assert re.search(r"<text[^>]*>&lt;script&gt;\$x\$</text>", page.source)


@pytest.mark.parametrize(("value", "says"), [(0.5, "new is better than old"), (0.0, "new is worse than old")])
def test_two_models_are_called_by_their_names(tmp_path: Path, value: float, says: str):
    data = Data(tmp_path)
    data.model("0", data.found(1, BOXES[0]))
    data.model("1", data.found(1, *BOXES), metrics={**METRICS, "segm_mAP": value})
    page = data.write(title="new against old", pair=Pair("0", "1", "old", "new"))
    assert f"{says} by 0.250 on 4 images." in page.text
    assert page.rows["metrics"][0][1:4] == ["old", "new", "Difference"]
    assert page.rows["metrics"][1][1:3] == ["0.250", f"{value:.3f}"]
    assert page.rows["categories"][0][2:4] == ["old", "new"]
    assert ">old, mean" in page.source
    assert ">new, mean" in page.source
    assert '"evaluation/1/truth.json"' in page.text
    assert not re.search(r"\b([Bb]ase|[Tt]un(ed|ing)) (model|helped|changed)", page.text)
    assert {str(image["alt"]).partition(" found")[0].rpartition(" with what ")[2] for image in page.images} >= {
        "old",
        "new",
    }


def test_names_of_models_may_be_alike_long_or_hostile(tmp_path: Path):
    data = Data(tmp_path)
    for folder in ("0", "1"):
        data.model(folder, data.found(1, *BOXES))
    alike = data.write(pair=Pair("0", "1", "x" * 60 + "1", "x" * 60 + "2"))
    shown = alike.rows["metrics"][0][1:3]
    assert [name[:4] for name in shown] == ["A: x", "B: x"]
    for name in HOSTILE:
        page = data.write(pair=Pair("0", "1", name, "_plain"))
        assert page.rows["metrics"][0][2] == "_plain"
        assert not {tag for tag, _ in page.tags} & {"script", "marquee", "object", "base"}
        assert len(re.findall(r">[^<>]*, mean \d", page.source)) == 2
        if re.search("[<>&]", name):
            assert name not in page.source


def test_the_page_is_well_formed_and_asks_for_nothing(data: Data):
    page = data.write(curves=[{"step": 1, "train/loss": 1.0, "val/segm_mAP": 0.5}], facts={"Base model": "sam3"})
    assert page.tags[0] == ("html", {"lang": "en"})
    assert [tag for tag, _ in page.headings].count("h1") == 1
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = [
        value for _, a in page.tags for key, value in a.items() if key in ("href", "xlink:href", "aria-labelledby")
    ]
    assert {target.removeprefix("#") for target in targets} <= set(ids)
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")
    assert not re.search(r"https?://(?!www\.w3\.org/)", page.source)
    assert not re.search(r"#01020\d", page.source)  # every colour of the plots is the page's


def test_an_image_that_cannot_be_read_is_said_to_be_so(data: Data):
    (data.images / "4.png").write_bytes(b"no image")
    (data.images / "3.png").unlink()
    Image.new("RGB", (7, 7)).save(data.images / "2.png")
    page = data.write()
    assert page.worst == ["4.png", "3.png", "2.png"]
    assert page.text.count("The image cannot be read.") == 2
    assert "The image cannot be read: 2.png is 7 x 7, its record says 100 x 60." in page.text
    assert str(data.images) not in page.source


def test_many_categories_and_large_images_stay_small(tmp_path: Path):
    data = Data(tmp_path, images=1, names=tuple(f"category number {i}" for i in range(1200)))
    size = (3000, 2000)
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(data.images / "1.png", compress_level=1)
    data.truth["images"][0].update(width=size[0], height=size[1])
    data.masks, data.truth["annotations"] = False, []
    data.add(1, (1000, 1000, 500, 500))
    data.model("tuned", [])
    data.model("base", [])
    page = data.write()
    assert len(page.rows["categories"]) == 1201
    assert data.output.stat().st_size < 2_000_000


def test_the_recipe_computes_the_figures(data: Data, monkeypatch: pytest.MonkeyPatch):
    code = re.search(r"from pycocotools.*?summarize\(\)", data.write().all_text, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(data.output.parent)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code[0], names)
    np.testing.assert_array_equal(names["scorer"].stats, coco_eval(data.evaluations / "tuned", "segm").stats)


def test_a_failing_write_leaves_the_old_report(data: Data, monkeypatch: pytest.MonkeyPatch):
    data.output.write_text("old", encoding="utf-8")

    def full(path: Path, body: bytes) -> int:
        with path.open("wb") as file:
            file.write(body[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        data.write()
    assert data.output.read_text(encoding="utf-8") == "old"
    assert sorted(path.name for path in data.output.parent.iterdir()) == ["evaluation", "images", "report.html"]


def test_files_that_are_missing_or_wrong_are_named(data: Data):
    (data.evaluations / "tuned" / "truth.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no evaluation"):
        data.write()
    (data.evaluations / "tuned" / "truth.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"truth\.json"):
        data.write()


def test_figures_are_shown_to_three_places_with_a_real_minus():
    assert [report._figure(v) for v in (None, -0.25, 0.12345)] == ["–", "−0.250", "0.123"]
    assert [report._signed(v) for v in (None, 0.0, -0.25, 0.5)] == ["–", "±0.000", "−0.250", "+0.500"]
