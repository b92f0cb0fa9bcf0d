-- Rows for `make demo`, `make run` and the tests. They are not inserted on AWS.
INSERT INTO "[= name =]" (key, text) VALUES ('first', 'A row of sample.sql') ON CONFLICT DO NOTHING;
