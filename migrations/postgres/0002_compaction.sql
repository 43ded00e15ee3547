-- Compaction: the one door by which rows of the log go, and only rows whose heartbeats stand elsewhere in it.
--
-- The door is two functions of the role that owns the tables. They check for themselves that nothing is lost, so whoever
-- calls them, with whatever, can lose nothing: not the application's role, and not a program with a mistake in it.

CREATE INDEX events_compacted ON events (position) WHERE type = 'beats_compacted';

-- The tables that a transaction may delete from, while it does. Nobody but the owner has a right to it.
CREATE TABLE open_doors (
    transaction xid8 NOT NULL,
    opens       text NOT NULL,
    PRIMARY KEY (transaction, opens)
);

CREATE OR REPLACE FUNCTION lastbeat_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        IF EXISTS (SELECT FROM open_doors WHERE transaction = pg_current_xact_id() AND opens = TG_TABLE_NAME) THEN
            RETURN NULL;
        END IF;
    END IF;
    RAISE EXCEPTION 'lastbeat: % are append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;

-- The watermark: at or below it no row of `beats` is left.
CREATE FUNCTION lastbeat_compacted_through() RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT coalesce((SELECT (body::json ->> 'through')::bigint FROM events WHERE type = 'beats_compacted'
        ORDER BY position DESC LIMIT 1), 0);
$$;

-- Unpacks a row of `beats`, as the program does: varints, of the steps between run numbers (zigzag) and of versions.
-- Here and below each number is read in place, though that is the same five times over: with a function that reads one it
-- takes more than ten times as long, since each call of it is a query.
CREATE FUNCTION lastbeat_unpack_beats(count bigint, data bytea, OUT run bigint, OUT version bigint)
RETURNS SETOF record LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    -- A copy: what is stored out of line would be fetched for each byte.
    bytes bytea := data || ''::bytea;
    place integer := 0;
    byte  integer;
    shift integer;
    value bigint;
BEGIN
    run := 0;
    FOR n IN 1 .. count LOOP
        value := get_byte(bytes, place);
        place := place + 1;
        IF value > 127 THEN
            value := value & 127;
            shift := 7;
            LOOP
                byte := get_byte(bytes, place);
                place := place + 1;
                value := value | ((byte & 127)::bigint << shift);
                EXIT WHEN byte < 128;
                shift := shift + 7;
            END LOOP;
        END IF;
        run := run + (((value >> 1) & 9223372036854775807) # -(value & 1));
        version := get_byte(bytes, place);
        place := place + 1;
        IF version > 127 THEN
            version := version & 127;
            shift := 7;
            LOOP
                byte := get_byte(bytes, place);
                place := place + 1;
                version := version | ((byte & 127)::bigint << shift);
                EXIT WHEN byte < 128;
                shift := shift + 7;
            END LOOP;
        END IF;
        RETURN NEXT;
    END LOOP;
    IF place <> length(bytes) THEN
        RAISE EXCEPTION 'lastbeat: packed heartbeats cannot be unpacked' USING ERRCODE = 'restrict_violation';
    END IF;
END $$;

-- Unpacks a row of `segments`: the number of stretches, (gap, length) of each; then zigzag varints of how much each step
-- between two instants is longer than the one before.
CREATE FUNCTION lastbeat_unpack_segment(
    first_version bigint, first_at bigint, count bigint, data bytea, OUT version bigint, OUT at bigint
) RETURNS SETOF record LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    bytes   bytea := data || ''::bytea;
    place   integer := 0;
    numbers bigint[] := '{}';
    wanted  bigint := 1;
    step    bigint := 0;
    left_over bigint := 0;
    stretch integer := 0;
    byte    integer;
    shift   integer;
    value   bigint;
BEGIN
    WHILE wanted > 0 LOOP
        value := get_byte(bytes, place);
        place := place + 1;
        IF value > 127 THEN
            value := value & 127;
            shift := 7;
            LOOP
                byte := get_byte(bytes, place);
                place := place + 1;
                value := value | ((byte & 127)::bigint << shift);
                EXIT WHEN byte < 128;
                shift := shift + 7;
            END LOOP;
        END IF;
        numbers := numbers || value;
        wanted := CASE WHEN cardinality(numbers) = 1 THEN 2 * value ELSE wanted - 1 END;
    END LOOP;
    version := first_version - 1;
    at := first_at;
    FOR n IN 1 .. count LOOP
        WHILE left_over = 0 LOOP
            stretch := stretch + 2;
            version := version + numbers[stretch];
            left_over := numbers[stretch + 1];
        END LOOP;
        left_over := left_over - 1;
        version := version + 1;
        IF n > 1 THEN
            value := get_byte(bytes, place);
            place := place + 1;
            IF value > 127 THEN
                value := value & 127;
                shift := 7;
                LOOP
                    byte := get_byte(bytes, place);
                    place := place + 1;
                    value := value | ((byte & 127)::bigint << shift);
                    EXIT WHEN byte < 128;
                    shift := shift + 7;
                END LOOP;
            END IF;
            step := step + (((value >> 1) & 9223372036854775807) # -(value & 1));
            at := at + step;
        END IF;
        RETURN NEXT;
    END LOOP;
    IF place <> length(bytes) OR left_over <> 0 OR stretch + 1 <> cardinality(numbers) THEN
        RAISE EXCEPTION 'lastbeat: packed heartbeats cannot be unpacked' USING ERRCODE = 'restrict_violation';
    END IF;
END $$;

-- The first eight bytes of a SHA-256, as the program takes them for digests.
CREATE FUNCTION lastbeat_digest_of(fields bytea) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT ('x' || encode(substring(sha256($1) FROM 1 FOR 8), 'hex'))::bit(64)::bigint;
$$;

CREATE FUNCTION lastbeat_segment_digest(
    run bigint, first_version bigint, last_version bigint, attempt bigint, first_at bigint, last_at bigint, count bigint,
    data bytea
) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT lastbeat_digest_of('\x01'::bytea || int8send($1) || '\x01'::bytea || int8send($2) || '\x01'::bytea
        || int8send($3) || '\x01'::bytea || int8send($4) || '\x01'::bytea || int8send($5) || '\x01'::bytea
        || int8send($6) || '\x01'::bytea || int8send($7) || '\x03'::bytea || int8send(octet_length($8)) || $8);
$$;

-- Keeps whatever compacts from whatever else does, and from rebuilds, until the end of the transaction.
CREATE FUNCTION lastbeat_lock_compaction() RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('lastbeat compaction'), hashtext(current_schema())) THEN
        RAISE EXCEPTION 'another compaction, or a rebuild, is under way' USING ERRCODE = 'lock_not_available';
    END IF;
END $$;

-- Moves the watermark to the row `through`: makes sure that each heartbeat up to it stands in a segment, at its instant,
-- drops the rows, and leaves the event. The log is locked for the event alone.
CREATE FUNCTION lastbeat_compact(through bigint, simulated bigint, OUT dropped bigint, OUT beats bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET enable_seqscan = off SET jit = off SET work_mem = '32MB' AS $$
DECLARE
    behind  bigint := lastbeat_compacted_through();
    checked bigint;
    lost    record;
    log     record;
    stamp   bigint;
    said    text;
BEGIN
    PERFORM lastbeat_lock_compaction();
    IF through <= behind OR through >= (SELECT max(b.position) FROM beats b) THEN
        RAISE EXCEPTION 'lastbeat: row % of beats cannot go: % and before are gone, and the last row stays', through, behind
            USING ERRCODE = 'restrict_violation';
    END IF;
    SELECT count(*), coalesce(sum(b.count), 0) INTO checked, beats
        FROM beats b WHERE b.position > behind AND b.position <= through;
    WITH packed AS MATERIALIZED (
        SELECT b.recorded_at, b.count, b.data,
            b.digest = lastbeat_beats_digest(b.position, b.recorded_at, b.count, b.data) AS sound
        FROM beats b WHERE b.position > behind AND b.position <= through
    ), heard AS MATERIALIZED (
        SELECT u.run, u.version, p.recorded_at, p.sound FROM packed p, lastbeat_unpack_beats(p.count, p.data) u
    ), extent AS MATERIALIZED (
        SELECT h.run, min(h.version) AS first, max(h.version) AS last FROM heard h GROUP BY h.run
    ), kept AS MATERIALIZED (
        -- The segments of a run do not overlap, so the one that holds a version is the last that begins by then.
        SELECT s.run, u.version, u.at FROM extent e
            JOIN LATERAL (SELECT coalesce(max(f.first_version), e.first) AS first_version FROM segments f
                WHERE f.run = e.run AND f.first_version <= e.first) begins ON true
            JOIN segments s ON s.run = e.run AND s.first_version >= begins.first_version AND s.first_version <= e.last,
            lastbeat_unpack_segment(s.first_version, s.first_at, s.count, s.data) u
    )
    SELECT h.run, h.version, h.sound INTO lost FROM heard h
        LEFT JOIN kept k ON k.run = h.run AND k.version = h.version AND k.at = h.recorded_at
        WHERE k.run IS NULL OR NOT h.sound LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'version % of run number % is in no segment, or its row was changed; nothing was dropped',
            lost.version, lost.run USING ERRCODE = 'restrict_violation';
    END IF;
    INSERT INTO open_doors VALUES (pg_current_xact_id(), 'beats');
    DELETE FROM beats b WHERE b.position <= through;
    GET DIAGNOSTICS dropped = ROW_COUNT;
    DELETE FROM open_doors;
    IF dropped <> checked THEN
        RAISE EXCEPTION 'lastbeat: beats up to % are not those that were checked', through
            USING ERRCODE = 'restrict_violation';
    END IF;
    SELECT * INTO log FROM lastbeat_lock_log(simulated);
    stamp := greatest(log.clock, log.latest_at + 1);
    said := format('{"type":"beats_compacted","through":%s,"rows":%s,"beats":%s}', through, dropped, beats);
    INSERT INTO events (position, recorded_at, schema, digest, type, body) VALUES (
        log.position + 1, stamp, 1,
        lastbeat_digest_of('\x01'::bytea || int8send(log.position + 1) || '\x0000'::bytea || '\x01'::bytea
            || int8send(stamp) || '\x03'::bytea || int8send(octet_length('beats_compacted'))
            || convert_to('beats_compacted', 'UTF8') || '\x01'::bytea || int8send(1) || '\x02'::bytea || '\x03'::bytea
            || int8send(octet_length(said)) || convert_to(said, 'UTF8')),
        'beats_compacted', said);
END $$;

-- Puts merged segments in the place of those that they cover, once it is sure that they hold the same heartbeats: no more
-- and no fewer. Returns how many went.
CREATE FUNCTION lastbeat_merge_segments(
    runs bigint[], first_versions bigint[], last_versions bigint[], attempts bigint[], first_ats bigint[],
    last_ats bigint[], counts bigint[], packed bytea[]
) RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET enable_seqscan = off SET jit = off SET work_mem = '32MB' AS $$
DECLARE
    wrong   record;
    checked bigint;
    merged  bigint;
BEGIN
    PERFORM lastbeat_lock_compaction();
    SELECT count(*) INTO checked
        FROM unnest(runs, first_versions, last_versions, attempts) AS w(run, first_version, last_version, attempt)
            JOIN segments s ON s.run = w.run AND s.attempt = w.attempt
                AND s.first_version BETWEEN w.first_version AND w.last_version;
    WITH whole AS MATERIALIZED (
        SELECT w.ordinal, w.run, w.attempt, w.last_version, w.last_at, u.version, u.at
        FROM unnest(runs, first_versions, last_versions, attempts, first_ats, last_ats, counts, packed)
            WITH ORDINALITY AS w(run, first_version, last_version, attempt, first_at, last_at, count, data, ordinal),
            lastbeat_unpack_segment(w.first_version, w.first_at, w.count, w.data) u
    ), parts AS MATERIALIZED (
        SELECT w.ordinal, u.version, u.at, s.digest = lastbeat_segment_digest(s.run, s.first_version, s.last_version,
            s.attempt, s.first_at, s.last_at, s.count, s.data) AS sound
        FROM unnest(runs, first_versions, last_versions, attempts)
            WITH ORDINALITY AS w(run, first_version, last_version, attempt, ordinal)
            JOIN segments s ON s.run = w.run AND s.attempt = w.attempt
                AND s.first_version BETWEEN w.first_version AND w.last_version,
            lastbeat_unpack_segment(s.first_version, s.first_at, s.count, s.data) u
    ), ends AS (
        SELECT w.ordinal FROM whole w GROUP BY w.ordinal, w.last_version, w.last_at
        HAVING max(w.version) <> w.last_version OR max(w.at) <> w.last_at
    )
    SELECT ordinal INTO wrong FROM (
        SELECT coalesce(w.ordinal, p.ordinal) AS ordinal FROM whole w
            FULL JOIN parts p ON p.ordinal = w.ordinal AND p.version = w.version AND p.at = w.at
            WHERE w.ordinal IS NULL OR p.ordinal IS NULL OR NOT p.sound
        UNION ALL SELECT ordinal FROM ends
    ) AS problems LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'the merged segment of run number % from version % on does not hold what those in its place hold, or '
            'one of them was changed; nothing was merged', runs[wrong.ordinal], first_versions[wrong.ordinal]
            USING ERRCODE = 'restrict_violation';
    END IF;
    INSERT INTO open_doors VALUES (pg_current_xact_id(), 'segments');
    DELETE FROM segments s
        USING unnest(runs, first_versions, last_versions, attempts) AS w(run, first_version, last_version, attempt)
        WHERE s.run = w.run AND s.attempt = w.attempt AND s.first_version BETWEEN w.first_version AND w.last_version;
    GET DIAGNOSTICS merged = ROW_COUNT;
    DELETE FROM open_doors;
    IF merged <> checked THEN
        RAISE EXCEPTION 'lastbeat: the segments are not those that were checked' USING ERRCODE = 'restrict_violation';
    END IF;
    INSERT INTO segments (run, first_version, last_version, attempt, first_at, last_at, count, digest, data)
        SELECT w.run, w.first_version, w.last_version, w.attempt, w.first_at, w.last_at, w.count,
            lastbeat_segment_digest(w.run, w.first_version, w.last_version, w.attempt, w.first_at, w.last_at, w.count,
                w.data), w.data
        FROM unnest(runs, first_versions, last_versions, attempts, first_ats, last_ats, counts, packed)
            AS w(run, first_version, last_version, attempt, first_at, last_at, count, data);
    RETURN merged;
END $$;

-- What runs with the owner's rights finds its tables in this schema alone: a session's temporary ones come last, so nobody
-- can put others in their place. Those may call it who may append to the log.
DO $$
DECLARE
    door  text;
    grantee text;
BEGIN
    EXECUTE format('ALTER FUNCTION lastbeat_append_only() SET search_path = %I, pg_temp', current_schema());
    FOREACH door IN ARRAY ARRAY[
        'lastbeat_compact(bigint, bigint)',
        'lastbeat_merge_segments(bigint[], bigint[], bigint[], bigint[], bigint[], bigint[], bigint[], bytea[])'
    ] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', door, current_schema());
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', door);
        FOR grantee IN
            SELECT r.rolname FROM pg_class c, aclexplode(c.relacl) a JOIN pg_roles r ON r.oid = a.grantee
            WHERE c.oid = 'beats'::regclass AND a.privilege_type = 'INSERT' AND a.grantee <> c.relowner
        LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', door, grantee);
        END LOOP;
    END LOOP;
END $$;
