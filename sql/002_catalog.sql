-- The catalog: which tables are tracked and how, and what changes rights.
--
-- The published ones of its tables are in the publication themselves, so the relay meets every change of them
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
-- Written by rowcast.revoke and rowcast.unrevoke. Old rows may be deleted once no token is as old.
CREATE TABLE IF NOT EXISTS rowcast.revocations (
  user_id        text NOT NULL,
  issuer         text NOT NULL,             -- '' is every issuer
  before         timestamptz NOT NULL,      -- tokens issued before this count no more
  before_unix_us bigint NOT NULL,           -- the same, as the relay reads it
  revoked_at     timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (user_id, issuer)
);
COMMENT ON TABLE rowcast.revocations IS 'Tokens that count no more. Change with rowcast.revoke and rowcast.unrevoke.';

-- Written by rowcast.grant_by and rowcast.revoke_by; not meant to be edited.
CREATE TABLE IF NOT EXISTS rowcast.grants (
  generation   bigint PRIMARY KEY,     -- another one at each grant_by
  relid        oid NOT NULL,
  schema_name  text NOT NULL,
  table_name   text NOT NULL,
  user_column  text NOT NULL,
  pattern      text NOT NULL,          -- such as team:{team_id}:*
  issuer       text,                   -- whose users the rows name; NULL is any issuer's
  key_columns  text[] NOT NULL,        -- of the primary key
  columns      text[] NOT NULL,        -- all that the relay reads: key, user and the pattern's column
  column_types oid[] NOT NULL,         -- their types, in the same order
  shape        text NOT NULL,          -- rowcast.grant_shape when it was granted; another one ends the grants
  system_id    bigint NOT NULL,        -- of the cluster that the shape is of
  granted_at   timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE rowcast.grants IS 'Tables whose rows make grants. Change with rowcast.grant_by and rowcast.revoke_by.';

-- How the rows that were there before a grant_by reach the relay: written and deleted again in its
-- transaction, so always empty to all others.
CREATE TABLE IF NOT EXISTS rowcast.grant_seeds (
  generation bigint NOT NULL,
  batch      bigint NOT NULL,
  memberships text NOT NULL,           -- [[[key, …], user, value or null], …] as JSON
  PRIMARY KEY (generation, batch)
);
COMMENT ON TABLE rowcast.grant_seeds IS 'Always empty: carries existing rows to the relay within rowcast.grant_by.';

RESET client_min_messages;

DO $$
DECLARE
  published regclass;
BEGIN
  FOREACH published IN ARRAY ARRAY['rowcast.tables', 'rowcast.settings', 'rowcast.revocations',
      'rowcast.grants', 'rowcast.grant_seeds']::regclass[] LOOP
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
