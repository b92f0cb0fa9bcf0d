"""Whatever an event is, it gets an answer and one line in the log."""

import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [above] if above else []
    for name, inner in value.items() if isinstance(value, dict) else ():
        found += places(inner, (*above, name))
    return found


@st.composite
def broken(draw: st.DrawFn) -> Any:
    """The event of a request, with something else in one place or nothing."""
    event = copy.deepcopy(draw(st.sampled_from(REQUESTS)))
    for _ in range(draw(st.integers(1, 2))):
        *above, name = draw(st.sampled_from(places(event)))
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
def test_any_event_is_answered_with_one_line(
    lambda_handler: Lambda, capsys: pytest.CaptureFixture[str], event: Any
) -> None:
    capsys.readouterr()
    answer = lambda_handler(event)
    json.dumps(answer)
    assert answer["statusCode"] in range(200, 501)
    assert len(log_lines(capsys.readouterr().out)) == 1
