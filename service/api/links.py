"""OpenAPI links: what an answer about a resource can be followed up with, and where its id goes."""

from __future__ import annotations

import re
from typing import Any

RESOURCES = {
    "ApiKeyCreated": "key_id",
    "DatasetRead": "dataset_id",
    "UploadRead": "upload_id",
    "JobRead": "job_id",
    "SweepRead": "sweep_id",
    "ComparisonRead": "comparison_id",
    "PredictionRead": "prediction_id",
    "WebhookEndpointWithSecret": "endpoint_id",
    "WebhookDeliveryRead": "delivery_id",
    "FileRead": "file_id",
    "FineTuningJobRead": "fine_tuning_job_id",
}
"""Schema of a resource and what its id is called in paths."""
MADE = ("201", "202")
BODY = "application/json"


def add_links(document: dict[str, Any]) -> None:
    """Link answers that tell of something made, or set going, to every operation that needs no more than its id."""
    following: dict[str, list[str]] = {parameter: [] for parameter in RESOURCES.values()}
    for path, operations in document["paths"].items():
        parameters = re.findall(r"{(\w+)}", path)
        if len(parameters) == 1 and parameters[0] in following:
            following[parameters[0]] += [
                operation["operationId"] for operation in operations.values() if _needs_no_body(operation)
            ]
    for operations in document["paths"].values():
        for operation in operations.values():
            for status in MADE:
                response = operation["responses"].get(status, {})
                schema = response.get("content", {}).get(BODY, {}).get("schema", {})
                first = schema.get("anyOf", [schema])[0].get("$ref", "")
                parameter = RESOURCES.get(first.rpartition("/")[2])
                if parameter is not None:
                    response["links"] = {name: _link(name, parameter) for name in following[parameter]}


def _needs_no_body(operation: dict[str, Any]) -> bool:
    return not operation.get("requestBody", {}).get("required", False)


def _link(operation: str, parameter: str) -> dict[str, Any]:
    return {"operationId": operation, "parameters": {parameter: "$response.body#/id"}}
