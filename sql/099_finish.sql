-- Who may do what, and the catalog's version.

-- Functions of an earlier release that this one does not have: those that this transaction has not
-- written. GRANT writes them too, so this comes first. (Under psql's ON_ERROR_ROLLBACK it writes in
-- subtransactions, whose ids are higher.)
DO $$
DECLARE
  old record;
BEGIN
  FOR old IN
    SELECT p.oid::regprocedure AS name FROM pg_catalog.pg_proc p
    WHERE p.pronamespace = 'rowcast'::regnamespace AND p.proowner = 'rowcast_owner'::regrole
      AND pg_catalog.age(p.xmin) > pg_catalog.age(pg_catalog.pg_current_xact_id()::xid)
  LOOP
    BEGIN
      EXECUTE pg_catalog.format('DROP FUNCTION %s', old.name);
    EXCEPTION WHEN dependent_objects_still_exist THEN
      RAISE NOTICE 'rowcast: % is of an earlier release and stays, because something of yours uses it', old.name
        USING DETAIL = SQLERRM;
    END;
  END LOOP;
END $$;

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
