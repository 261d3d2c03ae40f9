"""What the service needs of uvicorn's internals. When an upgrade moves one of these, the test names it."""

from __future__ import annotations

import inspect
import tomllib

import uvicorn
from packaging.requirements import Requirement
from packaging.version import Version
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from docs.blocks import ROOT


def test_the_installed_release_is_within_the_bound() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    (bound,) = (each for each in map(Requirement, extras["serve"]) if each.name == "uvicorn")
    assert Version(uvicorn.__version__) in bound.specifier
    assert "<" in str(bound.specifier), "the internals below may move with any release"


def test_the_protocol_calls_what_bounded_protocol_extends() -> None:
    for name in ("on_message_begin", "on_headers_complete", "on_message_complete", "send_400_response"):
        assert callable(getattr(HttpToolsProtocol, name, None)), f"HttpToolsProtocol has no {name} any more"
    parser = inspect.getsource(HttpToolsProtocol.__init__)
    assert "httptools.HttpRequestParser(self)" in parser, "the parser calls another object"
    assert "self.send_400_response" in inspect.getsource(HttpToolsProtocol.data_received)


def test_the_protocol_writes_and_closes_through_its_transport() -> None:
    made = inspect.getsource(HttpToolsProtocol.connection_made)
    for attribute in ("self.transport = transport", "self.flow = FlowControl(transport)"):
        assert attribute in made, f"connection_made no longer does `{attribute}`"
    assert "self.loop" in inspect.getsource(HttpToolsProtocol.__init__)
    assert callable(FlowControl.resume_reading)


def test_the_server_leaves_its_signals_to_one_method() -> None:
    assert "capture_signals" in inspect.getsource(uvicorn.Server.serve), "signals are caught elsewhere now"


def test_the_server_ends_by_should_exit() -> None:
    assert uvicorn.Server(uvicorn.Config(lambda: None, log_config=None)).should_exit is False
