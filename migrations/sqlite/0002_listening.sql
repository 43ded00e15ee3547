-- The listening record, holds, and a digest for each row of the truth.

-- The processes that listen for executors: when each was last heard of, and by when it promised to be again. NULL: until
-- another one is.
CREATE TABLE beacons (
    process TEXT    PRIMARY KEY,
    role    TEXT    NOT NULL,
    at      INTEGER NOT NULL,
    promise INTEGER
) STRICT, WITHOUT ROWID;

-- A lane that is drained after a hold: from when its next run may be reaped, and the last turn that was given to one.
ALTER TABLE lanes ADD COLUMN reap_at INTEGER;
ALTER TABLE lanes ADD COLUMN turn_at INTEGER;

-- The first eight bytes of the SHA-256 of what a row says; NULL in rows that were written before there was one.
ALTER TABLE events ADD COLUMN digest INTEGER;
ALTER TABLE beats ADD COLUMN digest INTEGER;
ALTER TABLE segments ADD COLUMN digest INTEGER;

-- How much of a lane is silent is counted over its running runs.
CREATE INDEX runs_running ON runs (lane, number) WHERE status = 'running';
