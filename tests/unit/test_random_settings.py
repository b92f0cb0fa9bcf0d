"""Random environments produce settings or a one-line error, neither of which contains a secret."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.warm.settings import Settings, SettingsError, load_settings

VARIABLES = [
    str(field.validation_alias or f"DB_{name.upper()}")
    for name, field in Settings.model_fields.items()
    if name != "password"
]
#: Text that an environment variable can hold: no NUL and no surrogates.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=80)
WORDS = ["secret", "iam", "require", "verify-full", "prefer", "disable", "required", "/dev/null"]
ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:orders"
VALUE = st.one_of(
    TEXT, st.integers().map(str), st.floats().map(str), st.sampled_from([*WORDS, ARN])
)
#: Prefix of every password and token, so that a leak is found in the output.
SECRET_PREFIX = "Zq9~Xw"


def load_from(environment: dict[str, str]) -> Settings:
    """Load the settings from these variables only."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in (*VARIABLES, "DB_PASS"):
            patch.delenv(variable, raising=False)
        for variable, value in environment.items():
            patch.setenv(variable, value)
        return load_settings()


@given(TEXT.filter(bool))
def test_any_password_is_passed_through_unchanged(password: str) -> None:
    assert load_from({"DB_PASS": password}).password.get_secret_value() == password


@given(
    st.dictionaries(st.sampled_from(VARIABLES), VALUE),
    st.sampled_from(["password", "secret", "iam"]),
    TEXT,
    TEXT,
)
def test_a_random_environment_produces_settings_or_a_one_line_error_without_secrets(
    environment: dict[str, str], auth: str, password: str, token: str
) -> None:
    secrets = {"DB_PASS": SECRET_PREFIX + password, "DB_SQL_TOKEN": SECRET_PREFIX + token}
    environment = {"DB_AUTH": auth, **environment, **secrets}
    try:
        output = repr(load_from(environment))
    except SettingsError as error:
        output = str(error)
        assert len(output.splitlines()) == 1
        variable = re.split("[: ]", output)[0]
        # These two are invalid without a value if another variable requires one.
        assert environment.get(variable) or variable in ("DB_SECRET_ARN", "DB_SSLMODE")
    assert SECRET_PREFIX not in output
