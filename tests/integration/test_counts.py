"""What a request and a cold start do to the network, and what they import, stays within limits."""

from tests.benchmarks import counts


def test_round_trips_statements_and_imports_are_within_their_limits() -> None:
    assert not counts.above_limit(counts.measure(instructions=False))
