"""Whatever the environment holds, a start has settings or stops with one line that says why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.settings import Settings, SettingsError, load

VARIABLES = [f"DB_{name.upper()}" for name in Settings.model_fields if name != "password"]
#: What an environment can hold.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=80)
VALUE = st.one_of(TEXT, st.integers().map(str), st.floats().map(str))
#: In each password: by it one would be recognised.
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


@given(st.dictionaries(st.sampled_from(VARIABLES), VALUE), TEXT)
def test_any_environment_is_settings_or_one_line_without_the_password(
    environment: dict[str, str], password: str
) -> None:
    try:
        said = repr(loaded({**environment, "DB_PASS": MARK + password}))
    except SettingsError as error:
        said = str(error)
        assert len(said.splitlines()) == 1
        assert said.partition(" ")[0] in {name for name, value in environment.items() if value}
    assert MARK not in said
