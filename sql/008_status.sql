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

-- max_slot_wal_keep_size in bytes; NULL is no limit.
CREATE OR REPLACE FUNCTION rowcast.slot_wal_limit() RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT nullif(setting::bigint, -1) * 1048576 FROM pg_settings WHERE name = 'max_slot_wal_keep_size';
$$;

-- Roles that a relay may log in as, and what each lacks. An attribute such as REPLICATION is not
-- inherited; Amazon RDS gives a role to be a member of in its place.
CREATE OR REPLACE FUNCTION rowcast.role_problems()
RETURNS TABLE (role text, state text, problem text, mend text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  WITH logins AS (
    SELECT r.* FROM pg_roles r
    WHERE r.rolcanlogin AND NOT r.rolsuper AND pg_has_role(r.oid, 'rowcast_relay', 'USAGE')
  )
  SELECT l.rolname::text, concat_ws(', ', 'may log in', CASE WHEN l.rolbypassrls THEN 'bypasses row security' END),
    fault.problem, fault.mend
  FROM logins l LEFT JOIN LATERAL (VALUES
    (NOT l.rolreplication AND NOT EXISTS (SELECT FROM pg_roles g WHERE g.rolname = 'rds_replication' AND pg_has_role(l.oid, g.oid, 'USAGE')),
      'it may not replicate', CASE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = 'rds_replication')
        THEN format('GRANT rds_replication TO %I;', l.rolname) ELSE format('ALTER ROLE %I REPLICATION;', l.rolname) END),
    (NOT pg_has_role(l.oid, 'pg_read_all_stats', 'USAGE'),
      'it cannot see who holds its slot or what it waits for', format('GRANT pg_read_all_stats TO %I;', l.rolname)),
    -- Of rowcast_relay itself each such table says so.
    (l.rolname <> 'rowcast_relay' AND NOT l.rolbypassrls AND EXISTS (SELECT FROM rowcast.tables t JOIN pg_class c ON c.oid = t.relid WHERE c.relrowsecurity),
      'it does not bypass row security, which tracked tables have: they could not be synced in full',
      format('ALTER ROLE %I BYPASSRLS;', l.rolname))
  ) AS fault (found, problem, mend) ON fault.found
  UNION ALL
  SELECT 'rowcast_relay', 'nobody may log in as it', NULL, NULL
  WHERE NOT EXISTS (SELECT FROM logins);
$$;

-- What is wrong with a slot of the relay's.
CREATE OR REPLACE FUNCTION rowcast.slot_problems(slot name)
RETURNS TABLE (problem text, mend text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  WITH this AS (
    SELECT s.*, pg_wal_lsn_diff(rowcast.wal_end(), s.restart_lsn)::bigint AS held, rowcast.slot_wal_limit() AS keep,
      to_jsonb(s) ->> 'invalidation_reason' AS reason   -- 17 and later
    FROM pg_replication_slots s WHERE s.slot_name = slot
  ), oldest AS (
    SELECT pid, xact_start, usename FROM pg_stat_activity
    WHERE backend_xid IS NOT NULL AND xact_start < now() - interval '10 minutes' ORDER BY xact_start LIMIT 1
  )
  SELECT fault.problem, fault.mend FROM this LEFT JOIN oldest ON true CROSS JOIN LATERAL (VALUES
    (this.wal_status = 'lost', CASE coalesce(this.reason, 'wal_removed')
        WHEN 'wal_removed' THEN 'Postgres threw away WAL that the relay had not read, or invalidated the slot'
        ELSE format('Postgres invalidated the slot: %s', this.reason) END,
      'Start the relay: it makes a new slot by itself, and devices sync in full. '
        || CASE this.reason
          WHEN 'idle_timeout' THEN 'Then raise idle_replication_slot_timeout, or set it to 0.'
          WHEN 'rows_removed' THEN 'Then set hot_standby_feedback on standbys.'
          WHEN 'wal_level_insufficient' THEN 'Keep wal_level at logical.'
          ELSE 'Then raise max_slot_wal_keep_size.' END),
    (this.wal_status = 'unreserved', 'Postgres is about to throw away WAL that the relay has not read',
      'See why the relay lags; raise max_slot_wal_keep_size.'),
    (NOT this.active AND this.wal_status <> 'lost', 'nobody streams from it, and it holds WAL',
      format('Start the relay; or, if it is gone for good: SELECT pg_drop_replication_slot(%L);', slot)),
    (this.held > least(1 << 30, this.keep / 2), format('it makes Postgres keep %s of WAL%s', pg_size_pretty(this.held),
        coalesce(format('; beyond %s the slot is lost', pg_size_pretty(this.keep)), '')),
      CASE WHEN oldest.pid IS NOT NULL
        THEN format('A transaction of %s (process %s) is open since %s and holds it back; end it: SELECT pg_terminate_backend(%s);',
          oldest.usename, oldest.pid, oldest.xact_start::timestamptz(0), oldest.pid)
        ELSE 'See why the relay lags: its log, and /metrics (rowcast_lag_bytes).' END),
    (EXISTS (SELECT FROM pg_stat_replication r WHERE r.pid = this.active_pid AND r.sync_state IN ('sync', 'quorum', 'potential')),
      'Postgres counts the relay as a synchronous standby: commits may wait for it',
      'ALTER SYSTEM SET synchronous_standby_names = ''names of your standbys''; SELECT pg_reload_conf();')
  ) AS fault (found, problem, mend) WHERE fault.found;
$$;

-- The relay's slots are those of this database whose names begin with rowcast, or that a process
-- named rowcast streams from.
CREATE OR REPLACE FUNCTION rowcast.slots() RETURNS SETOF name
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT s.slot_name FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid
  WHERE s.slot_type = 'logical' AND s.plugin = 'pgoutput' AND s.database = current_database()
    AND (s.slot_name LIKE 'rowcast%' OR a.application_name = 'rowcast');
$$;

-- Columns are only ever added at its end, and keep their collation: others may have built on it.
CREATE OR REPLACE VIEW rowcast.status AS
SELECT part, name COLLATE "C" AS name, state COLLATE "default" AS state, lag_bytes, wal_held_bytes,
  problem COLLATE "default" AS problem, mend COLLATE "C" AS mend, lag_time, wal_limit_bytes
FROM (
SELECT 'server' AS part, current_database()::text AS name,
  format('PostgreSQL %s, catalog version %s, wal_level %s', current_setting('server_version'),
    (SELECT value FROM rowcast.settings WHERE settings.name = 'version'), current_setting('wal_level')) AS state,
  NULL::bigint AS lag_bytes, NULL::bigint AS wal_held_bytes, fault.problem, fault.mend,
  NULL::interval AS lag_time, NULL::bigint AS wal_limit_bytes
FROM (SELECT) AS one
LEFT JOIN LATERAL (VALUES
  (current_setting('wal_level') <> 'logical', 'nothing can be streamed',
    'ALTER SYSTEM SET wal_level = logical; and a restart'),
  (coalesce(current_setting('idle_replication_slot_timeout', true), '0') <> '0',
    pg_catalog.format('idle_replication_slot_timeout is %s: a relay that is away for longer loses its slot, and devices sync in full',
      current_setting('idle_replication_slot_timeout', true)),
    'ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf(); and let max_slot_wal_keep_size bound what a slot keeps'),
  (current_setting('synchronous_standby_names') ~ '\*', 'the relay may be counted as a synchronous standby, and commits would wait for it',
    'Name the standbys in synchronous_standby_names instead of *.')
) AS fault (found, problem, mend) ON fault.found
UNION ALL
SELECT 'publication', 'rowcast', format('%s tables', (SELECT count(*) FROM pg_catalog.pg_publication_rel r
    WHERE r.prpubid = p.oid AND r.prrelid NOT IN (SELECT c.oid FROM pg_catalog.pg_class c WHERE c.relnamespace = 'rowcast'::regnamespace))),
  NULL, NULL, fault.problem, fault.mend, NULL, NULL
FROM (SELECT) AS one
LEFT JOIN pg_catalog.pg_publication p ON p.pubname = 'rowcast'
LEFT JOIN LATERAL (VALUES
  (p.oid IS NULL, 'there is no publication rowcast', 'Run rowcast init, then track each table again.'),
  (NOT (p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate) OR p.pubviaroot
    OR pg_catalog.to_jsonb(p) ->> 'pubgencols' <> 'n', 'its options were changed', 'Run rowcast init.'),
  (p.oid IS NOT NULL AND EXISTS (SELECT FROM (VALUES ('rowcast.tables'::regclass), ('rowcast.settings'::regclass),
          ('rowcast.revocations'::regclass), ('rowcast.grants'::regclass), ('rowcast.grant_seeds'::regclass)) AS own (rel)
      WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = own.rel)),
    'it lacks the catalog''s own tables, so the relay does not learn of a track or untrack', 'Run rowcast init.'),
  (EXISTS (SELECT FROM pg_catalog.pg_publication_namespace n WHERE n.pnpubid = p.oid),
    'it publishes a whole schema, so that tables leave the database that are not tracked',
    'ALTER PUBLICATION rowcast DROP TABLES IN SCHEMA ...;')
) AS fault (found, problem, mend) ON fault.found
UNION ALL
SELECT 'slot', s.slot_name::text,
  concat_ws(', ', CASE WHEN s.active THEN format('streaming to process %s', s.active_pid)
      ELSE concat('not streaming', ' since ' || (pg_catalog.to_jsonb(s) ->> 'inactive_since')) END,
    'WAL ' || s.wal_status, CASE WHEN (pg_catalog.to_jsonb(s) ->> 'failover')::boolean THEN 'failover' END),
  pg_catalog.pg_wal_lsn_diff(rowcast.wal_end(), s.confirmed_flush_lsn)::bigint,
  pg_catalog.pg_wal_lsn_diff(rowcast.wal_end(), s.restart_lsn)::bigint,
  fault.problem, fault.mend, r.flush_lag, rowcast.slot_wal_limit()
FROM rowcast.slots() AS ours (slot_name)
JOIN pg_catalog.pg_replication_slots s ON s.slot_name = ours.slot_name
LEFT JOIN pg_catalog.pg_stat_replication r ON r.pid = s.active_pid
LEFT JOIN LATERAL rowcast.slot_problems(s.slot_name) AS fault ON true
UNION ALL
SELECT 'slot', 'rowcast', 'none', NULL, NULL, 'there is no replication slot: no relay has streamed yet, or it was dropped',
  'Start the relay: rowcast serve', NULL, rowcast.slot_wal_limit()
WHERE NOT EXISTS (SELECT FROM rowcast.slots())
UNION ALL
SELECT 'role', r.role, r.state, NULL, NULL, r.problem, r.mend, NULL, NULL FROM rowcast.role_problems() AS r
UNION ALL
SELECT 'table', pg_catalog.format('%I.%I', t.schema_name, t.table_name),
  pg_catalog.format('%s, columns %s, identity %s, since %s', pg_catalog.array_to_string(t.topics, ' '),
    coalesce(rowcast.name_list(t.columns), 'all'), t.identity, t.tracked_at),
  NULL, NULL, p.problem, p.mend, NULL, NULL
FROM rowcast.tables t LEFT JOIN LATERAL rowcast.table_problems(t.relid) AS p ON true
UNION ALL
SELECT 'grant', pg_catalog.format('%I.%I', g.schema_name, g.table_name),
  pg_catalog.format('%I is granted %s%s, since %s', g.user_column, g.pattern,
    CASE WHEN g.issuer IS NOT NULL THEN pg_catalog.format(' of issuer %L', g.issuer) END, g.granted_at),
  NULL, NULL, 'its grants have ended: ' || p.problem, p.mend, NULL, NULL
FROM rowcast.grants g LEFT JOIN LATERAL rowcast.grant_problems(g.generation) AS p ON true
UNION ALL
-- Published, but not tracked: the relay drops its rows, and yet they leave the database.
SELECT 'table', r.prrelid::regclass::text, 'not tracked', NULL, NULL, 'it is in the publication and not in the catalog',
  pg_catalog.format('ALTER PUBLICATION rowcast DROP TABLE %s;', r.prrelid::regclass), NULL, NULL
FROM pg_catalog.pg_publication_rel r
JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid AND p.pubname = 'rowcast'
JOIN pg_catalog.pg_class c ON c.oid = r.prrelid AND c.relnamespace <> 'rowcast'::regnamespace
WHERE NOT EXISTS (SELECT FROM rowcast.tables t WHERE t.relid = r.prrelid)
  AND NOT EXISTS (SELECT FROM rowcast.grants g WHERE g.relid = r.prrelid)
) AS parts;
COMMENT ON VIEW rowcast.status IS 'Server, publication, slot, roles, tables and grants: lag, WAL held, and what is wrong with each.';
