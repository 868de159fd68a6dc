-- The roles of rowcast, its schema and its publication.
--
-- These files are what `rowcast init` installs. They may be run again at any time, and by hand, in
-- one transaction and by a superuser (or, on a managed service, by the role that owns the database
-- and may create roles):
--
--   cat sql/*.sql | psql -v ON_ERROR_STOP=1 --single-transaction
--
--   rowcast_owner   owns publication, schema and functions. Roles that own tables are granted it,
--                   so that they may track them. Who holds it can replace these functions and read
--                   the secret that signs messages: grant it to the role that runs migrations, not
--                   to the one that the application connects as, where these differ.
--   rowcast_relay   what the relay connects as. NOLOGIN until a DBA says otherwise.
--   rowcast_writer  may call tag, broadcast and user_topics. Grant it to applications.

DO $$
BEGIN
  IF current_setting('server_version_num')::int < 150000 THEN
    RAISE EXCEPTION 'rowcast needs PostgreSQL 15 or later, this is %', current_setting('server_version')
      USING ERRCODE = 'feature_not_supported';
  END IF;
END $$;

-- Roles belong to the whole cluster: another database may have made them already.
DO $$
DECLARE
  role text;
BEGIN
  FOREACH role IN ARRAY ARRAY['rowcast_owner', 'rowcast_relay', 'rowcast_writer'] LOOP
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role) THEN
      BEGIN
        EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', role);
      EXCEPTION WHEN duplicate_object OR unique_violation THEN
        NULL;   -- another database made it at this moment
      END;
    END IF;
  END LOOP;
EXCEPTION WHEN insufficient_privilege THEN
  RAISE EXCEPTION '% may not create the roles of rowcast', current_user
    USING ERRCODE = 'insufficient_privilege', DETAIL = SQLERRM,
      HINT = 'Run this as a superuser, or first let one run: CREATE ROLE rowcast_owner NOLOGIN; '
        'CREATE ROLE rowcast_relay NOLOGIN REPLICATION; CREATE ROLE rowcast_writer NOLOGIN;';
END $$;

-- A managed service may keep these to itself: what it refuses is left to the DBA, by name.
DO $$
BEGIN
  IF NOT (SELECT rolreplication OR rolsuper FROM pg_catalog.pg_roles WHERE rolname = 'rowcast_relay') THEN
    ALTER ROLE rowcast_relay REPLICATION;
  END IF;
EXCEPTION WHEN insufficient_privilege THEN
  RAISE NOTICE 'rowcast: left to do: % may not give rowcast_relay the right to replicate', current_user
    USING HINT = 'As a superuser: ALTER ROLE rowcast_relay REPLICATION; '
      'on Amazon RDS: GRANT rds_replication TO rowcast_relay;';
END $$;

DO $$
BEGIN
  IF NOT pg_catalog.pg_has_role('rowcast_relay', 'pg_read_all_stats', 'USAGE') THEN
    GRANT pg_read_all_stats TO rowcast_relay;
  END IF;
EXCEPTION WHEN insufficient_privilege THEN
  RAISE NOTICE 'rowcast: left to do: % may not grant pg_read_all_stats', current_user
    USING HINT = 'As a role that may: GRANT pg_read_all_stats TO rowcast_relay; '
      'without it the relay cannot say which transaction or process it waits for.';
END $$;

-- Who is no superuser has to be a member of rowcast_owner to give it what follows.
DO $$
DECLARE
  member boolean := pg_catalog.pg_has_role('rowcast_owner', 'MEMBER');
BEGIN
  IF current_setting('server_version_num')::int >= 160000 THEN
    -- Since 16 the maker of a role is its administrator, which alone does not let him act as it.
    member := pg_catalog.pg_has_role('rowcast_owner', 'SET')
      AND pg_catalog.pg_has_role('rowcast_owner', 'USAGE');
  END IF;
  IF NOT member THEN
    EXECUTE pg_catalog.format('GRANT rowcast_owner TO %I', current_user);
    RAISE NOTICE 'rowcast: % is now a member of rowcast_owner', current_user;
  END IF;
EXCEPTION WHEN insufficient_privilege THEN
  RAISE EXCEPTION '% is no member of rowcast_owner and may not become one', current_user
    USING ERRCODE = 'insufficient_privilege', DETAIL = SQLERRM,
      HINT = pg_catalog.format('As a superuser: GRANT rowcast_owner TO %I;', current_user);
END $$;

DO $$
DECLARE
  holder regrole := (SELECT nspowner FROM pg_catalog.pg_namespace WHERE nspname = 'rowcast');
BEGIN
  IF holder IS NULL THEN
    CREATE SCHEMA rowcast AUTHORIZATION rowcast_owner;
  ELSIF holder <> 'rowcast_owner'::regrole THEN
    RAISE EXCEPTION 'a schema named rowcast exists and belongs to %', holder
      USING ERRCODE = 'duplicate_schema',
        HINT = 'Rename it; or, if it is an empty one meant for this: ALTER SCHEMA rowcast OWNER TO rowcast_owner;';
  END IF;
EXCEPTION WHEN insufficient_privilege THEN
  RAISE EXCEPTION '% may not create a schema in database %', current_user, current_database()
    USING ERRCODE = 'insufficient_privilege', DETAIL = SQLERRM,
      HINT = pg_catalog.format('As its owner: GRANT CREATE ON DATABASE %I TO %I;', current_database(), current_user);
END $$;

-- The publication is what Postgres lets out; rowcast.track adds tables to it. Each partition is to
-- arrive under its own name: through the root, a row that moves to another owner would arrive
-- without its old key.
DO $$
DECLARE
  found record;
  lent boolean := false;
BEGIN
  SELECT p.*, pubowner::regrole AS holder,
      -- Since 18 a publication may hold generated columns too; the relay counts on none.
      coalesce(pg_catalog.to_jsonb(p) ->> 'pubgencols', 'n') <> 'n' AS generated
    INTO found FROM pg_catalog.pg_publication p WHERE pubname = 'rowcast';
  IF found.pubname IS NULL THEN
    CREATE PUBLICATION rowcast
      WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = false);
    -- The new owner of a publication must be able to create one. It keeps the right no longer.
    IF NOT pg_catalog.has_database_privilege('rowcast_owner', current_database(), 'CREATE') THEN
      EXECUTE pg_catalog.format('GRANT CREATE ON DATABASE %I TO rowcast_owner', current_database());
      lent := true;
    END IF;
    ALTER PUBLICATION rowcast OWNER TO rowcast_owner;
    IF lent THEN
      EXECUTE pg_catalog.format('REVOKE CREATE ON DATABASE %I FROM rowcast_owner', current_database());
    END IF;
  ELSIF found.holder <> 'rowcast_owner'::regrole OR found.puballtables THEN
    RAISE EXCEPTION 'a publication named rowcast exists that rowcast did not make'
      USING ERRCODE = 'duplicate_object',
        DETAIL = pg_catalog.format('It belongs to %s%s.', found.holder,
          CASE WHEN found.puballtables THEN ' and publishes all tables' ELSE '' END),
        HINT = 'ALTER PUBLICATION rowcast RENAME TO another_name;';
  ELSIF found.generated OR found.pubviaroot
    OR NOT (found.pubinsert AND found.pubupdate AND found.pubdelete AND found.pubtruncate) THEN
    ALTER PUBLICATION rowcast
      SET (publish = 'insert, update, delete, truncate', publish_via_partition_root = false);
    IF found.generated THEN
      EXECUTE 'ALTER PUBLICATION rowcast SET (publish_generated_columns = none)';
    END IF;
    RAISE NOTICE 'rowcast: the publication''s options had been changed and are set right again';
  END IF;
EXCEPTION WHEN insufficient_privilege THEN
  RAISE EXCEPTION '% may not make the publication rowcast', current_user
    USING ERRCODE = 'insufficient_privilege', DETAIL = SQLERRM,
      HINT = pg_catalog.format('Run this as the owner of database %I or as a superuser.', current_database());
END $$;

-- What follows is made by, and belongs to, the owner role. 099_finish.sql goes back.
DO $$
BEGIN
  PERFORM pg_catalog.set_config('rowcast.installer', current_user, true);
  SET LOCAL ROLE rowcast_owner;
END $$;
