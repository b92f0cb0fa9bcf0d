"""How a function behaves under normal conditions; all other measurements are compared with it."""

from dataclasses import dataclass, field
from typing import Any

from infra.local.examine import responses
from infra.local.fleet import InvocationResult


@dataclass
class Baseline:
    """The observations. `contents` and `are_stable` have an element for each event."""

    contents: list[Any] = field(default_factory=list)
    #: Whether the response to a repeated event was the same.
    are_stable: list[bool] = field(default_factory=list)
    #: Whether one process served all events, each of them twice.
    serves_repeatedly: bool = True
    #: Transactions left open after the last event.
    open_transactions: int = 0
    #: The tables in the schema `public` that the events read or write.
    tables: list[str] = field(default_factory=list)

    def add(self, first: InvocationResult, second: InvocationResult) -> None:
        """Add the responses to an event and to its repetition."""
        contents = [responses.content(result.payload) for result in (first, second)]
        self.contents.append(contents[0])
        self.are_stable.append(responses.has_failed(second) or responses.are_equal(*contents))
        self.serves_repeatedly &= not (responses.has_failed(first) or responses.has_failed(second))

    def matches(self, index: int, result: InvocationResult) -> bool:
        """Return whether a response to the event is as under normal conditions; if responses to the
        event differ each time, only their status is compared."""
        if responses.has_failed(result):
            return False
        expected, actual = self.contents[index], responses.content(result.payload)
        if self.are_stable[index]:
            return responses.are_equal(expected, actual)
        if isinstance(expected, dict) and "statusCode" in expected:
            return isinstance(actual, dict) and actual.get("statusCode") == expected["statusCode"]
        return True
