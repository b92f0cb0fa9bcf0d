"""A bad setting stops the start with one line that names it; no password is ever printed."""

from pathlib import Path

import pytest

from handler.settings import Settings, SettingsError, load


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields:
        monkeypatch.delenv(f"DB_{field.upper()}", raising=False)
    monkeypatch.delenv("DB_PASS", raising=False)


def test_without_an_environment_the_defaults_are_the_seed_s() -> None:
    settings = load()
    assert (settings.host, settings.port, settings.name, settings.user) == (
        "localhost",
        5432,
        "storefront",
        "appuser",
    )
    assert settings.password.get_secret_value() == "s3cr3t!"
    assert (settings.pool_size, settings.max_overflow) == (1, 0)


@pytest.mark.parametrize("password", ["p@ss/w:rd#%", "100%25", "  ", "ü€\N{SNOWMAN}", "'\"\\?&="])
def test_a_password_goes_through_as_it_is(password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASS", password)
    assert load().password.get_secret_value() == password


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
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(
    variable: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as raised:
        load()
    message = str(raised.value)
    assert message.startswith(f"{variable} is {value!r}: ")
    assert allowed in message.partition("Allowed: ")[2]
    assert "\n" not in message


def test_every_bad_variable_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PORT", "abc")
    monkeypatch.setenv("DB_SSLMODE", "maybe")
    with pytest.raises(SettingsError, match=r"^DB_PORT .*; DB_SSLMODE "):
        load()


def test_a_password_that_cannot_be_sent_is_refused_and_not_shown() -> None:
    with pytest.raises(SettingsError, match=r"^DB_PASS: contains a NUL") as raised:
        load(password="hunter2\0")
    assert "hunter2" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


def test_a_token_that_is_too_short_is_refused_and_not_shown() -> None:
    with pytest.raises(SettingsError, match=r"^DB_SQL_TOKEN: .*16 characters") as raised:
        load(sql_token="hunter2")
    assert "hunter2" not in str(raised.value)


def test_settings_print_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASS", "hunter2")
    monkeypatch.setenv("DB_SQL_TOKEN", "hunter2" * 3)
    assert "hunter2" not in f"{load()!r} {load()}"


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PORT", "")
    assert load().port == 5432


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1", "/run/postgresql"])
def test_on_this_machine_no_tls_is_asked_for(host: str) -> None:
    assert load(host=host).effective_sslmode == "disable"


@pytest.mark.parametrize("host", ["db.internal", "10.0.0.5", "localhost.example", "::2"])
def test_to_another_machine_the_server_must_prove_itself(host: str) -> None:
    assert load(host=host).effective_sslmode == "verify-full"


def test_a_named_sslmode_holds_anywhere(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.touch()
    settings = load(host="localhost", sslmode="verify-ca", sslrootcert=ca)
    assert settings.effective_sslmode == "verify-ca"


def test_a_secret_needs_its_arn() -> None:
    with pytest.raises(SettingsError, match=r"^DB_SECRET_ARN: unset, .*Allowed: the ARN of a"):
        load(auth="secret", password="hunter2")


@pytest.mark.parametrize("host", ["localhost", "db.internal"])
@pytest.mark.parametrize("sslmode", ["disable", "allow", "prefer"])
def test_a_token_is_sent_through_tls_alone(host: str, sslmode: str) -> None:
    with pytest.raises(SettingsError, match=rf"^DB_SSLMODE is '{sslmode}': .*verify-full$"):
        load(auth="iam", host=host, sslmode=sslmode)
    assert load(auth="iam", host=host, sslmode="require").auth == "iam"


def test_a_token_to_this_machine_needs_a_named_sslmode() -> None:
    with pytest.raises(SettingsError, match=r"^DB_SSLMODE is 'disable': "):
        load(auth="iam", host="localhost")
    assert load(auth="iam", host="db.internal").effective_sslmode == "verify-full"


def test_a_path_that_no_system_takes_is_a_bad_setting_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_SSLROOTCERT", "x" * 300)
    with pytest.raises(SettingsError, match=r"^DB_SSLROOTCERT: File name too long. Allowed: "):
        load()
