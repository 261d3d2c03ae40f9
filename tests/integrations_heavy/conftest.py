"""The demo pair in the real engine, for the tools of these tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integrations_heavy.served import PYTHON, TEACHER_KL
from live import serving


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of `densepath serve --demo`: the pair is built where it is not there yet."""
    log = tmp_path_factory.mktemp("service") / "log"
    options = ("--demo", "--teacher-kl", str(TEACHER_KL))
    with serving(*options, log=log, within=1000, python=PYTHON) as url:
        yield url
