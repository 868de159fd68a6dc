-- rowcast.status: all that the database alone can tell about the relay, one row for each part.
-- `problem` is null where all is well; `mend` is the command for it.

-- What is wrong with a tracked table as it now is.
CREATE OR REPLACE FUNCTION rowcast.table_problems(rel oid)
RETURNS TABLE (problem text, mend text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  t rowcast.tables%ROWTYPE;
  again text := format('SELECT rowcast.track(%L, topics => %L, columns => %L);', rel::regclass,
    (SELECT topics FROM rowcast.tables WHERE relid = rel), (SELECT columns FROM rowcast.tables WHERE relid = rel));
  needed text[];
  weak oid[];           -- what holds its rows and does not tell enough of old ones
BEGIN
  SELECT * INTO t FROM rowcast.tables WHERE relid = rel;
  RETURN QUERY SELECT f.message, f.hint FROM rowcast.faults(rel, t.topics, t.columns) AS f;
  IF FOUND THEN
    RETURN;
  END IF;
  needed := rowcast.key_columns(rel) || rowcast.lacking(rowcast.topic_columns(t.topics), rowcast.key_columns(rel));
  weak := ARRAY(SELECT leaf FROM rowcast.leaves(rel) AS leaf
    WHERE NOT rowcast.identity_suffices(leaf, needed, rowcast.column_list(leaf, CASE WHEN leaf = rel THEN t.columns END)));
  RETURN QUERY
  SELECT p.problem, again FROM (VALUES
    (NOT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = rel AND c.relname = t.table_name AND n.nspname = t.schema_name),
      format('it was tracked as %I.%I: renamed, or restored from a dump', t.schema_name, t.table_name)),
    (NOT rowcast.is_published(rel, rowcast.column_list(rel, rowcast.with_grants(rel, t.columns))),
      'the publication lacks it, or has it with other columns'),
    (weak = ARRAY[rel], format('its replica identity no longer carries %s', rowcast.name_list(needed))),
    (weak <> '{}' AND weak <> ARRAY[rel],
      format('the replica identity of %s partitions, such as %s, does not carry %s: no UPDATE or DELETE of theirs can be delivered',
        cardinality(weak), weak[1]::regclass, rowcast.name_list(needed))),
    (NOT has_table_privilege('rowcast_relay', rel, 'SELECT'),
      'the relay may not read it')
  ) AS p (found, problem) WHERE p.found;
  RETURN QUERY SELECT c.message, c.hint FROM rowcast.concerns(rel, t.topics) AS c;
END $$;

-- Why the rows of a table make no grants any more. The relay asks this too, and ends them for good:
-- what it may have missed meanwhile, only another grant_by tells it.
CREATE OR REPLACE FUNCTION rowcast.grant_problems(of_generation bigint)
RETURNS TABLE (problem text, mend text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN QUERY
  SELECT fault.why,
    CASE WHEN fault.other THEN format('SELECT rowcast.revoke_by(%L); and rowcast.grant_by for the table that is meant', g.relid)
      ELSE format('SELECT rowcast.grant_by(%L, %L, %L, %L);', g.relid::regclass, g.user_column, g.pattern, g.issuer) END
  FROM rowcast.grants g
  LEFT JOIN pg_class c ON c.oid = g.relid
  LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
  CROSS JOIN LATERAL (SELECT
    (c.relname, n.nspname) IS DISTINCT FROM (g.table_name::name, g.schema_name::name) AS other,
    CASE
      WHEN c.oid IS NULL THEN 'the table is gone'
      WHEN (c.relname, n.nspname) IS DISTINCT FROM (g.table_name::name, g.schema_name::name)
        THEN format('it was granted as %I.%I: renamed, or restored from a dump', g.schema_name, g.table_name)
      ELSE coalesce(
        (SELECT f.message FROM rowcast.grant_faults(g.relid, g.user_column, g.pattern) AS f LIMIT 1),
        rowcast.grant_drift(g))
    END AS why) AS fault
  WHERE g.generation = of_generation AND fault.why IS NOT NULL;
END $$;

CREATE OR REPLACE FUNCTION rowcast.wal_end() RETURNS pg_lsn
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END;
$$;

-- The relay's slots are those of this database whose names begin with rowcast.
CREATE OR REPLACE VIEW rowcast.status AS
SELECT 'server' AS part, current_database()::text AS name,
  format('PostgreSQL %s, catalog version %s, wal_level %s', current_setting('server_version'),
    (SELECT value FROM rowcast.settings WHERE settings.name = 'version'), current_setting('wal_level')) AS state,
  NULL::bigint AS lag_bytes, NULL::bigint AS wal_held_bytes, fault.problem, fault.mend
FROM (SELECT) AS one
LEFT JOIN LATERAL (VALUES
  (current_setting('wal_level') <> 'logical', 'nothing can be streamed',
    'ALTER SYSTEM SET wal_level = logical; and a restart'),
  (current_setting('synchronous_standby_names') ~ '\*', 'the relay may be counted as a synchronous standby, and commits would wait for it',
    'Name the standbys in synchronous_standby_names instead of *.')
) AS fault (found, problem, mend) ON fault.found
UNION ALL
SELECT 'publication', 'rowcast', format('%s tables', (SELECT count(*) FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid)),
  NULL, NULL,
  fault.problem, fault.mend
FROM (SELECT) AS one
LEFT JOIN pg_catalog.pg_publication p ON p.pubname = 'rowcast'
LEFT JOIN LATERAL (VALUES
  (p.oid IS NULL, 'there is no publication rowcast', 'Run rowcast init, then track each table again.'),
  (NOT (p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate) OR p.pubviaroot
    OR pg_catalog.to_jsonb(p) ->> 'pubgencols' <> 'n', 'its options were changed', 'Run rowcast init.'),
  (EXISTS (SELECT FROM pg_catalog.pg_publication_namespace n WHERE n.pnpubid = p.oid),
    'it publishes a whole schema, so that tables leave the database that are not tracked',
    'ALTER PUBLICATION rowcast DROP TABLES IN SCHEMA ...;')
) AS fault (found, problem, mend) ON fault.found
UNION ALL
SELECT 'slot', s.slot_name::text,
  concat_ws(', ', CASE WHEN s.active THEN format('streaming to process %s', s.active_pid) ELSE 'not streaming' END, 'WAL ' || s.wal_status),
  pg_catalog.pg_wal_lsn_diff(rowcast.wal_end(), s.confirmed_flush_lsn)::bigint,
  pg_catalog.pg_wal_lsn_diff(rowcast.wal_end(), s.restart_lsn)::bigint,
  CASE
    WHEN s.wal_status = 'lost' THEN 'Postgres threw away WAL that the relay had not read'
    WHEN s.wal_status = 'unreserved' THEN 'Postgres is about to throw away WAL that the relay has not read'
    WHEN NOT s.active THEN 'nobody streams from it, and it holds WAL'
  END,
  CASE
    WHEN s.wal_status = 'lost' THEN 'The relay makes a new slot by itself; devices sync in full.'
    WHEN NOT s.active THEN pg_catalog.format('Start the relay; or, if it is gone for good: SELECT pg_drop_replication_slot(%L);', s.slot_name)
    WHEN s.wal_status = 'unreserved' THEN 'See why the relay lags; raise max_slot_wal_keep_size.'
  END
FROM pg_catalog.pg_replication_slots s
WHERE s.slot_type = 'logical' AND s.database = current_database() AND s.slot_name LIKE 'rowcast%'
UNION ALL
SELECT 'table', pg_catalog.format('%I.%I', t.schema_name, t.table_name),
  pg_catalog.format('%s, columns %s, identity %s, since %s', pg_catalog.array_to_string(t.topics, ' '),
    coalesce(rowcast.name_list(t.columns), 'all'), t.identity, t.tracked_at),
  NULL, NULL, p.problem, p.mend
FROM rowcast.tables t LEFT JOIN LATERAL rowcast.table_problems(t.relid) AS p ON true
UNION ALL
SELECT 'grant', pg_catalog.format('%I.%I', g.schema_name, g.table_name),
  pg_catalog.format('%I is granted %s%s, since %s', g.user_column, g.pattern,
    CASE WHEN g.issuer IS NOT NULL THEN pg_catalog.format(' of issuer %L', g.issuer) END, g.granted_at),
  NULL, NULL, 'its grants have ended: ' || p.problem, p.mend
FROM rowcast.grants g LEFT JOIN LATERAL rowcast.grant_problems(g.generation) AS p ON true
UNION ALL
-- Published, but not tracked: the relay drops its rows, and yet they leave the database.
SELECT 'table', r.prrelid::regclass::text, 'not tracked', NULL, NULL, 'it is in the publication and not in the catalog',
  pg_catalog.format('ALTER PUBLICATION rowcast DROP TABLE %s;', r.prrelid::regclass)
FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid AND p.pubname = 'rowcast'
WHERE r.prrelid NOT IN ('rowcast.tables'::regclass, 'rowcast.settings'::regclass, 'rowcast.revocations'::regclass,
    'rowcast.grants'::regclass, 'rowcast.grant_seeds'::regclass)
  AND NOT EXISTS (SELECT FROM rowcast.tables t WHERE t.relid = r.prrelid)
  AND NOT EXISTS (SELECT FROM rowcast.grants g WHERE g.relid = r.prrelid);
COMMENT ON VIEW rowcast.status IS 'Slot, lag, WAL held, tables, grants, and what is wrong with each.';
