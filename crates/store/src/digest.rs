//! A digest for each row of the truth, so that `verify` can name a row that was changed behind the store's back.
//!
//! It is the first eight bytes of a SHA-256 over the row's fields, each with its length. It tells accidents and edits
//! by hand; it is no signature, since who can write the file can write the digest too.

use sha2::{Digest, Sha256};

/// Something of a row.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Field<'a> {
    /// A number, or NULL.
    Number(Option<i64>),
    /// Text or bytes, or NULL.
    Bytes(Option<&'a [u8]>),
}

/// Returns the digest of a row.
pub(crate) fn of(fields: &[Field<'_>]) -> i64 {
    let mut hash = Sha256::new();
    for field in fields {
        match field {
            Field::Number(None) => hash.update([0]),
            Field::Number(Some(number)) => {
                hash.update([1]);
                hash.update(number.to_be_bytes());
            }
            Field::Bytes(None) => hash.update([2]),
            Field::Bytes(Some(bytes)) => {
                hash.update([3]);
                hash.update((bytes.len() as u64).to_be_bytes());
                hash.update(bytes);
            }
        }
    }
    let hash: [u8; 32] = hash.finalize().into();
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    i64::from_be_bytes(first)
}

/// Returns the digest of a row of `events`.
#[allow(clippy::too_many_arguments)] // They are the columns.
pub(crate) fn of_event(
    position: i64,
    run: Option<i64>,
    version: Option<i64>,
    recorded_at: i64,
    type_name: &str,
    schema: i64,
    run_id: Option<&[u8]>,
    body: &str,
) -> i64 {
    of(&[
        Field::Number(Some(position)),
        Field::Number(run),
        Field::Number(version),
        Field::Number(Some(recorded_at)),
        Field::Bytes(Some(type_name.as_bytes())),
        Field::Number(Some(schema)),
        Field::Bytes(run_id),
        Field::Bytes(Some(body.as_bytes())),
    ])
}

/// Returns the digest of a row of `beats`.
pub(crate) fn of_beats(position: i64, recorded_at: i64, count: i64, data: &[u8]) -> i64 {
    let number = |number| Field::Number(Some(number));
    of(&[number(position), number(recorded_at), number(count), Field::Bytes(Some(data))])
}

/// Returns the digest of a row of `segments`: its numbers in the order of the columns, and its data.
pub(crate) fn of_segment(numbers: [i64; 7], data: &[u8]) -> i64 {
    let mut fields = numbers.map(|number| Field::Number(Some(number))).to_vec();
    fields.push(Field::Bytes(Some(data)));
    of(&fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_counts_and_none_runs_into_the_next() {
        let row = |type_name, body| of_event(1, Some(2), Some(3), 4, type_name, 1, None, body);
        let same = row("ab", "c");
        assert_eq!(same, row("ab", "c"));
        assert_ne!(same, row("a", "bc"));
        assert_ne!(same, of_event(1, Some(2), Some(3), 5, "ab", 1, None, "c"));
        assert_ne!(of(&[Field::Number(None)]), of(&[Field::Bytes(None)]));
    }
}
