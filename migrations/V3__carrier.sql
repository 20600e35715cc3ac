-- A choice of carrier for `walcast.notify`, so that a fleet which uses LISTEN and NOTIFY may move over, and back, while
-- its publishers stay as they are.
--
-- `walcast`: by walcast alone. `both`: by pg_notify as well. `notify`: by pg_notify alone, as before walcast.
-- `walcast.publish` has no counterpart in Postgres, and goes by walcast always.

ALTER TABLE walcast.settings ADD COLUMN carrier text NOT NULL DEFAULT 'walcast'
    CONSTRAINT carrier_is_known_to_this_version CHECK (carrier IN ('notify', 'both', 'walcast'));

CREATE FUNCTION walcast.carrier() RETURNS text LANGUAGE sql IMMUTABLE AS $$SELECT 'walcast'::pg_catalog.text$$;

-- As before, but that the carrier is asked for. What pg_notify refuses, a payload from 8000 bytes on and a channel from 64
-- on, is refused where it carries.
CREATE OR REPLACE FUNCTION walcast.notify(channel text, payload text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER AS $$
#variable_conflict use_variable
DECLARE
    topic   pg_catalog.text := channel;
    lsn     pg_catalog.pg_lsn;
BEGIN
    IF channel IS NULL OR channel OPERATOR(pg_catalog.=) '' THEN
        RAISE EXCEPTION 'walcast: a channel has at least one character' USING ERRCODE = '22023',
            HINT = 'Call walcast.notify(channel, payload) as you would pg_notify.';
    END IF;
    IF walcast.carrier() OPERATOR(pg_catalog.<>) 'walcast' THEN
        PERFORM pg_catalog.pg_notify(channel, payload);
        IF walcast.carrier() OPERATOR(pg_catalog.=) 'notify' THEN
            RETURN;
        END IF;
    END IF;
    IF channel COLLATE pg_catalog."C" OPERATOR(pg_catalog.!~) '^[0-9A-Za-z_\u00a1-\u167f\u3001-\U0010ffff:@-]+$' THEN
        topic := walcast.encode_segment(channel);
    END IF;
    IF pg_catalog.octet_length(topic) OPERATOR(pg_catalog.>) 255 THEN
        RAISE EXCEPTION 'walcast: the channel is too long: as a topic it has % bytes, at most 255 fit',
            pg_catalog.octet_length(topic) USING ERRCODE = '22023',
            HINT = 'Characters that topics forbid count three times, percent-encoded.';
    END IF;
    IF walcast.carry() OPERATOR(pg_catalog.=) 'outbox' THEN
        INSERT INTO walcast.outbox (lane, topic, options, data)
        VALUES (walcast.lane(), topic, ' once=1', pg_catalog.to_jsonb(COALESCE(payload, '')));
    ELSE
        lsn := pg_catalog.pg_logical_emit_message(true, walcast.message_prefix(),
            topic OPERATOR(pg_catalog.||) E' once=1\n' OPERATOR(pg_catalog.||)
            pg_catalog.to_json(COALESCE(payload, ''))::pg_catalog.text);
    END IF;
END $$;

CREATE OR REPLACE FUNCTION walcast.settle_settings() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    carry   pg_catalog.text;
    carrier pg_catalog.text;
    seconds pg_catalog.int4;
    planned pg_catalog.regprocedure;
BEGIN
    SELECT s.carry, s.carrier, s.lane_seconds INTO STRICT carry, carrier, seconds FROM walcast.settings AS s;
    EXECUTE pg_catalog.format(
        'CREATE OR REPLACE FUNCTION walcast.carry() RETURNS pg_catalog.text LANGUAGE sql IMMUTABLE AS %L',
        pg_catalog.format('SELECT %L::pg_catalog.text', carry));
    EXECUTE pg_catalog.format(
        'CREATE OR REPLACE FUNCTION walcast.carrier() RETURNS pg_catalog.text LANGUAGE sql IMMUTABLE AS %L',
        pg_catalog.format('SELECT %L::pg_catalog.text', carrier));
    EXECUTE pg_catalog.format(
        'CREATE OR REPLACE FUNCTION walcast.lane_seconds() RETURNS pg_catalog.int4 LANGUAGE sql IMMUTABLE AS %L',
        pg_catalog.format('SELECT %s', seconds));
    -- A changed function is planned again by every session.
    FOR planned IN
        SELECT p.oid FROM pg_catalog.pg_proc AS p
        WHERE p.pronamespace OPERATOR(pg_catalog.=) 'walcast'::pg_catalog.regnamespace
            AND (p.proname OPERATOR(pg_catalog.=) ANY (ARRAY['publish', 'notify', 'lane']::pg_catalog.name[])
                OR p.proname OPERATOR(pg_catalog.~) '^rows_')
    LOOP
        EXECUTE pg_catalog.format('ALTER FUNCTION %s VOLATILE', planned);
    END LOOP;
    RETURN NULL;
END $$;

SELECT walcast.withhold('^carrier$');
