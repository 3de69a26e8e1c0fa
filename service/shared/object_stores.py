"""Opens object stores: that behind `storage_url`, a local folder or a bucket, and buckets that datasets lie in."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from obstore.exceptions import PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, S3Store

if TYPE_CHECKING:
    from service.shared.settings import Settings

# A service that is away is reported within seconds; whoever asked decides whether to ask again.
MAX_RETRIES = 3
RETRY_TIMEOUT = timedelta(seconds=20)
REQUEST_TIMEOUT = "60s"  # of one request of at most a part, never of a whole file
CONNECT_TIMEOUT = "5s"
PART_BYTES = 8 * 2**20  # of one request to a bucket; S3 takes 5 MiB and more
PAGE = 1000  # S3's
# The store says only in its text what the other side answered.
REFUSED = ("403 Forbidden", "401 Unauthorized", "credential")


def open_store(settings: Settings) -> LocalStore | S3Store:
    """The store of the settings; a local folder is created, a bucket is not looked at.

    Raises:
        OSError: if the folder cannot be created.
    """
    folder = settings.storage_dir
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return LocalStore(prefix=folder)
    parts = urlsplit(settings.storage_url)
    return open_bucket(settings, parts.netloc, unquote(parts.path).strip("/"))


def open_bucket(settings: Settings, bucket: str, prefix: str = "") -> S3Store:
    """A bucket of the S3-compatible service that this installation uses; it is not looked at."""
    place = {"endpoint": settings.storage_endpoint, "region": settings.storage_region}
    # Credentials are read from AWS_* variables by the store itself, and by nobody else.
    return S3Store(
        bucket,
        prefix=prefix or None,
        virtual_hosted_style_request=not settings.storage_path_style,
        disable_bulk_delete=True,  # some compatible services answer it in a form of their own
        client_options={
            "allow_http": settings.storage_endpoint.startswith("http://"),
            "connect_timeout": CONNECT_TIMEOUT,
            "timeout": REQUEST_TIMEOUT,
        },
        retry_config={"max_retries": MAX_RETRIES, "retry_timeout": RETRY_TIMEOUT},
        **{name: value for name, value in place.items() if value},  # type: ignore[arg-type]  # both are texts
    )


def is_refusal(error: Exception) -> bool:
    """Whether a store does not take the credentials, or has none."""
    is_known = isinstance(error, PermissionDeniedError | UnauthenticatedError)
    return is_known or any(sign in str(error) for sign in REFUSED)


def is_missing_bucket(error: Exception) -> bool:
    """Whether there is no such bucket at all."""
    return "NoSuchBucket" in str(error)
