"""`make examine` reads its variables, or rejects them with one line before anything starts."""

import json
import sys
from pathlib import Path

import pytest

from infra.local import LabError
from infra.local.examine.inputs import Inputs, from_environment

PROPERTIES = ("start", "thaw", "memory")


def test_the_sample_s_read_is_examined_by_default() -> None:
    inputs = from_environment(PROPERTIES, {})
    assert inputs.handler == "handler.main.handler"
    assert inputs.wanted == PROPERTIES
    assert [event["rawPath"] for event in inputs.events] == ["/orders/1"]


def test_placeholders_are_replaced_and_empty_variables_omitted() -> None:
    inputs = from_environment(PROPERTIES, {"ENV": "URL=x://{user}:{password}@{host}/{other} A=1"})
    environment = inputs.environment({"user": "u", "password": "p", "host": "h", "ca": ""})
    assert environment["URL"] == "x://u:p@h/{other}"
    assert environment["A"] == "1"
    assert environment["DB_HOST"] == "h"
    assert "DB_SSLROOTCERT" not in environment


def test_variables_can_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# a comment\n\nURL={url}\nGREETING=two words\n")
    inputs = from_environment(PROPERTIES, {"ENV": str(tmp_path / "env")})
    assert inputs.variables["GREETING"] == "two words"
    assert inputs.variables["URL"] == "{url}"


def test_a_folder_provides_several_events(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"name": name}))
    inputs = from_environment(PROPERTIES, {"EVENT": str(tmp_path)})
    assert [event["name"] for event in inputs.events] == ["a", "b"]


def test_properties_can_be_selected_skipped_and_required() -> None:
    selected = from_environment(PROPERTIES, {"ONLY": "memory start", "REQUIRE": "all"})
    assert (selected.wanted, selected.required) == (("start", "memory"), ("start", "memory"))
    skipped = from_environment(PROPERTIES, {"SKIP": "thaw", "REQUIRE": "memory"})
    assert (skipped.wanted, skipped.required) == (("start", "memory"), ("memory",))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"HANDLER": "handler"}, "HANDLER is 'handler': not a module and a function"),
        ({"ROOT": "/nowhere"}, "ROOT is '/nowhere': there is no such folder"),
        ({"IMAGE": "a", "ROOT": "/"}, "IMAGE has the code and the interpreter: leave out ROOT"),
        ({"PYTHON": "/nowhere/python"}, "/nowhere/python does not run"),
        ({"EVENT": "/nowhere.json"}, "EVENT is '/nowhere.json': No such file"),
        ({"EVENT": __file__}, "is not JSON"),
        ({"SCHEMA": "/nowhere.sql"}, "SCHEMA cannot be read: .*No such file"),
        ({"ENV": "/nowhere"}, "ENV is '/nowhere'"),
        ({"ENV": "A=1 2"}, "ENV has '2', which is not NAME=value"),
        ({"ENV": "A='1"}, "ENV cannot be read: No closing quotation"),
        ({"ONLY": "thaws"}, "ONLY names 'thaws'. Properties are: start, thaw, memory"),
        ({"ONLY": "thaw", "REQUIRE": "memory"}, "REQUIRE names memory, which ONLY"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_an_invalid_variable_is_rejected_in_one_line(
    variables: dict[str, str], message: str
) -> None:
    with pytest.raises(LabError, match=message) as rejection:
        from_environment(PROPERTIES, variables)
    assert "\n" not in str(rejection.value)


def test_the_default_interpreter_is_the_current_one() -> None:
    assert from_environment(PROPERTIES, {}).python == sys.executable
    assert Inputs().python == sys.executable
