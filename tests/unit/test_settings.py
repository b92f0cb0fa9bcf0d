"""An invalid setting stops the start with one line that names it, and no password is printed."""

import re
from pathlib import Path

import pytest

from handler.warm.settings import Settings, SettingsError, load_settings
from tests.conftest import set_environment

ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:warm-engine/app-AbCdEf"


@pytest.fixture(autouse=True)
def clear_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_LAMBDA_FUNCTION_NAME", raising=False)
    for name, field in Settings.model_fields.items():
        monkeypatch.delenv(str(field.validation_alias or f"DB_{name.upper()}"), raising=False)


def test_the_defaults_are_as_documented() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.name, settings.user) == (
        "localhost",
        5432,
        "storefront",
        "appuser",
    )
    assert settings.password.get_secret_value() == "s3cr3t!"
    assert (settings.pool_size, settings.max_overflow) == (1, 0)


@pytest.mark.parametrize("password", ["p@ss/w:rd#%", "100%25", "  ", "ü€\N{SNOWMAN}", "'\"\\?&="])
def test_a_password_is_passed_through_unchanged(
    password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_PASS", password)
    assert load_settings().password.get_secret_value() == password


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("DB_PORT", "abc", "1 to 65535"),
        ("DB_PORT", "0", "1 to 65535"),
        ("DB_PORT", "65536", "1 to 65535"),
        ("DB_USER", "u" * 64, "1 to 63 characters"),
        ("DB_AUTH", "kerberos", "secret"),
        ("DB_SECRET_ARN", "storefront/app", "the ARN"),
        ("DB_SSLMODE", "verify_full", "verify-full"),
        ("DB_SSLROOTCERT", "/nowhere/ca.pem", "PEM"),
        ("DB_POOL_SIZE", "0", "1 to 1000"),
        ("DB_POOL_SIZE", "1.5", "1 to 1000"),
        ("DB_MAX_OVERFLOW", "-1", "0 to 1000"),
        ("DB_POOL_TIMEOUT", "0", "seconds above 0"),
        ("DB_POOL_RECYCLE", "-2", "-1 for never"),
        ("DB_CONNECT_TIMEOUT", "inf", "seconds above 0"),
        ("DB_COMMAND_TIMEOUT", "nan", "seconds above 0"),
        *(
            ("API_BASE_PATH", value, "v1 or /shop/v2")
            for value in ("..", "/v1/../v2", "v1/..", "a..b", "//", "v1//v2", "//evil.example")
        ),
        *(
            ("API_BASE_PATH", value, "v1 or /shop/v2")
            for value in ("v1?", "?", "v1#top", "v1\n", "v1\t", "\x7f", "v 1", "v1 ", "%76", "v1\\")
        ),
    ],
)
def test_an_invalid_value_is_reported_with_what_is_allowed(
    variable: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as error_info:
        load_settings()
    message = str(error_info.value)
    is_number = re.fullmatch(r"-?[\d./]+|inf|nan", value)
    expected = repr(value) if is_number else f"a string of {len(value)} characters"
    assert message.startswith(f"{variable} is {expected}: ")
    assert allowed in message.partition("Allowed: ")[2]
    assert "\n" not in message


def test_all_invalid_variables_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PORT", "abc")
    monkeypatch.setenv("DB_SSLMODE", "maybe")
    with pytest.raises(SettingsError, match=r"^DB_PORT .*; DB_SSLMODE "):
        load_settings()


def test_a_password_that_cannot_be_sent_is_rejected_and_not_shown() -> None:
    with pytest.raises(
        SettingsError, match=r"^DB_PASS: Postgres. protocol cannot transfer a NUL"
    ) as error_info:
        load_settings(password="hunter2\0")
    assert "hunter2" not in str(error_info.value)
    assert error_info.value.__cause__ is None
    assert error_info.value.__suppress_context__


def test_a_short_token_is_rejected_and_not_shown() -> None:
    with pytest.raises(SettingsError, match=r"^DB_SQL_TOKEN: .*16 characters") as error_info:
        load_settings(sql_token="hunter2")
    assert "hunter2" not in str(error_info.value)


def test_printing_settings_shows_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASS", "hunter2")
    monkeypatch.setenv("DB_SQL_TOKEN", "hunter2" * 3)
    assert "hunter2" not in f"{load_settings()!r} {load_settings()}"


@pytest.mark.parametrize(
    "value", ["v1", "/v1", "v1/", "/shop/v2", "shop/v2/", "a.b", "v1.0/~x", "$-_.+!*'()", "/"]
)
def test_a_base_path_consists_of_segments(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_BASE_PATH", value)
    assert load_settings().api_base_path == value


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PORT", "")
    assert load_settings().port == 5432


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1", "/run/postgresql"])
def test_localhost_needs_no_tls(host: str) -> None:
    assert load_settings(host=host).effective_sslmode == "disable"


@pytest.mark.parametrize("host", ["db.internal", "10.0.0.5", "localhost.example", "::2"])
def test_another_host_needs_a_verified_certificate(host: str) -> None:
    assert load_settings(host=host).effective_sslmode == "verify-full"


def test_an_explicit_sslmode_applies_to_any_host(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.touch()
    settings = load_settings(host="localhost", sslmode="verify-ca", sslrootcert=ca)
    assert settings.effective_sslmode == "verify-ca"


def test_secret_authentication_needs_an_arn() -> None:
    with pytest.raises(SettingsError, match=r"^DB_SECRET_ARN: unset, .*Allowed: the ARN of a"):
        load_settings(auth="secret", password="hunter2")


@pytest.mark.parametrize("host", ["localhost", "db.internal"])
@pytest.mark.parametrize("sslmode", ["disable", "allow", "prefer"])
def test_an_iam_token_requires_tls(host: str, sslmode: str) -> None:
    with pytest.raises(SettingsError, match=rf"^DB_SSLMODE is '{sslmode}': .*verify-full$"):
        load_settings(auth="iam", host=host, sslmode=sslmode)
    assert load_settings(auth="iam", host=host, sslmode="require").auth == "iam"


def test_an_iam_token_to_localhost_needs_an_explicit_sslmode() -> None:
    with pytest.raises(SettingsError, match=r"^DB_SSLMODE is unset: "):
        load_settings(auth="iam", host="localhost")
    assert load_settings(auth="iam", host="db.internal").effective_sslmode == "verify-full"


def test_an_impossible_path_is_an_invalid_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_SSLROOTCERT", "x" * 300)
    # On Python 3.14 such a path simply does not exist.
    reason = "(: File name too long| is a string of 300 characters: Path does not point to a file)"
    with pytest.raises(SettingsError, match=rf"^DB_SSLROOTCERT{reason}\. Allowed: "):
        load_settings()


@pytest.mark.parametrize(
    ("environment", "missing"),
    [
        ({}, "DB_HOST: unset, .*; DB_PASS: unset, "),
        ({"DB_PASS": "hunter2"}, "DB_HOST: unset, .*Allowed: a host name"),
        ({"DB_HOST": "db.internal"}, "DB_PASS: unset, .*DB_AUTH=secret or iam$"),
        ({"DB_HOST": "db.internal", "DB_PASS": ""}, "DB_PASS: unset, "),
        ({"DB_AUTH": "iam"}, "DB_HOST: unset, "),
    ],
)
def test_host_and_credentials_have_no_default_on_lambda(
    environment: dict[str, str], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "test_function")  # as the emulator sets it
    set_environment(monkeypatch, environment)
    with pytest.raises(SettingsError, match=f"^{missing}") as error_info:
        load_settings()
    assert "\n" not in str(error_info.value)
    assert "hunter2" not in str(error_info.value)


@pytest.mark.parametrize(
    "login",
    [{"DB_PASS": "s3cr3t!"}, {"DB_AUTH": "iam"}, {"DB_AUTH": "secret", "DB_SECRET_ARN": ARN}],
)
def test_a_host_and_credentials_are_enough_on_lambda(
    login: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "warm-engine")
    set_environment(monkeypatch, {"DB_HOST": "db.internal", **login})
    assert load_settings().host == "db.internal"


FREE_TEXT = ["DB_HOST", "DB_NAME", "DB_USER", "DB_SECRET_ARN", "DB_SSLROOTCERT", "API_BASE_PATH"]
RESTRICTED = ["DB_PORT", "DB_AUTH", "DB_SSLMODE", "DB_PREWARM", "DB_POOL_SIZE", "DB_MAX_IDLE"]


@pytest.mark.parametrize("variable", [*FREE_TEXT, *RESTRICTED])
@pytest.mark.parametrize(
    "secret", ["postgres://appuser:hunter2@db/orders", '{"password": "hunter2"}' * 4]
)
def test_a_secret_in_the_wrong_variable_is_not_repeated(
    variable: str, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable == "DB_HOST" and "://" not in secret:
        pytest.skip("any text that is not a URL may be a host name")
    monkeypatch.setenv(variable, secret)
    with pytest.raises(SettingsError) as error_info:
        load_settings()
    assert variable in str(error_info.value)
    assert "hunter2" not in str(error_info.value)
