//! Instants and spans, in whole microseconds.
//!
//! A [`Timestamp`] is an instant of the **log clock**: the clock of the store that stamps facts. No executor's clock
//! is ever one. A [`Span`] is a length of time and never negative.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, SecondsFormat};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const MICROS_PER_SECOND: u64 = 1_000_000;

/// An instant of the log clock: microseconds since 1970-01-01T00:00:00Z. Written as RFC 3339 in UTC with six decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The earliest instant that this type holds: 0001-01-01T00:00:00Z.
    pub const MIN: Timestamp = Timestamp(-62_135_596_800_000_000);
    /// The latest instant that this type holds: the last microsecond of the year 9999, the last that RFC 3339 can write.
    pub const MAX: Timestamp = Timestamp(253_402_300_799_999_999);

    /// Makes an instant from microseconds since the Unix epoch, moved into the range from [`Self::MIN`] to [`Self::MAX`].
    pub const fn from_micros(micros: i64) -> Timestamp {
        if micros < Self::MIN.0 {
            Self::MIN
        } else if micros > Self::MAX.0 {
            Self::MAX
        } else {
            Timestamp(micros)
        }
    }

    /// Returns the microseconds since the Unix epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Returns the instant one microsecond later, the smallest step of the log clock.
    #[must_use]
    pub const fn next(self) -> Timestamp {
        Timestamp::from_micros(self.0 + 1)
    }

    /// Returns the instant `span` later, at most [`Self::MAX`].
    #[must_use]
    pub fn plus(self, span: Span) -> Timestamp {
        let micros = i64::try_from(span.0).unwrap_or(i64::MAX);
        Timestamp::from_micros(self.0.saturating_add(micros))
    }

    /// Returns the instant `span` earlier, at least [`Self::MIN`].
    #[must_use]
    pub fn minus(self, span: Span) -> Timestamp {
        let micros = i64::try_from(span.0).unwrap_or(i64::MAX);
        Timestamp::from_micros(self.0.saturating_sub(micros))
    }

    /// Returns how long after `earlier` this instant is; zero if it is not after it.
    pub fn since(self, earlier: Timestamp) -> Span {
        Span(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Writes the time of day alone, in UTC and whole seconds, as messages for people do: `02:41:03Z`.
    pub fn time_of_day(self) -> String {
        self.date_time().format("%H:%M:%SZ").to_string()
    }

    /// Writes date and time in UTC and whole seconds, for tables: `2026-05-04 02:41:03Z`.
    pub fn to_the_second(self) -> String {
        self.date_time().format("%Y-%m-%d %H:%M:%SZ").to_string()
    }

    fn date_time(self) -> DateTime<chrono::Utc> {
        // Every value of this type lies within chrono's range, so the epoch is never what is returned.
        DateTime::from_timestamp_micros(self.0).unwrap_or_default()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.date_time().to_rfc3339_opts(SecondsFormat::Micros, true))
    }
}

/// Says why a text is no instant or no span, and what would be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TimeError(String);

impl FromStr for Timestamp {
    type Err = TimeError;

    /// Parses RFC 3339 with any offset.
    ///
    /// # Errors
    /// For anything else, for a leap second, and for fractions finer than a microsecond, which would otherwise be
    /// lost without a word.
    fn from_str(text: &str) -> Result<Timestamp, TimeError> {
        let parsed = DateTime::parse_from_rfc3339(text).map_err(|_| {
            TimeError(format!("`{text}` is not an RFC 3339 instant; write it like 2026-05-04T02:37:00Z"))
        })?;
        let nanos = parsed.timestamp_subsec_nanos();
        if nanos >= 1_000_000_000 {
            return Err(TimeError(format!("`{text}` is a leap second, which the log clock does not have")));
        }
        if nanos % 1_000 != 0 {
            return Err(TimeError(format!("`{text}` is finer than a microsecond; give at most six decimals")));
        }
        let micros = parsed.timestamp_micros();
        if !(Self::MIN.0..=Self::MAX.0).contains(&micros) {
            return Err(TimeError(format!("`{text}` is outside the years 1 to 9999")));
        }
        Ok(Timestamp(micros))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// A length of time in whole microseconds. In JSON it is a number of seconds, exact to the microsecond; on the
/// command line it is written `90s`, `3m`, `1h30m`, `500ms`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(u64);

impl Span {
    /// No time at all.
    pub const ZERO: Span = Span(0);
    /// The longest span that may be configured: 100 years of 365 days. It keeps every sum of an instant and a span in range.
    pub const MAX: Span = Span::from_seconds(100 * 365 * 86_400);

    /// Makes a span of whole microseconds.
    pub const fn from_micros(micros: u64) -> Span {
        Span(micros)
    }

    /// Makes a span of whole milliseconds.
    pub const fn from_millis(millis: u64) -> Span {
        Span(millis.saturating_mul(1_000))
    }

    /// Makes a span of whole seconds.
    pub const fn from_seconds(seconds: u64) -> Span {
        Span(seconds.saturating_mul(MICROS_PER_SECOND))
    }

    /// Returns the whole microseconds.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Returns the span as the standard library's type, for timers.
    pub const fn to_std(self) -> std::time::Duration {
        std::time::Duration::from_micros(self.0)
    }

    /// Returns the span in seconds, for JSON and metrics. Exact to the microsecond up to 285 years.
    #[allow(clippy::cast_precision_loss)]
    pub fn as_seconds(self) -> f64 {
        self.0 as f64 / MICROS_PER_SECOND as f64
    }

    /// Adds two spans, at most `u64::MAX` microseconds.
    #[must_use]
    pub const fn plus(self, other: Span) -> Span {
        Span(self.0.saturating_add(other.0))
    }

    /// Subtracts `other`; zero if it is the longer one.
    #[must_use]
    pub const fn minus(self, other: Span) -> Span {
        Span(self.0.saturating_sub(other.0))
    }

    /// Multiplies the span, at most `u64::MAX` microseconds.
    #[must_use]
    pub const fn times(self, factor: u64) -> Span {
        Span(self.0.saturating_mul(factor))
    }

    /// Returns half as much again: one and a half times this span.
    #[must_use]
    pub const fn and_a_half(self) -> Span {
        Span(self.0.saturating_add(self.0 / 2))
    }
}

impl fmt::Display for Span {
    /// Writes the span for people: `3m 12s`, `2h 0m 5s`, `1.25s`. From a minute on, fractions of a second are left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.0 / MICROS_PER_SECOND;
        if whole < 60 {
            return write_seconds(f, self.0);
        }
        let parts = [(whole / 86_400, "d"), (whole / 3_600 % 24, "h"), (whole / 60 % 60, "m"), (whole % 60, "s")];
        let first = parts.iter().position(|(count, _)| *count > 0).unwrap_or(3);
        let last = parts.iter().rposition(|(count, _)| *count > 0).unwrap_or(3);
        for (index, (count, unit)) in parts.iter().enumerate().take(last + 1).skip(first) {
            let space = if index == first { "" } else { " " };
            write!(f, "{space}{count}{unit}")?;
        }
        Ok(())
    }
}

/// Writes less than a minute in seconds, to the millisecond, or to the microsecond where that is all there is.
fn write_seconds(f: &mut fmt::Formatter<'_>, micros: u64) -> fmt::Result {
    let (whole, fraction) = (micros / MICROS_PER_SECOND, micros % MICROS_PER_SECOND);
    let digits =
        if whole == 0 && fraction < 1_000 { format!("{fraction:06}") } else { format!("{:03}", fraction / 1_000) };
    let digits = digits.trim_end_matches('0');
    if digits.is_empty() { write!(f, "{whole}s") } else { write!(f, "{whole}.{digits}s") }
}

impl FromStr for Span {
    type Err = TimeError;

    /// Parses `90s`, `3m`, `2h`, `1h30m`, `1d`, `500ms`, `1.5s`: numbers with a unit, largest unit first.
    ///
    /// # Errors
    /// For a number without a unit, an unknown unit, units out of order, a fraction finer than a microsecond, and
    /// more than 100 years.
    fn from_str(text: &str) -> Result<Span, TimeError> {
        let bad = |why: &str| TimeError(format!("`{text}` is not a duration: {why}; write it like 90s, 3m or 1h30m"));
        let mut rest = text.trim();
        let (mut total, mut previous) = (0_u64, u64::MAX);
        if rest.is_empty() {
            return Err(bad("it is empty"));
        }
        while !rest.is_empty() {
            let number_ends = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
            let (number, tail) = rest.split_at(number_ends);
            let unit_ends = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_ends);
            let micros_per_unit = match unit {
                "d" => 86_400 * MICROS_PER_SECOND,
                "h" => 3_600 * MICROS_PER_SECOND,
                "m" => 60 * MICROS_PER_SECOND,
                "s" => MICROS_PER_SECOND,
                "ms" => 1_000,
                "us" => 1,
                "" => return Err(bad("it has no unit")),
                _ => return Err(bad("the units are d, h, m, s, ms and us")),
            };
            if micros_per_unit >= previous {
                return Err(bad("its units are not in falling order"));
            }
            previous = micros_per_unit;
            let part = parse_decimal(number, micros_per_unit).ok_or_else(|| bad("its number cannot be read"))?;
            total = total.checked_add(part).ok_or_else(|| bad("it is over 100 years"))?;
            rest = tail;
        }
        if total > Span::MAX.0 { Err(bad("it is over 100 years")) } else { Ok(Span(total)) }
    }
}

/// Multiplies a decimal number by `scale` exactly; `None` if it is no number or the product is no whole number.
fn parse_decimal(number: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || fraction.len() > 9 {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let denominator = 10_u64.pow(u32::try_from(fraction.len()).ok()?);
    let numerator: u64 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let scaled = u128::from(numerator) * u128::from(scale);
    if scaled % u128::from(denominator) != 0 {
        return None;
    }
    let fraction_part = u64::try_from(scaled / u128::from(denominator)).ok()?;
    whole.checked_mul(scale)?.checked_add(fraction_part)
}

impl Serialize for Span {
    /// Writes seconds: a whole number where it is one.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(MICROS_PER_SECOND) {
            serializer.serialize_u64(self.0 / MICROS_PER_SECOND)
        } else {
            serializer.serialize_f64(self.as_seconds())
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        if !seconds.is_finite() || seconds < 0.0 || seconds > Span::MAX.as_seconds() {
            return Err(de::Error::custom(format!("{seconds} is not a number of seconds between 0 and 100 years")));
        }
        let micros = seconds * MICROS_PER_SECOND as f64;
        // A double holds 100 years to within half a microsecond, so what rounds away here was finer than that.
        if (micros - micros.round()).abs() > 0.01_f64.max(micros * 1e-15) {
            return Err(de::Error::custom(format!("{seconds} s is finer than a microsecond")));
        }
        Ok(Span(micros.round() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(text: &str) -> Span {
        text.parse().unwrap()
    }

    #[test]
    fn spans_are_read_as_people_write_them() {
        assert_eq!(span("90s"), Span::from_seconds(90));
        assert_eq!(span("1h30m"), Span::from_seconds(5_400));
        assert_eq!(span("1d"), Span::from_seconds(86_400));
        assert_eq!(span("500ms"), Span::from_millis(500));
        assert_eq!(span("1.5s"), Span::from_millis(1_500));
        assert_eq!(span("0s"), Span::ZERO);
    }

    #[test]
    fn bad_spans_say_what_is_wrong() {
        for (text, reason) in [
            ("", "it is empty"),
            ("90", "it has no unit"),
            ("3 minutes", "it has no unit"),
            ("3min", "the units are"),
            ("30m1h", "falling order"),
            ("1m1m", "falling order"),
            ("-3s", "it has no unit"),
            ("1.5us", "its number cannot be read"),
            ("99999999d", "over 100 years"),
            ("99999999999999999999s", "its number cannot be read"),
        ] {
            let error = text.parse::<Span>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn spans_are_written_as_people_read_them() {
        for (micros, text) in [
            (192_000_000, "3m 12s"),
            (180_000_000, "3m"),
            (7_205_000_000, "2h 0m 5s"),
            (7_200_000_000, "2h"),
            (90_061_000_000, "1d 1h 1m 1s"),
            (1_250_000, "1.25s"),
            (0, "0s"),
            (1, "0.000001s"),
            (59_999_999, "59.999s"),
        ] {
            assert_eq!(Span::from_micros(micros).to_string(), text);
        }
    }

    #[test]
    fn seconds_in_json_are_exact_to_the_microsecond() {
        for micros in [0, 1, 999_999, 1_000_000, 240_000_001, 3_153_599_999_999_999] {
            let json = serde_json::to_string(&Span::from_micros(micros)).unwrap();
            assert_eq!(serde_json::from_str::<Span>(&json).unwrap(), Span::from_micros(micros), "{json}");
        }
        assert_eq!(serde_json::to_string(&Span::from_seconds(180)).unwrap(), "180");
        assert_eq!(serde_json::from_str::<Span>("180.0").unwrap(), Span::from_seconds(180));
        assert!(serde_json::from_str::<Span>("-1").is_err());
        assert!(serde_json::from_str::<Span>("0.0000005").is_err());
    }

    #[test]
    fn instants_keep_every_microsecond() {
        let text = "2026-05-04T02:37:00.000001Z";
        assert_eq!(text.parse::<Timestamp>().unwrap().to_string(), text);
        let offset: Timestamp = "2026-05-04T04:37:00+02:00".parse().unwrap();
        assert_eq!(offset.to_string(), "2026-05-04T02:37:00.000000Z");
        assert_eq!(Timestamp::MAX.to_string(), "9999-12-31T23:59:59.999999Z");
        assert_eq!(Timestamp::MIN.to_string(), "0001-01-01T00:00:00.000000Z");
    }

    #[test]
    fn instants_that_would_lose_something_are_refused() {
        assert!("2026-05-04T02:37:00.0000001Z".parse::<Timestamp>().is_err());
        assert!("2016-12-31T23:59:60Z".parse::<Timestamp>().is_err());
        assert!("yesterday".parse::<Timestamp>().is_err());
        assert!("0000-01-01T00:00:00Z".parse::<Timestamp>().is_err());
    }

    #[test]
    fn arithmetic_stays_in_range() {
        assert_eq!(Timestamp::MAX.next(), Timestamp::MAX);
        assert_eq!(Timestamp::MAX.plus(Span::MAX), Timestamp::MAX);
        assert_eq!(Timestamp::MIN.minus(Span::MAX), Timestamp::MIN);
        assert_eq!(Timestamp::MIN.since(Timestamp::MAX), Span::ZERO);
    }
}
