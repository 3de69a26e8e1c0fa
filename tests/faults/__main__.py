"""`make faults`: a campaign of faults against real processes; ends with 0 only if nothing that must hold was broken."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import get_args

from service.shared import log as logs
from tests.faults import campaign
from tests.faults.campaign import Campaign
from tests.faults.plan import Backend, draw
from tests.faults.site import unshare_mounts


def main() -> int:
    options = _options()
    logs.configure("ERROR", "faults", [])
    disks = unshare_mounts()
    plan = draw(options.seed, options.backend, jobs=options.jobs, faults=options.faults, real=options.real, disks=disks)
    # Not below the current folder: the path of a unix socket must be shorter than 108 bytes.
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir="/tmp"))
    times = {"settle_s": options.settle, "no_progress_s": options.no_progress}
    found = Campaign(plan, options.backend, folder, disks=disks, **times).run(
        lambda line: sys.stderr.write(f"{line}\n")
    )
    about = {"backend": options.backend, "seed": options.seed, "disks": disks}
    whole = campaign.report(found, about, plan)
    options.out.mkdir(parents=True, exist_ok=True)
    name = f"{options.backend}-{options.seed}-{options.jobs}x{options.faults}"
    (options.out / f"{name}.json").write_text(json.dumps(whole, indent=1, default=str) + "\n")
    (options.out / f"{name}.md").write_text(campaign.table(whole))
    counts = whole["counts"]
    is_done = whole["jobs"] >= options.jobs and whole["faults"] >= options.faults
    is_good = is_done and not any(counts.values())
    if is_good:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        for logs_of in (folder / "logs", folder / "data" / "logs"):  # the second: of embedded's children
            if logs_of.exists():
                shutil.copytree(logs_of, options.out / f"{name}-{folder.name}", dirs_exist_ok=True)
    sys.stderr.write(f"report: {options.out / name}.md\n")
    zeros = " ".join(f"{name}={value}" for name, value in counts.items())
    sys.stdout.write(f"faults: jobs={whole['jobs']} faults={whole['faults']} {zeros}\n")
    return 0 if is_good else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__)
    parser.add_argument("--backend", choices=get_args(Backend), default="production")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--real", type=int, default=3, help="of the jobs, with the real trainer")
    parser.add_argument("--settle", type=float, default=180, help="seconds without an end of any job that are too long")
    parser.add_argument("--no-progress", type=float, default=40, help="seconds after which a silent trainer hangs")
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
