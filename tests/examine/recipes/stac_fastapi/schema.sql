-- One of PgSTAC's functions with its table. All of PgSTAC requires PostGIS, which the lab's Postgres
-- does not have.
CREATE TABLE collections (id text PRIMARY KEY, content jsonb NOT NULL);
CREATE FUNCTION get_collection(id text) RETURNS jsonb LANGUAGE sql STABLE
  AS $$ SELECT content FROM collections WHERE collections.id = $1 $$;
INSERT INTO collections VALUES ('sentinel-2', '{
  "type": "Collection", "stac_version": "1.0.0", "id": "sentinel-2", "description": "Scenes",
  "license": "proprietary", "links": [],
  "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]},
             "temporal": {"interval": [["2015-06-27T00:00:00Z", null]]}}}');
