-- Who may do what, and the catalog's version.

-- The schema is open to all so that whoever may not track is told why; nothing in it is, but for
-- the functions that say so.
GRANT USAGE ON SCHEMA rowcast TO PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA rowcast FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA rowcast FROM PUBLIC;
GRANT EXECUTE ON FUNCTION rowcast.track(regclass, text[], text[]), rowcast.untrack(regclass),
  rowcast.check_rights(oid, text) TO PUBLIC;
GRANT EXECUTE ON FUNCTION rowcast.grant_by(regclass, text, text, text), rowcast.revoke_by(regclass, text, text) TO PUBLIC;

GRANT EXECUTE ON FUNCTION rowcast.tag(text, text, text), rowcast.broadcast(text, text, json), rowcast.user_topics(text),
  rowcast.encode_segment(text), rowcast.has_control(text) TO rowcast_writer;

-- The relay sees everything here and changes nothing. It broadcasts what its API is asked to.
GRANT SELECT ON ALL TABLES IN SCHEMA rowcast TO rowcast_relay;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA rowcast TO rowcast_relay;
REVOKE EXECUTE ON FUNCTION rowcast.revoke(text, timestamptz, text), rowcast.unrevoke(text, text) FROM rowcast_relay;

INSERT INTO rowcast.settings (name, value) VALUES ('version', '2')
ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE settings.value <> excluded.value;

DO $$
BEGIN
  PERFORM pg_catalog.set_config('role', pg_catalog.current_setting('rowcast.installer'), true);
END $$;
