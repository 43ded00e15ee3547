-- The first answers to creates and claims that were sent with an idempotency key: where in the log they stand.

CREATE TABLE idempotency (
    scope       TEXT    NOT NULL,
    key         TEXT    NOT NULL,
    fingerprint TEXT    NOT NULL,
    run_id      BLOB    NOT NULL,
    version     INTEGER NOT NULL,
    existing    INTEGER NOT NULL,
    answered_at INTEGER NOT NULL,
    PRIMARY KEY (scope, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_answered_at ON idempotency (answered_at);
