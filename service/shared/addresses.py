"""Whom this installation may connect to on behalf of its users: https URLs, and addresses of the public network."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from service.shared.errors import UrlRefusedError

if TYPE_CHECKING:
    from service.shared.settings import Settings

PRINTABLE = re.compile(r"[\x21-\x7e]+")
HOST = re.compile(r"[a-z0-9._-]{1,253}|[0-9a-f:.]*:[0-9a-f:.]*")
PORTS = {"https": 443, "http": 80}
# What older versions of `ipaddress` take for public, or what stands for addresses that are not.
NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        ("192.0.0.0/24", "64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96", "fec0::/10"),
    )
)
NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class Receiver:
    """Where a webhook goes. `is_trusted`: the operator allows plain http and an address that is not public."""

    host: str
    port: int
    path: str
    """With the query."""
    is_tls: bool
    is_trusted: bool


def check_receiver(settings: Settings, url: str) -> Receiver:
    """Where a URL leads, as far as it can be told without asking for the host's address.

    Raises:
        UrlRefusedError: says why nothing is sent there.
    """
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise UrlRefusedError("The URL cannot be read.") from None
    if parts.scheme not in PORTS or not HOST.fullmatch(host) or "@" in parts.netloc or not PRINTABLE.fullmatch(url):
        raise UrlRefusedError("Give an https:// URL without a user or password, in printable ASCII.")
    if port == 0:
        raise UrlRefusedError("There is no port 0.")
    port = port or PORTS[parts.scheme]
    is_trusted = bool({host, f"{host}:{port}"} & set(settings.webhook_private_hosts))
    if not is_trusted:
        if parts.scheme != "https":
            raise UrlRefusedError("Webhooks are sent by https only.")
        literal = _literal(host)
        if host.rstrip(".").rpartition(".")[2] == "localhost" or (literal is not None and not is_public(literal)):
            raise UrlRefusedError("Webhooks are sent to public addresses only.")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Receiver(host, port, path, parts.scheme == "https", is_trusted)


def is_public(address: str) -> bool:
    """Whether an address, and any that it stands for, belongs to the public network."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if any(ip in network for network in NOT_PUBLIC if network.version == ip.version):
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in NAT64:
            inner = ipaddress.IPv4Address(ip.packed[-4:])
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def _literal(host: str) -> str | None:
    """The address that a host already is, also in the forms that only a resolver reads (0x7f.1, 2130706433)."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(host))
    with contextlib.suppress(OSError):
        return socket.inet_ntoa(socket.inet_aton(host))
    return None
