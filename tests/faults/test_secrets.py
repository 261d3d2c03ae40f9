"""Row 42: a key, a prompt and a token are nowhere to be read: one key, and every place that could show it."""

from __future__ import annotations

import base64
import json
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ruamel.yaml import YAML

from api.bodies import CANARY, CHAT, GOOD, TEXT
from api.running import make_service, pair, running
from densepath import cli
from densepath.api.keys import ApiKeys
from densepath.client import AsyncClient, Client
from densepath.commands.settings import ScoreSettings
from densepath.engine.fake import FakeScorer
from densepath.errors import DensepathError
from densepath.pair.pair import Pair
from densepath.telemetry.logs import configure_logs
from docs.blocks import ROOT
from faults.commands import Run, run, write_items
from trainer.runs import SETTINGS

__all__ = ["pair", "run"]  # fixtures

KEY = f"{CANARY}-of-the-trainer"
ENCODED = base64.b64encode(f":{KEY}".encode()).decode()
RAISE_ID = 78
#: What a variable or an option is called whose value nobody may see.
SECRET = re.compile(r"(?:[_-]KEYS?|TOKEN|PASSWORD|SECRET)$", re.IGNORECASE)


def shows(text: str) -> bool:
    return CANARY in text or ENCODED in text


def test_row_42_the_service_shows_no_key_and_no_prompt(
    pair: Pair, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure_logs()
    scorer = FakeScorer(64, raise_on_id=RAISE_ID)
    answers: list[httpx.Response] = []
    with running(make_service(pair, scorer=scorer), keys=(KEY,)) as served:
        ways: list[dict[str, str]] = [
            {},
            {"Authorization": f"Bearer {KEY}"},
            {"Authorization": f"Bearer {KEY}x"},
            {"Authorization": KEY},
            {"Authorization": f"Basic {ENCODED}"},
            {"Authorization": f"Token {KEY}", "X-Api-Key": KEY, "Cookie": f"key={KEY}"},
        ]
        prompts: list[dict[str, Any]] = [
            {"items": [{**TEXT, "prompt": CANARY}]},
            {"items": [{**CHAT, "messages": [{"role": CANARY, "content": CANARY}]}]},
            {"items": [{**GOOD, "response_token_ids": [5, RAISE_ID]}], "model": "default"},
            {"items": [GOOD], "model": CANARY, "model_version": CANARY},
            {CANARY: CANARY},
        ]
        for headers in ways:
            for path in (
                "/v1/pair",
                "/version",
                f"/{KEY}",
                f"/version?api_key={KEY}",
                "/metrics",
                "/",
                "/admin/x",
            ):
                answers.append(served.client.get(path, headers=headers))
            answers += [served.client.post("/v1/rewards", json=each, headers=headers) for each in prompts]
        served.speak(f"GET /livez HTTP/1.1\r\nAuthorization : Bearer {KEY}\r\n\r\n".encode())

        async def fail(*_: Any) -> Any:
            raise RuntimeError(f"unforeseen, of {len(KEY)} characters")

        monkeypatch.setattr(scorer, "score", fail)
        answers.append(served.client.post("/v1/rewards", json=prompts[0], headers=ways[1]))
        served.idle()
        assert {200, 401, 404, 422, 500} <= {answer.status_code for answer in answers}
        for answer in [*answers, served.client.get("/metrics")]:
            assert not shows(answer.text + str(answer.headers)), answer.request.url.path
        assert not shows(repr(served.service) + repr(vars(served.service)))
        assert not shows(repr(ApiKeys([KEY])) + repr(vars(ApiKeys([KEY]))))
    written = capfd.readouterr()
    assert "unforeseen" in written.err, "the log was not captured"
    assert not shows(written.out + written.err)


def test_row_42_settings_and_clients_show_no_key() -> None:
    score = ScoreSettings(source=Path("in.jsonl"), api_key=KEY)
    for shown in (
        score,
        SETTINGS,
        Client("http://service", api_key=KEY),
        AsyncClient("http://service", api_key=KEY),
    ):
        assert not shows(repr(shown))
    assert SETTINGS.api_key
    assert SETTINGS.api_key not in repr(SETTINGS)
    assert SETTINGS.api_key not in json.dumps(SETTINGS.deciding()), "it would be in run.json"


def test_row_42_no_error_of_the_client_shows_a_key() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/pair":
            raise httpx.ConnectError("refused")
        return httpx.Response(401, json={"error": {"code": "invalid_api_key", "message": "m"}})

    with (
        Client(
            "http://user:pass-c4n4ry@service", api_key=KEY, transport=httpx.MockTransport(refuse)
        ) as client,
        pytest.raises(DensepathError) as raised,
    ):
        client.score([GOOD], deadline=0.2)
    assert not shows("".join(traceback.format_exception(raised.value)))


def test_row_42_no_command_shows_a_key(
    dirs: tuple[Path, Path], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sft, reference = map(str, dirs)
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    # tests/engine/test_trial.py has the trial, which takes seconds.
    monkeypatch.setattr("densepath.engine.vllm.trial.try_pair", lambda *_, **__: None)
    monkeypatch.setenv("HF_TOKEN", KEY)
    monkeypatch.setenv("DENSEPATH_API_KEY", KEY)
    monkeypatch.setenv("DENSEPATH_API_KEY_FILE", str(keys))
    items = write_items(tmp_path / "items.jsonl", 1)
    pair = ("--sft", sft, "--reference", reference)
    said = [
        run("check", *pair),
        run("check", *pair, "--api-key-file", keys),  # check has no such option
        run("score", items, "--output", tmp_path / "out.jsonl", "--url", "no address"),
        run("serve", *pair, "--engine", "fake", "--port", "1000000"),
        run("serve", *pair, "--engine", "fake", "--host", "203.0.113.9"),
        run("serve", "--sft", sft, "--reference", "nowhere", "--engine", "fake"),
    ]  # fmt: skip
    assert said[0][0] == 0
    assert all(status for status, _ in said[1:])
    assert not any(shows(text) for _, text in said)
    keys.write_bytes(KEY.encode() + b"\xff\n")
    assert not shows(run("serve", *pair, "--engine", "fake")[1])
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path not in (keys, *dirs)]
    assert not [path for path in written if CANARY.encode() in path.read_bytes() and path != keys]


@pytest.mark.parametrize("command", ["score", "train"])
def test_row_42_no_help_shows_a_key(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DENSEPATH_API_KEY", KEY)
    monkeypatch.setattr("sys.argv", ["densepath", command, "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    written = capsys.readouterr()
    assert "--api-key" in written.out
    assert not shows(written.out + written.err)


def secrets(node: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every value of a YAML document whose name says that it is secret."""
    if isinstance(node, dict):
        named = node.get("name")
        if isinstance(named, str) and "value" in node:
            yield from secrets(node["value"], named)
        for key, value in node.items():
            yield from secrets(value, str(key))
    elif isinstance(node, list):
        for value in node:
            variable, _, assigned = value.partition("=") if isinstance(value, str) else ("", "", "")
            yield from secrets(assigned if assigned else value, variable if assigned else name)
    elif isinstance(node, str) and SECRET.search(name):
        yield name, node


def test_row_42_no_file_of_compose_or_kubernetes_holds_a_secret() -> None:
    files = [
        *ROOT.glob("docker-compose*.yml"),
        *(ROOT / "k8s").rglob("*.yaml"),
        *(ROOT / "deploy").rglob("*.y*ml"),
    ]
    assert len(files) > 20
    yaml = YAML(typ="safe", pure=True)
    found = {
        (file.name, value)
        for file in files
        for document in yaml.load_all(file.read_text("utf-8"))
        for _, value in secrets(document)
    }
    template = "# One key a line. This line is none.\n"
    assert found <= {("secret.template.yaml", template)}
    sample = {"env": [{"name": "HF_TOKEN", "value": "x"}], "environment": ["A_KEY=y"], "password": "z"}
    assert [value for _, value in secrets(sample)] == ["x", "y", "z"], "a secret would not be seen"
