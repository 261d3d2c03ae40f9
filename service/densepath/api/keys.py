"""The API keys of a service."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from densepath.errors import InvalidRequestError
from densepath.file_errors import explain


class ApiKeys:
    """The keys of a key file, as hashes. Without any key, every route is open."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    @classmethod
    def from_file(cls, path: Path | None) -> ApiKeys:
        """One key per line. Blank lines and lines that begin with # are skipped.

        Raises InvalidRequestError where the file cannot be read or has no key.
        """
        if path is None:
            return cls([])
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise InvalidRequestError(f"--api-key-file: {explain(error) or error}") from error
        except UnicodeDecodeError:
            raise InvalidRequestError(f"--api-key-file: {path} is not UTF-8 text") from None
        lines = (line.strip() for line in text.splitlines())
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise InvalidRequestError(
                f"the key file {path.name} has no key: write one key per line, or leave the option out"
            )
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, sent: bytes) -> bool:
        """Compare with every key, in constant time each, without an early end."""
        digest = hashlib.sha256(sent).digest()
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0
