"""Each row of docs/events.md is true: how an event is handled, and which path a route receives."""

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Request

from handler.warm import LambdaHandler, UnservedEventError
from infra.local import ROOT
from tests import events
from tests.conftest import Lambda, log_lines
from tests.integration.service_events import EVENTS

DOCUMENT = (ROOT / "docs/events.md").read_text()


def rows(header: str) -> list[list[str]]:
    table = DOCUMENT.partition(f"| {header} |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


KINDS = rows("event")
PATHS = rows("service")


def test_every_event_kind_has_a_row_in_the_table() -> None:
    assert [row[0] for row in KINDS] == list(EVENTS)
    assert len(PATHS) >= 16


@pytest.mark.parametrize(
    ("name", "outcome", "kind"), [row[:3] for row in KINDS], ids=[row[0] for row in KINDS]
)
def test_every_event_is_handled_as_documented(
    lambda_handler: Lambda, capsys: pytest.CaptureFixture[str], name: str, outcome: str, kind: str
) -> None:
    event = copy.deepcopy(EVENTS[name])
    kind = kind.strip("`")
    if outcome == "raises":
        with pytest.raises(UnservedEventError) as error_info:
            lambda_handler(event)
        message = str(error_info.value)
        assert f"not served: an event of kind {kind} (" in message
        assert '{"source": "aws.scheduler"}' in message
        for key in sorted(event)[:10] if isinstance(event, dict) else []:
            assert key in message
        assert "secret" not in message
    else:
        response = lambda_handler(event)
        if outcome == "refused":
            assert response["statusCode"] == 400
            assert json.loads(response["body"])["title"] == "Bad Request"
        elif "source" in event:
            assert response["warm"] is True
        else:
            assert response["statusCode"] == 200
            assert json.loads(response["body"])["id"] == 1
    output = capsys.readouterr().out
    [line] = log_lines(output)
    assert line["outcome"] == {"raises": "failed", "refused": "refused", "served": "ok"}[outcome]
    assert kind in line.get("cause", "")
    assert ("cause" in line) == (outcome != "served")
    assert "secret" not in output
    assert event == EVENTS[name]


@pytest.fixture(scope="module")
def path_handler() -> Iterator[LambdaHandler]:
    """Create a handler whose app returns the path of the request."""
    app = FastAPI()

    @app.get("/{path:path}")
    async def path_of_request(path: str, request: Request) -> list[str]:
        return [f"/{path}", request.scope["root_path"], request.url.path]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("API_BASE_PATH", "v1")
        handler = LambdaHandler(app)
        handler(events.http_api("GET", "/"), None)  # reads the setting
    yield handler
    handler.loop.close()


OWN_DOMAINS = {"Function URL": "abc.lambda-url.eu-central-1.on.aws"}


def event_of(service: str, domain: str, path: str) -> dict[str, Any]:
    domain = OWN_DOMAINS.get(service, events.OWN_DOMAIN) if domain == "default" else domain
    if service == "Load balancer":
        return events.load_balancer("GET", path, host=domain)
    build = events.rest_api if re.search("REST|1.0", service) else events.http_api
    event = build("GET", path, host=domain)
    stage = "$default" if service == "Function URL" else "prod"
    event["requestContext"] |= {"domainName": domain, "stage": stage}
    if service == "HTTP API 1.0":
        event["version"] = "1.0"
    if service == "HTTP API 1.0" or domain == "api.example.com":
        event["requestContext"]["path"] = path
    return event


@pytest.mark.parametrize(("service", "domain", "path", "route", "root_path"), PATHS)
def test_a_route_receives_the_documented_path(
    path_handler: LambdaHandler, service: str, domain: str, path: str, route: str, root_path: str
) -> None:
    event = event_of(service, domain.strip("`"), path.strip("`"))
    route_path, root, url_path = json.loads(path_handler(event, None)["body"])
    assert (route_path, root) == (route.strip("`"), root_path.strip("`"))
    assert url_path == root + route_path


API_GATEWAY_DOMAINS = [
    "abc123.execute-api.eu-central-1.amazonaws.com",
    "ABC123.Execute-API.eu-west-1.amazonaws.com",
    "vpce-1.execute-api.us-east-1.vpce.amazonaws.com",
    "x.execute-api.cn-north-1.amazonaws.com.cn",
]
OTHER_DOMAINS = [
    "api.example.com",
    "execute-api.example.com",
    "x.execute-api.eu-west-1.amazonaws.com.test",
]


@pytest.mark.parametrize("domain", API_GATEWAY_DOMAINS + OTHER_DOMAINS)
@pytest.mark.parametrize("stage", ["prod", "v1", "orders", "$default"])
@pytest.mark.parametrize("service", ["HTTP API 2.0", "HTTP API 1.0"])
def test_a_stage_prefix_is_removed_only_for_api_gateway(
    path_handler: LambdaHandler, domain: str, stage: str, service: str
) -> None:
    event = event_of(service, domain, f"/{stage}/x")
    event["requestContext"]["stage"] = stage
    route_path, root, _ = json.loads(path_handler(event, None)["body"])
    removed = stage != "$default" if domain in API_GATEWAY_DOMAINS else stage == "v1"
    assert (route_path, root) == (("/x", f"/{stage}") if removed else (f"/{stage}/x", ""))
