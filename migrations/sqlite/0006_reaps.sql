-- Finding the reaps, and what their executors said afterwards, without reading the log.

CREATE INDEX events_reaps ON events (position)
    WHERE type IN ('timed_out', 'late_signal') OR (type = 'completed' AND instr(body, '"late":true') > 0);
CREATE INDEX events_reaps_of ON events (run, version)
    WHERE type IN ('timed_out', 'late_signal') OR (type = 'completed' AND instr(body, '"late":true') > 0);
