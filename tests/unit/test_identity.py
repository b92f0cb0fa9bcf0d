"""A caller is identified by one string, which differs from every other caller's.

The events are from the API Gateway Developer Guide ("Lambda proxy integrations for HTTP APIs",
"…for REST APIs", "Control access with Lambda authorizers") and "Invoking Lambda function URLs".
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.warm.aws_lambda import identity

ISSUER = "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_abc"
CLAIMS = {"iss": ISSUER, "sub": "5f1e", "client_id": "web", "exp": "1700000000"}
ROLE = "arn:aws:sts::123456789012:assumed-role/Shop"
USER = "arn:aws:iam::123456789012:user/amber"


def iam(arn: str, **fields: Any) -> dict[str, Any]:
    """Build the IAM authorizer of payload format 2.0, as HTTP APIs and function URLs send it."""
    signer = {"accountId": "123456789012", "userArn": arn, "userId": "AROA:x", **fields}
    return {"authorizer": {"iam": signer}}


def rest_iam(arn: str | None, **fields: Any) -> dict[str, Any]:
    return {"identity": {"sourceIp": "127.0.0.1", "userArn": arn, "caller": "AROA:x", **fields}}


def caller_of(context: dict[str, Any], claim: str = "") -> str | None:
    return identity.of({"requestContext": context}, claim)


@pytest.mark.parametrize(
    ("context", "caller"),
    [
        ({"authorizer": {"jwt": {"claims": CLAIMS, "scopes": None}}}, f"jwt {ISSUER} 5f1e"),
        ({"authorizer": {"claims": CLAIMS, "scopes": None}}, f"jwt {ISSUER} 5f1e"),
        (iam(f"{ROLE}/i-0123"), f"iam {ROLE}"),
        (rest_iam(f"{ROLE}/i-0123"), f"iam {ROLE}"),
        (iam(USER), f"iam {USER}"),
        (rest_iam(USER), f"iam {USER}"),
        (iam("arn:aws:iam::123456789012:root"), "iam arn:aws:iam::123456789012:root"),
        (
            iam(f"{ROLE}/Cognito", cognitoIdentity={"identityId": "eu-central-1:42"}),
            f"iam {ROLE} eu-central-1:42",
        ),
        (rest_iam(f"{ROLE}/C", cognitoIdentityId="eu-central-1:42"), f"iam {ROLE} eu-central-1:42"),
        (iam(USER, cognitoIdentity=None), f"iam {USER}"),
        ({"authorizer": {"principalId": "amber", "tenant": "7"}}, "authorizer amber"),
        ({"authorizer": {"lambda": {"principalId": "amber"}}}, "authorizer amber"),
        # Anonymous, or without a subject or principal.
        ({}, None),
        ({"authorizer": None}, None),
        ({"authorizer": {"lambda": {"tenant": "7"}}}, None),
        ({"authorizer": {"lambda": None}}, None),
        ({"authorizer": {"jwt": {"claims": {"iss": ISSUER}}}}, None),
        (rest_iam(None), None),
    ],
)
def test_the_caller_is_read_from_each_authentication_method(
    context: dict[str, Any], caller: str | None
) -> None:
    assert caller_of(context) == caller


def test_sessions_of_one_role_are_the_same_caller() -> None:
    assert (
        caller_of(iam(f"{ROLE}/one"))
        == caller_of(iam(f"{ROLE}/other"))
        == caller_of(rest_iam(f"{ROLE}/third"))
    )
    other_roles = [ROLE.replace("Shop", "Till"), ROLE.replace("1234", "4321")]
    assert len({caller_of(iam(f"{arn}/one")) for arn in (ROLE, *other_roles)}) == 3


@pytest.mark.parametrize(
    ("context", "caller"),
    [
        ({"authorizer": {"jwt": {"claims": CLAIMS}}}, f"jwt {ISSUER} web"),
        ({"authorizer": {"lambda": {"client_id": "web"}}}, "authorizer web"),
        ({"authorizer": {"principalId": "user", "client_id": "web"}}, "authorizer web"),
        (iam(USER), f"iam {USER}"),
    ],
)
def test_a_configured_claim_identifies_the_caller(context: dict[str, Any], caller: str) -> None:
    assert caller_of(context, "client_id") == caller


def test_the_same_subject_from_another_issuer_is_another_caller() -> None:
    other_claims = {**CLAIMS, "iss": "https://login.example"}
    first, second = (
        {"authorizer": {"jwt": {"claims": claims}}} for claims in (CLAIMS, other_claims)
    )
    assert caller_of(first) != caller_of(second)


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_distinct_callers_stay_distinct_and_can_be_stored_and_logged(
    first_claims: tuple[str, str], second_claims: tuple[str, str]
) -> None:
    first, second = (
        caller_of({"authorizer": {"jwt": {"claims": {"iss": issuer, "sub": subject}}}})
        for issuer, subject in (first_claims, second_claims)
    )
    assert first is not None
    assert first.isascii()
    assert first.isprintable()
    assert len(first) <= identity.MAX_LENGTH
    assert (first == second) == (first_claims == second_claims)


def test_a_long_identity_is_replaced_by_its_digest() -> None:
    first, second = (
        caller_of({"authorizer": {"principalId": "x" * 300 + last}}) for last in ("a", "b")
    )
    assert first != second
    assert str(first).startswith("authorizer sha256:")


@pytest.mark.parametrize("authorizer", ["x", 7, [1], {"iam": "x"}, {"jwt": {"claims": "x"}}])
def test_an_unknown_identity_format_has_no_caller(authorizer: Any) -> None:
    assert caller_of({"authorizer": authorizer}) is None
