-- The log, which is the truth, and the projection, which can be made anew from it.
-- Times are integer microseconds of log time. A run has a small number inside the store; its UUID stands in the row
-- of its first event.

-- The truth ---------------------------------------------------------------------------------------------------------

-- Every fact but the plain heartbeats, in the order of commit. A service event has neither run nor version.
CREATE TABLE events (
    position    INTEGER PRIMARY KEY,
    run         INTEGER,
    version     INTEGER,
    recorded_at INTEGER NOT NULL,
    type        TEXT    NOT NULL,
    schema      INTEGER NOT NULL,
    run_id      BLOB,
    body        TEXT    NOT NULL,
    CHECK ((run IS NULL) = (version IS NULL)),
    CHECK ((run_id IS NOT NULL) = (version IS NOT NULL AND version = 1)),
    CHECK (run_id IS NULL OR length(run_id) = 16)
) STRICT;

CREATE UNIQUE INDEX events_stream ON events (run, version) WHERE run IS NOT NULL;
CREATE INDEX events_service ON events (position) WHERE run IS NULL;

-- The plain heartbeats of one commit, packed into one row: which runs, and which versions.
CREATE TABLE beats (
    position    INTEGER PRIMARY KEY,
    recorded_at INTEGER NOT NULL,
    count       INTEGER NOT NULL,
    data        BLOB    NOT NULL
) STRICT;

-- The plain heartbeats of one run, packed, once its tail was full or its attempt ended.
CREATE TABLE segments (
    run           INTEGER NOT NULL,
    first_version INTEGER NOT NULL,
    last_version  INTEGER NOT NULL,
    attempt       INTEGER NOT NULL,
    first_at      INTEGER NOT NULL,
    last_at       INTEGER NOT NULL,
    count         INTEGER NOT NULL,
    data          BLOB    NOT NULL,
    PRIMARY KEY (run, first_version)
) STRICT, WITHOUT ROWID;

-- What is written stays. REPLACE deletes without firing a delete trigger, so it is caught on insert.
CREATE TRIGGER events_no_update BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'lastbeat: events are append-only'); END;
CREATE TRIGGER events_no_delete BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'lastbeat: events are append-only'); END;
CREATE TRIGGER events_no_replace BEFORE INSERT ON events
WHEN EXISTS (SELECT 1 FROM events WHERE position = NEW.position)
  OR EXISTS (SELECT 1 FROM events WHERE run = NEW.run AND version = NEW.version)
BEGIN SELECT RAISE(ABORT, 'lastbeat: events are append-only'); END;

CREATE TRIGGER beats_no_update BEFORE UPDATE ON beats
BEGIN SELECT RAISE(ABORT, 'lastbeat: beats are append-only'); END;
CREATE TRIGGER beats_no_delete BEFORE DELETE ON beats
BEGIN SELECT RAISE(ABORT, 'lastbeat: beats are append-only'); END;
CREATE TRIGGER beats_no_replace BEFORE INSERT ON beats
WHEN EXISTS (SELECT 1 FROM beats WHERE position = NEW.position)
BEGIN SELECT RAISE(ABORT, 'lastbeat: beats are append-only'); END;

CREATE TRIGGER segments_no_update BEFORE UPDATE ON segments
BEGIN SELECT RAISE(ABORT, 'lastbeat: segments are append-only'); END;
CREATE TRIGGER segments_no_delete BEFORE DELETE ON segments
BEGIN SELECT RAISE(ABORT, 'lastbeat: segments are append-only'); END;
CREATE TRIGGER segments_no_replace BEFORE INSERT ON segments
WHEN EXISTS (SELECT 1 FROM segments WHERE run = NEW.run AND first_version = NEW.first_version)
BEGIN SELECT RAISE(ABORT, 'lastbeat: segments are append-only'); END;

-- The projection ----------------------------------------------------------------------------------------------------

-- Each run as its stream says, with the tail of its latest plain heartbeats. No index may mention a heartbeat column.
CREATE TABLE runs (
    number            INTEGER PRIMARY KEY,
    id                BLOB    NOT NULL UNIQUE,
    lane              TEXT    NOT NULL,
    goal              TEXT,
    device            TEXT,
    unique_key        TEXT,
    labels            TEXT    NOT NULL,
    status            TEXT    NOT NULL,
    attempt           INTEGER NOT NULL,
    claim             TEXT,
    executor          TEXT,
    claim_device      TEXT,
    claimed_at        INTEGER,
    claimed_version   INTEGER,
    created_at        INTEGER NOT NULL,
    not_before        INTEGER,
    waiting_fact      TEXT    NOT NULL,
    waiting_version   INTEGER NOT NULL,
    due_at            INTEGER NOT NULL,
    started_at        INTEGER,
    last_beat_at      INTEGER,
    last_beat_version INTEGER,
    beats             INTEGER NOT NULL,
    progress          TEXT,
    cancel_requested  TEXT,
    reaped            TEXT    NOT NULL,
    outcome           TEXT,
    version           INTEGER NOT NULL,
    updated_at        INTEGER NOT NULL,
    quarantined       TEXT,
    tail              BLOB    NOT NULL
) STRICT;

CREATE INDEX runs_queue ON runs (lane, due_at, number) WHERE status = 'pending';
CREATE INDEX runs_open ON runs (lane, number) WHERE status IN ('pending', 'claimed', 'running');
CREATE INDEX runs_lane ON runs (lane, number);
CREATE INDEX runs_goal ON runs (goal, number) WHERE goal IS NOT NULL;
CREATE UNIQUE INDEX runs_open_key ON runs (unique_key)
    WHERE unique_key IS NOT NULL AND status IN ('pending', 'claimed', 'running');

-- When a sweeper should look at a run next. `delay` is how long a lapsed run that may not be reaped was put off.
CREATE TABLE due (
    run      INTEGER PRIMARY KEY,
    check_at INTEGER NOT NULL,
    delay    INTEGER NOT NULL
) STRICT;

CREATE INDEX due_check_at ON due (check_at);

-- The lanes that were ever named. `rearm_after`: the last run that was re-armed since the lane's policy was set, NULL
-- when all were.
CREATE TABLE lanes (
    lane        TEXT PRIMARY KEY,
    rearm_after INTEGER
) STRICT, WITHOUT ROWID;

-- The end of the log: the latest instant that the store holds, and the last numbers that were given out.
CREATE TABLE head (
    id            INTEGER PRIMARY KEY CHECK (id = 1),
    latest_at     INTEGER NOT NULL,
    position      INTEGER NOT NULL,
    beat_position INTEGER NOT NULL,
    run           INTEGER NOT NULL
) STRICT;

INSERT INTO head (id, latest_at, position, beat_position, run) VALUES (1, -62135596800000000, 0, 0, 0);
