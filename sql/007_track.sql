-- rowcast.track and rowcast.untrack.
--
-- Both first lock the table against writers: ALTER PUBLICATION does not wait for them, and a
-- transaction open across it would lose the rows that it wrote before. Where the identity changes
-- they lock it wholly at once, for going up from the lesser lock could deadlock. They wait for the
-- lock as long as the session's lock_timeout says, or 2 s where it says nothing. Then they touch, in
-- this order: identity, publication, rights, catalog.
--
-- Of a partitioned table the root is locked with all partitions, published, granted and in the
-- catalog; identities are those of the partitions that hold rows.

-- Whoever is not allowed to hears here what to run, not of some inner function. Executable by all.
CREATE OR REPLACE FUNCTION rowcast.check_rights(rel oid, verb text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  owner oid := (SELECT relowner FROM pg_class WHERE oid = rel);
  part regclass;
BEGIN
  IF NOT pg_has_role('rowcast_owner', 'USAGE') AND pg_has_role('rowcast_relay', 'USAGE') THEN
    RAISE EXCEPTION 'rowcast.%: % is the relay''s role', verb, current_user
      USING ERRCODE = 'insufficient_privilege', DETAIL = 'It reads, and changes nothing: whoever takes over the relay must not choose what leaves the database.',
        HINT = format('Run it as %s, which owns %s; that role needs: GRANT rowcast_owner TO %s;',
          owner::regrole, rel::regclass, owner::regrole);
  END IF;
  IF NOT pg_has_role('rowcast_owner', 'USAGE') THEN
    RAISE EXCEPTION 'rowcast.%: % is no member of rowcast_owner', verb, current_user
      USING ERRCODE = 'insufficient_privilege', DETAIL = 'Only its members change what is published.',
        HINT = format('As a superuser or administrator of the role: GRANT rowcast_owner TO %I;', current_user);
  END IF;
  IF NOT pg_has_role(owner, 'USAGE') THEN
    RAISE EXCEPTION 'rowcast.%: % does not own %', verb, current_user, rel::regclass
      USING ERRCODE = 'insufficient_privilege', DETAIL = format('It belongs to %s.', owner::regrole),
        HINT = format('Run it as %s; that role needs: GRANT rowcast_owner TO %s;', owner::regrole, owner::regrole);
  END IF;
  SELECT leaf, relowner INTO part, owner FROM rowcast.leaves(rel) AS leaf JOIN pg_class c ON c.oid = leaf
    WHERE NOT pg_has_role(relowner, 'USAGE') LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'rowcast.%: % does not own the partition % of %', verb, current_user, part, rel::regclass
      USING ERRCODE = 'insufficient_privilege', DETAIL = format('It belongs to %s.', owner::regrole),
        HINT = format('ALTER TABLE %s OWNER TO %I; or run it as a role that owns all partitions.', part, current_user);
  END IF;
  -- Under an older snapshot, what is read after the lock would not be what is there.
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'rowcast.%: the transaction is %', verb, current_setting('transaction_isolation')
      USING ERRCODE = 'invalid_transaction_state', DETAIL = 'It could not see what others changed before it had the lock.',
        HINT = 'Run it in a transaction with ISOLATION LEVEL READ COMMITTED.';
  END IF;
END $$;

-- Why an index is not built here, because that would stop writers for long or is not allowed, and
-- what to run instead; nulls where nothing is in the way.
CREATE OR REPLACE FUNCTION rowcast.build_obstacle(rel oid, columns text[], OUT detail text, OUT statements text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  large boolean := rowcast.is_large(rel);
  space text := (SELECT nspname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = rel);
  name text := 'rowcast_identity_' || rel;
BEGIN
  IF large OR NOT has_schema_privilege(space, 'CREATE') THEN
    detail := CASE WHEN large THEN 'The table is large: to build one here would stop its writers for long.'
      ELSE format('%s may not create one in schema %I.', current_user, space) END;
    statements := concat(
      -- A concurrent build that failed leaves an invalid index behind.
      CASE WHEN to_regclass(format('%I.%I', space, name)) IS NOT NULL
        THEN format('DROP INDEX CONCURRENTLY %I.%I; then ', space, name) END,
      CASE WHEN NOT has_schema_privilege(space, 'CREATE')
        THEN format('GRANT CREATE ON SCHEMA %I TO %I; then ', space, current_user) END,
      format('CREATE UNIQUE INDEX CONCURRENTLY %I ON %s (%s);', name, rel::regclass, rowcast.name_list(columns)));
  END IF;
END $$;

-- How the old row shall carry what is needed, for each relation that holds rows; or an error for the
-- first reason against the track.
CREATE OR REPLACE FUNCTION rowcast.choices(rel oid, templates text[], published text[])
RETURNS TABLE (part oid, action text, index oid, columns text[], why text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  fault record;
  choice record;
  obstacle record;
  obstacles text[] := '{}';
  whys text[] := '{}';
BEGIN
  SELECT * INTO fault FROM rowcast.faults(rel, templates, published) LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'rowcast.track: %', fault.message
      USING ERRCODE = fault.state, DETAIL = fault.detail, HINT = fault.hint;
  END IF;
  FOR part IN SELECT * FROM rowcast.leaves(rel) LOOP
    choice := rowcast.choose_identity(part, templates, CASE WHEN part = rel THEN published END);
    IF choice.action = 'refuse' THEN
      RAISE EXCEPTION 'rowcast.track: no replica identity of % can carry its key and topic columns', part::regclass
        USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = choice.why, HINT = choice.mend;
    ELSIF choice.action = 'build' THEN
      obstacle := rowcast.build_obstacle(part, choice.columns);
      IF obstacle.detail IS NOT NULL THEN
        obstacles := obstacles || obstacle.statements;
        whys := whys || concat_ws(' ', choice.why, obstacle.detail);
      END IF;
    END IF;
    action := choice.action;
    index := choice.index;
    columns := choice.columns;
    why := choice.why;
    RETURN NEXT;
  END LOOP;
  IF obstacles <> '{}' THEN
    RAISE EXCEPTION 'rowcast.track: % needs an index first', rel::regclass
      USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = whys[1],
        HINT = array_to_string(obstacles, ' ') || ' Then track it again.';
  END IF;
END $$;

-- The templates as given, or user:{user_id}:<table>. Nothing is ever global by default.
CREATE OR REPLACE FUNCTION rowcast.templates_for(rel oid, given text[]) RETURNS text[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  name text;
BEGIN
  IF given IS NOT NULL THEN
    RETURN given;
  END IF;
  SELECT rowcast.encode_segment(relname) INTO name FROM pg_class WHERE oid = rel;
  IF 'user_id' <> ALL (rowcast.table_columns(rel)) THEN
    RAISE EXCEPTION 'rowcast.track: whose rows does % hold?', rel::regclass
      USING ERRCODE = 'invalid_parameter_value',
        DETAIL = 'It has no ordinary column user_id and no topics are given.',
        HINT = format('Choose: rows of a user: SELECT rowcast.track(%1$L, topics => ARRAY[''user:{owner_column}:%2$s'']); '
          'rows of a team: SELECT rowcast.track(%1$L, topics => ARRAY[''team:{team_column}:%2$s'']); '
          'the same rows for everyone: SELECT rowcast.track(%1$L, topics => ARRAY[''global:%2$s'']);', rel::regclass, name);
  END IF;
  RETURN ARRAY['user:{user_id}:' || name];
END $$;

-- Locks the table against writers, or wholly, with all its partitions. Returns holding the lock, or fails naming who holds it.
CREATE OR REPLACE FUNCTION rowcast.lock_table(rel oid, wholly boolean, verb text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  session_timeout text := current_setting('lock_timeout');
  holders text;
BEGIN
  IF session_timeout = '0' THEN
    PERFORM set_config('lock_timeout', '2s', true);
  END IF;
  BEGIN
    EXECUTE format('LOCK TABLE %s%s IN %s MODE',
      CASE WHEN (SELECT relkind FROM pg_class WHERE oid = rel) <> 'p' THEN 'ONLY ' END, rel::regclass,
      CASE WHEN wholly THEN 'ACCESS EXCLUSIVE' ELSE 'SHARE ROW EXCLUSIVE' END);
    -- One track or untrack at a time: they agree on names and generations.
    LOCK TABLE rowcast.tables IN SHARE ROW EXCLUSIVE MODE;
  EXCEPTION WHEN lock_not_available THEN
    SELECT string_agg(DISTINCT coalesce(pid::text, 'a prepared transaction'), ', ') INTO holders
    FROM pg_locks
    WHERE locktype = 'relation' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND relation IN (SELECT rel UNION ALL SELECT 'rowcast.tables'::regclass UNION ALL SELECT * FROM rowcast.leaves(rel)) AND granted AND pid IS DISTINCT FROM pg_backend_pid()
      AND (wholly OR mode NOT IN ('AccessShareLock', 'RowShareLock'));
    RAISE EXCEPTION 'rowcast.%: % is in use by open transactions', verb, rel::regclass
      USING ERRCODE = 'lock_not_available',
        DETAIL = format('The lock was not to be had within %s. It is held by: %s.',
          CASE WHEN session_timeout = '0' THEN '2s' ELSE session_timeout END, coalesce(holders, 'nobody any more')),
        HINT = 'Run it again when they are done, or allow more time: SET lock_timeout = ''10s''; '
          'while it waits, the application waits behind it.';
  END;
  PERFORM set_config('lock_timeout', session_timeout, true);
END $$;

-- Carries a choice of rowcast.choose_identity out, and remembers what was before. Needs the whole lock.
CREATE OR REPLACE FUNCTION rowcast.apply_identity(rel oid, action text, existing oid, columns text[], why text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  was "char" := (SELECT relreplident FROM pg_class WHERE oid = rel);
  was_index oid := (SELECT indexrelid FROM pg_index WHERE indrelid = rel AND indisreplident);
  chosen oid := CASE WHEN action IN ('index', 'build') THEN existing END;
  space text := (SELECT nspname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = rel);
  name text := 'rowcast_identity_' || rel;
BEGIN
  IF action = 'build' THEN
    -- Under this name it is an earlier build that failed or no longer fits.
    IF to_regclass(format('%I.%I', space, name)) IS NOT NULL THEN
      EXECUTE format('DROP INDEX %I.%I', space, name);
    END IF;
    EXECUTE format('CREATE UNIQUE INDEX %I ON %s (%s)', name, rel::regclass, rowcast.name_list(columns));
    chosen := format('%I.%I', space, name)::regclass;
  END IF;
  EXECUTE format('ALTER TABLE ONLY %s REPLICA IDENTITY %s', rel::regclass, CASE action
    WHEN 'default' THEN 'DEFAULT'
    WHEN 'full' THEN 'FULL'
    ELSE (SELECT format('USING INDEX %I', relname) FROM pg_class WHERE oid = chosen)
  END);
  INSERT INTO rowcast.identity_changes AS change (relid, was, was_index, now, now_index, built_index, root)
  SELECT rel, was, was_index, relreplident, chosen, CASE WHEN action = 'build' THEN chosen END, above[cardinality(above)]
  FROM rowcast.ancestors(rel) AS above, pg_class WHERE oid = rel
  -- What it was before the first track is what untrack owes.
  ON CONFLICT (relid) DO UPDATE SET now = excluded.now, now_index = excluded.now_index,
    built_index = coalesce(excluded.built_index, change.built_index), root = excluded.root;
  RAISE NOTICE 'rowcast: the replica identity of % is now %', rel::regclass, CASE action
      WHEN 'default' THEN 'its primary key'
      WHEN 'full' THEN 'FULL: the whole old row'
      WHEN 'build' THEN format('the new unique index %I on (%s)', name, rowcast.name_list(columns))
      ELSE format('the unique index %s on (%s)', chosen::regclass, rowcast.name_list(rowcast.index_columns(chosen)))
    END
    USING DETAIL = why || CASE action
      WHEN 'full' THEN ' Every UPDATE and DELETE now writes the whole old row to the WAL.'
      WHEN 'default' THEN ''
      ELSE ' An UPDATE that changes these columns, such as a change of owner, takes the stronger row lock FOR UPDATE, '
        'which waits for foreign key checks on the row.'
    END;
END $$;

-- Puts the identity back to what it was, if it still is what track set. Needs the whole lock.
CREATE OR REPLACE FUNCTION rowcast.restore_identity(rel oid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  change rowcast.identity_changes%ROWTYPE;
BEGIN
  DELETE FROM rowcast.identity_changes WHERE relid = rel RETURNING * INTO change;
  IF change.relid IS NULL
    OR change.now <> (SELECT relreplident FROM pg_class WHERE oid = rel)
    OR change.now_index IS DISTINCT FROM (SELECT indexrelid FROM pg_index WHERE indrelid = rel AND indisreplident)
    OR (change.was = 'i' AND NOT EXISTS (SELECT FROM pg_index WHERE indexrelid = change.was_index AND indrelid = rel))
  THEN
    RETURN;
  END IF;
  -- Another publication may have come to rely on it.
  IF EXISTS (SELECT FROM pg_publication_tables t JOIN pg_class c ON c.relname = t.tablename
      JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = t.schemaname
      WHERE c.oid = ANY (rel || rowcast.ancestors(rel)) AND t.pubname <> 'rowcast') THEN
    RAISE NOTICE 'rowcast: the replica identity of % stays as track had set it', rel::regclass
      USING DETAIL = 'Another publication has the table too, and its UPDATE and DELETE may depend on the identity.';
    RETURN;
  END IF;
  EXECUTE format('ALTER TABLE ONLY %s REPLICA IDENTITY %s', rel::regclass, CASE change.was
    WHEN 'd' THEN 'DEFAULT'
    WHEN 'n' THEN 'NOTHING'
    WHEN 'f' THEN 'FULL'
    ELSE (SELECT format('USING INDEX %I', relname) FROM pg_class WHERE oid = change.was_index)
  END);
  IF EXISTS (SELECT FROM pg_index WHERE indexrelid = change.built_index AND indrelid = rel) THEN
    BEGIN
      EXECUTE format('DROP INDEX %s', change.built_index::regclass);
    EXCEPTION WHEN dependent_objects_still_exist THEN
      RAISE NOTICE 'rowcast: the index % stays', change.built_index::regclass USING DETAIL = SQLERRM;
    END;
  END IF;
END $$;

-- The column list of the publication. FULL bears none, and neither does a partitioned table whose
-- partitions come under their own names: then the whole row is published, and the relay drops the rest.
CREATE OR REPLACE FUNCTION rowcast.column_list(rel oid, published text[]) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT CASE WHEN relreplident <> 'f' AND relkind <> 'p' THEN published END FROM pg_class WHERE oid = rel;
$$;

-- The replica identity for the catalog; of a partitioned table the most that a partition has.
CREATE OR REPLACE FUNCTION rowcast.identity_of(rel oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT CASE WHEN bool_or(relreplident = 'f') THEN 'full' WHEN bool_or(relreplident = 'i') THEN 'index' ELSE 'default' END
  FROM rowcast.leaves(rel) AS leaf JOIN pg_class c ON c.oid = leaf;
$$;

-- Whether the publication has the table as it should: whole, or with just these columns.
CREATE OR REPLACE FUNCTION rowcast.is_published(rel oid, list text[]) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT EXISTS (
    SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
    WHERE p.pubname = 'rowcast' AND r.prrelid = rel AND r.prqual IS NULL
      AND list IS NOT DISTINCT FROM (
        SELECT array_agg(attname::text ORDER BY attnum) FROM pg_attribute
        WHERE attrelid = rel AND attnum = ANY (r.prattrs::int2[]))
  );
$$;

-- What is to be published of a table when these columns leave: with them those that its grants need,
-- which the relay keeps to itself. NULL is all.
CREATE OR REPLACE FUNCTION rowcast.with_grants(rel oid, published text[]) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT array_agg(name ORDER BY n) FROM unnest(rowcast.sendable_columns(rel)) WITH ORDINALITY AS t (name, n)
  WHERE published IS NOT NULL
    AND (name = ANY (published) OR EXISTS (SELECT FROM rowcast.grants g WHERE g.relid = rel AND name = ANY (g.columns)));
$$;

CREATE OR REPLACE FUNCTION rowcast.publish(rel oid, list text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF rowcast.is_published(rel, list) THEN
    RETURN;
  END IF;
  IF EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
      WHERE p.pubname = 'rowcast' AND r.prrelid = rel) THEN
    EXECUTE format('ALTER PUBLICATION rowcast DROP TABLE ONLY %s', rel::regclass);
  END IF;
  EXECUTE format('ALTER PUBLICATION rowcast ADD TABLE ONLY %s', rel::regclass)
    || coalesce(' (' || rowcast.name_list(list) || ')', '');
END $$;

-- The relay reads the table for full syncs.
CREATE OR REPLACE FUNCTION rowcast.grant_relay(rel oid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  space text := (SELECT nspname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = rel);
BEGIN
  IF NOT has_table_privilege('rowcast_relay', rel, 'SELECT') THEN
    EXECUTE format('GRANT SELECT ON TABLE %s TO rowcast_relay', rel::regclass);
  END IF;
  IF NOT has_schema_privilege('rowcast_relay', space, 'USAGE') THEN
    BEGIN
      EXECUTE format('GRANT USAGE ON SCHEMA %I TO rowcast_relay', space);
    EXCEPTION WHEN insufficient_privilege THEN
      NULL;   -- or the grant is only warned about: either way the next question tells
    END;
    IF NOT has_schema_privilege('rowcast_relay', space, 'USAGE') THEN
      RAISE EXCEPTION 'rowcast.track: the relay cannot reach schema %, and % may not let it', space, current_user
        USING ERRCODE = 'insufficient_privilege', DETAIL = 'Without it no device could sync the table in full.',
          HINT = format('As the owner of the schema: GRANT USAGE ON SCHEMA %I TO rowcast_relay;', space);
    END IF;
  END IF;
END $$;

-- What does not stop a track and still wants attention; one row each.
CREATE OR REPLACE FUNCTION rowcast.concerns(rel oid, templates text[])
RETURNS TABLE (message text, detail text, hint text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT format('no index of %s begins with %s', min(leaf)::oid::regclass, quote_ident(name))
      || CASE WHEN count(*) > 1 THEN format(', and so with %s other partitions', count(*) - 1) ELSE '' END,
    'A full sync of one topic will read the whole table.',
    format('CREATE INDEX CONCURRENTLY ON %s (%I);', min(leaf)::oid::regclass, name)
  FROM unnest(rowcast.topic_columns(templates)) AS name, (SELECT leaf::bigint FROM rowcast.leaves(rel) AS leaf) AS part
  WHERE NOT EXISTS (
    SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = leaf AND a.attnum = i.indkey[0]
    WHERE i.indrelid = leaf AND i.indisvalid AND i.indpred IS NULL AND a.attname = name)
  GROUP BY name
  UNION ALL
  SELECT format('%s has row security and rowcast_relay does not bypass it', rel::regclass),
    'A full sync would be refused: Postgres would hide rows from it. Topics and grants say who sees what.',
    'As a superuser: ALTER ROLE rowcast_relay BYPASSRLS;'
  FROM pg_class
  WHERE oid = rel AND relrowsecurity
    AND NOT (SELECT rolbypassrls OR rolsuper FROM pg_roles WHERE rolname = 'rowcast_relay');
$$;

-- Publishes a table under topics. Returns its topic templates. Tracked as it is already, nothing
-- happens; otherwise it is untracked and tracked in one, and its readers sync it in full.
CREATE OR REPLACE FUNCTION rowcast.track(relation regclass, topics text[] DEFAULT NULL, columns text[] DEFAULT NULL)
RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  rel oid := track.relation;
  templates text[];
  published text[];     -- what leaves
  listed text[];        -- the publication's column list
  choice record;
  current boolean;      -- but for identities
  changing oid[];       -- whose identities change
  concern record;
BEGIN
  PERFORM rowcast.check_rights(rel, 'track');
  SELECT * INTO concern FROM rowcast.kind_faults(rel);
  IF concern.message IS NULL THEN
    templates := rowcast.templates_for(rel, track.topics);
  END IF;
  SELECT coalesce(array_agg(part) FILTER (WHERE action <> 'keep'), '{}') INTO changing
    FROM rowcast.choices(rel, templates, track.columns);
  SELECT array_agg(name ORDER BY n) INTO published
    FROM unnest(rowcast.sendable_columns(rel)) WITH ORDINALITY AS t (name, n) WHERE name = ANY (track.columns);
  IF changing = '{}' AND rowcast.is_current(rel, templates, published) THEN
    RETURN templates;
  END IF;
  PERFORM rowcast.lock_table(rel, changing <> '{}', 'track');
  -- What was read before the lock may have changed.
  IF changing = '{}' AND EXISTS (SELECT FROM rowcast.choices(rel, templates, track.columns) WHERE action <> 'keep') THEN
    RAISE EXCEPTION 'rowcast.track: % was altered at the same moment', rel::regclass
      USING ERRCODE = 'serialization_failure', DETAIL = 'Its replica identity no longer suffices.', HINT = 'Run it again.';
  END IF;

  FOR choice IN SELECT * FROM rowcast.choices(rel, templates, track.columns) WHERE action <> 'keep' LOOP
    PERFORM rowcast.apply_identity(choice.part, choice.action, choice.index, choice.columns, choice.why);
  END LOOP;
  -- Partitions that came later and got their identity: nothing changes for readers.
  IF (SELECT relkind FROM pg_class WHERE oid = rel) = 'p' AND rowcast.is_current(rel, templates, published) THEN
    UPDATE rowcast.tables SET identity = rowcast.identity_of(rel) WHERE relid = rel AND identity <> rowcast.identity_of(rel);
    RETURN templates;
  END IF;
  listed := rowcast.column_list(rel, rowcast.with_grants(rel, published));
  PERFORM rowcast.publish(rel, listed);
  PERFORM rowcast.keep_grants(rel);
  PERFORM rowcast.grant_relay(rel);
  SELECT t.columns, t.topics INTO concern FROM rowcast.tables t
    WHERE t.relid = rel AND t.columns IS NOT NULL AND NOT coalesce(published <@ t.columns, false);
  IF FOUND THEN
    RAISE WARNING 'rowcast: more columns of % leave than before', rel::regclass
      USING DETAIL = format('It was tracked with columns %s; a second track replaces the first, and without columns all leave.',
          rowcast.name_list(concern.columns)),
        HINT = format('To have it as before: SELECT rowcast.track(%L, topics => %L, columns => %L);', rel::regclass,
          concern.topics, concern.columns);
  END IF;
  PERFORM rowcast.record(rel, templates, published);

  FOR concern IN SELECT * FROM rowcast.concerns(rel, templates) LOOP
    RAISE WARNING 'rowcast: %', concern.message USING DETAIL = concern.detail, HINT = concern.hint;
  END LOOP;
  IF published IS NOT NULL AND listed IS NULL THEN
    RAISE NOTICE 'rowcast: %, Postgres sends all columns of % to the relay',
      CASE WHEN (SELECT relkind FROM pg_class WHERE oid = rel) = 'p' THEN 'of a partitioned table' ELSE 'with REPLICA IDENTITY FULL' END,
      rel::regclass
      USING DETAIL = format('Only %s leave the relay.', rowcast.name_list(published));
  END IF;
  IF rowcast.topic_columns(templates) <> '{}' AND EXISTS (SELECT FROM rowcast.leaves(rel) AS leaf JOIN pg_class c ON c.oid = leaf
      WHERE relreplident <> 'f' AND reltoastrelid <> 0) THEN
    RAISE NOTICE 'rowcast: long values of % that an UPDATE leaves as they are, are not in the WAL', rel::regclass
      USING DETAIL = 'When a row with such a value moves to another owner and the relay no longer knows the value, '
          'the new owner''s devices sync the table in full.',
        HINT = 'REPLICA IDENTITY FULL, set before track, avoids it at the cost of WAL.';
  END IF;
  RETURN templates;
END $$;
COMMENT ON FUNCTION rowcast.track(regclass, text[], text[]) IS 'Publishes a table to devices, under topics.';

-- Whether the table is tracked in just this way, so that there is nothing to do.
CREATE OR REPLACE FUNCTION rowcast.is_current(rel oid, templates text[], published text[]) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT EXISTS (
    SELECT FROM rowcast.tables t JOIN pg_class c ON c.oid = t.relid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE t.relid = rel AND t.schema_name = n.nspname AND t.table_name = c.relname
      AND t.topics = templates AND t.columns IS NOT DISTINCT FROM published
      AND (t.identity = rowcast.identity_of(rel) OR c.relkind = 'p')
      AND rowcast.is_published(rel, rowcast.column_list(rel, rowcast.with_grants(rel, published)))
      AND has_table_privilege('rowcast_relay', rel, 'SELECT')
  );
$$;

-- Writes the table's row of the catalog. Every column is set anew, so that the row arrives whole.
CREATE OR REPLACE FUNCTION rowcast.record(rel oid, templates text[], published text[]) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
  -- A dropped table may have left its row behind, with the name.
  DELETE FROM rowcast.tables
  WHERE relid <> rel AND topic_name = split_part(templates[1], ':', -1);
  INSERT INTO rowcast.tables (relid, schema_name, table_name, topic_name, topics, columns, generation, identity)
  SELECT rel, nspname, relname, split_part(templates[1], ':', -1), templates, published, nextval('rowcast.generation'),
    rowcast.identity_of(rel)
  FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = rel
  ON CONFLICT (relid) DO UPDATE SET schema_name = excluded.schema_name, table_name = excluded.table_name,
    topic_name = excluded.topic_name, topics = excluded.topics, columns = excluded.columns,
    generation = excluded.generation, identity = excluded.identity, tracked_at = excluded.tracked_at;
$$;

-- Takes a table back. A table that was dropped is named by the oid that rowcast.status shows.
CREATE OR REPLACE FUNCTION rowcast.untrack(relation regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  rel oid := relation;
  exists_still boolean := EXISTS (SELECT FROM pg_class WHERE oid = rel);
  part oid;
BEGIN
  PERFORM rowcast.check_rights(rel, 'untrack');
  IF NOT EXISTS (SELECT FROM rowcast.tables WHERE relid = rel) THEN
    RAISE NOTICE 'rowcast: % is not tracked', relation;
    RETURN;
  END IF;
  IF exists_still AND EXISTS (SELECT FROM rowcast.grants WHERE relid = rel) THEN
    -- Its rows still make grants: it stays published, for the relay alone.
    PERFORM rowcast.lock_table(rel, EXISTS (SELECT FROM rowcast.identity_changes WHERE relid = rel), 'untrack');
    DELETE FROM rowcast.tables WHERE relid = rel;
    PERFORM rowcast.identity_for_grants(rel);
    PERFORM rowcast.publish_for_grants(rel);
    RETURN;
  END IF;
  IF exists_still THEN
    PERFORM rowcast.lock_table(rel, EXISTS (SELECT FROM rowcast.identity_changes WHERE rel IN (relid, root)), 'untrack');
    IF EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
        WHERE p.pubname = 'rowcast' AND r.prrelid = rel) THEN
      EXECUTE format('ALTER PUBLICATION rowcast DROP TABLE ONLY %s', relation);
    END IF;
    EXECUTE format('REVOKE SELECT ON TABLE %s FROM rowcast_relay', relation);
  END IF;
  -- Of the table, its partitions, and tables that were its partitions.
  FOR part IN SELECT c.oid FROM rowcast.identity_changes change JOIN pg_class c ON c.oid = change.relid
      WHERE rel IN (change.relid, change.root) AND pg_has_role(c.relowner, 'USAGE') ORDER BY c.oid LOOP
    -- One that left the table may be tracked by itself, and needs what it has.
    IF part = rel OR NOT EXISTS (SELECT FROM rowcast.tables WHERE relid = part) THEN
      IF part NOT IN (SELECT * FROM rowcast.leaves(rel)) THEN
        PERFORM rowcast.lock_table(part, true, 'untrack');
      END IF;
      PERFORM rowcast.restore_identity(part);
    END IF;
  END LOOP;
  DELETE FROM rowcast.identity_changes WHERE rel IN (relid, root);
  DELETE FROM rowcast.tables WHERE relid = rel;
END $$;
COMMENT ON FUNCTION rowcast.untrack(regclass) IS 'Takes a table back from devices.';
