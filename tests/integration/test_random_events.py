"""Any event has a response or an error that names its kind, and one log line."""

import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handler.warm import UnservedEventError
from tests import events
from tests.conftest import Lambda, log_lines

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=9,
)
REQUESTS = [
    build(*request)
    for build in events.ALL
    for request in (
        ("GET", "/orders/1", "status=paid"),
        ("POST", "/orders", "", '{"customer_name": "Jade Kites"}'),
    )
]


def paths(value: Any, parent: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every member of nested dictionaries, as a tuple of keys."""
    result = [parent] if parent else []
    for name, member in value.items() if isinstance(value, dict) else ():
        result += paths(member, (*parent, name))
    return result


@st.composite
def malformed_requests(draw: st.DrawFn) -> Any:
    """Change or remove one or two values in the event of a request."""
    event = copy.deepcopy(draw(st.sampled_from(REQUESTS)))
    for _ in range(draw(st.integers(1, 2))):
        *parent, name = draw(st.sampled_from(paths(event)))
        container = event
        for key in parent:
            container = container[key]
        if draw(st.booleans()):
            container[name] = draw(JSON)
        else:
            del container[name]
    return event


@settings(max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON | malformed_requests())
def test_any_event_is_served_or_reported_in_one_log_line(
    lambda_handler: Lambda, capsys: pytest.CaptureFixture[str], event: Any
) -> None:
    capsys.readouterr()
    try:
        response = lambda_handler(event)
    except UnservedEventError:
        assert not isinstance(event, dict) or "requestContext" not in event
    else:
        json.dumps(response)
        assert response["statusCode"] in range(200, 500)
    assert len(log_lines(capsys.readouterr().out)) == 1
