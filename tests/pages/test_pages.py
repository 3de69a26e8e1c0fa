"""Every page: complete HTML, nothing inline, its errors as pages, and only of one's own project."""

from __future__ import annotations

import json
import re
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from sqlalchemy import event

from sam3_lora.config import JobConfig
from service.api.authentication import SESSION_COOKIE
from service.pages import rendering
from service.shared.db.models import Model, Sweep
from service.shared.ids import new_id
from service.shared.states import Actor, DatasetState, JobState
from service.usecases import access
from service.usecases.access import EVERYTHING, Scope, sign_in
from tests.service.conftest import Api, add_dataset, add_job, make_key, new_job, served
from tests.service.results import add_comparison, add_model, finish_comparison, publish
from tests.stack import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

RESOLVED = {"config": JobConfig().model_dump(mode="json")}
HOSTILE = "<img src=x onerror=alert(1)>'\"&{{ 1234 * 1001 }}"

PANELS = {f"0-{panel}_jpg": panel for panel in ("image", "truth", "base", "tuned")}
SAMPLE = {
    "file_name": HOSTILE, "objects": 2, "missed": {"base": 2, "tuned": 1}, "false_alarms": {"base": 0, "tuned": 1},
    "categories": [], "instances": {"tuned": [{"category": HOSTILE, "score": 0.7}]}, "unreadable": "",
    "panels": {file[2:-4]: {"file": file.replace("_", "."), "width": 48, "height": 32} for file in PANELS},
}  # fmt: skip


class Seen(HTMLParser):
    """What a page holds of what a policy forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.inline += [name for name in given if name.startswith("on") or name in ("style", "hx-on")]
        self.inline += [tag] if tag == "style" or (tag == "script" and "src" not in given) else []
        self.addresses += [str(given[name]) for name in ("src", "href", "action") if given.get(name)]


def read(answer: httpx.Response) -> Seen:
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == rendering.POLICY
    assert answer.headers["cache-control"] == "no-store"
    seen = Seen()
    seen.feed(answer.text)
    assert seen.inline == []
    return seen


def addresses(api: Api, project: str = "default") -> Iterator[str]:
    """One of every page, with all that can stand on it."""
    dataset = add_dataset(api.database, state=DatasetState.INVALID)
    with api.database.write() as unit:
        row = unit.datasets.get(dataset)
        row.name, row.project = HOSTILE, project
        issue = {
            "severity": "error", "code": "mask_empty", "file": HOSTILE, "pointer": HOSTILE, "image": HOSTILE,
            "annotation_id": 3, "message": HOSTILE, "hint": HOSTILE, "count": 1200,
        }  # fmt: skip
        category = {"id": 1, "name": HOSTILE, "instances": 3, "images": 2}
        row.report = {
            "summary": {"images": 2, "instances": 3, "categories": 1},
            "issues": [issue],
            "stats": {"per_category": [category]},
        }
        row.preview = [
            {"split": "train", "file_name": HOSTILE, "width": 64, "height": 48, "instances": 1},
        ]
    job = add_job(
        api.database, dataset, name=HOSTILE, project=project, tags=[HOSTILE], labels={HOSTILE: HOSTILE},
        config={"dataset": {"prompts": {HOSTILE: HOSTILE}}}, resolved=RESOLVED,
        progress={"percent": 20, "epoch": 1, "epochs": 5, "step": 3, "steps": 15, "eta_s": 61, "images_per_s": 2.5},
    )  # fmt: skip
    with api.database.write() as unit:
        held = unit.jobs.claim("worker-1", HOSTILE)
        assert held is not None
    for place in ("samples", "epoch_samples/1", "epoch_samples/3"):
        publish(
            api.database, api.storage, held, api.settings.data_dir, place, index_json=json.dumps([SAMPLE]), **PANELS
        )
    with api.database.write() as unit:
        error = {"code": "internal", "message": HOSTILE, "hint": HOSTILE, "retryable": False}
        unit.attempts.finish(job, held.epoch, JobState.FAILED, reason=HOSTILE, error=error)
    with api.database.write() as unit:
        scopes = [Scope.READ]
        access.create_key(unit, EVERYTHING, name=HOSTILE, project=project, scopes=scopes, lasts_s=None)
    other = add_job(api.database, dataset, name=HOSTILE, project=project, resolved=RESOLVED)
    yield from ("/ui", "/ui/jobs", "/ui/jobs?group=failed", "/ui/datasets", "/ui/workers", "/ui/sign-in", "/ui/access")
    yield from ("/ui/new-job", f"/ui/new-job?dataset={dataset}", f"/ui/compare?first={job}&second={other}")
    yield from (f"/ui/jobs/{job}", f"/ui/datasets/{dataset}")
    yield from (f"/ui/jobs/{job}/{part}" for part in ("status", "try", "learning", "results", "events", "checkpoints"))
    yield f"/ui/jobs/{job}/learning?epoch=1"
    yield from ("/ui/models", "/ui/sweeps", *_made_of_jobs(api, project))


def _made_of_jobs(api: Api, project: str) -> Iterator[str]:
    """A model, a comparison that is measured and one that waits, a sweep."""
    dataset = add_dataset(api.database)
    with api.database.write() as unit:
        row = unit.datasets.get(dataset)
        row.name, row.project = HOSTILE, project
    with tempfile.TemporaryDirectory() as scratch:
        values = {"dataset_id": dataset, "name": HOSTILE, "project": project}
        model = add_model(api.database, api.storage, Path(scratch), **values)
        compared = {"models": ["sam3-tiny", model], "dataset_id": dataset, "name": HOSTILE}
        done = add_comparison(api.database, api.settings, **compared)
        finish_comparison(api.database, api.storage, Path(scratch), (None, 0.5))
    waiting = add_comparison(api.database, api.settings, **compared)
    with api.database.write() as unit:
        sweep = Sweep(id=new_id("sweep"), name=HOSTILE, project=project, request={"parameters": {"lora.rank": {}}})
        unit.sweeps.add(sweep)
        trial = {"lora.rank": HOSTILE}
        unit.jobs.add(new_job(dataset, project=project, sweep_id=sweep.id, trial=trial, resolved=RESOLVED))
    yield from (
        f"/ui/models/{model}",
        f"/ui/comparisons/{done}",
        f"/ui/comparisons/{waiting}",
        f"/ui/sweeps/{sweep.id}",
    )


def test_every_page_is_whole_and_holds_nothing_that_could_run(site: Api) -> None:
    for address in addresses(site):
        answer = site.client.get(address)
        assert answer.status_code == 200, address
        seen = read(answer)
        assert "<img src=x" not in answer.text
        assert "1235234" not in answer.text, "a name was taken for a template"
        assert all(each.startswith(("/", "#")) and not each.startswith("//") for each in seen.addresses), address


def test_what_pages_load_is_there_and_kept_until_it_changes(site: Api) -> None:
    files = {
        each
        for address in addresses(site)
        for each in read(site.client.get(address)).addresses
        if each.startswith("/ui/static/")
    }
    assert len(files) >= 8
    for each in files:
        answer = site.client.get(each)
        assert answer.status_code == 200, each
        assert answer.headers["cache-control"] == rendering.LASTING
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert site.client.get(next(iter(files)).partition("?")[0]).headers["cache-control"] == "no-store"
    for outside in ("/ui/static/../rendering.py", "/ui/static/%2e%2e/rendering.py", "/ui/static/"):
        assert site.client.get(outside).status_code == 404


def test_the_first_page_is_light(site: Api) -> None:
    answer = site.client.get("/ui")
    loaded = [each for each in read(answer).addresses if each.startswith("/ui/static/")]
    total = len(answer.content) + sum(len(site.client.get(each).content) for each in set(loaded))
    assert total < 200_000


def test_how_it_learned_is_shown_after_the_latest_epoch_or_the_one_chosen(site: Api) -> None:
    part = next(each for each in addresses(site) if each.endswith("/learning"))
    latest, first, none = (site.client.get(f"{part}{query}").text for query in ("", "?epoch=1", "?epoch=2"))
    assert "tuned?epoch=3" in latest == none
    assert "tuned?epoch=1" in first
    assert site.client.get(f"{part}?epoch=x").status_code == 422


def test_the_form_offers_everything_that_a_configuration_may_set(site: Api) -> None:
    add_dataset(site.database)
    text = site.client.get("/ui/new-job").text
    for section, values in JobConfig().model_dump().items():
        for name in values:
            assert text.count(f'name="config.{section}.{name}"') == 1, (section, name)
    assert 'name="config.training.learning_rate" data-kind="number" data-default="0.0001"' in text
    assert re.search(r'name="config.training.learning_rate"[^>]*value="0.002"', text), (
        "what suits the base is suggested"
    )


def test_jobs_are_compared_by_what_differs(site: Api) -> None:
    dataset = add_dataset(site.database)
    jobs = []
    for rank in (4, 8):
        config = JobConfig().model_dump(mode="json")
        config["lora"]["rank"] = rank
        jobs.append(add_job(site.database, dataset, name=f"rank {rank}", resolved={"config": config}))
    text = site.client.get(f"/ui/compare?first={jobs[0]}&second={jobs[1]}").text
    assert "lora.rank" in text
    assert "lora.alpha" not in text


def test_the_start_leads_to_the_pages(site: Api) -> None:
    answer = site.client.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/ui")


def test_lists_have_pages(site: Api) -> None:
    dataset = add_dataset(site.database)
    jobs = [add_job(site.database, dataset, name=f"job {number}") for number in range(60)]
    names = [f">job {number}<" for number in range(60)]
    first = site.client.get("/ui/jobs").text
    assert [name in first for name in names] == [number >= 35 for number in range(60)]
    second = site.client.get(f"/ui/jobs?after={jobs[35]}").text
    assert [name in second for name in names] == [10 <= number < 35 for number in range(60)]
    assert f"before={jobs[34]}" in second
    assert f"after={jobs[10]}" in second
    back = site.client.get(f"/ui/jobs?before={jobs[34]}").text
    assert [name in back for name in names] == [number >= 35 for number in range(60)]
    assert "Newer" not in back
    last = site.client.get(f"/ui/jobs?after={jobs[10]}").text
    assert "Older" not in last


def _add_row(api: Api, kind: str) -> None:
    dataset = add_dataset(api.database)
    with api.database.write() as unit:
        match kind:
            case "jobs":
                unit.jobs.add(new_job(dataset))
            case "models":
                values = {"name": "m", "base_model": "sam3-tiny", "epoch": 1, "step": 1}
                unit.session.add(Model(id=new_id("model"), project="default", created_at=unit.clock.now(), **values))
            case "sweeps":
                sweep = unit.sweeps.add(Sweep(id=new_id("sweep"), name="s", request={"parameters": {}}))
                unit.jobs.add(new_job(dataset, sweep_id=sweep.id, trial={}))


@pytest.mark.parametrize("kind", ["jobs", "datasets", "models", "sweeps"])
def test_a_page_asks_no_more_for_many_rows_than_for_one(site: Api, kind: str) -> None:
    counts = []
    for more in (1, 20):
        for _ in range(more):
            _add_row(site, kind)
        statements: list[str] = []

        def remember(_c: object, _k: object, statement: str, *_: object, to: list[str] = statements) -> None:
            to.append(statement)

        event.listen(site.database.engine, "before_cursor_execute", remember)
        try:
            assert site.client.get(f"/ui/{kind}").status_code == 200
        finally:
            event.remove(site.database.engine, "before_cursor_execute", remember)
        counts.append(len(statements))
    assert counts[1] <= counts[0] + 1


MISSING = (
    "/ui/models/model_x",
    "/ui/comparisons/cmp_x",
    "/ui/sweeps/sweep_x",
    "/ui/jobs/job_x",
    "/ui/jobs/job_x/status",
    "/ui/datasets/ds_x",
    "/ui/jobs?after=job_x",
    "/ui/nothing",
    "/ui/jobs/",
)


@pytest.mark.parametrize("address", MISSING)
def test_what_is_not_there_is_told_on_a_page(site: Api, address: str) -> None:
    answer = site.client.get(address)
    assert answer.status_code == 404
    read(answer)
    assert "To the jobs" in answer.text


def test_errors_are_pages_that_tell_nothing_of_the_inside(site: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    long = site.client.get(f"/ui/jobs/{'x' * 100}")
    assert long.status_code == 422
    read(long)

    def away(*_: object) -> None:
        raise rendering.OperationalError("SELECT secret", {}, Exception("gone"))

    monkeypatch.setattr("service.pages.jobs.read_jobs", away)
    answer = site.client.get("/ui/jobs")
    assert answer.status_code == 503
    read(answer)
    assert "SELECT" not in answer.text


def test_pages_show_only_what_is_of_the_keys_project(locked: Api) -> None:
    theirs = list(addresses(locked, project="theirs"))
    with locked.database.write() as unit:
        session = sign_in(unit, make_key(locked, "ours", Scope.READ))
    with httpx.Client(base_url=locked.client.base_url, cookies={SESSION_COOKIE: session}) as client:
        for address in theirs:
            answer = client.get(address)
            is_one = address.count("/") > 2 or "=" in address.replace("group=", "")
            assert answer.status_code == (404 if is_one else 200), address
            assert "onerror" not in answer.text
        own = add_job(locked.database, add_dataset(locked.database), project="ours", name="mine", resolved=RESOLVED)
        assert "mine" in client.get(f"/ui/jobs/{own}").text
        assert "scope admin" in client.get("/ui/workers").text


def test_a_key_that_may_not_read_is_told_so_on_a_page(locked: Api) -> None:
    with locked.database.write() as unit:
        session = sign_in(unit, make_key(locked, "ours", Scope.PREDICT))
    with httpx.Client(base_url=locked.client.base_url, cookies={SESSION_COOKIE: session}) as client:
        answer = client.get("/ui/jobs")
        assert answer.status_code == 403
        read(answer)


def test_a_stream_says_that_there_is_news_and_ends_with_the_job(site: Api) -> None:
    settings = site.settings.model_copy(update={"stream_heartbeat_s": 0.3})
    with served(settings) as api:
        job = add_job(api.database, add_dataset(api.database))
        told: list[str] = []
        with api.client.stream("GET", f"/ui/jobs/{job}/stream") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert api.app.state.services.broadcaster.followers == 1
            for line in answer.iter_lines():
                told += [line] if line else []
                if line.startswith("data") and told.count("event: changed") == 1:
                    with api.database.write() as unit:
                        unit.jobs.move(job, JobState.CANCELLED, Actor.API, reason="as asked")
        assert told.count("event: changed") == 2
        assert told[-2] == "event: done"
        assert site.client.get("/ui/jobs/job_x/stream").status_code == 404

        wait_until(lambda: api.app.state.services.broadcaster.followers == 0, 5)
