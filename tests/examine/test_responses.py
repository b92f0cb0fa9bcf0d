"""How a function's answers are compared and described."""

from infra.local.examine import responses
from infra.local.fleet import InvocationResult


def test_a_description_leaves_out_the_traceback_and_folders() -> None:
    message = (
        "It failed at /home/ada/app.py:7> cb=[done() at /usr/lib/python/events.py:181]. "
        'Traceback (most recent call last): File "/home/ada/app.py", line 1'
    )
    payload = {"errorType": "LifespanFailure", "errorMessage": message}
    result = InvocationResult("1", payload, "LifespanFailure", pid=1, ms=1.0)
    assert responses.describe(result) == (
        "LifespanFailure: It failed at app.py:7> cb=[done() at events.py:181]."
    )
