-- The heartbeat that last changed a run's progress: the basis of the rule `no_progress`. It is found in the log: of the
-- heartbeats of the current attempt that told of progress, the last one that told of other progress than the one before it.

ALTER TABLE runs ADD COLUMN progress_changed_at INTEGER;
ALTER TABLE runs ADD COLUMN progress_changed_version INTEGER;

WITH told AS (
    SELECT e.run, e.version, e.recorded_at, e.body -> '$.progress' AS progress,
        lag(e.body -> '$.progress') OVER (PARTITION BY e.run ORDER BY e.version) AS before
    FROM events AS e JOIN runs AS r ON r.number = e.run
    WHERE r.progress IS NOT NULL AND e.type = 'heartbeat' AND e.version > r.claimed_version
        AND e.body -> '$.progress' IS NOT NULL
),
changed AS (SELECT run, max(version) AS version, recorded_at FROM told WHERE progress IS NOT before GROUP BY run)
UPDATE runs SET progress_changed_at = changed.recorded_at, progress_changed_version = changed.version
FROM changed WHERE changed.run = runs.number;
