"""How a function's answers are compared and described."""

from infra.local.examine import responses
from infra.local.fleet import InvocationResult


def test_a_description_leaves_out_the_traceback_and_its_paths() -> None:
    message = 'It failed. Traceback (most recent call last): File "/home/ada/app.py", line 1'
    payload = {"errorType": "LifespanFailure", "errorMessage": message}
    result = InvocationResult("1", payload, "LifespanFailure", pid=1, ms=1.0)
    assert responses.describe(result) == "LifespanFailure: It failed."
