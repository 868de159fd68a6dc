-- What an UPDATE or DELETE says about the old row: the replica identity.
--
-- The relay needs the key and the topic columns of the old row, and publishing a table makes its
-- UPDATE and DELETE fail where the identity is missing, lies outside a column list, is deferrable or
-- (from 18 on) holds a generated column. FULL with any column list, of whatever publication, fails
-- them too, and from 18 on FULL with a generated column. None of these may come of a track, so the
-- same rules hold on every version: a table must survive pg_upgrade.

-- Partitions do not inherit the root's identity; each has its own. All of this concerns one relation
-- that holds rows: a table or one partition of it.

-- The columns that the old row carries as the table stands.
CREATE OR REPLACE FUNCTION rowcast.old_row_columns(rel oid) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT CASE relreplident
    WHEN 'f' THEN rowcast.table_columns(rel)
    ELSE coalesce((
      SELECT rowcast.index_columns(indexrelid) FROM pg_index
      WHERE indrelid = rel AND indisvalid AND indimmediate
        AND CASE relreplident WHEN 'd' THEN indisprimary WHEN 'i' THEN indisreplident ELSE false END
    ), '{}')
  END
  FROM pg_class WHERE oid = rel;
$$;

-- Whether other publications of the table let its UPDATE and DELETE pass with this identity. NULL is FULL.
CREATE OR REPLACE FUNCTION rowcast.others_allow(rel oid, identity text[]) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT NOT EXISTS (
    SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
    -- A publication through the root puts the root's list and filter on each partition.
    WHERE (r.prrelid = rel OR (p.pubviaroot AND r.prrelid = ANY (rowcast.ancestors(rel))))
      AND p.pubname <> 'rowcast' AND CASE
      WHEN identity IS NULL THEN r.prattrs IS NOT NULL
      ELSE (r.prattrs IS NOT NULL AND NOT identity <@ (
          SELECT array_agg(attname::text) FROM pg_attribute
          WHERE attrelid = r.prrelid AND attnum = ANY (r.prattrs::int2[])))
        -- A row filter may use the columns of the identity as it is now.
        OR (r.prqual IS NOT NULL AND NOT identity @> rowcast.old_row_columns(rel))
    END
  );
$$;

CREATE OR REPLACE FUNCTION rowcast.full_allowed(rel oid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT rowcast.generated_columns(rel) = '{}' AND rowcast.others_allow(rel, NULL);
$$;

-- Whether the identity as it stands will do.
CREATE OR REPLACE FUNCTION rowcast.identity_suffices(rel oid, needed text[], published text[]) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT rowcast.old_row_columns(rel) @> needed AND CASE relreplident
    WHEN 'f' THEN rowcast.full_allowed(rel)
    ELSE NOT rowcast.old_row_columns(rel) && rowcast.generated_columns(rel)
      AND (published IS NULL OR rowcast.old_row_columns(rel) <@ published)
  END
  FROM pg_class WHERE oid = rel;
$$;

-- Columns that may be null, also by a NOT NULL constraint that is NOT VALID (18).
CREATE OR REPLACE FUNCTION rowcast.nullable_columns(rel oid) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT coalesce(array_agg(attname::text ORDER BY attnum), '{}') FROM pg_attribute a
  WHERE attrelid = rel AND attnum > 0 AND NOT attisdropped AND (NOT attnotnull OR EXISTS (
    SELECT FROM pg_constraint
    WHERE conrelid = rel AND contype = 'n' AND conkey = ARRAY[a.attnum] AND NOT convalidated));
$$;

-- The most bytes that a value can take in an index; NULL where there is no small bound. An index
-- entry of more than about 2,700 bytes is an error in the application's statement.
CREATE OR REPLACE FUNCTION rowcast.index_bytes(type oid, modifier int) RETURNS int
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT CASE
    WHEN typtype = 'd' THEN rowcast.index_bytes(typbasetype, typtypmod)
    WHEN typlen > 0 THEN typlen
    WHEN oid IN ('varchar'::regtype, 'bpchar'::regtype) AND modifier > 4
      THEN (modifier - 4) * pg_encoding_max_length((SELECT encoding FROM pg_database WHERE datname = current_database())) + 4
    WHEN oid = 'numeric'::regtype AND modifier > 4 THEN ((modifier - 4) >> 16) / 2 + 12
    WHEN oid IN ('inet'::regtype, 'cidr'::regtype) THEN 24
  END
  FROM pg_type WHERE oid = type;
$$;

CREATE OR REPLACE FUNCTION rowcast.fits_index(rel oid, names text[]) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT cardinality(names) <= 16 AND bool_and(rowcast.index_bytes(atttypid, atttypmod) IS NOT NULL)
    AND sum(rowcast.index_bytes(atttypid, atttypmod)) <= 2000
  FROM pg_attribute WHERE attrelid = rel AND attname = ANY (names) AND attnum > 0;
$$;

-- The smallest index that may serve as identity and carries what is needed.
CREATE OR REPLACE FUNCTION rowcast.suitable_index(rel oid, needed text[], published text[]) RETURNS oid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT indexrelid
  FROM pg_index i CROSS JOIN LATERAL rowcast.index_columns(i.indexrelid) AS names
  WHERE indrelid = rel AND indisunique AND indimmediate AND indisvalid AND indisready AND indislive
    AND NOT indisexclusion AND indpred IS NULL AND indexprs IS NULL
    AND names @> needed AND (published IS NULL OR names <@ published)
    AND NOT names && rowcast.nullable_columns(rel) AND NOT names && rowcast.generated_columns(rel)
    AND rowcast.others_allow(rel, names)
  ORDER BY indisprimary DESC, cardinality(names), indexrelid
  LIMIT 1;
$$;

-- More than a million rows or 1 GiB: too long to build an index while the application waits.
CREATE OR REPLACE FUNCTION rowcast.is_large(rel oid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT size > 1 << 30 OR 1000000 < CASE
    WHEN reltuples >= 0 AND relpages > 0 THEN reltuples / relpages * (size / current_setting('block_size')::int)
    ELSE size / 100   -- never analysed: small rows assumed
  END
  FROM pg_class CROSS JOIN pg_relation_size(rel) AS size
  WHERE oid = rel;
$$;

-- How the old row shall carry the key and the topic columns.
--   action   keep, default, index (an existing one), build (an index) or full; refuse where nothing will do
--   columns  of the index to build, those of the topics first: full syncs then use it too
--   why      for the NOTICE, or for the error
--   mend     where it refuses: what to run
CREATE OR REPLACE FUNCTION rowcast.choose_identity(rel oid, templates text[], published text[],
  OUT action text, OUT index oid, OUT columns text[], OUT why text, OUT mend text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  key text[] := rowcast.key_columns(rel);
  topic text[] := rowcast.topic_columns(templates);
  needed text[] := key || rowcast.lacking(topic, key);
  nullable text[];
  obstacle text;
BEGIN
  IF rowcast.identity_suffices(rel, needed, published) THEN
    action := 'keep';
    RETURN;
  END IF;
  index := rowcast.suitable_index(rel, needed, published);
  IF index IS NOT NULL THEN
    action := CASE WHEN (SELECT indisprimary FROM pg_index WHERE indexrelid = index) THEN 'default' ELSE 'index' END;
    why := format('Its old rows did not carry %s, which say whose row it was.', rowcast.name_list(needed));
    RETURN;
  END IF;
  columns := topic || rowcast.lacking(key, topic);
  nullable := ARRAY(SELECT name FROM unnest(needed) AS name WHERE name = ANY (rowcast.nullable_columns(rel)));
  obstacle := CASE
    WHEN nullable <> '{}' THEN format('%s may be null, and an identity''s columns may not', rowcast.name_list(nullable))
    WHEN NOT rowcast.others_allow(rel, columns) THEN 'another publication of the table has a column list or a row filter that does not fit an index'
    WHEN NOT rowcast.fits_index(rel, columns) THEN format('a long value of %s would be too big for an index, which is an error in the '
      'application (a unique index of your own on these columns is used if you make one)', rowcast.name_list(columns))
  END;
  IF obstacle IS NULL THEN
    action := 'build';
    why := format('Its old rows did not carry %s, which say whose row it was, and no unique index holds them.',
      rowcast.name_list(needed));
  ELSIF rowcast.full_allowed(rel) THEN
    action := 'full';
    why := format('No unique index can hold %s: %s.', rowcast.name_list(needed), obstacle);
  ELSE
    action := 'refuse';
    why := format('No unique index can hold %s: %s. REPLICA IDENTITY FULL would make every UPDATE and DELETE fail, because %s.',
      rowcast.name_list(needed), obstacle,
      CASE WHEN rowcast.generated_columns(rel) <> '{}' THEN 'the table has generated columns (from PostgreSQL 18 on)'
        ELSE 'another publication of the table has a column list' END);
    mend := CASE
      WHEN nullable <> '{}' THEN format('ALTER TABLE %s %s; then track it again.', rel::regclass,
        (SELECT string_agg(format('ALTER COLUMN %I SET NOT NULL', name), ', ') FROM unnest(nullable) AS name))
      WHEN NOT rowcast.others_allow(rel, columns) THEN format('Add the columns %s to the lists of the other publications: %s.',
        rowcast.name_list(columns), (SELECT rowcast.name_list(array_agg(p.pubname::text))
          FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
          WHERE r.prrelid = ANY (rel || rowcast.ancestors(rel)) AND p.pubname <> 'rowcast'))
      ELSE format('If their values are short: CREATE UNIQUE INDEX CONCURRENTLY ON %s (%s); then track it again.',
        rel::regclass, rowcast.name_list(columns))
    END;
  END IF;
END $$;
