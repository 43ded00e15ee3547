//! Numbers of attempts, as the description of the API has them: whole, and no larger than an `int32`.
//!
//! JSON knows one kind of number: `2.0` is the integer 2, and some languages write it so. serde would tell the two apart,
//! and take numbers up to 2³² − 1, which the description does not allow.

use std::fmt;

use serde::Deserializer;
use serde::de::{Error, Unexpected, Visitor};

/// The largest number of an attempt.
const ATTEMPT_MAX: u32 = i32::MAX.unsigned_abs();

/// Reads the number of an attempt.
///
/// # Errors
/// If it is no whole number, or out of range.
pub(crate) fn attempt<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    deserializer.deserialize_u32(Attempt)
}

struct Attempt;

impl Visitor<'_> for Attempt {
    type Value = u32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a whole number from 0 to {ATTEMPT_MAX}")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<u32, E> {
        let attempt = u32::try_from(number).ok().filter(|attempt| *attempt <= ATTEMPT_MAX);
        attempt.ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<u32, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(E::invalid_value(Unexpected::Signed(number), &self)),
        }
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // It is whole and in range.
    fn visit_f64<E: Error>(self, number: f64) -> Result<u32, E> {
        if number.fract() == 0.0 && (0.0..=f64::from(ATTEMPT_MAX)).contains(&number) {
            return Ok(number as u32);
        }
        Err(E::invalid_value(Unexpected::Float(number), &self))
    }
}

#[cfg(test)]
mod tests {
    use crate::ReportRequest;

    fn read(attempt: &str) -> Option<u32> {
        let request: Option<ReportRequest> = serde_json::from_str(&format!(r#"{{"attempt":{attempt}}}"#)).ok();
        request.map(|request| request.attempt)
    }

    #[test]
    fn a_whole_number_is_one_however_it_is_written() {
        let written = ["0", "1", "787.0", "7.87e2", "-0.0", "2147483647", "2147483647.0"];
        let read = written.map(read);
        assert_eq!(read, [0, 1, 787, 787, 0, 2_147_483_647, 2_147_483_647].map(Some));
    }

    #[test]
    fn what_the_description_does_not_allow_is_refused() {
        for attempt in
            ["2147483648", "2147483648.0", "4294967295", "1e300", "-1", "-1.0", "1.5", "\"1\"", "true", "null"]
        {
            assert_eq!(read(attempt), None, "{attempt}");
        }
    }
}
