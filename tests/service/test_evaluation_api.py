"""Evaluation, report and samples of a job, from what a worker published."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from service.shared.states import JobState
from tests.service.conftest import Api, add_job, assert_problem
from tests.service.results import claimed_job, publish, report_evaluation

if TYPE_CHECKING:
    from pathlib import Path

    from service.shared.db.models import Job


@pytest.fixture
def job(api: Api) -> Job:
    return claimed_job(api.database)


def evaluation(api: Api, job_id: str) -> dict[str, Any]:
    response = api.client.get(f"/v1/jobs/{job_id}/evaluation")
    assert response.status_code == 200
    return dict(response.json())


def test_nothing_yet_is_an_answer(api: Api) -> None:
    job_id = add_job(api.database, resolved={"config": {"evaluation": {"metric": "segm_mAP"}}})
    found = evaluation(api, job_id)
    assert (found["status"], found["base"], found["tuned"]) == ("pending", None, None)
    assert (found["metrics"], found["history"], found["files"], found["notes"]) == ([], [], [], [])
    nothing = {"object": "list", "data": [], "created_at": None, "epoch": None, "epochs": []}
    assert api.client.get(f"/v1/jobs/{job_id}/samples").json() == nothing
    assert_problem(api.client.get(f"/v1/jobs/{job_id}/report"), 404, "not_found")
    for path in ("evaluation", "report", "samples", "samples/0/truth", "evaluation/base/truth.json"):
        assert_problem(api.client.get(f"/v1/jobs/job_none/{path}"), 404, "not_found")


def test_base_and_best_are_compared_and_every_epoch_is_history(api: Api, job: Job) -> None:
    report_evaluation(api.database, job, "base", 0, 0.1)
    report_evaluation(api.database, job, "tuned", 1, 0.3)
    assert evaluation(api, job.id)["tuned"]["epoch"] == 1
    report_evaluation(api.database, job, "tuned", 2, 0.2)
    report_evaluation(api.database, job, "tuned", 2, 0.25)  # by an attempt that went on after epoch 1
    with api.database.write() as unit:
        unit.jobs.get(job.id).best = {"checkpoint_id": "ckpt_1", "metric": "segm_mAP", "value": 0.3, "epoch": 1}
    found = evaluation(api, job.id)
    assert found["status"] == "running"
    changes = {row["metric"]: row for row in found["metrics"]}
    assert changes["segm_mAP"] == {
        "metric": "segm_mAP",
        "base": 0.1,
        "tuned": 0.3,
        "difference": pytest.approx(0.2),
        "is_better": True,
    }
    assert (changes["absent_FPR"]["difference"], changes["absent_FPR"]["is_better"]) == (-0.25, True)  # lower is better
    assert [(row["epoch"], row["metrics"]["segm_mAP"], row["is_best"]) for row in found["history"]] == [
        (1, 0.3, True),
        (2, 0.25, False),
    ]
    (category,) = found["per_category"]
    assert (category["name"], category["ids"], category["metrics"][0]["tuned"]) == ("bolt", [1], 0.3)
    assert found["base"]["absent_prompts"] == [{"prompt": "giraffe", "false_alarms": 1, "images": 4}]
    with api.database.write() as unit:
        unit.attempts.finish(job.id, job.epoch, JobState.FAILED, error={"code": "internal", "message": "x"})
    assert evaluation(api, job.id)["status"] == "complete"


def test_null_figures_are_explained_and_never_compared(api: Api, job: Job) -> None:
    report_evaluation(api.database, job, "base", 0, None, notes=["no masks"])
    report_evaluation(api.database, job, "tuned", 1, 0.3, notes=["no masks", "no negatives"])
    found = evaluation(api, job.id)
    row = next(row for row in found["metrics"] if row["metric"] == "segm_mAP")
    assert (row["base"], row["difference"], row["is_better"]) == (None, None, None)
    assert found["notes"] == ["no masks", "no negatives"]


def test_a_job_without_a_baseline(api: Api, job: Job) -> None:
    report_evaluation(api.database, job, "tuned", 1, 0.3)
    found = evaluation(api, job.id)
    assert found["base"] is None
    assert {row["base"] for row in found["metrics"]} == {None}


def test_files_behind_the_figures_can_be_downloaded_and_are_replaced_whole(api: Api, job: Job, tmp_path: Path) -> None:
    publish(api.database, api.storage, job, tmp_path, "evaluation/base", truth_json="[1]")
    publish(api.database, api.storage, job, tmp_path, "evaluation/tuned", truth_json="[2]", predictions_json="[3]")
    files = {(file["model"], file["name"]): file for file in evaluation(api, job.id)["files"]}
    assert sorted(files) == [("base", "truth.json"), ("tuned", "predictions.json"), ("tuned", "truth.json")]
    file = files["tuned", "predictions.json"]
    response = api.client.get(file["url"], headers={"Range": "bytes=1-"})
    assert (response.status_code, response.content) == (206, b"3]")
    assert response.headers["etag"] == f'"{hashlib.sha256(b"[3]").hexdigest()}"' == f'"{file["sha256"]}"'
    publish(api.database, api.storage, job, tmp_path, "evaluation/tuned", truth_json="[4]")
    assert_problem(api.client.get(file["url"]), 404, "not_found")
    assert api.client.get(files["base", "truth.json"]["url"]).content == b"[1]"
    for bad in ("evaluation/other/truth.json", "evaluation/base/..%2Ftruth.json", "evaluation/base/x.json"):
        assert_problem(
            api.client.get(f"/v1/jobs/{job.id}/{bad}"),
            404 if "%" in bad else 422,
            *(["not_found"] if "%" in bad else ["invalid_request"]),
        )


def test_the_report_is_a_page_that_may_do_nothing_but_be_seen(api: Api, job: Job, tmp_path: Path) -> None:
    publish(api.database, api.storage, job, tmp_path, "report.html", content="<html><script>alert(1)</script></html>")
    publish(api.database, api.storage, job, tmp_path, "report.json", content='{"steps": 4}')
    page = api.client.get(f"/v1/jobs/{job.id}/report")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.strip().partition(" ")[::2] for part in page.headers["content-security-policy"].split(";"))
    assert (policy["default-src"], policy["img-src"], policy["style-src"]) == ("'none'", "data:", "'unsafe-inline'")
    assert "sandbox" in policy
    assert policy["script-src"] == "'none'"
    assert (page.headers["x-content-type-options"], page.headers["referrer-policy"]) == ("nosniff", "no-referrer")
    assert page.headers["content-disposition"].startswith("inline")
    etag = page.headers["etag"]
    assert api.client.get(f"/v1/jobs/{job.id}/report", headers={"If-None-Match": etag}).status_code == 304
    assert api.client.get(f"/v1/jobs/{job.id}/report?format=json").json() == {"steps": 4}
    assert_problem(api.client.get(f"/v1/jobs/{job.id}/report?format=pdf"), 422, "invalid_request")


def drawn(false_alarms: int = 3) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """One image as a run draws it: its rows of the index, and its files."""
    panels = {name: {"file": f"0-{name}.jpg", "width": 48, "height": 32} for name in ("image", "truth", "tuned")}
    row = {
        "file_name": "a.png",
        "objects": 2,
        "missed": {"tuned": 1},
        "false_alarms": {"tuned": false_alarms},
        "categories": [],
        "instances": {"truth": [{"category": "bolt", "score": None}], "tuned": [{"category": "bolt", "score": 0.7}]},
        "unreadable": "",
        "panels": panels,
    }
    return [row], {panel["file"].replace(".", "_"): f"jpeg of {name}" for name, panel in panels.items()}


def test_samples_are_listed_worst_first_with_a_picture_for_each_panel(api: Api, job: Job, tmp_path: Path) -> None:
    rows, files = drawn()
    unreadable = {**rows[0], "file_name": "b.png", "panels": {}, "unreadable": "damaged"}
    index = json.dumps([*rows, unreadable])
    publish(api.database, api.storage, job, tmp_path, "samples", index_json=index, **files)
    first, second = api.client.get(f"/v1/jobs/{job.id}/samples").json()["data"]
    assert (first["position"], first["file_name"], first["mistakes"]) == (
        0,
        "a.png",
        {"tuned": {"missed": 1, "false_alarms": 3}},
    )
    assert first["panels"]["tuned"]["instances"] == [{"category": "bolt", "score": 0.7}]
    assert second["panels"] == {}
    for name, panel in first["panels"].items():
        picture = api.client.get(panel["url"])
        assert (picture.content, picture.headers["content-type"]) == (f"jpeg of {name}".encode(), "image/jpeg")
        assert picture.headers["etag"] == f'"{panel["sha256"]}"'
        again = api.client.get(panel["url"], headers={"If-None-Match": picture.headers["etag"]})
        assert again.status_code == 304
    assert_problem(api.client.get(f"/v1/jobs/{job.id}/samples/0/base"), 404, "not_found")
    assert_problem(api.client.get(f"/v1/jobs/{job.id}/samples/9/truth"), 404, "not_found")
    for bad in ("-1/truth", f"{2**63}/truth", "0/other", "x/truth"):
        assert_problem(api.client.get(f"/v1/jobs/{job.id}/samples/{bad}"), 422, "invalid_request")
    (key,) = (key for key in api.storage.list("jobs") if key.endswith("index.json"))
    (api.settings.storage_dir / key).write_text("[" + " " * (len(index) - 2) + "]")
    assert_problem(api.client.get(f"/v1/jobs/{job.id}/samples"), 503, "storage_unavailable")


def test_samples_of_an_epoch_stand_beside_those_of_the_end(api: Api, job: Job, tmp_path: Path) -> None:
    samples = f"/v1/jobs/{job.id}/samples"
    for epoch in (2, 10):
        rows, files = drawn(false_alarms=epoch)
        place = f"epoch_samples/{epoch}"
        publish(api.database, api.storage, job, tmp_path, place, index_json=json.dumps(rows), **files)
    found = api.client.get(samples).json()
    assert (found["data"], found["epoch"], found["epochs"]) == ([], None, [2, 10])
    found = api.client.get(f"{samples}?epoch=10").json()
    assert (found["epoch"], found["epochs"]) == (10, [2, 10])
    assert [row["mistakes"]["tuned"]["false_alarms"] for row in found["data"]] == [10]
    picture = api.client.get(found["data"][0]["panels"]["tuned"]["url"])
    assert (picture.status_code, picture.content) == (200, b"jpeg of tuned")
    assert "epoch-10-0-tuned.jpg" in picture.headers["content-disposition"]
    for missing in (f"{samples}?epoch=3", f"{samples}/0/tuned?epoch=3", f"{samples}/0/tuned"):
        assert_problem(api.client.get(missing), 404, "not_found")
    for bad in ("0", "-1", str(2**63), "x", "1/../2"):
        assert_problem(api.client.get(samples, params={"epoch": bad}), 422, "invalid_request")
