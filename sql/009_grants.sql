-- Rights that change while sessions are open: rowcast.revoke, and grants that are made by rows.
--
-- What they write are rows of published catalog tables, so the relay meets each change at its place
-- among the changes of the data, and it holds from that commit on.

-- Tokens of a user that were issued before a moment count no more, on open sessions as well. A token's
-- `iat` has whole seconds: one that was issued in the same second is refused too. One without `iat` is
-- refused whatever the moment. SECURITY DEFINER, so that a DBA can let an application call it.
CREATE OR REPLACE FUNCTION rowcast.revoke(user_id text, before timestamptz DEFAULT now(), issuer text DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
  IF revoke.user_id IS NULL OR octet_length(convert_to(revoke.user_id, 'UTF8')) NOT BETWEEN 1 AND 256 THEN
    RAISE EXCEPTION 'rowcast.revoke: a user''s id has 1 to 256 bytes'
      USING ERRCODE = 'invalid_parameter_value', DETAIL = 'No token has such a subject.',
        HINT = 'Name the user as the token''s sub does.';
  END IF;
  IF revoke.issuer = '' OR revoke.before IS NULL THEN
    RAISE EXCEPTION 'rowcast.revoke: % is missing', CASE WHEN revoke.before IS NULL THEN 'before' ELSE 'the issuer''s name' END
      USING ERRCODE = 'invalid_parameter_value', DETAIL = 'Nothing was revoked.',
        HINT = 'Leave the argument out: before is now() then, and issuer every issuer.';
  END IF;
  INSERT INTO rowcast.revocations AS known (user_id, issuer, before, before_unix_us)
  VALUES (revoke.user_id, coalesce(revoke.issuer, ''), revoke.before,
    CASE WHEN isfinite(revoke.before) THEN ceil(extract(epoch FROM revoke.before) * 1000000)::bigint
      WHEN revoke.before > now() THEN 9223372036854775807 ELSE 0 END)
  -- What was refused stays refused.
  ON CONFLICT (user_id, issuer) DO UPDATE SET revoked_at = excluded.revoked_at,
    before = greatest(known.before, excluded.before),
    before_unix_us = greatest(known.before_unix_us, excluded.before_unix_us);
END $$;
COMMENT ON FUNCTION rowcast.revoke(text, timestamptz, text) IS 'Refuses the tokens of a user that were issued before a moment.';

-- Takes that back. Whether there was anything.
CREATE OR REPLACE FUNCTION rowcast.unrevoke(user_id text, issuer text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  DELETE FROM rowcast.revocations AS r
  WHERE r.user_id = unrevoke.user_id AND r.issuer = coalesce(unrevoke.issuer, '');
  RETURN FOUND;
END $$;
COMMENT ON FUNCTION rowcast.unrevoke(text, text) IS 'Accepts the tokens of a user again that rowcast.revoke had refused.';

-- Why the rows of this table cannot make these grants. A pattern is a topic template whose last segment
-- may be `*`.
CREATE OR REPLACE FUNCTION rowcast.grant_faults(rel oid, user_column text, pattern text)
RETURNS TABLE (state text, message text, detail text, hint text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY SELECT * FROM rowcast.kind_faults(rel);
  IF FOUND THEN
    RETURN;
  END IF;
  RETURN QUERY
  SELECT '0A000', format('%s is partitioned or a partition', rel::regclass),
    'Grants are made by the rows of ordinary tables.', 'Keep memberships in a table that is not partitioned.'
  FROM pg_class WHERE oid = rel AND (relkind <> 'r' OR relispartition);
  RETURN QUERY SELECT * FROM rowcast.key_faults(rel);
  RETURN QUERY
  SELECT '22023', format('%s is no pattern of grants', coalesce(quote_literal(grant_faults.pattern), 'null')),
    coalesce(rowcast.template_fault(regexp_replace(grant_faults.pattern, ':\*$', ':x')), 'It is null.'),
    'Write it as in team:{team_id}:* or team:{team_id}:tasks.'
  WHERE grant_faults.pattern IS NULL
    OR rowcast.template_fault(regexp_replace(grant_faults.pattern, ':\*$', ':x')) IS NOT NULL;
  RETURN QUERY
  SELECT CASE WHEN a.attname IS NULL THEN '42703' ELSE '0A000' END,
    format('the column %s of %s cannot make grants', coalesce(quote_ident(name), 'null'), rel::regclass),
    CASE
      WHEN a.attname IS NULL THEN 'The table has no such column.'
      WHEN a.attgenerated <> '' THEN 'It is a generated column, which Postgres does not replicate.'
      ELSE format('It is of type %s; text, varchar, uuid, int2, int4, int8 and enums may.', format_type(a.atttypid, a.atttypmod))
    END,
    'Name a column of one of these types.'
  FROM unnest(ARRAY[grant_faults.user_column, rowcast.template_column(grant_faults.pattern)]) WITH ORDINALITY AS c (name, n)
  LEFT JOIN pg_attribute a ON a.attrelid = rel AND a.attname = name AND a.attnum > 0 AND NOT a.attisdropped
  LEFT JOIN pg_type t ON t.oid = a.atttypid
  WHERE (n = 1 OR name IS NOT NULL) AND (a.attname IS NULL OR a.attgenerated <> ''
    OR NOT (a.atttypid IN (20, 21, 23, 25, 1043, 2950) OR t.typtype = 'e'));
END $$;

-- Whether the publication sends at least these columns of every row.
CREATE OR REPLACE FUNCTION rowcast.is_published_with(rel oid, names text[]) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT EXISTS (
    SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
    WHERE p.pubname = 'rowcast' AND r.prrelid = rel AND r.prqual IS NULL
      AND (r.prattrs IS NULL OR names <@ (SELECT array_agg(attname::text) FROM pg_attribute
        WHERE attrelid = rel AND attnum = ANY (r.prattrs::int2[]))));
$$;

-- All of a table that its grants depend on, so that another value means that rows may have changed
-- their meaning, or changed unseen. A rewritten column tells by the xmin of its attribute alone; a table
-- that was not published for a while by its entry in the publication.
CREATE OR REPLACE FUNCTION rowcast.grant_shape(rel oid, names text[]) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT md5(concat_ws('|', rel,
    (SELECT string_agg(concat_ws(',', attnum, xmin, attname, atttypid, atttypmod), ';' ORDER BY attnum)
      FROM pg_attribute WHERE attrelid = rel AND attnum > 0 AND attname = ANY (names)),
    (SELECT string_agg(concat_ws(',', e.oid, e.xmin, e.enumlabel), ';' ORDER BY e.oid)
      FROM pg_attribute a JOIN pg_enum e ON e.enumtypid = a.atttypid
      WHERE a.attrelid = rel AND a.attnum > 0 AND a.attname = ANY (names)),
    (SELECT string_agg(r.oid::text, ';' ORDER BY r.oid)
      FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = 'rowcast' AND r.prrelid = rel)));
$$;

-- How a table that still could make grants differs from what it was at grant_by; NULL if it does not.
CREATE OR REPLACE FUNCTION rowcast.grant_drift(rule rowcast.grants) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT CASE
    WHEN rowcast.key_columns(rule.relid) <> rule.key_columns THEN 'its primary key is another one'
    WHEN NOT rowcast.is_published_with(rule.relid, rule.columns) THEN 'the publication lacks it, or columns of it'
    WHEN NOT rowcast.old_row_columns(rule.relid) @> rule.key_columns
      THEN 'its replica identity no longer carries the primary key'
    -- In another cluster every number is another one, and the relay reads all rows anew there.
    WHEN rule.shape <> rowcast.grant_shape(rule.relid, rule.columns)
      AND rule.system_id = (SELECT system_identifier FROM pg_control_system())
      THEN 'it was altered, or not published for a while, since grant_by'
  END;
$$;

-- After the publication's entry was changed under the table's lock, so that no row was missed.
CREATE OR REPLACE FUNCTION rowcast.keep_grants(rel oid) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
  UPDATE rowcast.grants SET shape = rowcast.grant_shape(rel, columns)
  WHERE relid = rel AND shape <> rowcast.grant_shape(rel, columns);
$$;

-- Puts the replica identity back to what it was before track, or to what grants alone need. Needs the
-- whole lock where it was changed.
CREATE OR REPLACE FUNCTION rowcast.identity_for_grants(rel oid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  choice record;
BEGIN
  PERFORM rowcast.restore_identity(rel);
  choice := rowcast.choose_identity(rel, '{}', NULL);
  IF choice.action IN ('default', 'index', 'full') THEN
    PERFORM rowcast.apply_identity(rel, choice.action, choice.index, choice.columns, choice.why);
  END IF;
END $$;

-- Publishes a table for its grants alone: with no more than they and the replica identity need.
CREATE OR REPLACE FUNCTION rowcast.publish_for_grants(rel oid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  -- FULL bears no column list.
  PERFORM rowcast.publish(rel, CASE WHEN (SELECT relreplident FROM pg_class WHERE oid = rel) <> 'f'
    THEN rowcast.with_grants(rel, rowcast.old_row_columns(rel)) END);
  PERFORM rowcast.keep_grants(rel);
END $$;

-- The rows that are there already, written for the relay to meet at this place.
CREATE OR REPLACE FUNCTION rowcast.seed_grants(rule rowcast.grants) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
-- Keys are compared as text with those in the stream, whose session has the same settings.
SET datestyle = 'ISO' SET intervalstyle = 'postgres' SET extra_float_digits = 1 SET bytea_output = 'hex'
SET timezone = 'UTC' SET lc_monetary = 'C' SET row_security = off AS $$
DECLARE
  named text := rowcast.template_column(rule.pattern);
BEGIN
  -- format() prints with the type's output function, as the stream does; a cast to text may differ.
  EXECUTE format(
    'INSERT INTO rowcast.grant_seeds (generation, batch, memberships)
     SELECT $1, batch, json_agg(membership)::text FROM (
       SELECT (row_number() OVER () - 1) / 1000 AS batch,
         json_build_array(json_build_array(%s), format(''%%s'', %I), %s) AS membership
       FROM ONLY %s WHERE %I IS NOT NULL AND %s
     ) AS members GROUP BY batch',
    (SELECT string_agg(format('format(''%%s'', %I)', name), ', ' ORDER BY n)
      FROM unnest(rule.key_columns) WITH ORDINALITY AS t (name, n)),
    rule.user_column,
    CASE WHEN named IS NULL THEN 'NULL' ELSE format('format(''%%s'', %I)', named) END,
    rule.relid::regclass,
    rule.user_column,
    CASE WHEN named IS NULL THEN 'true' ELSE format('%I IS NOT NULL', named) END)
  USING rule.generation;
  DELETE FROM rowcast.grant_seeds WHERE generation = rule.generation;
END $$;

-- Lets each row of a table grant a pattern to the user that it names, from this commit on: adding,
-- changing and removing rows grants and revokes at the commit that does it. Called again it reads all
-- rows anew. `issuer`: whose users the rows name, where tokens come from several issuers.
CREATE OR REPLACE FUNCTION rowcast.grant_by(relation regclass, user_column text, pattern text, issuer text DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  rel oid := relation;
  fault record;
  choice record;
  planned text;
  templates text[];
  published text[];
  rule rowcast.grants%ROWTYPE;
BEGIN
  PERFORM rowcast.check_rights(rel, 'grant_by');
  planned := (rowcast.grant_choice(rel, grant_by.user_column, grant_by.pattern)).action;
  PERFORM rowcast.lock_table(rel, planned <> 'keep', 'grant_by');
  -- What was read before the lock may have changed.
  choice := rowcast.grant_choice(rel, grant_by.user_column, grant_by.pattern);
  IF planned = 'keep' AND choice.action <> 'keep' THEN
    RAISE EXCEPTION 'rowcast.grant_by: % was altered at the same moment', rel::regclass
      USING ERRCODE = 'serialization_failure', DETAIL = 'Its replica identity no longer suffices.', HINT = 'Run it again.';
  END IF;
  IF choice.action <> 'keep' THEN
    PERFORM rowcast.apply_identity(rel, choice.action, choice.index, choice.columns, choice.why);
  END IF;

  DELETE FROM rowcast.grants g
  WHERE g.relid = rel AND g.user_column = grant_by.user_column AND g.pattern = grant_by.pattern
    AND g.issuer IS NOT DISTINCT FROM grant_by.issuer;
  INSERT INTO rowcast.grants (generation, relid, schema_name, table_name, user_column, pattern, issuer,
    key_columns, columns, column_types, shape, system_id)
  SELECT nextval('rowcast.generation'), rel, n.nspname, c.relname, grant_by.user_column, grant_by.pattern, grant_by.issuer,
    keys, names, (SELECT array_agg(a.atttypid ORDER BY t.n) FROM unnest(names) WITH ORDINALITY AS t (name, n)
      JOIN pg_attribute a ON a.attrelid = rel AND a.attname = t.name),
    '', (SELECT system_identifier FROM pg_control_system())
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  CROSS JOIN rowcast.key_columns(rel) AS keys
  CROSS JOIN LATERAL (SELECT keys || rowcast.lacking(array_remove(ARRAY[grant_by.user_column,
    NULLIF(rowcast.template_column(grant_by.pattern), grant_by.user_column)], NULL), keys)) AS needed (names)
  WHERE c.oid = rel;

  SELECT t.columns INTO published FROM rowcast.tables t WHERE t.relid = rel;
  IF NOT FOUND THEN
    PERFORM rowcast.publish_for_grants(rel);
  ELSIF published IS NOT NULL AND (SELECT relreplident FROM pg_class WHERE oid = rel) <> 'f' THEN
    PERFORM rowcast.publish(rel, rowcast.with_grants(rel, published));
  ELSE
    PERFORM rowcast.publish(rel, NULL);
  END IF;
  PERFORM rowcast.grant_relay(rel);
  PERFORM rowcast.keep_grants(rel);
  SELECT * INTO rule FROM rowcast.grants g WHERE g.generation = currval('rowcast.generation');
  PERFORM rowcast.seed_grants(rule);
END $$;
COMMENT ON FUNCTION rowcast.grant_by(regclass, text, text, text) IS 'Lets the rows of a table grant topics to the users that they name.';

-- How the table's old rows shall carry its key, or an error for the first reason against the grants.
CREATE OR REPLACE FUNCTION rowcast.grant_choice(rel oid, user_column text, pattern text,
  OUT action text, OUT index oid, OUT columns text[], OUT why text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  fault record;
  choice record;
  obstacle record;
  templates text[];
  published text[];
BEGIN
  SELECT * INTO fault FROM rowcast.grant_faults(rel, user_column, pattern) LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'rowcast.grant_by: %', fault.message
      USING ERRCODE = fault.state, DETAIL = fault.detail, HINT = fault.hint;
  END IF;
  -- Where the table is tracked too, its topics need more.
  SELECT t.topics, t.columns INTO templates, published FROM rowcast.tables t WHERE t.relid = rel;
  choice := rowcast.choose_identity(rel, coalesce(templates, '{}'), published);
  IF choice.action = 'refuse' THEN
    RAISE EXCEPTION 'rowcast.grant_by: no replica identity of % can carry its key', rel::regclass
      USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = choice.why, HINT = choice.mend;
  ELSIF choice.action = 'build' THEN
    obstacle := rowcast.build_obstacle(rel, choice.columns);
    IF obstacle.detail IS NOT NULL THEN
      RAISE EXCEPTION 'rowcast.grant_by: % needs a unique index to identify its old rows', rel::regclass
        USING ERRCODE = 'object_not_in_prerequisite_state',
          DETAIL = concat_ws(' ', choice.why, obstacle.detail), HINT = 'Run first: ' || obstacle.statements;
    END IF;
  END IF;
  action := choice.action;
  index := choice.index;
  columns := choice.columns;
  why := choice.why;
END $$;

-- Ends the grants that rows of a table make: all, or those of one column or pattern. A table that was
-- dropped is named by its oid, which rowcast.status shows.
CREATE OR REPLACE FUNCTION rowcast.revoke_by(relation regclass, user_column text DEFAULT NULL, pattern text DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  rel oid := relation;
  published text[];
BEGIN
  PERFORM rowcast.check_rights(rel, 'revoke_by');
  IF NOT EXISTS (SELECT FROM rowcast.grants g WHERE g.relid = rel
      AND (revoke_by.user_column IS NULL OR g.user_column = revoke_by.user_column)
      AND (revoke_by.pattern IS NULL OR g.pattern = revoke_by.pattern)) THEN
    RAISE NOTICE 'rowcast: rows of % make no such grants', relation;
    RETURN;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_class WHERE oid = rel) THEN
    DELETE FROM rowcast.grants WHERE relid = rel;
    RETURN;
  END IF;
  PERFORM rowcast.lock_table(rel, EXISTS (SELECT FROM rowcast.identity_changes WHERE relid = rel)
    AND NOT EXISTS (SELECT FROM rowcast.tables WHERE relid = rel), 'revoke_by');
  DELETE FROM rowcast.grants g WHERE g.relid = rel
    AND (revoke_by.user_column IS NULL OR g.user_column = revoke_by.user_column)
    AND (revoke_by.pattern IS NULL OR g.pattern = revoke_by.pattern);
  SELECT t.columns INTO published FROM rowcast.tables t WHERE t.relid = rel;
  IF FOUND THEN
    -- Columns that only the grants needed leave no more.
    PERFORM rowcast.publish(rel, CASE WHEN (SELECT relreplident FROM pg_class WHERE oid = rel) <> 'f'
      THEN rowcast.with_grants(rel, published) END);
    PERFORM rowcast.keep_grants(rel);
  ELSIF EXISTS (SELECT FROM rowcast.grants WHERE relid = rel) THEN
    PERFORM rowcast.publish_for_grants(rel);
  ELSE
    IF EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
        WHERE p.pubname = 'rowcast' AND r.prrelid = rel) THEN
      EXECUTE format('ALTER PUBLICATION rowcast DROP TABLE ONLY %s', relation);
    END IF;
    PERFORM rowcast.restore_identity(rel);
    EXECUTE format('REVOKE SELECT ON TABLE %s FROM rowcast_relay', relation);
  END IF;
END $$;
COMMENT ON FUNCTION rowcast.revoke_by(regclass, text, text) IS 'Ends grants that rows of a table make.';
