//! Identifiers and names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Identifies a run. The program makes UUID v7; any UUID parses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(Uuid);

impl RunId {
    /// Wraps a UUID.
    pub const fn from_uuid(uuid: Uuid) -> RunId {
        RunId(uuid)
    }

    /// Returns the UUID.
    pub const fn as_uuid(self) -> Uuid {
        self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for RunId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<RunId, NameError> {
        Uuid::parse_str(text).map(RunId).map_err(|_| NameError::NotAUuid(text.chars().take(64).collect()))
    }
}

/// The random half of a fencing token: made anew for each claim, and quoted in every report of that claim.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClaimId(ClaimText);

/// What a claim id says. Two are the same if and only if their texts are: so only the usual form of a UUID is kept as one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum ClaimText {
    Uuid(Uuid),
    Other(Name),
}

impl ClaimId {
    /// Wraps a UUID, the form in which the program makes claim ids.
    pub fn from_uuid(uuid: Uuid) -> ClaimId {
        ClaimId(ClaimText::Uuid(uuid))
    }

    /// Returns the UUID, if the text is one in its usual form: hyphenated, in lower case.
    pub fn as_uuid(&self) -> Option<Uuid> {
        match self.0 {
            ClaimText::Uuid(uuid) => Some(uuid),
            ClaimText::Other(_) => None,
        }
    }
}

impl fmt::Display for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            ClaimText::Uuid(uuid) => fmt::Display::fmt(uuid, f),
            ClaimText::Other(name) => fmt::Display::fmt(name, f),
        }
    }
}

impl FromStr for ClaimId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<ClaimId, NameError> {
        let mut buffer = Uuid::encode_buffer();
        match Uuid::try_parse(text) {
            Ok(uuid) if *uuid.hyphenated().encode_lower(&mut buffer) == *text => Ok(ClaimId::from_uuid(uuid)),
            _ => text.parse().map(|name| ClaimId(ClaimText::Other(name))),
        }
    }
}

impl TryFrom<String> for ClaimId {
    type Error = NameError;

    fn try_from(text: String) -> Result<ClaimId, NameError> {
        text.parse()
    }
}

impl From<ClaimId> for String {
    fn from(claim: ClaimId) -> String {
        claim.to_string()
    }
}

/// The name of a lane, goal, executor, device, label or person: 1 to 256 bytes, printable.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The most bytes of UTF-8 that a name may have.
    pub const BYTES_MAX: usize = 256;

    /// Makes a name.
    ///
    /// # Errors
    /// If the text is empty, longer than [`Self::BYTES_MAX`], or holds a control character (NUL among them).
    pub fn new(text: impl Into<String>) -> Result<Name, NameError> {
        let text = text.into();
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > Self::BYTES_MAX {
            return Err(NameError::TooLong(text.len()));
        }
        if text.chars().any(char::is_control) {
            return Err(NameError::NotPrintable);
        }
        Ok(Name(text))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Name, NameError> {
        Name::new(text)
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Name, NameError> {
        Name::new(text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

/// Says why a text is no identifier or no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A name has at least one character.
    #[error("a name must not be empty")]
    Empty,
    /// A name has at most 256 bytes; this one has so many.
    #[error("a name has at most 256 bytes, this one has {0}")]
    TooLong(usize),
    /// A name has no control characters.
    #[error("a name must be printable: no line breaks, NUL or other control characters")]
    NotPrintable,
    /// A run is identified by a UUID.
    #[error("`{0}` is not a UUID")]
    NotAUuid(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_printable() {
        assert_eq!(Name::new("").unwrap_err(), NameError::Empty);
        assert_eq!(Name::new("a\0b").unwrap_err(), NameError::NotPrintable);
        assert_eq!(Name::new("x".repeat(257)).unwrap_err(), NameError::TooLong(257));
        assert_eq!(Name::new("übung 7").unwrap().as_str(), "übung 7");
    }

    #[test]
    fn a_claim_id_is_the_text_that_it_was_given() {
        for (text, is_uuid) in [
            ("f47ac10b-58cc-4372-a567-0e02b2c3d479", true),
            ("F47AC10B-58CC-4372-A567-0E02B2C3D479", false),
            ("f47ac10b58cc4372a5670e02b2c3d479", false),
            ("{f47ac10b-58cc-4372-a567-0e02b2c3d479}", false),
            ("b1f0", false),
        ] {
            let claim: ClaimId = text.parse().unwrap();
            assert_eq!((claim.to_string().as_str(), claim.as_uuid().is_some()), (text, is_uuid));
        }
        assert!("".parse::<ClaimId>().is_err() && "a\nb".parse::<ClaimId>().is_err());
    }

    #[test]
    fn any_uuid_is_a_run_id() {
        assert!("01930000-0000-7000-8000-000000000001".parse::<RunId>().is_ok());
        assert!("F47AC10B-58CC-4372-A567-0E02B2C3D479".parse::<RunId>().is_ok());
        assert!("watcher-1".parse::<RunId>().is_err());
    }
}
