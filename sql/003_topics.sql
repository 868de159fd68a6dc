-- The text of topics and of topic templates.
--
-- A topic has two or three segments, as in user:42:orders or global:exercises. In a segment, `:`
-- `*` `%` and control characters are percent-encoded with upper-case digits, and no other escape
-- is accepted, so a topic has exactly one text. The relay reads them by the same rules.

-- Control characters are U+0000 to U+001F and U+007F to U+009F, found in the UTF-8 bytes: a regular
-- expression over characters would depend on the database's encoding and locale.
CREATE OR REPLACE FUNCTION rowcast.has_control(value text) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT encode(convert_to(value, 'UTF8'), 'hex') ~ '^(..)*([01].|7f|c2[89].)';
$$;

-- A value as one segment of a topic.
CREATE OR REPLACE FUNCTION rowcast.encode_segment(value text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
  SELECT string_agg(
    CASE WHEN c IN (':', '*', '%') OR rowcast.has_control(c)
      THEN regexp_replace(upper(encode(convert_to(c, 'UTF8'), 'hex')), '(..)', '%\1', 'g')
      ELSE c
    END, '' ORDER BY n)
  FROM string_to_table(value, NULL) WITH ORDINALITY AS chars (c, n);
$$;

-- What is wrong with a segment; NULL if nothing is.
CREATE OR REPLACE FUNCTION rowcast.segment_fault(segment text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT CASE
    WHEN segment IS NULL OR segment = '' THEN 'A segment is empty.'
    WHEN segment ~ '\*' THEN '`*` may not stand in it; as part of a value it is written %2A.'
    WHEN rowcast.has_control(segment)
      OR regexp_replace(segment, '%(25|2A|3A|[01][0-9A-F]|7F|C2%[89][0-9A-F])', '', 'g') ~ '%'
      THEN 'Only `:` `*` `%` and control characters are percent-encoded, with upper-case digits.'
    -- Three characters of text for each byte that is written as an escape.
    WHEN octet_length(convert_to(segment, 'UTF8')) - 2 * regexp_count(segment, '%') > 256
      THEN 'A segment is longer than 256 bytes.'
  END;
$$;

-- What is wrong with a topic; NULL if nothing is.
CREATE OR REPLACE FUNCTION rowcast.topic_fault(topic text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT CASE
    WHEN topic IS NULL THEN 'It is null.'
    WHEN cardinality(string_to_array(topic, ':')) NOT IN (2, 3)
      THEN 'A topic has two or three segments, as in user:42:orders or global:exercises.'
    ELSE (
      SELECT min(rowcast.segment_fault(segment)) FROM unnest(string_to_array(topic, ':')) AS segment
    )
  END;
$$;

-- The column that a template names, if it names one.
CREATE OR REPLACE FUNCTION rowcast.template_column(template text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT substring(template FROM '^[^:]*:\{([^:]*)\}:[^:]*$');
$$;

-- What is wrong with a topic template; NULL if nothing is. Scope and table are literal, the segment
-- between them is literal or one {column}.
CREATE OR REPLACE FUNCTION rowcast.template_fault(template text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT CASE
    WHEN template IS NULL THEN 'It is null.'
    WHEN cardinality(string_to_array(template, ':')) NOT IN (2, 3)
      THEN 'A template has two or three segments, as in user:{user_id}:orders or global:exercises.'
    WHEN rowcast.template_column(template) ~ '[%*{}]' OR rowcast.has_control(rowcast.template_column(template))
      THEN 'A column whose name holds `%` `*` `{` `}` or a control character cannot be named in a template.'
    -- What is left once the one {column} is out must be literal.
    WHEN regexp_replace(template, '^([^:]*:)\{[^:{}]+\}(:[^:]*)$', '\1x\2') ~ '[{}]'
      THEN 'Scope and table are literal; only the segment between them may be one {column}.'
    ELSE rowcast.topic_fault(regexp_replace(template, '^([^:]*:)\{[^:{}]+\}(:[^:]*)$', '\1x\2'))
  END;
$$;

-- The columns that a table's templates name.
CREATE OR REPLACE FUNCTION rowcast.topic_columns(templates text[]) RETURNS text[]
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT coalesce(array_agg(name ORDER BY first), '{}') FROM (
    SELECT rowcast.template_column(template) AS name, min(n) AS first
    FROM unnest(templates) WITH ORDINALITY AS t (template, n)
    GROUP BY 1
  ) AS named WHERE name IS NOT NULL;
$$;

-- The topics of one user: those of scope `user`, and the global ones. Topics of other scopes, such
-- as team:{team_id}:tasks, depend on what the user's token says.
CREATE OR REPLACE FUNCTION rowcast.user_topics(user_id text) RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT DISTINCT topic
  FROM rowcast.tables AS t, unnest(t.topics) AS template,
    LATERAL (SELECT CASE
      WHEN rowcast.template_column(template) IS NULL THEN template
      ELSE 'user:' || rowcast.encode_segment(user_topics.user_id) || ':' || t.topic_name
    END) AS resolved (topic)
  WHERE octet_length(convert_to(user_topics.user_id, 'UTF8')) BETWEEN 1 AND 256
    AND (template ~ '^global:[^:]*$'
      OR template LIKE 'user:{%'
      OR starts_with(template, 'user:' || rowcast.encode_segment(user_topics.user_id) || ':'))
  ORDER BY topic;
$$;
COMMENT ON FUNCTION rowcast.user_topics(text) IS 'The topics of a user: scope user and global ones.';
