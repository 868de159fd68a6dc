-- Which tables can be tracked, and why others cannot.
--
-- Every rule is one row of rowcast.faults: track refuses the first, rowcast.status lists them all,
-- for a table can also be altered after it was tracked.

-- The relations that hold a table's rows: itself or, where it is partitioned, the partitions of all
-- levels that have none below them. Read without locks.
CREATE OR REPLACE FUNCTION rowcast.leaves(rel oid) RETURNS SETOF oid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  WITH RECURSIVE tree (relid) AS (
    SELECT rel
    UNION ALL
    -- A partition that is being detached concurrently belongs to it no more.
    SELECT h.inhrelid FROM tree t
    JOIN pg_class p ON p.oid = t.relid AND p.relkind = 'p'
    JOIN pg_inherits h ON h.inhparent = t.relid AND NOT h.inhdetachpending
  )
  SELECT t.relid FROM tree t JOIN pg_class c ON c.oid = t.relid WHERE c.relkind <> 'p';
$$;

-- What a partition is a part of, from the nearest to the root.
CREATE OR REPLACE FUNCTION rowcast.ancestors(rel oid) RETURNS oid[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  WITH RECURSIVE above (relid, level) AS (
    SELECT inhparent, 1 FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhrelid = rel AND c.relispartition
    UNION ALL
    SELECT h.inhparent, a.level + 1 FROM above a JOIN pg_inherits h ON h.inhrelid = a.relid
  )
  SELECT coalesce(array_agg(relid ORDER BY level), '{}') FROM above;
$$;

-- A table's columns in their order. Generated ones leave only where they are named, and count for nothing here.
CREATE OR REPLACE FUNCTION rowcast.table_columns(rel oid) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT coalesce(array_agg(attname::text ORDER BY attnum), '{}')
  FROM pg_attribute WHERE attrelid = rel AND attnum > 0 AND NOT attisdropped AND attgenerated = '';
$$;

CREATE OR REPLACE FUNCTION rowcast.generated_columns(rel oid) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT coalesce(array_agg(attname::text ORDER BY attnum), '{}')
  FROM pg_attribute WHERE attrelid = rel AND attnum > 0 AND NOT attisdropped AND attgenerated <> '';
$$;

-- What may leave if it is named: the table's columns and, where Postgres can replicate them, those generated
-- ones whose values are stored. From 18 on it can, by a column list, which a partitioned table's
-- partitions do not share.
CREATE OR REPLACE FUNCTION rowcast.sendable_columns(rel oid) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT coalesce(array_agg(attname::text ORDER BY attnum), '{}')
  FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
  WHERE attrelid = rel AND attnum > 0 AND NOT attisdropped
    AND (attgenerated = '' OR (attgenerated = 's' AND c.relkind = 'r' AND NOT c.relispartition
      AND current_setting('server_version_num')::int >= 180000));
$$;

-- The key columns of an index, in its order, without what it only INCLUDEs and without expressions.
CREATE OR REPLACE FUNCTION rowcast.index_columns(index oid) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT coalesce(array_agg(a.attname::text ORDER BY k.n), '{}')
  FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, n), pg_attribute a
  WHERE i.indexrelid = index AND k.n <= i.indnkeyatts AND a.attrelid = i.indrelid AND a.attnum = k.attnum;
$$;

CREATE OR REPLACE FUNCTION rowcast.key_columns(rel oid) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT coalesce((SELECT rowcast.index_columns(indexrelid) FROM pg_index WHERE indrelid = rel AND indisprimary), '{}');
$$;

-- A list of names as SQL, for messages.
CREATE OR REPLACE FUNCTION rowcast.name_list(names text[]) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT string_agg(quote_ident(name), ', ' ORDER BY n) FROM unnest(names) WITH ORDINALITY AS t (name, n);
$$;

-- What of a is not in b.
CREATE OR REPLACE FUNCTION rowcast.lacking(a text[], b text[]) RETURNS text[]
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT coalesce(array_agg(name ORDER BY n), '{}')
  FROM unnest(a) WITH ORDINALITY AS t (name, n) WHERE name <> ALL (coalesce(b, '{}'));
$$;

-- A type and all types within it: of a domain, an array, a range, a composite's columns.
CREATE OR REPLACE FUNCTION rowcast.type_parts(type oid) RETURNS SETOF oid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  WITH RECURSIVE parts (part) AS (
    SELECT type
    UNION
    SELECT inside.part FROM parts
    JOIN pg_type t ON t.oid = parts.part
    CROSS JOIN LATERAL (
      SELECT t.typbasetype WHERE t.typtype = 'd'
      UNION ALL SELECT t.typelem WHERE t.typcategory = 'A'
      UNION ALL SELECT atttypid FROM pg_attribute
        WHERE attrelid = t.typrelid AND t.typtype = 'c' AND attnum > 0 AND NOT attisdropped
      UNION ALL SELECT rngsubtype FROM pg_range WHERE rngtypid = t.oid
      UNION ALL SELECT rngtypid FROM pg_range WHERE rngmultitypid = t.oid
    ) AS inside (part)
  )
  SELECT part FROM parts;
$$;

-- What the relay cannot print as row_to_json does; NULL if it can.
CREATE OR REPLACE FUNCTION rowcast.type_fault(type oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT min(CASE
    WHEN t.typnamespace = 'pg_catalog'::regnamespace AND t.typname ~ '^reg' AND t.typcategory <> 'A'
      THEN format('The text of a %s depends on the search path and on later renames.', t.typname)
    ELSE format('row_to_json prints type %s through the function %s, which only runs inside Postgres.',
      part::regtype, c.castfunc::regprocedure)
  END)
  FROM rowcast.type_parts(type) AS part
  JOIN pg_type t ON t.oid = part
  -- row_to_json follows such casts for types that are not built in, and are neither array nor composite.
  LEFT JOIN pg_cast c ON c.castsource = part AND c.casttarget = 'json'::regtype AND c.castmethod = 'f'
    AND part >= 16384 AND t.typtype <> 'c' AND t.typcategory <> 'A'
  WHERE (t.typnamespace = 'pg_catalog'::regnamespace AND t.typname ~ '^reg' AND t.typcategory <> 'A')
    -- hstore's cast is the one that the relay has built in.
    OR (c.oid IS NOT NULL AND NOT (t.typname = 'hstore' AND EXISTS (
      SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
      WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e'
        AND d.refclassid = 'pg_extension'::regclass AND e.extname = 'hstore')));
$$;

-- Why this relation is none that can be tracked; no row if it can.
CREATE OR REPLACE FUNCTION rowcast.kind_faults(rel oid)
RETURNS TABLE (state text, message text, detail text, hint text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  c pg_class%ROWTYPE;
  me text := rel::regclass;
BEGIN
  SELECT * INTO c FROM pg_class WHERE oid = rel;
  IF c.oid IS NULL THEN
    RETURN QUERY SELECT '42P01', format('there is no table with oid %s', rel),
      'It was dropped, or the database was restored from a dump.',
      format('SELECT rowcast.untrack(%L);', rel);
    RETURN;
  END IF;
  RETURN QUERY
  SELECT '0A000', format('%s %s', me, fault.message), fault.detail, fault.hint
  FROM (VALUES
    (c.relnamespace IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace, 'pg_toast'::regnamespace)
        OR c.oid < 16384,
      'is a table of the system', 'Postgres does not publish it.', 'Track a table of your own.'),
    (c.relnamespace = 'rowcast'::regnamespace,
      'belongs to the catalog of rowcast', 'The catalog holds the secret that signs messages.',
      'Track a table of your own.'),
    (c.relispartition,
      'is a partition', 'Its rows are those of the table that it is a part of, and come to devices as such.',
      format('SELECT rowcast.track(%L);', (rowcast.ancestors(rel))[cardinality(rowcast.ancestors(rel))]::regclass)),
    (c.relkind = 'f',
      'is a foreign table', 'Its changes are not in this database''s WAL.',
      'Track it where it lives.'),
    (c.relkind IN ('v', 'm'),
      'is a view', 'A view has no changes in the WAL.', 'Track the tables below it.'),
    (c.relkind NOT IN ('r', 'p', 'f', 'v', 'm'),
      'is no table', 'Only tables have rows to track.', 'Name a table.'),
    (c.relpersistence = 't',
      'is a temporary table', 'Its changes are not in the WAL.', 'Track a permanent table.'),
    (c.relpersistence = 'u',
      'is an unlogged table', 'Its changes are not in the WAL.',
      CASE WHEN c.relkind = 'p' THEN 'Make it again without UNLOGGED.' ELSE format('ALTER TABLE %s SET LOGGED;', me) END),
    (c.relkind = 'r' AND NOT c.relispartition
        AND EXISTS (SELECT FROM pg_inherits WHERE inhparent = rel OR inhrelid = rel),
      'is part of an inheritance tree', 'A row of a child is a row of the parent too, but arrives under one name only.',
      format('ALTER TABLE the_child NO INHERIT the_parent; then SELECT rowcast.track(%L);', me))
  ) AS fault (found, message, detail, hint)
  WHERE fault.found
  LIMIT 1;
END $$;

-- Why the changes of some partition would not come; one row each.
CREATE OR REPLACE FUNCTION rowcast.leaf_faults(rel oid)
RETURNS TABLE (state text, message text, detail text, hint text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT '0A000', format('the partition %s of %s %s', leaf::regclass, rel::regclass, fault.message), fault.detail, fault.hint
  FROM rowcast.leaves(rel) AS leaf JOIN pg_class c ON c.oid = leaf
  CROSS JOIN LATERAL (VALUES
    (c.relkind = 'f', 'is a foreign table', 'Its changes are not in this database''s WAL.',
      'Keep its rows in a table of this database.'),
    (c.relpersistence = 'u', 'is unlogged', 'Its changes are not in the WAL.',
      format('ALTER TABLE %s SET LOGGED;', leaf::regclass)),
    (EXISTS (SELECT FROM rowcast.tables t WHERE t.relid = leaf), 'is tracked by itself',
      'Its rows cannot come as those of two tables.', format('SELECT rowcast.untrack(%L);', leaf::regclass)),
    -- 15 lets such a table be attached.
    (NOT rowcast.table_columns(leaf) @> rowcast.table_columns(rel), 'generates a column that the whole table does not',
      'Postgres does not replicate generated columns.',
      format('ALTER TABLE %s DETACH PARTITION %s; ALTER TABLE %2$s ALTER COLUMN %s DROP EXPRESSION; then attach it again.',
        (rowcast.ancestors(leaf))[1]::regclass, leaf::regclass,
        rowcast.name_list((rowcast.lacking(rowcast.table_columns(rel), rowcast.table_columns(leaf)))[1:1])))
  ) AS fault (found, message, detail, hint)
  WHERE leaf <> rel AND fault.found;
$$;

-- Why the table cannot be told apart row by row.
CREATE OR REPLACE FUNCTION rowcast.key_faults(rel oid)
RETURNS TABLE (state text, message text, detail text, hint text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  key pg_index%ROWTYPE;
  name text;
BEGIN
  SELECT * INTO key FROM pg_index WHERE indrelid = rel AND indisprimary;
  IF key.indexrelid IS NULL THEN
    RETURN QUERY SELECT '55000', format('%s has no primary key', rel::regclass),
      'A device can tell rows apart only by their key, and without one every UPDATE and DELETE would fail.',
      format('ALTER TABLE %s ADD PRIMARY KEY (id);', rel::regclass);
    RETURN;
  END IF;
  SELECT conname INTO name FROM pg_constraint WHERE conindid = key.indexrelid AND contype = 'p';
  IF NOT key.indimmediate THEN
    RETURN QUERY SELECT '55000', format('the primary key of %s is deferrable', rel::regclass),
      'It identifies no old row, so every UPDATE and DELETE would fail; and two rows may hold the same key '
        'within a transaction, so a copy that follows the changes could lose one.',
      format('ALTER TABLE %s DROP CONSTRAINT %I, ADD PRIMARY KEY (%s);',
        rel::regclass, name, rowcast.name_list(rowcast.key_columns(rel)));
  ELSIF key.indisexclusion OR NOT key.indisvalid THEN
    RETURN QUERY SELECT '55000', format('the primary key of %s is temporal or invalid', rel::regclass),
      'It does not identify a single row.',
      format('ALTER TABLE %s DROP CONSTRAINT %I, ADD PRIMARY KEY (id);', rel::regclass, name);
  END IF;
  IF rowcast.key_columns(rel) && rowcast.generated_columns(rel) THEN
    RETURN QUERY SELECT '55000', format('the primary key of %s holds a generated column', rel::regclass),
      'Postgres does not replicate generated columns, and from 18 on every UPDATE and DELETE would fail.',
      format('Make the key of ordinary columns: ALTER TABLE %s ALTER COLUMN ... DROP EXPRESSION;', rel::regclass);
  END IF;
END $$;

-- Why these templates do not fit the table.
CREATE OR REPLACE FUNCTION rowcast.topic_faults(rel oid, templates text[])
RETURNS TABLE (state text, message text, detail text, hint text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT '22023', format('no topics are given for %s', rel::regclass),
    'A table without a topic would reach nobody.',
    format('SELECT rowcast.track(%L, topics => ARRAY[%L]);', rel::regclass, 'user:{user_id}:' || relname)
  FROM pg_class WHERE oid = rel AND cardinality(templates) = 0
  UNION ALL
  SELECT '22023', format('%s is no topic template', coalesce(quote_literal(template), 'null')),
    rowcast.template_fault(template), 'Write it as in user:{user_id}:orders or global:exercises.'
  FROM unnest(templates) AS template WHERE rowcast.template_fault(template) IS NOT NULL
  UNION ALL
  SELECT '22023', format('the topics of %s end in different names', rel::regclass),
    format('They end in %s; the last segment names the table.', string_agg(DISTINCT name, ', ')),
    'Let all topics of a table end in the same name, which no other tracked table uses.'
  FROM (SELECT split_part(template, ':', -1) FROM unnest(templates) AS template) AS last (name)
  HAVING count(DISTINCT name) > 1
  UNION ALL
  SELECT '23505', format('the name %s in the topics of %s is taken', t.topic_name, rel::regclass),
    format('%s.%s is tracked under it.', quote_ident(t.schema_name), quote_ident(t.table_name)),
    format('SELECT rowcast.track(%L, topics => ARRAY[''user:{user_id}:another_name'']);', rel::regclass)
  FROM rowcast.tables t
  -- A row whose table is gone gives its name up.
  WHERE t.relid <> rel AND t.topic_name = split_part(templates[1], ':', -1)
    AND EXISTS (SELECT FROM pg_class WHERE oid = t.relid)
  UNION ALL
  SELECT CASE WHEN a.attname IS NULL THEN '42703' ELSE '0A000' END,
    format('the column %s of %s cannot stand in a topic', quote_ident(name), rel::regclass),
    CASE
      WHEN a.attname IS NULL THEN 'The table has no such column.'
      WHEN a.attgenerated <> '' THEN 'It is a generated column, which Postgres does not replicate.'
      ELSE format('It is of type %s; text, varchar, uuid, int2, int4, int8 and enums may.', format_type(a.atttypid, a.atttypmod))
    END,
    format('SELECT rowcast.track(%L, topics => ARRAY[...]); with another column, of: %s', rel::regclass,
      coalesce((SELECT rowcast.name_list(array_agg(o.attname::text ORDER BY o.attnum))
        FROM pg_attribute o JOIN pg_type ot ON ot.oid = o.atttypid
        WHERE o.attrelid = rel AND o.attnum > 0 AND o.attgenerated = ''
          AND (o.atttypid IN (20, 21, 23, 25, 1043, 2950) OR ot.typtype = 'e')), 'none'))
  FROM unnest(rowcast.topic_columns(templates)) AS name
  LEFT JOIN pg_attribute a ON a.attrelid = rel AND a.attname = name AND a.attnum > 0 AND NOT a.attisdropped
  LEFT JOIN pg_type t ON t.oid = a.atttypid
  -- int8, int2, int4, text, varchar, uuid: their text is the same at all times and in all sessions.
  WHERE a.attname IS NULL OR a.attgenerated <> ''
    OR NOT (a.atttypid IN (20, 21, 23, 25, 1043, 2950) OR t.typtype = 'e');
$$;

-- Why these columns cannot be what leaves. NULL is all of them.
CREATE OR REPLACE FUNCTION rowcast.column_faults(rel oid, templates text[], published text[])
RETURNS TABLE (state text, message text, detail text, hint text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  WITH needed AS (
    SELECT rowcast.key_columns(rel) || rowcast.lacking(rowcast.topic_columns(templates), rowcast.key_columns(rel)) AS names
  )
  SELECT '42703', format('%s has no column %s', rel::regclass, coalesce(quote_ident(name), 'null')),
    'It stands in columns.', format('The columns are: %s.', rowcast.name_list(rowcast.table_columns(rel)))
  FROM unnest(published) AS name
  WHERE name IS NULL OR name <> ALL (rowcast.table_columns(rel) || rowcast.generated_columns(rel))
  UNION ALL
  SELECT '0A000', format('the column %s of %s is generated', quote_ident(name), rel::regclass),
    CASE
      WHEN current_setting('server_version_num')::int < 180000 THEN 'Before version 18 Postgres does not replicate generated columns.'
      WHEN (SELECT attgenerated FROM pg_attribute WHERE attrelid = rel AND attname = name) = 'v' THEN 'A virtual column has no value in the WAL.'
      ELSE 'Postgres replicates generated columns by a column list, which partitions cannot have.'
    END, 'Leave it out of columns and compute it on the device.'
  FROM unnest(published) AS name
  WHERE name = ANY (rowcast.generated_columns(rel)) AND name <> ALL (rowcast.sendable_columns(rel))
  UNION ALL
  SELECT '22023', format('columns names %s twice', quote_ident(name)), 'Each column leaves once.', 'Name it once.'
  FROM unnest(published) AS name WHERE name IS NOT NULL GROUP BY name HAVING count(*) > 1
  UNION ALL
  SELECT '22023', format('columns of %s lacks %s', rel::regclass, rowcast.name_list(rowcast.lacking(needed.names, published))),
    'The columns of the primary key and of the topics must leave with every row.',
    format('SELECT rowcast.track(%L, columns => %L);', rel::regclass, published || rowcast.lacking(needed.names, published))
  FROM needed WHERE published IS NOT NULL AND NOT published @> needed.names
  UNION ALL
  SELECT '0A000', format('the column %s of %s is of type %s, which cannot be synced',
      quote_ident(a.attname), rel::regclass, format_type(a.atttypid, a.atttypmod)),
    rowcast.type_fault(a.atttypid),
    format('Leave it out: SELECT rowcast.track(%L, columns => %L);', rel::regclass,
      rowcast.lacking(coalesce(published, rowcast.table_columns(rel)), ARRAY[a.attname::text]))
  FROM pg_attribute a
  WHERE a.attrelid = rel AND a.attnum > 0 AND NOT a.attisdropped
    AND CASE WHEN published IS NULL THEN a.attgenerated = '' ELSE a.attname = ANY (published) END AND rowcast.type_fault(a.atttypid) IS NOT NULL;
$$;

-- All that keeps a table from being tracked in this way.
CREATE OR REPLACE FUNCTION rowcast.faults(rel oid, templates text[], published text[])
RETURNS TABLE (state text, message text, detail text, hint text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN QUERY SELECT * FROM rowcast.kind_faults(rel);
  IF FOUND THEN
    RETURN;
  END IF;
  RETURN QUERY SELECT * FROM rowcast.leaf_faults(rel);
  RETURN QUERY SELECT * FROM rowcast.key_faults(rel);
  RETURN QUERY SELECT * FROM rowcast.topic_faults(rel, templates);
  RETURN QUERY SELECT * FROM rowcast.column_faults(rel, templates, published);
END $$;
