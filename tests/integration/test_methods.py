"""HEAD works wherever GET does, and a 405 lists every method, however the app is composed."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.staticfiles import StaticFiles
from httpx import ASGITransport, AsyncClient, Response
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route, Router

from handler.warm import install
from tests import events
from tests.conftest import Lambda


async def endpoint() -> dict[str, int]:
    return {"a": 1}


async def text(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{request.method} {request.url.path}")


def create_app(folder: Path) -> FastAPI:
    """Create an app with routes of every kind that FastAPI and Starlette offer."""
    (folder / "file.txt").write_text("text")
    app = FastAPI()
    install(app)
    app.get("/own")(endpoint)
    app.delete("/own")(endpoint)
    app.post("/only-post")(endpoint)
    app.head("/explicit")(text)
    app.add_route("/starlette", text, methods=["GET"])

    inner_router = APIRouter()
    inner_router.get("/x")(endpoint)
    inner_router.put("/x")(endpoint)
    router = APIRouter(prefix="/inc")
    router.get("/{name}")(endpoint)
    router.patch("/{name}")(endpoint)
    router.include_router(inner_router, prefix="/inner")
    app.include_router(router)

    mounted = FastAPI()
    mounted.get("/x")(endpoint)
    mounted.post("/x")(endpoint)
    mounted.include_router(inner_router, prefix="/inner")
    app.mount("/mounted", mounted)
    app.mount("/router", Router([Route("/x", text), Route("/x", text, methods=["POST"])]))
    app.mount("/deep", Starlette(routes=[Mount("/er", app=mounted)]))
    app.mount("/files", StaticFiles(directory=folder))
    app.routes.append(Host("other.test", Router([Route("/hosted", text)])))

    @app.get("/raises-405")
    async def raise_405() -> None:
        raise HTTPException(405, headers={"Allow": "POST"})

    return app


Send = Callable[..., Awaitable[Response]]


@pytest.fixture
def send(tmp_path: Path) -> Send:
    app = create_app(tmp_path)

    async def send(method: str, path: str, host: str = "test", root_path: str = "") -> Response:
        transport = ASGITransport(app, root_path=root_path)
        async with AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return await client.request(method, path)

    return send


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/own", "DELETE, GET, HEAD"),
        ("/only-post", "POST"),
        ("/starlette", "GET, HEAD"),
        ("/inc/x", "GET, HEAD, PATCH"),
        ("/inc/inner/x", "GET, HEAD, PUT"),
        ("/mounted/x", "GET, HEAD, POST"),
        ("/mounted/inner/x", "GET, HEAD, PUT"),
        ("/router/x", "GET, HEAD, POST"),
        ("/deep/er/x", "GET, HEAD, POST"),
        ("/files/file.txt", "GET, HEAD"),
    ],
)
@pytest.mark.parametrize("root_path", ["", "/prod"])
async def test_a_405_lists_every_method_of_the_path(
    send: Send, path: str, allowed: str, root_path: str
) -> None:
    response = await send("LOCK", f"{root_path}{path}", root_path=root_path)
    assert (response.status_code, response.headers.get_list("allow")) == (405, [allowed])


async def test_a_405_lists_the_methods_of_host_routes(send: Send) -> None:
    response = await send("LOCK", "/hosted", "other.test")
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")


async def test_a_405_raised_by_a_route_keeps_its_allow_header(send: Send) -> None:
    assert (await send("GET", "/raises-405")).headers["allow"] == "POST"


GET_PATHS = [
    *("/own", "/starlette", "/inc/x", "/inc/inner/x", "/mounted/x", "/mounted/inner/x"),
    *("/router/x", "/deep/er/x", "/files/file.txt", "/docs", "/openapi.json"),
]


@pytest.mark.parametrize("path", GET_PATHS)
async def test_head_has_the_status_and_headers_of_get(send: Send, path: str) -> None:
    get, head = await send("GET", path), await send("HEAD", path)
    assert (get.status_code, head.status_code) == (200, 200)
    assert head.content == b""
    # Some are Starlette's own HEAD routes, the others GET routes whose body is dropped.
    assert head.headers.keys() == get.headers.keys()
    assert head.headers["content-type"] == get.headers["content-type"]


async def test_head_is_405_where_there_is_no_get(send: Send) -> None:
    response = await send("HEAD", "/only-post")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert (await send("HEAD", "/nothing")).status_code == 404


async def test_a_head_only_route_stays_head_only(send: Send) -> None:
    assert (await send("HEAD", "/explicit")).status_code == 200
    assert (await send("GET", "/explicit")).headers["allow"] == "HEAD"


def test_the_openapi_document_omits_head(tmp_path: Path) -> None:
    assert create_app(tmp_path).openapi()["paths"]["/own"].keys() == {"get", "delete"}


@pytest.mark.parametrize("build", events.ALL, ids=lambda build: build.__name__)
@pytest.mark.parametrize("path", ["/orders/1", "/orders", "/health", "/docs", "/orders/0", "/none"])
def test_head_has_no_body_with_every_event_format(
    lambda_handler: Lambda, build: Callable[..., dict[str, Any]], path: str
) -> None:
    get, head = lambda_handler(build("GET", path)), lambda_handler(build("HEAD", path))
    assert head["statusCode"] == get["statusCode"]
    assert head["body"] == ""
    assert not head["isBase64Encoded"]
    assert json.dumps(get.get("headers")) == json.dumps(head.get("headers"))
