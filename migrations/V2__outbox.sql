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
    -- Before `id`: whose transaction has no number yet draws a later id than anybody has by now.
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
    -- Where rows of many are looked for: transactions above `made_by` have ids above `low_id`, and what the snapshot sees
    -- has none above `high_id`.
    made_by     xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(),
    low_id      bigint NOT NULL DEFAULT 0,
    high_id     bigint NOT NULL,
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
    INSERT INTO walcast.tick (lane, id, snapshot, high_id)
    SELECT walcast.lane(), 1, pg_current_snapshot(), s.last_value FROM walcast.outbox_id AS s;
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
RETURNS TABLE (id bigint, snapshot text, high_id bigint, made_us bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
    SELECT t.id, t.snapshot::text, t.high_id, (date_part('epoch', t.made_at) * 1000000)::bigint
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

-- Which transactions are over by the snapshot `upto` and were not by `seen`: those from `first` on, before `behind`. Rows of
-- what is still open are stepped over without a look at them: there may be a million.
CREATE FUNCTION walcast.news(seen pg_snapshot, upto pg_snapshot) RETURNS TABLE (first xid8, behind xid8)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    -- Not a function in SQL, which is planned anew for each call.
    RETURN QUERY
    WITH open AS (
        SELECT o.xid FROM pg_snapshot_xip(upto) AS o(xid) WHERE o.xid >= pg_snapshot_xmax(seen)
    )
    SELECT pg_snapshot_xmax(seen),
        coalesce((SELECT o.xid FROM open AS o ORDER BY o.xid LIMIT 1), pg_snapshot_xmax(upto))
    UNION ALL
    SELECT (o.xid::text::bigint + 1)::text::xid8,
        coalesce(lead(o.xid) OVER (ORDER BY o.xid), pg_snapshot_xmax(upto))
    FROM open AS o
    UNION ALL
    SELECT o.xid, (o.xid::text::bigint + 1)::text::xid8
    FROM pg_snapshot_xip(seen) AS o(xid) WHERE pg_visible_in_snapshot(o.xid, upto);
END $$;

-- Whether there is a row that the snapshot `upto` sees and `seen` does not.
CREATE FUNCTION walcast.holds_new(seen pg_snapshot, upto pg_snapshot) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM walcast.news(seen, upto) AS n CROSS JOIN LATERAL
            (SELECT FROM walcast.outbox AS r WHERE r.xid >= n.first AND r.xid < n.behind LIMIT 1) AS found);
END $$;

-- Behind which id the first row lies that the snapshot `upto` sees and that of the tick `base` does not, or before it.
--
-- That tick knows of an id that later transactions are above. Others may have been open by then without its snapshot
-- knowing them, for that ends behind the last one that was over; and others were in it. Of each of those the first row
-- is looked up.
CREATE FUNCTION walcast.begins_behind(base bigint, seen pg_snapshot, upto pg_snapshot) RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
    low     bigint;
    later   xid8;
BEGIN
    SELECT t.low_id, (t.made_by::text::bigint + 1)::text::xid8 INTO low, later FROM walcast.tick AS t WHERE t.id = base;
    RETURN (
        WITH RECURSIVE early AS (
            SELECT f.xid, f.id, least(n.behind, later) AS behind
            FROM walcast.news(seen, upto) AS n CROSS JOIN LATERAL
                (SELECT r.xid, r.id FROM walcast.outbox AS r
                WHERE r.xid >= n.first AND r.xid < least(n.behind, later) ORDER BY r.xid, r.id LIMIT 1) AS f
            UNION ALL
            SELECT f.xid, f.id, e.behind
            FROM early AS e CROSS JOIN LATERAL
                (SELECT r.xid, r.id FROM walcast.outbox AS r
                WHERE r.xid > e.xid AND r.xid < e.behind ORDER BY r.xid, r.id LIMIT 1) AS f
        )
        SELECT least(coalesce(low, 0), min(e.id) - 1) FROM early AS e);
END $$;

-- Rows that the snapshot `upto` sees and `seen`, that of the tick `base`, does not, in the order of their ids, behind
-- `after`: the same whenever it is asked. None has an id above `high`. `more`: there may be others behind them.
--
-- Few are found by their transactions. Of many, which come when no broker has read for long, a page must not cost what
-- all of them do, so those are read by their ids.
CREATE FUNCTION walcast.outbox_rows(
    held bigint, base bigint, seen pg_snapshot, upto pg_snapshot, high bigint, after bigint, rows_max integer,
    bytes_max bigint)
RETURNS TABLE (id bigint, xid bigint, topic text, options text, data text, more boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    page    refcursor;
    one     record;
    count   integer := 0;
    stored  bigint := 0;
    told    bigint := 0;
    behind  bigint := after;
BEGIN
    PERFORM walcast.require_read_committed();
    IF (SELECT count(*) > rows_max FROM (
        SELECT FROM walcast.news(seen, upto) AS n CROSS JOIN LATERAL
            (SELECT FROM walcast.outbox AS r WHERE r.xid >= n.first AND r.xid < n.behind LIMIT rows_max + 1) AS r
        LIMIT rows_max + 1) AS few)
    THEN
        IF after = 0 THEN
            behind := walcast.begins_behind(base, seen, upto);
        END IF;
        OPEN page FOR
            SELECT r.* FROM walcast.outbox AS r
            WHERE r.id > behind AND r.id <= high AND pg_visible_in_snapshot(r.xid, upto)
                AND NOT pg_visible_in_snapshot(r.xid, seen)
            ORDER BY r.id;
    ELSE
        -- `+ 0`, or the planner may walk through ids from the first one of all.
        OPEN page FOR
            SELECT r.* FROM walcast.news(seen, upto) AS n CROSS JOIN LATERAL
                (SELECT r.* FROM walcast.outbox AS r
                WHERE r.xid >= n.first AND r.xid < n.behind AND r.id + 0 > after) AS r
            ORDER BY r.id + 0;
    END IF;
    -- What is stored may be compressed: it bounds the work, and what is told bounds the answer.
    LOOP
        FETCH page INTO one;
        EXIT WHEN NOT FOUND;
        id := one.id;
        xid := one.xid::text::bigint;
        topic := one.topic;
        options := one.options;
        data := one.data::text;
        count := count + 1;
        stored := stored + pg_column_size(one.data);
        told := told + octet_length(data);
        more := count >= rows_max OR stored >= bytes_max OR told >= 4 * bytes_max;
        RETURN NEXT;
        EXIT WHEN more;
    END LOOP;
    CLOSE page;
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

-- Looks what has become visible since the tick `before`, whose snapshot is `seen`. If anything has, or if it is
-- `forced`, it makes the next tick, provided that the caller still leads, and answers it with its first rows. The first
-- line of the answer, without an id, says what was done: `lost` (somebody else leads), `quiet` or `tick`.
CREATE FUNCTION walcast.outbox_look(
    held bigint, before bigint, seen pg_snapshot, forced boolean, rows_max integer, bytes_max bigint)
RETURNS TABLE (
    id bigint, xid bigint, topic text, options text, data text, more boolean,
    done text, snapshot text, high_id bigint, made_us bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    made    pg_snapshot;
    -- Before this transaction has a number.
    low     bigint := (SELECT s.last_value - 1 FROM walcast.outbox_id AS s WHERE pg_current_xact_id_if_assigned() IS NULL);
    high    bigint;
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
    made := pg_current_snapshot();
    high := (SELECT s.last_value FROM walcast.outbox_id AS s);
    INSERT INTO walcast.tick AS t (lane, id, snapshot, low_id, high_id)
    VALUES (walcast.lane(), before + 1, made, coalesce(low, 0), high)
    RETURNING (date_part('epoch', t.made_at) * 1000000)::bigint INTO made_us;
    done := 'tick';
    snapshot := made::text;
    high_id := high;
    RETURN NEXT;
    RETURN QUERY
        SELECT r.*, NULL::text, NULL::text, NULL::bigint, NULL::bigint
        FROM walcast.outbox_rows(held, before, seen, made, high, 0, rows_max, bytes_max) AS r;
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
-- still hold any, and what all of them take on disk, where that can be seen now; both NULL where the caller does not lead. Waits for no lock
-- longer than a moment, and where one is taken lets the lane be.
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
        BEGIN
            EXECUTE format('SELECT EXISTS (SELECT FROM walcast.outbox_%s)', lane) INTO filled;
            CONTINUE WHEN NOT filled;
            holding := holding + 1;
            -- Nobody writes to any other, but transactions that were long on their way; to the next one soon.
            CONTINUE WHEN lane IN (now, (now + 1) % 8, (now + 7) % 8) OR walcast.lane_needed(lane, seen);
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
        BEGIN
            EXECUTE format('SELECT coalesce(max(id) >= $1, true) FROM walcast.tick_%s', lane) INTO needed USING kept;
            -- Only who leads writes ticks, and that is the caller, who holds the reader's row.
            IF NOT needed THEN
                EXECUTE format('TRUNCATE walcast.tick_%s', lane);
            END IF;
        EXCEPTION WHEN lock_not_available THEN
            NULL;
        END;
    END LOOP;
    BEGIN
        bytes := (SELECT sum(pg_total_relation_size(i.inhrelid)) FROM pg_inherits AS i
            WHERE i.inhparent IN ('walcast.outbox'::regclass, 'walcast.tick'::regclass));
    EXCEPTION WHEN lock_not_available THEN
        NULL;
    END;
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
        INSERT INTO walcast.tick (lane, id, snapshot, high_id)
        SELECT walcast.lane(), newest, pg_current_snapshot(), s.last_value FROM walcast.outbox_id AS s;
        UPDATE walcast.outbox_reader AS r
        SET last = newest, kept = newest, quiet_tick = newest + 1, quiet_ordinal = 0;
    END IF;
    RETURN true;
END $$;

SELECT walcast.withhold('^(outbox|tick|lane|holds_new|news|begins_behind|require_read_committed)');
