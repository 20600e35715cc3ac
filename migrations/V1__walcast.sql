-- What publishers call and what the broker keeps in the database. The schema `walcast` exists already.
--
-- Two rules hold for every function that publishers call. Bodies name each function, operator, table and type with its
-- schema, so that no caller's search_path can redirect them (a SET clause would do the same, but costs a
-- tenth of a short transaction). And bodies are readable by everybody in pg_proc, so they hold no secret.

-- One row: by which way published messages travel.
CREATE TABLE walcast.settings (
    one             boolean PRIMARY KEY DEFAULT true CHECK (one),
    carry           text NOT NULL DEFAULT 'wal'
                        CONSTRAINT carry_is_known_to_this_version CHECK (carry IN ('wal', 'outbox')),
    -- How long one lane of the outbox is written to before the next is.
    lane_seconds    integer NOT NULL DEFAULT 150 CHECK (lane_seconds BETWEEN 1 AND 648000)
);
INSERT INTO walcast.settings DEFAULT VALUES;

-- One row: part of the prefix of our messages. Any role may call pg_logical_emit_message; what makes a
-- message ours is a secret of about 240 random bits that only the owner and the broker's role can read.
CREATE TABLE walcast.key (
    one     boolean PRIMARY KEY DEFAULT true CHECK (one),
    key     text NOT NULL CHECK (key ~ '^[0-9a-f]{32,64}$')
);
INSERT INTO walcast.key (key)
VALUES (pg_catalog.replace(pg_catalog.gen_random_uuid()::text || pg_catalog.gen_random_uuid()::text, '-', ''));

-- Postgres cannot tell a slot from a later one of the same name. A new generation is written here before a
-- slot is created, so a cursor from the time of the old one is recognised as such.
--
-- The broker adds from where on nothing was published up to where the slot is: a cursor from between the two
-- has missed nothing, though the slot has moved on. NULL: nothing is known.
CREATE TABLE walcast.source (
    slot            text PRIMARY KEY,
    generation      uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    created_at      timestamptz NOT NULL DEFAULT pg_catalog.now(),
    quiet_lsn       pg_lsn,
    quiet_ordinal   bigint,
    -- By what the broker knows that a slot is still the one it left. All NULL until the broker has seen it.
    --
    -- The publication that it was made for. One that is dropped and made again under its old name has another
    -- oid: for all that was written before, Postgres does not know it, so the slot has to be made again, too.
    publication_oid oid,
    -- Where the slot was moved to when `quiet_lsn` was written. Beyond that somebody else moved it.
    quiet_upto      pg_lsn,
    -- How far the broker has ever moved the slot of this generation, written down before it moves it. A slot beyond was
    -- moved by somebody else, or is another one of the same name.
    moved_upto      pg_lsn,
    -- A broker that is to take over from the one that leads says so here; the leader looks, and lets go.
    takeover_by     uuid,
    takeover_at     timestamptz
);

-- What setup granted outside this schema, so that teardown takes back that and no more.
CREATE TABLE walcast.granted (
    privilege   text,
    kind        text,
    object      text,
    role        text,
    PRIMARY KEY (privilege, kind, object, role)
);

-- Publish requests that named an idempotency key, for 24 hours.
CREATE TABLE walcast.idempotency (
    key         text PRIMARY KEY,
    request     bytea NOT NULL,
    result      jsonb NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT pg_catalog.now()
);
CREATE INDEX idempotency_age ON walcast.idempotency (created_at);

-- Any non-empty text as one segment of a topic. White space and control characters are listed, not asked
-- of the database's locale, for every client must come to the same result.
CREATE FUNCTION walcast.encode_segment(segment text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    encoded pg_catalog.text := '';
    c       pg_catalog.text;
BEGIN
    IF segment OPERATOR(pg_catalog.=) '.' OR segment OPERATOR(pg_catalog.=) '..' THEN
        RETURN pg_catalog.replace(segment, '.', '%2E');
    END IF;
    FOREACH c IN ARRAY pg_catalog.string_to_array(segment, NULL) LOOP
        IF c COLLATE pg_catalog."C" OPERATOR(pg_catalog.~)
            '[\u0001-\u0020\u007f-\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000*#+?/%]'
        THEN
            c := pg_catalog.upper(pg_catalog.encode(pg_catalog.convert_to(c, 'UTF8'), 'hex'));
            c := pg_catalog.regexp_replace(c COLLATE pg_catalog."C", '(..)', '%\1', 'g');
        END IF;
        encoded := encoded OPERATOR(pg_catalog.||) c;
    END LOOP;
    RETURN encoded;
END $$;

-- Raises what is wrong with a topic; returns if nothing is. Slow: for topics that fail the quick test.
CREATE FUNCTION walcast.check_topic(topic text) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    segment pg_catalog.text;
    odd     pg_catalog.text;
    reason  pg_catalog.text;
BEGIN
    IF topic IS NULL THEN
        reason := 'a topic is not NULL';
    ELSIF topic OPERATOR(pg_catalog.=) '' THEN
        reason := 'a topic has at least one character';
    ELSIF pg_catalog.octet_length(topic) OPERATOR(pg_catalog.>) 255 THEN
        reason := 'a topic has at most 255 bytes';
    END IF;
    FOREACH segment IN ARRAY pg_catalog.string_to_array(COALESCE(topic, ''), '/') LOOP
        EXIT WHEN reason IS NOT NULL;
        odd := pg_catalog.substring(segment COLLATE pg_catalog."C",
            '[\u0001-\u0020\u007f-\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000*#+?]');
        reason := CASE
            WHEN segment OPERATOR(pg_catalog.=) '' THEN 'a topic has no empty segment'
            WHEN segment OPERATOR(pg_catalog.=) '.' OR segment OPERATOR(pg_catalog.=) '..'
                THEN 'a topic has no segment `.` or `..`'
            WHEN odd IS NOT NULL THEN pg_catalog.format(
                'a topic has no character U+%s; percent-encode it',
                pg_catalog.lpad(pg_catalog.upper(pg_catalog.to_hex(pg_catalog.ascii(odd))), 4, '0'))
            WHEN segment COLLATE pg_catalog."C" OPERATOR(pg_catalog.~) '%(?![0-9A-F]{2})'
                THEN '`%` in a topic is followed by two upper-case hexadecimal digits'
        END;
    END LOOP;
    IF reason IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'walcast: ' OPERATOR(pg_catalog.||) reason,
            HINT = 'A topic is 1 to 255 bytes, segments split by "/", such as vm/host-17. '
                'walcast.encode_segment(text) makes one segment of any text.';
    END IF;
END $$;

-- The prefix of our messages. Marked IMMUTABLE, so that a session reads the key once and not in every
-- transaction; the trigger below makes sessions read it again when it changes. Nobody but the owner may
-- call this.
CREATE FUNCTION walcast.message_prefix() RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN (SELECT 'walcast:' OPERATOR(pg_catalog.||) k.key FROM walcast.key AS k);
END $$;

-- What the settings say, as constants: a plan that they are part of is made again when they are replaced, and planning
-- reads the catalog as it is now. A function that reads the table would be folded into the plan by the snapshot of
-- whoever plans, which may be older than the change.
CREATE FUNCTION walcast.carry() RETURNS text LANGUAGE sql IMMUTABLE AS $$SELECT 'wal'::pg_catalog.text$$;
CREATE FUNCTION walcast.lane_seconds() RETURNS integer LANGUAGE sql IMMUTABLE AS $$SELECT 150$$;

-- Publishes `data` on `topic` when the transaction commits, and not if it is rolled back.
CREATE FUNCTION walcast.publish(topic text, data jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER AS $$
#variable_conflict use_variable
DECLARE
    lsn pg_catalog.pg_lsn;
BEGIN
    -- Nearly every topic passes this quick test; the exact one takes longer.
    IF (topic COLLATE pg_catalog."C" OPERATOR(pg_catalog.~)
            '^[0-9A-Za-z_\u00a1-\u167f\u3001-\U0010ffff][0-9A-Za-z_\u00a1-\u167f\u3001-\U0010ffff.:@-]*'
            '(?:/[0-9A-Za-z_\u00a1-\u167f\u3001-\U0010ffff][0-9A-Za-z_\u00a1-\u167f\u3001-\U0010ffff.:@-]*)*$'
        AND pg_catalog.octet_length(topic) OPERATOR(pg_catalog.<=) 255) IS NOT TRUE
    THEN
        PERFORM walcast.check_topic(topic);
    END IF;
    IF data IS NULL THEN
        RAISE EXCEPTION 'walcast: the data of an event is not NULL' USING ERRCODE = '22023',
            HINT = 'Publish the JSON value ''null''::jsonb if the event has nothing to say.';
    END IF;
    IF walcast.carry() OPERATOR(pg_catalog.=) 'outbox' THEN
        INSERT INTO walcast.outbox (lane, topic, options, data) VALUES (walcast.lane(), topic, '', data);
    ELSE
        lsn := pg_catalog.pg_logical_emit_message(true, walcast.message_prefix(),
            topic OPERATOR(pg_catalog.||) E'\n' OPERATOR(pg_catalog.||) data::pg_catalog.text);
    END IF;
END $$;

-- Stands in for pg_notify: the channel is one segment of a topic, the payload a JSON string, and the same
-- pair arrives once however often a transaction sends it.
CREATE FUNCTION walcast.notify(channel text, payload text) RETURNS void
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

-- Publishes once for all requests of one key, at the same time or within 24 hours: `published` for the
-- first, `replayed` for a repetition, `conflict` for a different request with the same key. `result` holds
-- the transaction id that events carry as `xid`.
CREATE FUNCTION walcast.publish_once(
    idempotency_key text, topic text, data jsonb, OUT outcome text, OUT result jsonb)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER AS $$
DECLARE
    request pg_catalog.bytea := pg_catalog.sha256(pg_catalog.convert_to(
        pg_catalog.concat(topic, E'\n', data::pg_catalog.text), 'UTF8'));
    earlier pg_catalog.bytea;
BEGIN
    IF idempotency_key IS NULL OR idempotency_key OPERATOR(pg_catalog.=) ''
        OR pg_catalog.octet_length(idempotency_key) OPERATOR(pg_catalog.>) 255
    THEN
        RAISE EXCEPTION 'walcast: an idempotency key has 1 to 255 bytes' USING ERRCODE = '22023',
            HINT = 'A UUID is a good key.';
    END IF;
    result := pg_catalog.jsonb_build_object('xid',
        pg_catalog.pg_current_xact_id()::pg_catalog.xid::pg_catalog.text::pg_catalog.int8);
    -- Waits for a transaction that holds the same key, and then sees what it left.
    INSERT INTO walcast.idempotency AS i (key, request, result)
    VALUES (idempotency_key, request, result)
    ON CONFLICT ON CONSTRAINT idempotency_pkey DO UPDATE
        SET request = EXCLUDED.request, result = EXCLUDED.result, created_at = EXCLUDED.created_at
        WHERE i.created_at OPERATOR(pg_catalog.<)
            (pg_catalog.now() OPERATOR(pg_catalog.-) '24 hours'::interval);
    IF FOUND THEN
        PERFORM walcast.publish(topic, data);
        outcome := 'published';
    ELSE
        SELECT i.request, i.result INTO STRICT earlier, result
        FROM walcast.idempotency AS i WHERE i.key OPERATOR(pg_catalog.=) idempotency_key;
        IF earlier OPERATOR(pg_catalog.=) request THEN
            outcome := 'replayed';
        ELSE
            outcome := 'conflict';
            result := NULL;
        END IF;
    END IF;
    -- A few at a time, so that no call pays for a day's keys.
    DELETE FROM walcast.idempotency AS i WHERE i.key OPERATOR(pg_catalog.=) ANY (ARRAY(
        SELECT old.key FROM walcast.idempotency AS old
        WHERE old.created_at OPERATOR(pg_catalog.<)
            (pg_catalog.now() OPERATOR(pg_catalog.-) '24 hours'::interval)
        ORDER BY old.created_at LIMIT 8 FOR UPDATE SKIP LOCKED));
END $$;

-- A changed function is planned again by every session, and so the new key is read.
CREATE FUNCTION walcast.forget_key() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    ALTER FUNCTION walcast.publish(pg_catalog.text, pg_catalog.jsonb) VOLATILE;
    ALTER FUNCTION walcast.notify(pg_catalog.text, pg_catalog.text) VOLATILE;
    RETURN NULL;
END $$;
CREATE TRIGGER forget_key AFTER INSERT OR UPDATE OR DELETE ON walcast.key
    FOR EACH STATEMENT EXECUTE FUNCTION walcast.forget_key();

CREATE FUNCTION walcast.settle_settings() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    carry   pg_catalog.text;
    seconds pg_catalog.int4;
    planned pg_catalog.regprocedure;
BEGIN
    SELECT s.carry, s.lane_seconds INTO STRICT carry, seconds FROM walcast.settings AS s;
    EXECUTE pg_catalog.format(
        'CREATE OR REPLACE FUNCTION walcast.carry() RETURNS pg_catalog.text LANGUAGE sql IMMUTABLE AS %L',
        pg_catalog.format('SELECT %L::pg_catalog.text', carry));
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
CREATE TRIGGER settle_settings AFTER INSERT OR UPDATE ON walcast.settings
    FOR EACH STATEMENT EXECUTE FUNCTION walcast.settle_settings();

-- Takes back what PUBLIC and the database's default privileges were given on whatever is named so (a regular expression):
-- nobody may do anything with it but the owner. Setup grants the rest.
CREATE FUNCTION walcast.withhold(names text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    revoke_all text;
BEGIN
    FOR revoke_all IN
        SELECT DISTINCT format('REVOKE ALL ON %s FROM %s', object,
            CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END)
        FROM (
            SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END || c.oid::regclass AS object,
                c.relowner AS owner, coalesce(c.relacl, acldefault(
                    CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner)) AS acl
            FROM pg_class AS c
            WHERE c.relnamespace = 'walcast'::regnamespace AND c.relkind IN ('r', 'p', 'S') AND c.relname ~ names
            UNION ALL
            SELECT 'FUNCTION ' || p.oid::regprocedure, p.proowner, coalesce(p.proacl, acldefault('f', p.proowner))
            FROM pg_proc AS p WHERE p.pronamespace = 'walcast'::regnamespace AND p.proname ~ names
        ) AS objects, aclexplode(acl)
        WHERE grantee <> owner
    LOOP
        EXECUTE revoke_all;
    END LOOP;
END $$;
SELECT walcast.withhold('');
