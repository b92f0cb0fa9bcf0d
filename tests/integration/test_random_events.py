"""Any event gets a response or an error that names it, and one log line."""

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


def paths(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [above] if above else []
    for name, inner in value.items() if isinstance(value, dict) else ():
        found += paths(inner, (*above, name))
    return found


@st.composite
def broken(draw: st.DrawFn) -> Any:
    """Change or remove one value in the event of a request."""
    event = copy.deepcopy(draw(st.sampled_from(REQUESTS)))
    for _ in range(draw(st.integers(1, 2))):
        *above, name = draw(st.sampled_from(paths(event)))
        inner = event
        for each in above:
            inner = inner[each]
        if draw(st.booleans()):
            inner[name] = draw(JSON)
        else:
            del inner[name]
    return event


@settings(max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON | broken())
def test_any_event_is_answered_or_reported_in_one_line(
    lambda_handler: Lambda, capsys: pytest.CaptureFixture[str], event: Any
) -> None:
    capsys.readouterr()
    try:
        answer = lambda_handler(event)
    except UnservedEventError:
        assert not isinstance(event, dict) or "requestContext" not in event
    else:
        json.dumps(answer)
        assert answer["statusCode"] in range(200, 500)
    assert len(log_lines(capsys.readouterr().out)) == 1
