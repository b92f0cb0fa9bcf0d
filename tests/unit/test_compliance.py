"""`make compliance` tests the dialect that COMPLIANCE names, and rejects other values."""

import pytest

from tests.compliance import dialects


@pytest.mark.parametrize("name", dialects.DIALECTS)
def test_compliance_selects_the_dialect(name: str) -> None:
    assert dialects.selected_dialect({"COMPLIANCE": name}) is dialects.DIALECTS[name]


@pytest.mark.parametrize("environment", [{}, {"COMPLIANCE": "theirs"}])
def test_an_unknown_compliance_is_a_usage_error(environment: dict[str, str]) -> None:
    with pytest.raises(pytest.UsageError, match="must be one of stock, stock pooled, ours"):
        dialects.selected_dialect(environment)
