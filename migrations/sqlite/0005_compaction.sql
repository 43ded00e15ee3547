-- Compaction: the one door by which rows of the log go, and only rows whose heartbeats stand elsewhere.
--
-- A row of `beats` goes at or below the watermark alone, which is what the last `beats_compacted` event says: so the
-- event comes first, in the same transaction, and it must count what goes with it. A row of `segments` goes when a merged
-- one that covers it waits in `merging`, which is empty outside of a transaction. That each heartbeat of what goes
-- stands in a segment, at its instant, the program checks before it opens the door.

CREATE INDEX events_compacted ON events (position) WHERE type = 'beats_compacted';

CREATE TRIGGER events_compacted_counts BEFORE INSERT ON events
WHEN NEW.type = 'beats_compacted'
  AND EXISTS (SELECT 1 FROM beats WHERE position <= json_extract(NEW.body, '$.through'))
  AND (SELECT count(*) = json_extract(NEW.body, '$.rows') AND sum(count) = json_extract(NEW.body, '$.beats')
              AND json_extract(NEW.body, '$.through') < (SELECT max(position) FROM beats)
       FROM beats WHERE position <= json_extract(NEW.body, '$.through')) IS NOT 1
BEGIN SELECT RAISE(ABORT, 'lastbeat: beats are append-only: the event does not count what would go with it'); END;

DROP TRIGGER beats_no_delete;
CREATE TRIGGER beats_no_delete BEFORE DELETE ON beats
WHEN OLD.position > coalesce((SELECT json_extract(body, '$.through') FROM events WHERE type = 'beats_compacted'
                              ORDER BY position DESC LIMIT 1), 0)
BEGIN SELECT RAISE(ABORT, 'lastbeat: beats are append-only'); END;

-- The segments that are about to take the place of others, for the length of a transaction.
CREATE TABLE merging (
    run           INTEGER NOT NULL,
    first_version INTEGER NOT NULL,
    last_version  INTEGER NOT NULL,
    attempt       INTEGER NOT NULL,
    first_at      INTEGER NOT NULL,
    last_at       INTEGER NOT NULL,
    count         INTEGER NOT NULL,
    data          BLOB    NOT NULL,
    digest        INTEGER NOT NULL,
    PRIMARY KEY (run, first_version)
) STRICT, WITHOUT ROWID;

-- A merged segment holds as many heartbeats as those that it covers, and has their ends.
CREATE TRIGGER merging_counts BEFORE INSERT ON merging
WHEN (SELECT sum(count) IS NEW.count AND min(first_version) IS NEW.first_version AND max(last_version) IS NEW.last_version
             AND min(first_at) IS NEW.first_at AND max(last_at) IS NEW.last_at
      FROM segments WHERE run = NEW.run AND attempt = NEW.attempt
          AND first_version BETWEEN NEW.first_version AND NEW.last_version) IS NOT 1
BEGIN SELECT RAISE(ABORT, 'lastbeat: segments are append-only: the merged one is not what it would replace'); END;
CREATE TRIGGER merging_no_update BEFORE UPDATE ON merging
BEGIN SELECT RAISE(ABORT, 'lastbeat: segments are append-only'); END;

-- It leaves when it has become a segment, and not before.
CREATE TRIGGER merging_is_done BEFORE DELETE ON merging
WHEN NOT EXISTS (SELECT 1 FROM segments AS s WHERE s.run = OLD.run AND s.first_version = OLD.first_version
    AND s.last_version = OLD.last_version AND s.attempt = OLD.attempt AND s.first_at = OLD.first_at
    AND s.last_at = OLD.last_at AND s.count = OLD.count AND s.data = OLD.data AND s.digest = OLD.digest)
BEGIN SELECT RAISE(ABORT, 'lastbeat: segments are append-only: the merged one is not there'); END;

DROP TRIGGER segments_no_delete;
CREATE TRIGGER segments_no_delete BEFORE DELETE ON segments
WHEN NOT EXISTS (SELECT 1 FROM merging AS m WHERE m.run = OLD.run AND m.attempt = OLD.attempt
    AND OLD.first_version BETWEEN m.first_version AND m.last_version)
BEGIN SELECT RAISE(ABORT, 'lastbeat: segments are append-only'); END;
