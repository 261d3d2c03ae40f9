"""The keys of a service: those of its callers, and those of its operator."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from densepath.errors import AdminKeyRequiredError, InvalidApiKeyError, InvalidRequestError
from densepath.file_errors import explain

#: Between two looks at a key file. A key that is removed from it is refused this much later.
LOOK_SECONDS = 1.0

log = structlog.get_logger()


class ApiKeys:
    """A set of keys, as hashes. Those of a file follow the file while the service runs."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = _hashed(keys)
        self._path: Path | None = None
        self._option = ""
        self._seen: tuple[int, ...] | None = None
        self._look_after = 0.0

    @classmethod
    def from_file(cls, path: Path | None, option: str = "--api-key-file") -> ApiKeys:
        """One key per line. Blank lines and lines that begin with # are skipped.

        Raises InvalidRequestError where the file cannot be read or has no key.
        """
        if path is None:
            return cls()
        seen = _identity(path)
        keys = cls(_read_keys(path, option))
        keys._path, keys._option, keys._seen = path, option, seen
        return keys

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, sent: bytes) -> bool:
        """Compare with every key, in constant time each, without an early end."""
        self._look()
        digest = digest_of(sent)
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0

    def reload(self) -> None:
        """Read the file again. The keys stay as they are where it cannot be read or has no key."""
        if self._path is None:
            return
        self._seen = _identity(self._path)  # before it is read: a later change is seen at the next look
        try:
            self._digests = _hashed(_read_keys(self._path, self._option))
        except InvalidRequestError as error:
            log.error("keys_kept", option=self._option, reason=error.message)
        else:
            log.info("keys_reloaded", option=self._option, keys=len(self._digests))

    def _look(self) -> None:
        now = time.monotonic()
        if self._path is None or now < self._look_after:
            return
        self._look_after = now + LOOK_SECONDS
        if _identity(self._path) != self._seen:
            self.reload()


@dataclass(frozen=True)
class Guard:
    """Who may ask for what. Without `callers`, every route but those of /admin is open to everyone.

    A key of an operator is good for every route. It is only taken from a Bearer header, which no browser
    sends by itself.
    """

    callers: ApiKeys = field(default_factory=ApiKeys)
    operators: ApiKeys = field(default_factory=ApiKeys)

    def check(self, path: str, authorization: str) -> bytes | None:
        """Raise InvalidApiKeyError or AdminKeyRequiredError where the Authorization header is not enough.

        Returns the hash of the caller's key; None for an operator, and where no key is needed.
        """
        bearer, basic = bearer_key(authorization), basic_password(authorization)
        operator = bearer is not None and self.operators.accept(bearer)
        if is_admin(path):
            if not self.operators:
                raise AdminKeyRequiredError("the /admin routes are off: this service has no admin key")
            caller = bearer is not None and self.callers.accept(bearer)
            if caller and not operator:
                raise AdminKeyRequiredError("the /admin routes take a key of --admin-key-file")
            if not operator:
                raise InvalidApiKeyError("send an admin key as `Authorization: Bearer KEY`")
        elif self.callers:
            sent = bearer if bearer is not None else basic
            caller = sent is not None and self.callers.accept(sent)
            if not (caller or operator):
                raise InvalidApiKeyError("send a valid key as `Authorization: Bearer KEY`")
            if sent is not None and not operator:
                return digest_of(sent)
        return None

    def reload(self) -> None:
        """Read both key files again."""
        self.callers.reload()
        self.operators.reload()


def is_admin(path: str) -> bool:
    """Whether a path belongs to the operator."""
    return path == "/admin" or path.startswith("/admin/")


def bearer_key(authorization: str) -> bytes | None:
    """The key in a Bearer header."""
    scheme, _, value = authorization.partition(" ")
    return value.strip(" \t").encode("latin-1") if scheme.lower() == "bearer" else None


def basic_password(authorization: str) -> bytes | None:
    """The password in a Basic header, which a browser sends (docs/decisions/0009)."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        _, colon, password = base64.b64decode(value.strip(" \t"), validate=True).partition(b":")
    except ValueError:  # no base64, or not even ASCII
        return None
    return password if colon else None


def digest_of(key: bytes) -> bytes:
    """The hash by which a key is known to the service."""
    return hashlib.sha256(key).digest()


def _hashed(keys: Iterable[str]) -> list[bytes]:
    return [digest_of(key.encode()) for key in keys]


def _read_keys(path: Path, option: str) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidRequestError(f"{option}: {explain(error) or error}") from error
    except UnicodeDecodeError:
        raise InvalidRequestError(f"{option}: {path} is not UTF-8 text") from None
    lines = (line.strip() for line in text.splitlines())
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise InvalidRequestError(
            f"{option}: the key file {path.name} has no key: write one key per line, or leave the option out"
        )
    return keys


def _identity(path: Path) -> tuple[int, ...] | None:
    """What changes with a file's content, links followed; None where there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
