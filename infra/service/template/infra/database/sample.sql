-- Rows for `make demo`, `make run` and the tests. On AWS nothing inserts them.
INSERT INTO "[= name =]" (key, text) VALUES ('first', 'A row of sample.sql') ON CONFLICT DO NOTHING;
