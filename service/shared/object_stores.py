"""Opens the object store behind `storage_url`: a local folder, or a bucket of any S3-compatible service."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from obstore.store import LocalStore, S3Store

if TYPE_CHECKING:
    from service.shared.settings import Settings

# A service that is away is reported within seconds; whoever asked decides whether to ask again.
MAX_RETRIES = 3
RETRY_TIMEOUT = timedelta(seconds=20)
REQUEST_TIMEOUT = "60s"  # of one request of at most a part, never of a whole file
CONNECT_TIMEOUT = "5s"


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
    place = {"endpoint": settings.storage_endpoint, "region": settings.storage_region}
    # Credentials are read from AWS_* variables by the store itself, and by nobody else.
    return S3Store(
        parts.netloc,
        prefix=unquote(parts.path).strip("/") or None,
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
