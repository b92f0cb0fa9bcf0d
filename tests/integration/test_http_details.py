"""HTTP works as a service's own routes expect, in details that the sample does not use."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException, Response
from fastapi.staticfiles import StaticFiles
from httpx import ASGITransport, AsyncClient

from handler.warm import LambdaHandler, UnservedEventError, install
from tests.events import function_url, http_api, rest_api


def create_app() -> FastAPI:
    app = FastAPI()
    install(app)

    @app.get("/ok")
    async def ok() -> int:
        return 1

    @app.get("/status/{status}")
    async def status(status: int) -> None:
        raise HTTPException(status)

    @app.get("/not-modified")
    async def not_modified() -> Response:
        return Response(status_code=304)

    @app.get("/lines")
    async def lines() -> Response:
        return Response('{"a": 1}\n', media_type="application/x-ndjson")

    return app


def client(app: FastAPI) -> AsyncClient:
    return AsyncClient(transport=ASGITransport(app), base_url="http://test")


@pytest.fixture
def invoke() -> Any:
    handler = LambdaHandler(create_app())
    yield lambda event: handler(event, None)
    handler.loop.close()


async def test_head_uses_the_first_route_that_serves_get(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("text")
    app = create_app()
    app.mount("/", StaticFiles(directory=tmp_path))
    async with client(app) as http_client:
        assert (await http_client.head("/ok")).status_code == 200
        assert (await http_client.head("/file.txt")).status_code == 200
        assert (await http_client.head("/missing.txt")).status_code == 404


@pytest.mark.parametrize("status", [420, 430, 499, 520, 599])
async def test_a_status_without_a_reason_phrase_is_kept(status: int) -> None:
    async with client(create_app()) as http_client:
        response = await http_client.get(f"/status/{status}")
    assert response.status_code == status
    assert response.json()["status"] == status


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_that_allows_no_body_has_none(status: int) -> None:
    async with client(create_app()) as http_client:
        response = await http_client.get(f"/status/{status}")
    assert (response.status_code, response.content) == (status, b"")
    assert "content-type" not in response.headers


@pytest.mark.parametrize("build", [http_api, function_url, rest_api])
def test_a_304_has_no_content_type(invoke: Any, build: Any) -> None:
    response = invoke(build("GET", "/not-modified"))
    assert response["statusCode"] == 304
    assert "content-type" not in (response.get("headers") or {})


def test_json_lines_are_sent_as_text(invoke: Any) -> None:
    assert invoke(http_api("GET", "/lines"))["body"] == '{"a": 1}\n'


@pytest.mark.parametrize("key", ['x\n{"cold_start": false}\n', "\ud800", "k" * 20_000])
def test_keys_of_an_unsupported_event_are_escaped_and_truncated(
    invoke: Any, key: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UnservedEventError) as error_info:
        invoke({key: 1})
    message = str(error_info.value)
    assert message.isascii()
    assert "\n" not in message
    assert len(message) < 300
    [line] = capfd.readouterr().out.splitlines()
    assert json.loads(line)["outcome"] == "failed"
