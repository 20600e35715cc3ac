-- Events in a table, for servers whose write-ahead log nobody may read, or that are reached through a pooler.
--
-- A row is found by the transaction that wrote it, not by its id: ids are drawn in one order and committed in
-- another. A tick is a snapshot of which transactions were over; the rows of a tick are those that its snapshot
-- sees and the one before does not. Both are written down, so a tick is read again as it was. (The method is that of
-- PgQ, the queue of Skytools.)
--
-- Nothing is ever deleted, for that would leave dead rows behind: rows lie in lanes, which take turns by the
-- clock, and a lane whose rows nobody needs any more is emptied as a whole. There is a lane for every time, so
-- publishing never fails for want of one, also where no broker has run for months.

-- No cache: whoever has seen what another transaction did draws a later id.
CREATE SEQUENCE walcast.outbox_id CACHE 1;

CREATE TABLE walcast.outbox (
    lane        smallint NOT NULL,
    xid         xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(),
    id          bigint NOT NULL DEFAULT pg_catalog.nextval('walcast.outbox_id'),
    -- Of a row's change: its table.
    topic       text NOT NULL,
    -- ` key=value` pairs, as in the first line of a message.
    options     text NOT NULL,
    data        jsonb NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
) PARTITION BY LIST (lane);
ALTER SEQUENCE walcast.outbox_id OWNED BY walcast.outbox.id;
CREATE INDEX outbox_xid_id ON walcast.outbox (xid, id);
CREATE INDEX outbox_in_order ON walcast.outbox (id);

CREATE TABLE walcast.tick (
    lane        smallint NOT NULL,
    id          bigint NOT NULL,
    snapshot    pg_snapshot NOT NULL,
    made_at     timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
) PARTITION BY LIST (lane);
CREATE INDEX tick_in_order ON walcast.tick (id);

DO $$
BEGIN
    FOR lane IN 0..7 LOOP
        EXECUTE format('CREATE TABLE walcast.outbox_%s PARTITION OF walcast.outbox FOR VALUES IN (%s)', lane, lane);
        EXECUTE format('CREATE TABLE walcast.tick_%s PARTITION OF walcast.tick FOR VALUES IN (%s)', lane, lane);
    END LOOP;
END $$;

-- One row: who makes ticks, and what is needed of them.
CREATE TABLE walcast.outbox_reader (
    one             boolean PRIMARY KEY DEFAULT true CHECK (one),
    -- A broker leads until its time is over by the server's clock. `token` rises with each change of hands, so one
    -- that was stopped and goes on knows that it is nobody any more.
    holder          uuid,
    token           bigint NOT NULL DEFAULT 0,
    leads_until     timestamptz NOT NULL DEFAULT '-infinity',
    -- Who asked for the lease last. Whoever leads gives it up to another one that asks.
    asked_by        uuid,
    -- The newest tick. Whoever makes the next one raises it: of two that both think they lead, one finds it raised.
    last            bigint NOT NULL,
    -- Rows up to this tick may be gone: a restart reads from behind it.
    kept            bigint NOT NULL,
    -- Nothing was published between this position and the tick behind `kept`.
    quiet_tick      bigint NOT NULL,
    quiet_ordinal   bigint NOT NULL
);

-- Which lane is written to now.
CREATE FUNCTION walcast.lane() RETURNS smallint
LANGUAGE sql VOLATILE AS $$
    SELECT (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())::pg_catalog.int8
        OPERATOR(pg_catalog./) walcast.lane_seconds() OPERATOR(pg_catalog.%) 8)::pg_catalog.int2
$$;

-- The first tick: what was over by now is not an event. Whether there was none.
CREATE FUNCTION walcast.outbox_begin() RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM walcast.outbox_reader) THEN
        RETURN false;
    END IF;
    INSERT INTO walcast.tick (lane, id, snapshot) VALUES (walcast.lane(), 1, pg_current_snapshot());
    INSERT INTO walcast.outbox_reader (last, kept, quiet_tick, quiet_ordinal) VALUES (1, 1, 2, 0);
    RETURN true;
END $$;

-- What a broker has to know before it reads, of the source `source`.
CREATE FUNCTION walcast.outbox_start(source text) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
BEGIN
    RETURN (SELECT json_build_object(
        'system', (SELECT c.system_identifier::text FROM pg_control_system() AS c),
        'timeline', left(pg_walfile_name(pg_current_wal_insert_lsn()), 8),
        'database', (SELECT d.oid::text FROM pg_database AS d WHERE d.datname = current_database()),
        'generation', (SELECT g.generation::text FROM walcast.source AS g WHERE g.slot = source),
        'carry', (SELECT s.carry FROM walcast.settings AS s),
        'isolation', current_setting('transaction_isolation'),
        'lane_seconds', (SELECT s.lane_seconds FROM walcast.settings AS s),
        'xmax', pg_snapshot_xmax(pg_current_snapshot())::text,
        'kept', r.kept, 'quiet_tick', r.quiet_tick, 'quiet_ordinal', r.quiet_ordinal,
        'last', r.last)::text
        FROM walcast.outbox_reader AS r);
END $$;

-- Ticks from `first` on, in order.
CREATE FUNCTION walcast.outbox_ticks(first bigint, ticks_max integer)
RETURNS TABLE (id bigint, snapshot text, made_us bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
    SELECT t.id, t.snapshot::text, (date_part('epoch', t.made_at) * 1000000)::bigint
    FROM walcast.tick AS t WHERE t.id >= first ORDER BY t.id LIMIT ticks_max
$$;

-- Statements of one function look anew here and there, which only `read committed` lets them do.
CREATE FUNCTION walcast.require_read_committed() RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'walcast: the transaction is %', current_setting('transaction_isolation')
            USING ERRCODE = '25000', HINT = 'ALTER ROLE … SET default_transaction_isolation = ''read committed''';
    END IF;
END $$;

-- Rows that the snapshot `upto` sees and `seen` does not, in the order of their ids, behind `after`: the same
-- whenever it is asked. `more`: there may be others behind them. `base` is the number of the tick of `seen`.
--
-- Few are found by their transactions. Of many, which come when no broker has read for long, a page must not cost what
-- all of them do, so those are read by their ids. What is still open is never looked at: it may have a million rows.
CREATE FUNCTION walcast.outbox_rows(
    held bigint, base bigint, seen pg_snapshot, upto pg_snapshot, after bigint, rows_max integer, bytes_max bigint)
RETURNS TABLE (id bigint, xid bigint, topic text, options text, data text, more boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    top     xid8 := pg_snapshot_xmax(seen);
    bottom  xid8 := pg_snapshot_xmax(upto);
    ended   xid8[] := ARRAY(SELECT o.xid FROM pg_snapshot_xip(seen) AS o(xid) WHERE pg_visible_in_snapshot(o.xid, upto));
    many    boolean := (
        SELECT count(*) > rows_max FROM (
            (SELECT FROM walcast.outbox AS o WHERE o.xid >= top AND o.xid < bottom LIMIT rows_max + 1)
            UNION ALL
            (SELECT FROM walcast.outbox AS o WHERE o.xid = ANY (ended) LIMIT rows_max + 1)
        ) AS found);
    behind  bigint := after;
BEGIN
    PERFORM walcast.require_read_committed();
    -- Not by the ids that were drawn when `seen` was made: a transaction above its xmax may have been open by then.
    -- `+ 0`, or the planner walks through ids from the first one of all.
    IF many AND after = 0 THEN
        behind := least(
            (SELECT min(o.id + 0) - 1 FROM walcast.outbox AS o WHERE o.xid >= top AND o.xid < bottom),
            (SELECT min(f.id) - 1 FROM unnest(ended) AS u(xid) CROSS JOIN LATERAL
                (SELECT o.id FROM walcast.outbox AS o WHERE o.xid = u.xid ORDER BY o.xid, o.id LIMIT 1) AS f));
    END IF;
    RETURN QUERY
    SELECT t.id, t.xid::text::bigint, t.topic, t.options, t.told, t.more OR t.told_upto >= 4 * bytes_max
    FROM (
        SELECT p.*, sum(octet_length(p.told)) OVER (ORDER BY p.id) AS told_upto
        FROM (
            -- What is stored may be compressed: it bounds the work, and what is told bounds the answer.
            SELECT f.xid, f.id, f.topic, f.options, f.data::text AS told,
                count(*) OVER () = rows_max OR sum(f.size) OVER () >= bytes_max AS more,
                sum(f.size) OVER (ORDER BY f.id) - f.size AS above
            FROM (
                (SELECT o.xid, o.id, o.topic, o.options, o.data, pg_column_size(o.data) AS size
                FROM walcast.outbox AS o
                WHERE many AND o.id > behind AND pg_visible_in_snapshot(o.xid, upto)
                    AND NOT pg_visible_in_snapshot(o.xid, seen)
                ORDER BY o.id LIMIT rows_max)
                UNION ALL
                SELECT o.xid, o.id, o.topic, o.options, o.data, pg_column_size(o.data)
                FROM walcast.outbox AS o
                WHERE NOT many AND o.xid >= top AND o.xid < bottom AND o.id > after
                    AND pg_visible_in_snapshot(o.xid, upto)
                UNION ALL
                SELECT o.xid, o.id, o.topic, o.options, o.data, pg_column_size(o.data)
                FROM walcast.outbox AS o
                WHERE NOT many AND o.xid = ANY (ended) AND o.id > after AND pg_visible_in_snapshot(o.xid, upto)
                ORDER BY 2 LIMIT rows_max
            ) AS f
        ) AS p
        WHERE p.above < bytes_max
    ) AS t
    WHERE t.told_upto - octet_length(t.told) < 4 * bytes_max ORDER BY t.id;
    -- Behind the rows, by a new look: who lost the lease may have read of lanes that the next one had emptied.
    IF NOT EXISTS (SELECT FROM walcast.outbox_reader AS r WHERE r.token = held AND r.kept <= base) THEN
        RAISE EXCEPTION 'walcast: another broker has the lease' USING ERRCODE = '55000';
    END IF;
END $$;

-- Takes the lease, or keeps it: the token, and who asked for it last. Nothing where somebody else leads.
CREATE FUNCTION walcast.outbox_lead(holder uuid, seconds double precision, OUT token bigint, OUT asked text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
BEGIN
    -- What the broker writes down for itself waits for no standby.
    PERFORM set_config('synchronous_commit', 'local', true);
    UPDATE walcast.outbox_reader AS r
    SET holder = holder, leads_until = clock_timestamp() + make_interval(secs => seconds),
        token = r.token + CASE WHEN r.holder = holder THEN 0 ELSE 1 END
    WHERE r.holder IS NOT DISTINCT FROM holder OR r.leads_until <= clock_timestamp()
    RETURNING r.token, r.asked_by::text INTO token, asked;
END $$;

-- Asks whoever leads to give the lease up.
CREATE FUNCTION walcast.outbox_ask(holder uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'local', true);
    UPDATE walcast.outbox_reader AS r SET asked_by = outbox_ask.holder;
END $$;

-- Gives the lease back, so that nobody has to wait until it is over.
CREATE FUNCTION walcast.outbox_leave(held bigint) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'local', true);
    UPDATE walcast.outbox_reader AS r SET leads_until = '-infinity' WHERE r.token = held;
END $$;

-- Whether there is a row that the snapshot `upto` sees and `seen` does not. Rows of what is still open are stepped over
-- without a look at them: there may be a million, and this is asked again and again.
CREATE FUNCTION walcast.holds_new(seen pg_snapshot, upto pg_snapshot) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
    top     xid8 := pg_snapshot_xmax(seen);
    bottom  xid8 := pg_snapshot_xmax(upto);
BEGIN
    RETURN EXISTS (
        WITH open AS (
            SELECT o.xid FROM pg_snapshot_xip(upto) AS o(xid) WHERE o.xid >= top
        ), between AS (
            SELECT top AS first, coalesce((SELECT o.xid FROM open AS o ORDER BY o.xid LIMIT 1), bottom) AS behind
            UNION ALL
            SELECT (o.xid::text::bigint + 1)::text::xid8, coalesce(lead(o.xid) OVER (ORDER BY o.xid), bottom) FROM open AS o
        )
        SELECT FROM between AS b CROSS JOIN LATERAL
            (SELECT FROM walcast.outbox AS r WHERE r.xid >= b.first AND r.xid < b.behind LIMIT 1) AS found
    ) OR EXISTS (
        SELECT FROM pg_snapshot_xip(seen) AS o(xid) CROSS JOIN LATERAL
            (SELECT FROM walcast.outbox AS r WHERE r.xid = o.xid LIMIT 1) AS found
        WHERE pg_visible_in_snapshot(o.xid, upto)
    );
END $$;

-- Looks what has become visible since the tick `before`, whose snapshot is `seen`. If anything has, or if it is
-- `forced`, it makes the next tick, provided that the caller still leads, and answers it with its first rows. The first
-- line of the answer, without an id, says what was done: `lost` (somebody else leads), `quiet` or `tick`.
CREATE FUNCTION walcast.outbox_look(
    held bigint, before bigint, seen pg_snapshot, forced boolean, rows_max integer, bytes_max bigint)
RETURNS TABLE (
    id bigint, xid bigint, topic text, options text, data text, more boolean,
    done text, snapshot text, made_us bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    made    pg_snapshot;
BEGIN
    PERFORM walcast.require_read_committed();
    IF NOT EXISTS (SELECT FROM walcast.outbox_reader AS r WHERE r.token = held AND r.leads_until > clock_timestamp())
    THEN
        done := 'lost';
        RETURN NEXT;
        RETURN;
    END IF;
    IF NOT forced AND NOT walcast.holds_new(seen, pg_current_snapshot()) THEN
        done := 'quiet';
        RETURN NEXT;
        RETURN;
    END IF;
    -- On disk before anybody is told of it, or a server that crashed would make another one of the same number.
    PERFORM set_config('synchronous_commit', 'local', true);
    UPDATE walcast.outbox_reader AS r SET last = before + 1
    WHERE r.token = held AND r.leads_until > clock_timestamp() AND r.last = before;
    IF NOT FOUND THEN
        done := 'lost';
        RETURN NEXT;
        RETURN;
    END IF;
    INSERT INTO walcast.tick AS t (lane, id, snapshot) VALUES (walcast.lane(), before + 1, pg_current_snapshot())
    RETURNING t.snapshot, (date_part('epoch', t.made_at) * 1000000)::bigint INTO made, made_us;
    done := 'tick';
    snapshot := made::text;
    RETURN NEXT;
    RETURN QUERY
        SELECT r.*, NULL::text, NULL::text, NULL::bigint
        FROM walcast.outbox_rows(held, before, seen, made, 0, rows_max, bytes_max) AS r;
END $$;

-- Whether a lane holds a row that the snapshot does not see, and others do.
CREATE FUNCTION walcast.lane_needed(lane integer, seen pg_snapshot) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
    needed  boolean;
BEGIN
    EXECUTE format('SELECT EXISTS (SELECT FROM walcast.outbox_%s AS r WHERE r.xid >= $1)', lane)
        INTO needed USING pg_snapshot_xmax(seen);
    IF NOT needed THEN
        EXECUTE format('SELECT EXISTS (SELECT FROM unnest($1) AS o(xid) CROSS JOIN LATERAL
                (SELECT FROM walcast.outbox_%s AS r WHERE r.xid = o.xid LIMIT 1) AS found
            WHERE pg_visible_in_snapshot(o.xid, pg_current_snapshot()))', lane)
            INTO needed USING ARRAY(SELECT pg_snapshot_xip(seen));
    END IF;
    RETURN needed;
END $$;

-- Nobody needs what the tick `kept` sees: writes that down, and empties the lanes that hold nothing else. How many
-- still hold any, and what all of them take on disk; NULL where the caller does not lead. Never waits for a lock.
CREATE FUNCTION walcast.outbox_trim(
    held bigint, kept bigint, quiet_tick bigint, quiet_ordinal bigint, OUT holding integer, OUT bytes bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off SET lock_timeout = '50ms' AS $$
#variable_conflict use_variable
DECLARE
    seen    pg_snapshot;
    now     integer := walcast.lane();
    filled  boolean;
    needed  boolean;
BEGIN
    PERFORM walcast.require_read_committed();
    PERFORM set_config('synchronous_commit', 'local', true);
    UPDATE walcast.outbox_reader AS r
    SET kept = kept, quiet_tick = quiet_tick, quiet_ordinal = quiet_ordinal
    WHERE r.token = held AND r.leads_until > clock_timestamp() AND r.kept <= kept;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    holding := 0;
    SELECT t.snapshot INTO STRICT seen FROM walcast.tick AS t WHERE t.id = kept;
    FOR lane IN 0..7 LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM walcast.outbox_%s)', lane) INTO filled;
        CONTINUE WHEN NOT filled;
        holding := holding + 1;
        -- Nobody writes to any other, but transactions that were long on their way; to the next one soon.
        CONTINUE WHEN lane IN (now, (now + 1) % 8, (now + 7) % 8) OR walcast.lane_needed(lane, seen);
        BEGIN
            EXECUTE format('LOCK TABLE walcast.outbox_%s IN ACCESS EXCLUSIVE MODE', lane);
            -- Once more: what was open then may have committed.
            IF NOT walcast.lane_needed(lane, seen) THEN
                EXECUTE format('TRUNCATE walcast.outbox_%s', lane);
                holding := holding - 1;
            END IF;
        EXCEPTION WHEN lock_not_available THEN
            NULL;
        END;
    END LOOP;
    FOR lane IN 0..7 LOOP
        CONTINUE WHEN lane IN (now, (now + 1) % 8, (now + 7) % 8);
        EXECUTE format('SELECT coalesce(max(id) >= $1, true) FROM walcast.tick_%s', lane) INTO needed USING kept;
        CONTINUE WHEN needed;
        BEGIN
            -- Only who leads writes ticks, and that is the caller, who holds the reader's row.
            EXECUTE format('TRUNCATE walcast.tick_%s', lane);
        EXCEPTION WHEN lock_not_available THEN
            NULL;
        END;
    END LOOP;
    bytes := (SELECT sum(pg_total_relation_size(i.inhrelid)) FROM pg_inherits AS i
        WHERE i.inhparent IN ('walcast.outbox'::regclass, 'walcast.tick'::regclass));
END $$;

-- The number line ends, and another begins with the next tick. `discard`: also all events, since their transactions are
-- numbered by another server.
CREATE FUNCTION walcast.outbox_renew(source text, held bigint, discard boolean) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
#variable_conflict use_variable
DECLARE
    newest  bigint;
BEGIN
    PERFORM walcast.require_read_committed();
    PERFORM FROM walcast.outbox_reader AS r
    WHERE r.token = held AND r.leads_until > clock_timestamp() FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE walcast.source AS s SET generation = DEFAULT, created_at = DEFAULT WHERE s.slot = source;
    IF discard THEN
        newest := (SELECT r.last FROM walcast.outbox_reader AS r) + 1;
        -- Waits for nobody: publishers would queue behind it.
        TRUNCATE walcast.outbox;
        INSERT INTO walcast.tick (lane, id, snapshot) VALUES (walcast.lane(), newest, pg_current_snapshot());
        UPDATE walcast.outbox_reader AS r
        SET last = newest, kept = newest, quiet_tick = newest + 1, quiet_ordinal = 0;
    END IF;
    RETURN true;
END $$;

SELECT walcast.withhold('^(outbox|tick|lane|holds_new|require_read_committed)');
