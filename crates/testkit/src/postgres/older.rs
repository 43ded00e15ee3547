//! Databases as older programs made them.

/// The statements that take a database back to the fourth schema, in which a tail had twelve bytes for a heartbeat, the
/// newest in front: its instant, and the lower half of its version; and a claim in `beating` was a text. What a full tail
/// says is in a segment too, and nobody reads it: so it is full of nothing.
pub fn fourth_schema() -> String {
    const STEPS: &str = "\
        UPDATE beating AS b SET tail = CASE octet_length(b.tail) WHEN 120 THEN decode(repeat('00', 360), 'hex') \
            ELSE coalesce((SELECT \
            string_agg(int8send(b.updated_at - later) || substring(int8send(b.version - nth) FROM 5), '' ORDER BY nth) \
            FROM (SELECT nth, step, coalesce(sum(CASE WHEN step < 0 THEN -1 - step ELSE step END) OVER (\
                    ORDER BY nth ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)::bigint AS later \
                FROM (SELECT nth, ('x' || encode(substring(b.tail FROM 4 * nth + 1 FOR 4), 'hex'))::bit(32)::integer AS step \
                    FROM generate_series(0, octet_length(b.tail) / 4 - 1) AS nth) AS steps) AS facts \
            WHERE step >= 0), '') END;";
    let first = include_str!("../../../../migrations/postgres/0001_store.sql");
    let part = |from: &str, to: &str| {
        let part = &first[first.find(from).unwrap()..];
        part[..part.find(to).unwrap() + to.len()].to_owned()
    };
    let (view, lock) =
        (part("CREATE VIEW whole_runs", "b.id = r.id;"), part("CREATE FUNCTION lastbeat_lock_runs", "END $$;"));
    let claims = "ALTER TABLE beating ALTER COLUMN claim TYPE text;";
    let version = "DELETE FROM lastbeat_schema WHERE version > 4;";
    format!("DROP FUNCTION lastbeat_lock_runs; DROP VIEW whole_runs; {claims} {STEPS} {view} {lock} {version}")
}
