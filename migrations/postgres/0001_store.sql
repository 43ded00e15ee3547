-- The log, which is the truth, and the projection, which can be made anew from it.
-- Times are bigint microseconds of log time. A run has a small number inside the store; its UUID stands in the row of
-- its first event.

-- The truth ---------------------------------------------------------------------------------------------------------

-- Every fact but the plain heartbeats, in the order of commit: positions are drawn under the log lock, which is held
-- until the commit. A service event has neither run nor version.
CREATE TABLE events (
    position    bigint PRIMARY KEY,
    run         bigint,
    version     bigint,
    recorded_at bigint NOT NULL,
    schema      bigint NOT NULL,
    digest      bigint NOT NULL,
    run_id      uuid,
    type        text   NOT NULL,
    body        text   NOT NULL,
    CHECK ((run IS NULL) = (version IS NULL)),
    CHECK ((run_id IS NOT NULL) = (version IS NOT NULL AND version = 1))
);

CREATE UNIQUE INDEX events_stream ON events (run, version) WHERE run IS NOT NULL;
CREATE INDEX events_service ON events (position) WHERE run IS NULL;

-- The plain heartbeats of one commit, packed into one row: which runs, and which versions. `latest_at` is the latest
-- instant of this row and those before it: the stamp of a batch is read before the log lock is taken, so the last row
-- need not be the latest.
CREATE TABLE beats (
    position    bigint PRIMARY KEY,
    recorded_at bigint NOT NULL,
    latest_at   bigint NOT NULL,
    count       bigint NOT NULL,
    digest      bigint NOT NULL,
    data        bytea  NOT NULL
);

-- It is packed already, and read as a whole: compressing it again, or cutting it up, is work for nothing.
ALTER TABLE beats ALTER COLUMN data SET STORAGE EXTERNAL, SET (toast_tuple_target = 8160);

-- The plain heartbeats of one run, packed, once its tail was full or its attempt ended.
CREATE TABLE segments (
    run           bigint NOT NULL,
    first_version bigint NOT NULL,
    last_version  bigint NOT NULL,
    first_at      bigint NOT NULL,
    last_at       bigint NOT NULL,
    digest        bigint NOT NULL,
    attempt       bigint NOT NULL,
    count         bigint NOT NULL,
    data          bytea  NOT NULL,
    PRIMARY KEY (run, first_version)
);

ALTER TABLE segments ALTER COLUMN data SET STORAGE EXTERNAL;

-- What is written stays. An upsert fires the trigger on UPDATE, whether it finds a row or not.
CREATE FUNCTION lastbeat_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'lastbeat: % are append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION lastbeat_append_only();
CREATE TRIGGER beats_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON beats
    FOR EACH STATEMENT EXECUTE FUNCTION lastbeat_append_only();
CREATE TRIGGER segments_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON segments
    FOR EACH STATEMENT EXECUTE FUNCTION lastbeat_append_only();

-- They guard the log in a session that replays another server's changes too.
ALTER TABLE events ENABLE ALWAYS TRIGGER events_append_only;
ALTER TABLE beats ENABLE ALWAYS TRIGGER beats_append_only;
ALTER TABLE segments ENABLE ALWAYS TRIGGER segments_append_only;

-- The projection ----------------------------------------------------------------------------------------------------

-- Each run as its stream says; `rest` is JSON with all that no statement asks for. While a run beats, this is how it
-- stood at its last fact that is no plain heartbeat: those that came since are counted in `beating`.
CREATE TABLE runs (
    number            bigint  PRIMARY KEY,
    id                uuid    NOT NULL UNIQUE,
    claimed_at        bigint,
    due_at            bigint  NOT NULL,
    attempt           integer NOT NULL,
    quarantined       boolean NOT NULL,
    cancel_requested  boolean NOT NULL,
    version           bigint  NOT NULL,
    updated_at        bigint  NOT NULL,
    beats             bigint  NOT NULL,
    last_beat_version bigint,
    last_beat_at      bigint,
    status            text    NOT NULL,
    claim             text,
    lane              text    NOT NULL,
    goal              text,
    device            text,
    unique_key        text,
    rest              text    NOT NULL
) WITH (fillfactor = 80);

CREATE INDEX runs_queue ON runs (lane, due_at, number) WHERE status = 'pending';
CREATE INDEX runs_open ON runs (lane, number) WHERE status IN ('pending', 'claimed', 'running');
CREATE INDEX runs_running ON runs (lane, number) WHERE status = 'running';
CREATE INDEX runs_lane ON runs (lane, number);
CREATE INDEX runs_goal ON runs (goal, number) WHERE goal IS NOT NULL;
CREATE UNIQUE INDEX runs_open_key ON runs (unique_key)
    WHERE unique_key IS NOT NULL AND status IN ('pending', 'claimed', 'running');

-- The runs that beat, and of each no more than it takes to accept a plain heartbeat and to answer it: such an update
-- costs what its row weighs, and each index that must be left alone adds to it. So the columns that have indexes, and
-- those that no heartbeat needs, stay in `runs`. Nothing may be accepted for a row with attempt 0: its run is
-- quarantined.
--
-- What a heartbeat changes stands at the end, side by side: an update's record in the write-ahead log leaves out what
-- the old and the new row have in common at their beginning and at their end. So a heartbeat is put in front of the
-- tail. A tail that is full has been written out as a segment; the next heartbeat replaces it.
--
-- No index may mention a heartbeat column: such an update touches no index then (HOT), as long as its page has room.
CREATE TABLE beating (
    id                uuid    PRIMARY KEY,
    number            bigint  NOT NULL,
    claimed_at        bigint  NOT NULL,
    attempt           integer NOT NULL,
    cancel_requested  boolean NOT NULL,
    claim             text,
    lane              text    NOT NULL,
    version           bigint  NOT NULL,
    updated_at        bigint  NOT NULL,
    tail              bytea   NOT NULL
) WITH (fillfactor = 45);

-- Each run as it stands now: whatever came since its row of `runs` was written is a plain heartbeat. `sound`: whether
-- the two tables say the same of it.
CREATE VIEW whole_runs AS
SELECT r.number, r.id, r.claimed_at, r.due_at, r.attempt, r.quarantined, r.cancel_requested, r.status, r.claim, r.lane,
    r.goal, r.device, r.unique_key, r.rest,
    coalesce(b.version, r.version) AS version,
    coalesce(b.updated_at, r.updated_at) AS updated_at,
    r.beats + coalesce(b.version - r.version, 0) AS beats,
    CASE WHEN b.version > r.version THEN b.version ELSE r.last_beat_version END AS last_beat_version,
    CASE WHEN b.version > r.version THEN b.updated_at ELSE r.last_beat_at END AS last_beat_at,
    coalesce(b.tail, '') AS tail,
    (b.id IS NOT NULL) = (r.status = 'running' AND r.last_beat_at IS NOT NULL)
        AND (b.id IS NULL OR b.version >= r.version
            AND b.attempt = CASE WHEN r.quarantined THEN 0 ELSE r.attempt END
            AND (b.number, b.claimed_at, b.cancel_requested, b.claim, b.lane)
                IS NOT DISTINCT FROM (r.number, r.claimed_at, r.cancel_requested, r.claim, r.lane)) AS sound
FROM runs AS r LEFT JOIN beating AS b ON b.id = r.id;

-- When a sweeper should look at a run next. `delay` is how long a lapsed run that may not be reaped was put off.
CREATE TABLE due (
    run      bigint PRIMARY KEY,
    check_at bigint NOT NULL,
    delay    bigint NOT NULL
) WITH (fillfactor = 80);

CREATE INDEX due_check_at ON due (check_at);

-- The lanes that were ever named. `rearm_after`: the last run that was re-armed since the lane's policy was set, NULL
-- when all were. `reap_at`, `turn_at`: a lane that is drained after a hold: from when its next run may be reaped, and
-- the last turn that was given to one.
CREATE TABLE lanes (
    lane        text PRIMARY KEY,
    rearm_after bigint,
    reap_at     bigint,
    turn_at     bigint
);

-- The processes that listen for executors: when each was last heard of, and by when it promised to be again. NULL:
-- until another one is.
CREATE TABLE beacons (
    process text   PRIMARY KEY,
    role    text   NOT NULL,
    at      bigint NOT NULL,
    promise bigint
);

-- The first answers to creates and claims that were sent with an idempotency key: where in the log they stand.
CREATE TABLE idempotency (
    scope       text    NOT NULL,
    key         text    NOT NULL,
    fingerprint text    NOT NULL,
    run_id      uuid    NOT NULL,
    version     bigint  NOT NULL,
    existing    boolean NOT NULL,
    answered_at bigint  NOT NULL,
    PRIMARY KEY (scope, key)
);

CREATE INDEX idempotency_answered_at ON idempotency (answered_at);

-- How far those have come who follow the log, by the names of their cursors.
CREATE TABLE cursors (
    name     text   PRIMARY KEY,
    position bigint NOT NULL
);

-- The end of the log ------------------------------------------------------------------------------------------------

-- Below which instant and position the log does not begin again, whatever left it: an import brings heartbeats that
-- stand in segments alone, and a beacon that goes takes its instant along. Written then, and not by each commit: a row that every commit updates grows a chain of dead
-- versions as long as anybody reads a long snapshot.
CREATE TABLE head (
    id            boolean PRIMARY KEY DEFAULT true CHECK (id),
    latest_at     bigint NOT NULL,
    beat_position bigint NOT NULL
);

INSERT INTO head (latest_at, beat_position) VALUES (-62135596800000000, 0);

-- The functions are in PL/pgSQL, simple as they are, since it keeps the plans of its statements for the session. Such a
-- plan may be made while a table is still empty, when reading all of it looks cheapest: hence the setting.

-- The latest instant that the store holds, beacons included.
CREATE FUNCTION lastbeat_latest_at() RETURNS bigint LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $$
BEGIN
    RETURN greatest(
        (SELECT h.latest_at FROM head h),
        (SELECT e.recorded_at FROM events e ORDER BY e.position DESC LIMIT 1),
        (SELECT b.latest_at FROM beats b ORDER BY b.position DESC LIMIT 1),
        (SELECT max(b.at) FROM beacons b));
END $$;

-- The clock from which log time is drawn: the database's, unless a test brings its own.
CREATE FUNCTION lastbeat_clock(simulated bigint) RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN coalesce(simulated, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);
END $$;

-- Takes the log lock until the end of the transaction, and then reads the clock and the end of the log. In a function
-- of this kind each statement sees what was committed before it began, so the second one sees what the lock waited for.
CREATE FUNCTION lastbeat_lock_log(
    simulated bigint,
    OUT clock bigint, OUT latest_at bigint, OUT "position" bigint, OUT beat_position bigint, OUT run bigint
) LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('lastbeat log'), hashtext(current_schema()));
    SELECT lastbeat_clock(simulated), lastbeat_latest_at(),
        coalesce((SELECT max(e.position) FROM events e), 0),
        greatest((SELECT max(b.position) FROM beats b), (SELECT h.beat_position FROM head h)),
        greatest((SELECT max(number) FROM runs), (SELECT max(e.run) FROM events e WHERE e.run IS NOT NULL), 0)
    INTO clock, latest_at, "position", beat_position, run;
END $$;

-- Locks runs until the end of the transaction, and returns them as they then are: first their rows of `runs`, in the order
-- of their ids, then those of `beating`. Only who holds the first may make or remove the second. With `skip_locked` runs on
-- which another transaction is at work are left out: also if all it does is to take a heartbeat.
CREATE FUNCTION lastbeat_lock_runs(ids uuid[], skip_locked boolean) RETURNS SETOF whole_runs LANGUAGE plpgsql VOLATILE
    SET enable_seqscan = off AS $$
DECLARE
    held uuid[];
    heard uuid[];
BEGIN
    IF skip_locked THEN
        held := ARRAY(SELECT r.id FROM runs r WHERE r.id = ANY(ids) ORDER BY r.id FOR UPDATE SKIP LOCKED);
        heard := ARRAY(SELECT b.id FROM beating b WHERE b.id = ANY(held) ORDER BY b.id FOR UPDATE SKIP LOCKED);
        RETURN QUERY SELECT w.* FROM whole_runs w WHERE w.id = ANY(held)
            AND (w.id = ANY(heard) OR NOT EXISTS (SELECT FROM beating b WHERE b.id = w.id));
    ELSE
        PERFORM FROM runs r WHERE r.id = ANY(ids) ORDER BY r.id FOR UPDATE;
        PERFORM FROM beating b WHERE b.id = ANY(ids) ORDER BY b.id FOR UPDATE;
        RETURN QUERY SELECT w.* FROM whole_runs w WHERE w.id = ANY(ids);
    END IF;
END $$;

-- The digest of a row of `beats`, as the program computes it: the first eight bytes of the SHA-256 over the fields, each
-- with its kind, and data with its length.
CREATE FUNCTION lastbeat_beats_digest("position" bigint, recorded_at bigint, count bigint, data bytea)
RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT ('x' || encode(substring(sha256(
        '\x01'::bytea || int8send($1) || '\x01'::bytea || int8send($2) || '\x01'::bytea || int8send($3)
        || '\x03'::bytea || int8send(octet_length($4)) || $4) FROM 1 FOR 8), 'hex'))::bit(64)::bigint;
$$;
