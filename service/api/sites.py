"""Pages of other sites in a browser: they must not use an API that asks nobody for a key, nor somebody's session.

With a key in an `Authorization` header nothing is needed: a page cannot send it to another site without being allowed
to, and no answer allows it. A cookie comes along by itself. Without keys, what protects the API is that only this
machine reaches it, as any browser on it does.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from service.shared.errors import ForeignSiteError, MisdirectedRequestError
from service.shared.settings import PREFIX

if TYPE_CHECKING:
    from starlette.datastructures import Headers

    from service.shared.settings import Settings

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def require_own_site(settings: Settings, method: str, headers: Headers) -> None:
    """Refuse what a page of another site may have sent.

    Raises:
        MisdirectedRequestError: if the host's name may be another's, whose owner has it mean this machine meanwhile.
        ForeignSiteError: if the request would change something and comes from a page of another site.
    """
    host = headers.get("host", "")
    if not settings.allow_unauthenticated_network and not _is_own(settings, host):
        raise MisdirectedRequestError(
            f"This API asks for no key, and is not known as {host[:200]!r}: its operator may name the host in "
            f"{PREFIX}PUBLIC_HOSTS, or better set {PREFIX}REQUIRE_KEYS=true."
        )
    origin = headers.get("origin")
    if method not in SAFE and (
        (origin is not None and _netloc(origin) != host.lower())
        or headers.get("sec-fetch-site") in ("cross-site", "same-site")
    ):
        raise ForeignSiteError("This API asks for no key, and takes nothing from pages of other sites.")


def require_own_page(method: str, headers: Headers) -> None:
    """Refuse what a page of another site may have sent with the session of whoever looks at it.

    Raises:
        ForeignSiteError: if the request would change something and does not come from a page of this site.
    """
    if method in SAFE:  # which change nothing, and whose answers no other site can read
        return
    # Browsers tell it themselves, but only where the connection is secure; a proxy may change the host's name.
    told = headers.get("sec-fetch-site")
    origin = headers.get("origin")
    is_own = (
        told == "same-origin" if told else origin is not None and _netloc(origin) == headers.get("host", "").lower()
    )
    if not is_own:
        raise ForeignSiteError("A session is used from the pages of this site alone; programs send an API key.")


def _is_own(settings: Settings, host: str) -> bool:
    """Whether nobody outside can have given the name a meaning: an address, or one that is known here."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:
        return False
    if "." not in name or name.endswith(".localhost") or name in {settings.host.lower(), *settings.public_hosts}:
        return True  # a name without a dot is given by this machine or its network
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
