"""The tests of SQLAlchemy's that fail on the handler's dialect and pass on its own, and why."""

NOTHING_IS_STALE = "expects an error after DDL; here the statement is described anew and is right"
ASKED_LATER = "the default schema is asked for when it is read, so a later SET is in it"

NAMED = {
    "AsyncPgTest::test_detect_stale_ddl_cache_raise_recover": NOTHING_IS_STALE,
    "AsyncPgTest::test_detect_stale_type_cache_raise_recover": NOTHING_IS_STALE,
    "WeCanSetDefaultSchemaWEventsTest::test_wont_work_wo_insert": ASKED_LATER,
    "FutureWeCanSetDefaultSchemaWEventsTest::test_wont_work_wo_insert": ASKED_LATER,
}
