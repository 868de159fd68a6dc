-- The catalog: which tables are tracked and how.
--
-- Both published tables are in the publication themselves, so the relay meets every change of them
-- at its place among the changes of the rows. Their columns are read by name.

-- An older release must not overwrite a newer catalog.
DO $$
DECLARE
  installed int;
BEGIN
  IF to_regclass('rowcast.settings') IS NOT NULL THEN
    SELECT value::int INTO installed FROM rowcast.settings WHERE name = 'version';
    IF installed > 2 THEN
      RAISE EXCEPTION 'the catalog of this database has version %, these files have version 2', installed
        USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Use the rowcast release that installed it, or a later one.';
    END IF;
  END IF;
END $$;

-- Quiet about what exists already.
SET LOCAL client_min_messages = warning;

-- Written by rowcast.track and rowcast.untrack; not meant to be edited.
CREATE TABLE IF NOT EXISTS rowcast.tables (
  relid       oid PRIMARY KEY,
  schema_name text NOT NULL,
  table_name  text NOT NULL,
  topic_name  text NOT NULL UNIQUE,   -- the last segment of every topic of the table, as in a topic
  topics      text[] NOT NULL,        -- topic templates as given, such as user:{user_id}:orders
  columns     text[],                 -- the columns that leave, in the table's order; NULL is all
  generation  bigint NOT NULL,        -- another one at each track
  identity    text NOT NULL CHECK (identity IN ('default', 'index', 'full')),
  tracked_at  timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE rowcast.tables IS 'Tracked tables. Change with rowcast.track and rowcast.untrack.';

CREATE SEQUENCE IF NOT EXISTS rowcast.generation AS bigint;

CREATE TABLE IF NOT EXISTS rowcast.settings (
  name  text PRIMARY KEY,
  value text NOT NULL
);
COMMENT ON TABLE rowcast.settings IS 'The version of the catalog and the secret that signs messages.';

-- What track changed about a table's replica identity, so that untrack can put it back.
CREATE TABLE IF NOT EXISTS rowcast.identity_changes (
  relid       oid PRIMARY KEY,
  was         "char" NOT NULL,   -- pg_class.relreplident before
  was_index   oid,               -- its index, where it had one
  now         "char" NOT NULL,   -- what track set
  now_index   oid,
  built_index oid                -- an index that track built, to be dropped again
);
-- Of a partition: the tracked table. It may have left that by the time of untrack.
ALTER TABLE rowcast.identity_changes ADD COLUMN IF NOT EXISTS root oid;
COMMENT ON TABLE rowcast.identity_changes IS 'Replica identities that rowcast.track changed, and what they were.';

-- Of version 1, where a table was one relation.
DROP FUNCTION IF EXISTS rowcast.check_build(oid, text[], text);
DROP FUNCTION IF EXISTS rowcast.decide(oid, text[], text[]);

RESET client_min_messages;

DO $$
DECLARE
  published regclass;
BEGIN
  FOREACH published IN ARRAY ARRAY['rowcast.tables', 'rowcast.settings']::regclass[] LOOP
    IF NOT EXISTS (
      SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
      WHERE p.pubname = 'rowcast' AND r.prrelid = published
    ) THEN
      EXECUTE format('ALTER PUBLICATION rowcast ADD TABLE ONLY %s', published);
    END IF;
  END LOOP;
END $$;

-- The secret: 32 bytes, hashed from four random UUIDs (488 random bits). It is kept as the two pads
-- of HMAC-SHA256, each the key, filled up with zeros to 64 bytes, xor a constant.
WITH secret AS MATERIALIZED (
  SELECT sha256(convert_to(concat(gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), gen_random_uuid()), 'UTF8'))
    || decode(repeat('00', 32), 'hex') AS key
)
INSERT INTO rowcast.settings (name, value)
SELECT pad.name, string_agg(lpad(to_hex(get_byte(key, i) # pad.byte), 2, '0'), '' ORDER BY i)
FROM secret, generate_series(0, 63) AS i, (VALUES ('mac_inner', 54), ('mac_outer', 92)) AS pad (name, byte)
WHERE NOT EXISTS (SELECT FROM rowcast.settings WHERE name IN ('mac_inner', 'mac_outer'))
GROUP BY pad.name;
