"""Schemathesis: what the OpenAPI document describes, and what it forbids, on every route."""

from __future__ import annotations

from collections import Counter
from typing import Any

import schemathesis
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.transport.requests import REQUESTS_TRANSPORT

from fuzz.conftest import Send, fuzz

CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]


def test_every_route_answers_as_the_document_says(send: Send, count: Counter[int]) -> None:
    document = send("GET", "/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.base_url = "http://localhost"
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) > 15
    posts = [operation for operation in operations if operation.body]
    for operation in operations:
        modes = list(GenerationMode) if operation in posts else [GenerationMode.POSITIVE]
        for mode in modes:
            # A request without a body has no field: a few requests say what there is to know.
            share = 2 * len(posts) if operation in posts else 2000

            def answered(case: Any) -> None:
                words = REQUESTS_TRANSPORT.serialize_case(case, base_url="http://localhost")
                request = {name: words[name] for name in ("params", "headers", "cookies") if words.get(name)}
                if "json" in words:
                    request["json"] = words["json"]
                elif words.get("data") is not None:
                    request["content"] = words["data"]
                answer = send(words["method"], words["url"], **request)
                count[answer.status_code] += 1
                assert answer.status_code < 500, (case.body, answer.text)
                case.validate_response(answer, checks=CHECKS)

            fuzz(operation.as_strategy(generation_mode=mode), answered, share=share)
    assert {200, 422} <= count.keys()
