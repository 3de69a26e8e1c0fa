"""Secrets of users that the service must be able to read again: encrypted in the database, under a key beside it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlalchemy import make_url

from service.shared.errors import WebhooksUnavailableError
from service.shared.settings import PREFIX

if TYPE_CHECKING:
    from pathlib import Path

    from service.shared.settings import Settings

KEY_FILE = "secret.key"


class Vault:
    """Seals and opens short texts; the key is looked for when it is first needed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cipher: MultiFernet | None = None

    def seal(self, secret: str) -> str:
        """The secret, encrypted and authenticated.

        Raises:
            WebhooksUnavailableError: if this installation has no key.
        """
        return self._opened().encrypt(secret.encode()).decode()

    def open(self, sealed: str) -> str:
        """The secret behind what `seal` gave.

        Raises:
            WebhooksUnavailableError: if it was sealed under a key that this installation does not have.
        """
        try:
            return self._opened().decrypt(sealed).decode()
        except InvalidToken:
            raise WebhooksUnavailableError(
                "The secret was stored under another key than this server has: rotate the secret, or have the operator "
                f"add the old key to {PREFIX}SECRET_KEY."
            ) from None

    def _opened(self) -> MultiFernet:
        if self._cipher is None:
            keys = self._settings.secret_key or self._kept_key()
            self._cipher = MultiFernet([Fernet(key.strip()) for key in keys.split(",")])
        return self._cipher

    def _kept_key(self) -> str:
        if make_url(self._settings.database_url).get_backend_name() != "sqlite":
            raise WebhooksUnavailableError(
                f"This server keeps no secrets of webhooks: its operator must set {PREFIX}SECRET_KEY, the same for API "
                "and workers."
            )
        return _key_of(self._settings.data_dir / KEY_FILE)


def _key_of(path: Path) -> str:
    """The key in the file, which is made if it is missing: of several processes that try, one makes it for all."""
    if not path.exists():
        own = path.with_name(f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
        with os.fdopen(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(Fernet.generate_key())
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(own, path)  # fails where another process was first
        except FileExistsError:
            pass
        finally:
            own.unlink()
    return path.read_text(encoding="ascii").strip()
