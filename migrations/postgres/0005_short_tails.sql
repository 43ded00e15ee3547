-- Narrower rows of `beating`: such an update costs what its row weighs.
--
-- A heartbeat of the tail is four bytes now, the microseconds since the run's fact before, and not its instant and version.
-- The program has written out the tails of the other form as segments before this, in the same transaction.
--
-- A claim is a UUID now. One that is none is left out: of such a run no heartbeat that quotes its claim is accepted here,
-- and each is decided.

-- A view keeps a column that it mentions from changing.
CREATE OR REPLACE VIEW whole_runs AS
SELECT r.number, r.id, r.claimed_at, r.due_at, r.attempt, r.quarantined, r.cancel_requested, r.status, r.claim, r.lane,
    r.goal, r.device, r.unique_key, r.rest,
    coalesce(b.version, r.version) AS version,
    coalesce(b.updated_at, r.updated_at) AS updated_at,
    r.beats + coalesce(b.version - r.version, 0) AS beats,
    CASE WHEN b.version > r.version THEN b.version ELSE r.last_beat_version END AS last_beat_version,
    CASE WHEN b.version > r.version THEN b.updated_at ELSE r.last_beat_at END AS last_beat_at,
    ''::bytea AS tail,
    false AS sound
FROM runs AS r LEFT JOIN beating AS b ON b.id = r.id;

-- A row is put on its page as long as it may become, since an empty tail takes up the room of a full one. So a page that
-- is filled thus far has more room than this when its tails are as full as they are on average, and is cleared of dead
-- versions once in several heartbeats: whoever looks at a page clears it only if less room is left than this.
ALTER TABLE beating SET (fillfactor = 75);

ALTER TABLE beating
    ALTER COLUMN claim TYPE uuid USING CASE
        WHEN claim ~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' THEN claim::uuid
    END,
    ALTER COLUMN tail TYPE bytea USING decode(repeat('00', 120), 'hex');

CREATE OR REPLACE VIEW whole_runs AS
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
            AND (b.claim IS NULL OR b.claim::text IS NOT DISTINCT FROM r.claim)
            AND (b.number, b.claimed_at, b.cancel_requested, b.lane)
                IS NOT DISTINCT FROM (r.number, r.claimed_at, r.cancel_requested, r.lane)) AS sound
FROM runs AS r LEFT JOIN beating AS b ON b.id = r.id;
