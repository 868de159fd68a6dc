-- Messages to the relay that travel in the WAL and hold if their transaction commits.
--
-- Anyone may write a logical message, so the relay believes only what carries the catalog's
-- signature over the message and its transaction: a copy in another transaction is worthless. The
-- content is 64 hexadecimal digits of HMAC-SHA256(secret, xid ':' body), a newline and the body, in
-- UTF-8 whatever the database's encoding; xid is the transaction's, modulo 2^32, as in its Begin.

CREATE OR REPLACE FUNCTION rowcast.emit(body text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  signed bytea := convert_to(pg_current_xact_id()::xid::text || ':' || body, 'UTF8');
  inner_pad bytea;
  outer_pad bytea;
  mac bytea;
BEGIN
  SELECT decode(value, 'hex') INTO STRICT inner_pad FROM rowcast.settings WHERE name = 'mac_inner';
  SELECT decode(value, 'hex') INTO STRICT outer_pad FROM rowcast.settings WHERE name = 'mac_outer';
  mac := sha256(outer_pad || sha256(inner_pad || signed));
  PERFORM pg_logical_emit_message(true, 'rowcast', convert_to(encode(mac, 'hex') || E'\n' || body, 'UTF8'));
END $$;

-- A device's id alone does not say whose it is: with user_id the tag is told to exactly that user's
-- devices, without it to those whose user is known to have a device of this id.
CREATE OR REPLACE FUNCTION rowcast.tag(device text, correlation text DEFAULT NULL, user_id text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF device IS NULL OR device !~ '^[A-Za-z0-9_-]{1,64}$' THEN
    RAISE EXCEPTION 'rowcast.tag: this is no device id: %', coalesce(quote_literal(left(device, 80)), 'null')
      USING ERRCODE = 'invalid_parameter_value', DETAIL = 'No device connects under such an id.',
        HINT = 'A device id is 1 to 64 of A-Z a-z 0-9 _ and -.';
  END IF;
  IF octet_length(correlation) > 256 THEN
    RAISE EXCEPTION 'rowcast.tag: the correlation is % bytes long', octet_length(correlation)
      USING ERRCODE = 'program_limit_exceeded', DETAIL = 'It travels with every change of the transaction.',
        HINT = 'Use an id of at most 256 bytes.';
  END IF;
  IF octet_length(user_id) > 256 THEN
    RAISE EXCEPTION 'rowcast.tag: the user''s id is % bytes long', octet_length(user_id)
      USING ERRCODE = 'program_limit_exceeded', DETAIL = 'No token has such a subject.',
        HINT = 'Name the user as the token''s sub does.';
  END IF;
  PERFORM rowcast.emit(json_build_object('tag',
    json_build_object('device', device, 'correlation', correlation, 'user', user_id))::text);
END $$;
COMMENT ON FUNCTION rowcast.tag(text, text, text) IS 'Says that the changes of this transaction come from a device.';

-- The payload is passed on as it is written. A jsonb value needs payload => value::json.
CREATE OR REPLACE FUNCTION rowcast.broadcast(topic text, event text, payload json) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  fault text := rowcast.topic_fault(topic);
  size int := octet_length(convert_to(payload::text, 'UTF8'));
  id uuid := gen_random_uuid();
BEGIN
  IF fault IS NOT NULL THEN
    RAISE EXCEPTION 'rowcast.broadcast: this is no topic: %', coalesce(quote_literal(left(topic, 200)), 'null')
      USING ERRCODE = 'invalid_parameter_value', DETAIL = fault,
        HINT = 'Write a topic as in user:42:notifications; a value in it with rowcast.encode_segment.';
  END IF;
  IF event IS NULL OR octet_length(event) NOT BETWEEN 1 AND 256 THEN
    RAISE EXCEPTION 'rowcast.broadcast: the event''s name is missing or longer than 256 bytes'
      USING ERRCODE = 'invalid_parameter_value', DETAIL = 'Devices tell events apart by it.',
        HINT = 'Name it as in notification.new.';
  END IF;
  IF payload IS NULL THEN
    RAISE EXCEPTION 'rowcast.broadcast: the payload is null'
      USING ERRCODE = 'null_value_not_allowed', DETAIL = 'A broadcast carries one JSON value.',
        HINT = 'An empty payload is ''{}'', a null one ''null''.';
  END IF;
  IF size > 262144 THEN
    RAISE EXCEPTION 'rowcast.broadcast: the payload is % bytes long', size
      USING ERRCODE = 'program_limit_exceeded',
        DETAIL = 'A broadcast carries at most 262144 bytes.', HINT = 'Send a reference to the data instead of the data.';
  END IF;
  PERFORM rowcast.emit(concat('{"broadcast":{"id":"', id, '","topic":', to_json(topic), ',"event":', to_json(event),
    ',"payload":', payload, '}}'));
  RETURN id;
END $$;
COMMENT ON FUNCTION rowcast.broadcast(text, text, json) IS 'Sends a message to a topic, if this transaction commits.';

-- Marks a place in the stream for the relay, which asked for it.
CREATE OR REPLACE FUNCTION rowcast.fence(id text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF id IS NULL OR octet_length(id) NOT BETWEEN 1 AND 128 THEN
    RAISE EXCEPTION 'rowcast.fence: an id has 1 to 128 bytes' USING ERRCODE = 'invalid_parameter_value';
  END IF;
  PERFORM rowcast.emit(json_build_object('fence', json_build_object('id', id))::text);
END $$;
COMMENT ON FUNCTION rowcast.fence(text) IS 'For the relay: marks a place in the stream.';
