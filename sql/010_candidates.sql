-- rowcast.candidates: the tables of this database, what tracking each would take and cost, and why
-- one cannot be. It asks the same functions as rowcast.track, and changes nothing.

-- The topics that track would be given, as far as names tell whose rows a table holds; NULL where
-- they do not. Only user_id is what track takes by itself: everything else is for a person to judge.
CREATE OR REPLACE FUNCTION rowcast.suggested_topics(rel oid) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  WITH fit AS (
    SELECT a.attname::text AS name FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = rel AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
      AND (a.atttypid IN (20, 21, 23, 25, 1043, 2950) OR t.typtype = 'e')
  ), named AS (
    SELECT rank, format('%s:{%s}:%s', scope, fit.name, rowcast.encode_segment(relname)) AS topic
    FROM pg_class, fit JOIN (VALUES
      (1, 'user_id', 'user'), (2, 'sender_id', 'user'), (2, 'recipient_id', 'user'), (2, 'receiver_id', 'user'),
      (3, 'owner_id', 'user'), (4, 'account_id', 'user'), (4, 'customer_id', 'user'), (4, 'member_id', 'user'),
      (5, 'author_id', 'user'), (5, 'created_by', 'user'), (5, 'owner', 'user'),
      (6, 'team_id', 'team'), (7, 'org_id', 'org'), (7, 'organization_id', 'org'), (7, 'tenant_id', 'tenant'),
      (7, 'workspace_id', 'workspace'), (7, 'group_id', 'group'), (8, 'project_id', 'project')
    ) AS known (rank, name, scope) ON known.name = fit.name
    WHERE pg_class.oid = rel
  )
  SELECT array_agg(topic ORDER BY topic) FROM named WHERE rank = (SELECT min(rank) FROM named);
$$;

-- One row for each table that is not the system's, an extension's or a partition.
--   topics          as tracked, or as suggested; NULL where only a person can say whose rows they are
--   identity_now    what the old row carries today, as in pg_class
--   identity_then   what track would choose: keep, default, index, build (an index), full or refuse
--   costs           what it would cost, or what is wrong where it is tracked, one sentence each
--   prepare         what should be run before track, where something should
--   obstacle, mend  why it cannot be tracked so, and the way out
CREATE OR REPLACE FUNCTION rowcast.candidates()
RETURNS TABLE (relid oid, schema_name text, table_name text, tracked boolean, bytes bigint, row_estimate bigint,
  key text[], identity_now text, identity_then text, topics text[], columns text[], costs text[], prepare text[],
  obstacle text, mend text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  c record;
  choice record;
  fault record;
  assumed text[];
BEGIN
  FOR c IN
    SELECT r.*, n.nspname, t.topics, t.columns, t.relid IS NOT NULL AS tracked
    FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace
    LEFT JOIN rowcast.tables t ON t.relid = r.oid
    WHERE r.relkind IN ('r', 'p') AND NOT r.relispartition AND r.relpersistence <> 't' AND r.oid >= 16384
      AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'rowcast')
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = r.oid AND d.deptype = 'e')
    ORDER BY n.nspname, r.relname
  LOOP
    relid := c.oid;
    schema_name := c.nspname;
    table_name := c.relname;
    tracked := c.tracked;
    SELECT coalesce(sum(pg_total_relation_size(t.relid)), pg_total_relation_size(c.oid)),
      coalesce(sum(greatest(l.reltuples, 0)), greatest(c.reltuples, 0))::bigint INTO bytes, row_estimate
    FROM pg_partition_tree(c.oid) t JOIN pg_class l ON l.oid = t.relid WHERE t.isleaf;
    key := rowcast.key_columns(c.oid);
    identity_now := CASE c.relreplident WHEN 'd' THEN 'default' WHEN 'i' THEN 'index' WHEN 'f' THEN 'full' ELSE 'nothing' END;
    topics := CASE WHEN c.tracked THEN c.topics ELSE rowcast.suggested_topics(c.oid) END;
    columns := c.columns;
    costs := '{}';
    prepare := '{}';
    obstacle := NULL;
    mend := NULL;
    identity_then := NULL;
    -- What holds for any topics is told also where none are known.
    assumed := coalesce(topics, ARRAY['global:' || rowcast.encode_segment(c.relname)]);
    SELECT * INTO fault FROM rowcast.faults(c.oid, assumed, columns) LIMIT 1;
    IF FOUND THEN
      obstacle := fault.message || '. ' || fault.detail;
      mend := fault.hint;
      RETURN NEXT;
      CONTINUE;
    END IF;
    choice := rowcast.choose_identity(c.oid, assumed, columns);
    identity_then := choice.action;
    IF choice.action = 'refuse' THEN
      obstacle := choice.why;
      mend := choice.mend;
    ELSIF choice.action = 'full' THEN
      costs := costs || format('WAL: every UPDATE and DELETE writes the whole old row (REPLICA IDENTITY FULL). %s', choice.why);
    ELSIF choice.action = 'build' THEN
      costs := costs || format('an index on (%s), for the replica identity', rowcast.name_list(choice.columns));
      IF rowcast.is_large(c.oid) THEN
        prepare := prepare || format('CREATE UNIQUE INDEX CONCURRENTLY %I ON %s (%s);',
          'rowcast_identity_' || c.oid, c.oid::regclass, rowcast.name_list(choice.columns));
      END IF;
    ELSIF choice.action = 'index' THEN
      costs := costs || format('the old row carries (%s) by the index %s', rowcast.name_list(rowcast.index_columns(choice.index)),
        choice.index::regclass);
    END IF;
    IF c.tracked THEN
      costs := costs || ARRAY(SELECT problem FROM rowcast.table_problems(c.oid));
      prepare := prepare || ARRAY(SELECT p.mend FROM rowcast.table_problems(c.oid) AS p);
    ELSE
      costs := costs || ARRAY(SELECT message || ': ' || detail FROM rowcast.concerns(c.oid, assumed));
      prepare := prepare || ARRAY(SELECT hint FROM rowcast.concerns(c.oid, assumed));
    END IF;
    RETURN NEXT;
  END LOOP;
END $$;
COMMENT ON FUNCTION rowcast.candidates() IS 'What could be tracked, what it would cost, and what is tracked.';
