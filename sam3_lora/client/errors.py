"""What can go wrong when a program asks the service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

    from sam3_lora.client.schemas import Dataset, DatasetValidation, Job


class ClientError(Exception):
    """Base of everything that the client raises on purpose."""


class ConnectionFailedError(ClientError):
    """The service could not be reached, and went on being so for as long as the client tries again."""


class WaitTimeoutError(ClientError):
    """What was waited for has not ended in time; it goes on."""


class IntegrityError(ClientError):
    """A file arrived with another hash than the service told; nothing was kept of it."""


class LocalFileError(ClientError):
    """A file on this machine cannot be used: it is missing, empty, or changed while it was read."""


class DatasetNotReadyError(ClientError):
    """A dataset cannot be trained on; `report` says why, fault by fault."""

    def __init__(self, dataset: Dataset, report: DatasetValidation) -> None:
        self.dataset, self.report = dataset, report
        errors = [issue for issue in report.issues if issue.severity == "error"]
        lines = [f"  {issue.code}: {issue.message} ({issue.image or issue.file or 'dataset'})" for issue in errors[:10]]
        if fault := dataset.error:
            lines.insert(0, f"  {fault.code}: {fault.message} {fault.hint or ''}".rstrip())
        more = [f"  and {len(errors) - 10} more: see the report"] if len(errors) > 10 else []
        super().__init__("\n".join([f"dataset {dataset.id} is {dataset.status}", *lines, *more]))


class JobNotSucceededError(ClientError):
    """A job that was waited for ended otherwise."""

    def __init__(self, job: Job) -> None:
        self.job = job
        error = job.error
        reason = f": {error.code}: {error.message} {error.hint or ''}".rstrip() if error else ""
        super().__init__(f"job {job.id} is {job.status}{reason or f': {job.status_reason}'}")


class WorkFailedError(ClientError):
    """A comparison or a prediction failed."""


class ApiError(ClientError):
    """The service refused a request, in its own words (RFC 9457)."""

    def __init__(self, response: httpx.Response) -> None:
        problem = _problem(response)
        self.response = response
        self.status: int = response.status_code
        self.code: str = str(problem.get("code") or response.reason_phrase.lower().replace(" ", "_"))
        """Stable name of the error."""
        self.detail: str = str(problem.get("detail") or f"The server answered {self.status} {response.reason_phrase}.")
        self.faults: list[dict[str, Any]] = problem.get("errors") or []
        """Each `{pointer, code, message}`."""
        self.request_id: str = str(problem.get("request_id") or response.headers.get("x-request-id", ""))
        """Names the request in the server's log."""
        super().__init__(f"{self.detail} ({self.status} {self.code})")


class InvalidRequestError(ApiError):
    """400, 413, 415, 422: the request cannot be right as it is."""


class AuthenticationError(ApiError):
    """401: there is no such key, or it has ended."""


class PermissionDeniedError(ApiError):
    """403: the key does not allow it."""


class NotFoundError(ApiError):
    """404, 410: there is no such thing, or it is another project's."""


class ConflictError(ApiError):
    """409, 412: its state does not allow it now."""


class RateLimitedError(ApiError):
    """429: too many requests, or a quota is used up."""


class ServerError(ApiError):
    """5xx: the service failed."""


_BY_STATUS: dict[int, type[ApiError]] = {
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    410: NotFoundError,
    409: ConflictError,
    412: ConflictError,
    429: RateLimitedError,
}


def error_of(response: httpx.Response) -> ApiError:
    """The error that an answer tells of; its body must have been read."""
    status = response.status_code
    return _BY_STATUS.get(status, ServerError if status >= 500 else InvalidRequestError)(response)


def _problem(response: httpx.Response) -> dict[str, Any]:
    try:
        found = response.json()
    except ValueError:  # a proxy's page
        return {}
    return found if isinstance(found, dict) else {}
