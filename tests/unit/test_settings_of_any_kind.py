"""Whatever the environment holds, a start has settings or stops with one line that says why."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.settings import Settings, SettingsError, load

VARIABLES = [f"DB_{name.upper()}" for name in Settings.model_fields if name != "password"]
#: What an environment can hold.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=80)
WORDS = ["secret", "iam", "require", "verify-full", "prefer", "disable", "required", "/dev/null"]
ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:orders"
VALUE = st.one_of(
    TEXT, st.integers().map(str), st.floats().map(str), st.sampled_from([*WORDS, ARN])
)
#: In each password and token: by it one would be recognised.
MARK = "Zq9~Xw"


def loaded(environment: dict[str, str]) -> Settings:
    with pytest.MonkeyPatch.context() as patch:
        for variable in (*VARIABLES, "DB_PASS"):
            patch.delenv(variable, raising=False)
        for variable, value in environment.items():
            patch.setenv(variable, value)
        return load()


@given(TEXT.filter(bool))
def test_a_password_of_any_characters_goes_through_as_it_is(password: str) -> None:
    assert loaded({"DB_PASS": password}).password.get_secret_value() == password


@given(
    st.dictionaries(st.sampled_from(VARIABLES), VALUE),
    st.sampled_from(["password", "secret", "iam"]),
    TEXT,
    TEXT,
)
def test_any_environment_is_settings_or_one_line_without_a_secret(
    environment: dict[str, str], auth: str, password: str, token: str
) -> None:
    hidden = {"DB_PASS": MARK + password, "DB_SQL_TOKEN": MARK + token}
    environment = {"DB_AUTH": auth, **environment, **hidden}
    try:
        said = repr(loaded(environment))
    except SettingsError as error:
        said = str(error)
        assert len(said.splitlines()) == 1
        at_fault = re.split("[: ]", said)[0]
        assert environment.get(at_fault) or at_fault in ("DB_SECRET_ARN", "DB_SSLMODE")
    assert MARK not in said
