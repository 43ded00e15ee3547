-- The heartbeat that last changed a run's progress: the basis of the rule `no_progress`. It stands among the rest of a run's
-- projection, and is found in the log: of the heartbeats of the current attempt that told of progress, the last one that
-- told of other progress than the one before it. Progress stands at the end of a heartbeat's body and is compared as the
-- program wrote it, since it may hold what the database's own JSON cannot.

WITH claimed AS (
    SELECT run, max(version) AS version FROM events WHERE type = 'claimed' GROUP BY run
),
told AS (
    SELECT e.run, e.version, e.recorded_at, e.progress,
        lag(e.progress) OVER (PARTITION BY e.run ORDER BY e.version) AS before
    FROM (SELECT run, version, recorded_at, substr(body, nullif(strpos(body, ',"progress":'), 0)) AS progress
        FROM events WHERE type = 'heartbeat') AS e JOIN claimed AS c ON c.run = e.run AND e.version > c.version
    WHERE e.progress IS NOT NULL
),
changed AS (
    SELECT DISTINCT ON (run) run, version, recorded_at FROM told
    WHERE progress IS DISTINCT FROM before ORDER BY run, version DESC
)
UPDATE runs SET rest = left(rest, -1) || format(',"progress_changed":[%s,%s]}', changed.recorded_at, changed.version)
FROM changed WHERE changed.run = runs.number;
