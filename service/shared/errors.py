"""Errors of the service: each with the HTTP status, the stable code and the title that clients see."""

from __future__ import annotations


def fault(pointer: str, code: str, message: str) -> dict[str, str]:
    """An entry of a problem's `errors`; `pointer` is a JSON pointer into the request, "" its whole."""
    return {"pointer": pointer, "code": code, "message": message}


class ServiceError(Exception):
    """Base of every error the service raises on purpose; the message tells the user what to do."""

    status = 500
    code = "internal"
    title = "Internal server error"
    retry_after_s = 5
    """When to try again, where that may help."""

    def __init__(self, message: str, *, errors: list[dict[str, str]] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.errors = errors or []


class SettingsError(ServiceError):
    """The settings are wrong or unsafe; the process must not start."""

    code = "settings_invalid"
    title = "Invalid settings"


class NotFoundError(ServiceError):
    status = 404
    code = "not_found"
    title = "Not found"


class UnauthorizedError(ServiceError):
    status = 401
    code = "unauthorized"
    title = "An API key is needed"


class ForbiddenError(ServiceError):
    """The key is good, but not for this."""

    status = 403
    code = "insufficient_scope"
    title = "The API key does not allow this"


class ForeignSiteError(ServiceError):
    """A browser sends what another site's page asks it to."""

    status = 403
    code = "foreign_site"
    title = "Sent by another site's page"


class MisdirectedRequestError(ServiceError):
    """The request is for a host that this server is not known to be."""

    status = 421
    code = "misdirected_request"
    title = "Misdirected request"


class QuotaExceededError(ServiceError):
    """The project has used what it may: repeating the request does not help, making room or a higher limit does."""

    status = 403
    code = "quota_exceeded"
    title = "Quota exceeded"


class TooManyRequestsError(ServiceError):
    status = 429
    code = "too_many_requests"
    title = "Too many requests"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class MalformedRequestError(ServiceError):
    """The request cannot be read at all."""

    status = 400
    code = "malformed_request"
    title = "Malformed request"


class InvalidRequestError(ServiceError):
    """The request can be read but breaks rules; `errors` names each place."""

    status = 422
    code = "invalid_request"
    title = "Invalid request"


def invalid(pointer: str, code: str, message: str) -> InvalidRequestError:
    """The error of a request that is wrong in one place."""
    return InvalidRequestError(f"{pointer or '/'}: {message}", errors=[fault(pointer, code, message)])


class BaseModelUnavailableError(ServiceError):
    status = 422
    code = "base_model_unavailable"
    title = "Base model unavailable"


class DatasetInvalidError(ServiceError):
    status = 422
    code = "dataset_invalid"
    title = "Dataset invalid"


class SourceRefusedError(ServiceError):
    """This installation does not fetch datasets from there."""

    status = 422
    code = "source_refused"
    title = "Source refused"


class UrlRefusedError(ServiceError):
    """This installation sends no webhooks there."""

    status = 422
    code = "url_refused"
    title = "URL refused"


class WebhooksUnavailableError(ServiceError):
    """The installation lacks what keeps the secrets of webhooks."""

    status = 422
    code = "webhooks_unavailable"
    title = "Webhooks unavailable"


class IdempotencyKeyReusedError(ServiceError):
    """The same key came with another request."""

    status = 422
    code = "idempotency_key_reused"
    title = "Idempotency key reused"


class ConflictError(ServiceError):
    """The request does not fit the present state; repeating it unchanged does not help."""

    status = 409
    code = "conflict"
    title = "Conflict"


class StateConflictError(ConflictError):
    """A job or dataset is not in a state from which the asked move is allowed."""

    code = "state_conflict"
    title = "State conflict"


class DatasetInUseError(ConflictError):
    code = "dataset_in_use"
    title = "Dataset in use"


class DatasetNotReadyError(ConflictError):
    """The dataset is still being checked; wait for its end, then repeat the request."""

    code = "dataset_not_ready"
    title = "Dataset not ready"


class JobInUseError(ConflictError):
    """Another job still needs this one's checkpoints."""

    code = "job_in_use"
    title = "Job in use"


class EndpointLimitError(ConflictError):
    """The project has as many webhook endpoints as it may have; delete one first."""

    code = "endpoint_limit"
    title = "Endpoint limit"


class EndpointDisabledError(ConflictError):
    """Nothing is sent to this webhook endpoint; enable it first."""

    code = "endpoint_disabled"
    title = "Endpoint disabled"


class PreconditionFailedError(ServiceError):
    """The resource is no longer the one that If-Match names."""

    status = 412
    code = "precondition_failed"
    title = "Precondition failed"


class UploadIncompleteError(ConflictError):
    """Parts of an upload are missing; send them, then complete it again."""

    code = "upload_incomplete"
    title = "Upload incomplete"


class UploadExpiredError(ServiceError):
    status = 410
    code = "upload_expired"
    title = "Upload expired"


class RequestTimeoutError(ServiceError):
    status = 408
    code = "request_timeout"
    title = "Request timeout"


class PayloadTooLargeError(ServiceError):
    status = 413
    code = "payload_too_large"
    title = "Payload too large"


class UnsupportedMediaTypeError(ServiceError):
    status = 415
    code = "unsupported_media_type"
    title = "Unsupported media type"


class ImageUnreadableError(ServiceError):
    """An uploaded image is damaged, or has more than one page."""

    status = 422
    code = "image_unreadable"
    title = "Image unreadable"


class ImageTooLargeError(ServiceError):
    """An uploaded image has too many pixels."""

    status = 422
    code = "image_too_large"
    title = "Image too large"


class NotAcceptableError(ServiceError):
    status = 406
    code = "not_acceptable"
    title = "Not acceptable"


class QueueFullError(ServiceError):
    """Too much of this kind of work already waits."""

    status = 429
    code = "queue_full"
    title = "Queue full"


class ExportFailedError(ServiceError):
    code = "export_failed"
    title = "Export failed"


class PredictionFailedError(ServiceError):
    code = "prediction_failed"
    title = "Prediction failed"


class StorageFullError(ServiceError):
    """No space is left where datasets and checkpoints are kept."""

    status = 507
    code = "storage_full"
    title = "Storage full"


class StorageError(ServiceError):
    """Storage answered with a failure that is not the client's."""

    status = 503
    code = "storage_unavailable"
    title = "Storage unavailable"


class DatabaseUnavailableError(ServiceError):
    status = 503
    code = "database_unavailable"
    title = "Database unavailable"


class EstimateFailedError(ServiceError):
    """A worker could not work out what a configuration needs."""

    status = 503
    code = "estimate_failed"
    title = "Estimate failed"


class TooManyStreamsError(ServiceError):
    status = 503
    code = "too_many_streams"
    title = "Too many streams"


class LeaseLostError(ServiceError):
    """This worker no longer holds the job or dataset: kill the work, write nothing more."""

    code = "lease_lost"
    title = "Lease lost"
