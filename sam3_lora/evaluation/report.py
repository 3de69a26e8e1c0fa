"""The evaluation report: one HTML file that stands alone, base against tuned or any two, from the exported files.

Each model's `truth.json`, `predictions.json` and `evaluation.json` say all but the pixels and how training went.
Names in them come from whoever made the dataset: the template escapes all of them, and the page runs no script.
"""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sam3_lora.evaluation import curves as plots
from sam3_lora.evaluation.exported import load, number
from sam3_lora.evaluation.matching import precision_over_recall
from sam3_lora.evaluation.samples import write_samples
from sam3_lora.evaluation.worst_images import worst_images

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sam3_lora.evaluation.exported import EvaluatedModel

TEMPLATE = "report.html.j2"
LOWER_IS_BETTER = ("IL_FPR", "absent_FPR")
SHOWN_NAME = 40  # characters
OTHER_DATA = "The base model was evaluated on other data than the tuned model, so it is left out of this report."


@dataclass(frozen=True)
class Pair:
    """Two models of which neither need be the other's base. `tuned` is the one that is judged, `base` the measure."""

    base: str
    """Name of its folder."""
    tuned: str
    base_name: str
    """What the page calls it."""
    tuned_name: str

    def shown(self) -> dict[str, str]:
        """Names short enough for the head of a column, and told apart."""
        names = {"base": self.base_name, "tuned": self.tuned_name}
        short = {
            role: name if len(name) <= SHOWN_NAME else f"{name[: SHOWN_NAME - 1]}…" for role, name in names.items()
        }
        if short["base"] == short["tuned"]:
            return {role: f"{letter}: {short[role]}" for role, letter in (("base", "A"), ("tuned", "B"))}
        return short


def write_report(
    evaluations: Path,
    output: Path,
    *,
    images: Path,
    title: str,
    pair: Pair | None = None,
    facts: Mapping[str, str] | None = None,
    curves: Sequence[Mapping[str, Any]] = (),
    metric: str = "segm_mAP",
    worst: int = 8,
    transparent_color: Sequence[int] = (255, 255, 255),
    samples: Path | None = None,
) -> None:
    """Write the report to `output`, whole or not at all.

    Args:
        evaluations: folder with `tuned/` and, if the base was evaluated too, `base/`; of a pair, with their folders.
        images: folder that the truth's `file_name`s are relative to; an image that cannot be read is said to be so.
        pair: the two models, if they are not a base and what it was tuned to.
        facts: label -> text, shown at the top in this order.
        curves: points of training: "step" with any of "train/loss", "val/<metric>", "base/<metric>".
        metric: the metric of the headline.
        worst: most images to show; in the report only those with a mistake.
        transparent_color: RGB that transparent pixels are laid on.
        samples: folder to write the images into, too, as `evaluation.samples` does.

    Raises:
        OSError: if the tuned model's files are missing, or the report cannot be written.
        ValueError: if a file is not what `coco_metrics.evaluate` exports.
    """
    folders = {"base": "base", "tuned": "tuned"} if pair is None else {"base": pair.base, "tuned": pair.tuned}
    names = {"base": "base", "tuned": "tuned"} if pair is None else pair.shown()
    base_folder = evaluations / folders["base"]
    try:
        tuned = load(evaluations / folders["tuned"])
        base = load(base_folder) if (base_folder / "evaluation.json").exists() else None
        notes = list(tuned.evaluation["notes"])
        if base is not None and base.truth != tuned.truth:
            base = None
            notes.insert(0, OTHER_DATA)
        models = {"tuned": tuned} if base is None else {"base": replace(base, kind=tuned.kind), "tuned": tuned}
        pictures = worst_images(models, images, worst, transparent_color)
        context = {
            **_figures(models, metric, names),
            "names": names,
            "is_pair": pair is not None,
            "folders": folders,
            "metric": metric,
            "lower_is_better": metric in LOWER_IS_BETTER,
            "title": title,
            "facts": dict(facts or {}),
            "notes": notes,
            "images": len(tuned.truth["images"]),
            "loss_svg": _markup(plots.plot_loss(curves)),
            "metric_svg": _markup(plots.plot_metric(curves, metric, lower_is_better=metric in LOWER_IS_BETTER)),
            "worst": [row for row in pictures if row["missed"]["tuned"] or row["false_alarms"]["tuned"]],
            "folder": Path(os.path.relpath(evaluations, output.parent)).as_posix(),
        }
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{evaluations} holds no evaluation that a report can be made of: {error!r}") from error
    if samples is not None:
        write_samples(pictures, samples)
    _write_whole(output, _render(context))


def _figures(models: Mapping[str, EvaluatedModel], metric: str, names: Mapping[str, str]) -> dict[str, Any]:
    """Every number of the page, and the precision-recall curve."""
    tuned, base = models["tuned"], models.get("base")

    def change(name: str) -> dict[str, Any]:
        return {"name": name, **_change(base.metric(name) if base else None, tuned.metric(name), name)}

    lines = {name: precision_over_recall(model.matches) for name, model in models.items()}
    drawn = {name: line for name, line in lines.items() if line is not None}
    return {
        "has_base": base is not None,
        "kind": tuned.kind,
        "headline": change(metric),
        "absent": change("absent_FPR"),
        "rows": [change(name) for name in tuned.evaluation["metrics"]],
        "categories": _category_rows(models),
        "pr_svg": _markup(plots.plot_precision_recall(drawn, names) if drawn else None),
        "probe": _probe_rows(models),
        "some_without_mask": any("segmentation" not in a for a in tuned.truth["annotations"]),
        "nothing_found": not tuned.predictions,
    }


def _change(base: float | None, tuned: float | None, metric: str) -> dict[str, Any]:
    """Both values, their difference as the page shows it, and whether that is better."""
    row: dict[str, Any] = {"base": base, "tuned": tuned, "difference": None, "verdict": None}
    if base is not None and tuned is not None:
        row["difference"] = round(round(tuned, 3) - round(base, 3), 3)
        up = row["difference"] > 0
        row["verdict"] = (
            "same" if row["difference"] == 0 else "better" if up != (metric in LOWER_IS_BETTER) else "worse"
        )
    return row


def _category_rows(models: Mapping[str, EvaluatedModel]) -> list[dict[str, Any]]:
    """The categories' average precision, the tuned model's worst first, undefined ones last."""
    truth, kind = models["tuned"].truth, models["tuned"].kind
    key = f"{kind}_mAP"
    names = {category["id"]: category["name"] for category in truth["categories"]}
    own = [a for a in truth["annotations"] if not a["iscrowd"]]
    objects = Counter(names[a["category_id"]] for a in own)
    usable = Counter(names[a["category_id"]] for a in own if kind == "bbox" or "segmentation" in a)
    base = models.get("base")
    base_rows = {_identity(row): row for row in base.evaluation["per_category"]} if base else {}
    rows = []
    for row in models["tuned"].evaluation["per_category"]:
        name = row["name"]
        before = base_rows.get(_identity(row), {})
        why = "no objects in these images" if not objects[name] else "" if usable[name] else "its objects have no masks"
        change = _change(number(before.get(key)), number(row.get(key)), key)
        rows.append({"name": name, "objects": objects[name], "why": why or "not defined", **change})
    return sorted(rows, key=lambda row: (row["tuned"] is None, row["tuned"] or 0.0))


def _identity(row: Mapping[str, Any]) -> str:
    return json.dumps([row.get("ids"), row["name"]])


def _probe_rows(models: Mapping[str, EvaluatedModel]) -> list[dict[str, Any]]:
    """False alarms by prompt, most of the tuned model's first."""
    found = {
        name: {row["prompt"]: row for row in model.evaluation.get("absent_prompts") or ()}
        for name, model in models.items()
    }
    rows = [
        {"prompt": prompt, "base": found.get("base", {}).get(prompt), "tuned": row}
        for prompt, row in found["tuned"].items()
    ]
    return sorted(rows, key=lambda row: -row["tuned"]["false_alarms"])


def _markup(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)  # noqa: S704 - drawn by matplotlib, which escapes its texts


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}".replace("-", "−")


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}".replace("-", "−") if value else "±0.000"


def _data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def _render(context: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(figure=_figure, signed=_signed, data_uri=_data_uri)
    return environment.get_template(TEMPLATE).render(context)


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(text.encode("utf-8", "replace"))  # half a surrogate pair in a name is no reason to fail
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
