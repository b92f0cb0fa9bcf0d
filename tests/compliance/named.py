"""SQLAlchemy's own tests that pass on its dialect and fail on the handler's, with the reasons."""

NOTHING_IS_STALE = (
    "expects an error after DDL; here the statement is described again and its result is correct"
)
READ_LATE = "the default schema is queried when it is read, so it reflects a later SET"

NAMED = {
    "AsyncPgTest::test_detect_stale_ddl_cache_raise_recover": NOTHING_IS_STALE,
    "AsyncPgTest::test_detect_stale_type_cache_raise_recover": NOTHING_IS_STALE,
    "WeCanSetDefaultSchemaWEventsTest::test_wont_work_wo_insert": READ_LATE,
    "FutureWeCanSetDefaultSchemaWEventsTest::test_wont_work_wo_insert": READ_LATE,
}
