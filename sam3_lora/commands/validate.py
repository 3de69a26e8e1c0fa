"""`sam3-lora validate`: a dataset's faults, without a service."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from sam3_lora.commands.terminal import EXIT_FAILED, console


def validate(
    folder: Annotated[Path, typer.Argument(help="Folder with a COCO dataset.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
) -> None:
    """Check a dataset: every fault with its place. Exit code 1 if it cannot be trained on."""
    from sam3_lora.coco.isolation import validate_isolated

    report = validate_isolated(folder).to_dict()
    if as_json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        for issue in report["issues"]:
            where = " ".join(str(issue[key]) for key in ("file", "image", "pointer") if issue[key])
            console.print(f"{issue['severity']}: {issue['code']}: {issue['message']} [{where}]", markup=False)
        summary = report["summary"]
        console.print(
            f"{report['status']}: {summary['images']} images, {summary['instances']} objects, "
            f"{summary['errors']} errors, {summary['warnings']} warnings"
        )
    if report["summary"]["errors"]:
        raise typer.Exit(EXIT_FAILED)
