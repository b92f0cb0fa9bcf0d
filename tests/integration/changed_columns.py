"""Column types with example values, and the types that a migration changes them to."""

from typing import NamedTuple


class Kind(NamedTuple):
    """A column type, example values in text form, and its possible new types."""

    name: str
    values: list[str]
    new_types: list[str]


PREPARATION = """
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
CREATE DOMAIN word AS text;
CREATE TYPE pair AS (a integer, b text);
"""

KINDS = [
    Kind("smallint", ["5", "-7"], ["integer", "real", "text"]),
    Kind("integer", ["5", "1084227584"], ["bigint", "real", "numeric"]),
    Kind("bigint", ["5", "4"], ["integer", "double precision", "timestamp"]),
    Kind("real", ["0.1", "2.5"], ["integer", "double precision", "numeric"]),
    Kind("double precision", ["0.1", "1e5"], ["bigint", "real", "text"]),
    Kind("numeric", ["5", "5.50"], ["integer", "real", "bytea"]),
    Kind("boolean", ["true", "false"], ["integer", "text", '"char"']),
    Kind("text", ["5", "7"], ["integer", "varchar(3)", "char(9)"]),
    Kind("varchar(9)", ["5", "t"], ["bytea", "text", "mood[]"]),
    Kind("char(4)", ["5", "ab"], ["text", "varchar(9)", "char(9)"]),
    Kind("bytea", ["abcd", "\\x00010203"], ["text", "integer", "uuid"]),
    Kind("date", ["2024-01-02", "0044-03-15 BC"], ["timestamp", "timestamptz", "integer"]),
    Kind("time", ["12:30", "00:00:01"], ["timetz", "interval", "bigint"]),
    Kind("timetz", ["12:30+02", "00:00:01-05"], ["time", "text", "bytea"]),
    Kind("timestamp", ["2024-01-02 03:04:05", "infinity"], ["timestamptz", "date", "bigint"]),
    Kind("timestamptz", ["2024-01-02 03:04:05+02", "epoch"], ["timestamp", "date", "text"]),
    Kind("interval", ["1 day 02:00", "1 mon"], ["text", "time", "bytea"]),
    Kind("uuid", ["00000000-0000-0000-0000-000000000005"], ["text", "bytea", "varchar(36)"]),
    Kind("json", ['{"a": 1}', "5"], ["jsonb", "text", "bytea"]),
    Kind("jsonb", ['{"a": 1}', '"x"'], ["json", "text", "bytea"]),
    Kind("mood", ["sad", "ok"], ["text", "integer", "bytea"]),
    Kind("positive", ["5", "6"], ["real", "text", "bigint"]),
    Kind("word", ["x", "y"], ["bytea", "integer", "mood[]"]),
    Kind("integer[]", ["{5,6}", "{{1,2},{3,4}}"], ["real[]", "bigint[]", "text"]),
    Kind("text[]", ["{5,6}", "{a}"], ["varchar(3)[]", "integer[]", "bytea[]"]),
    Kind("timestamp[]", ['{"2024-01-02"}'], ["timestamptz[]", "date[]", "bigint[]"]),
    Kind("jsonb[]", ['{"5"}'], ["text[]", "json[]", "bytea[]"]),
    Kind("mood[]", ["{sad}"], ["text[]", "text", "bytea[]"]),
    Kind("int4range", ["[1,5)", "empty"], ["int8range", "numrange", "text"]),
    Kind("tsrange", ["[2024-01-02,2024-01-03)"], ["tstzrange", "daterange", "text"]),
    Kind("int4multirange", ["{[1,5)}"], ["int8multirange", "nummultirange", "text"]),
    Kind("inet", ["10.0.0.1", "::1/64"], ["cidr", "text", "bytea"]),
    Kind("cidr", ["10.0.0.0/8"], ["inet", "text", "bytea"]),
    Kind("macaddr", ["08:00:2b:01:02:03"], ["macaddr8", "text", "bytea"]),
    Kind("bit(8)", ["10101010"], ["varbit", "integer", "text"]),
    Kind("money", ["5.00", "7"], ["numeric", "text", "bigint"]),
    Kind("oid", ["5"], ["integer", "bigint", "real"]),
    Kind("point", ["(1,2)"], ["text", "lseg", "bytea"]),
    Kind("pair", ["(5,x)"], ["text", "json", "bytea"]),
    Kind("hstore", ["a=>1"], ["text", "json", "bytea"]),
]

RECORDS = "SELECT row(id, v) FROM altered ORDER BY id"

#: Queries for columns, functions, aggregates, arrays, records and RETURNING.
QUERIES = [
    "SELECT v FROM altered ORDER BY id",
    "SELECT * FROM altered ORDER BY id",
    "SELECT coalesce(v, v) AS f, CASE WHEN id > 0 THEN v END AS c FROM altered ORDER BY id",
    "SELECT min(v), max(v) FROM altered",
    "SELECT sum(v), avg(v) FROM altered",
    "SELECT array_agg(v ORDER BY id) FROM altered",
    RECORDS,
    "UPDATE altered SET id = id WHERE id > 0 RETURNING v",
]
