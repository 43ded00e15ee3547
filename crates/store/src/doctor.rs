//! What `doctor` finds.

use serde::Serialize;

/// How well something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// As it should be.
    Fine,
    /// Nothing is lost, but somebody should look at it.
    Warning,
    /// It does not work, or may lose something.
    Bad,
}

impl Health {
    /// Returns the word for it in JSON and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Health::Fine => "fine",
            Health::Warning => "warning",
            Health::Bad => "bad",
        }
    }
}

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How it is.
    pub health: Health,
    /// What was found.
    pub found: String,
    /// What to do about it, if it is not fine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<&'static str>,
}

impl Check {
    pub(crate) fn fine(name: &'static str, found: impl Into<String>) -> Check {
        Check { name, health: Health::Fine, found: found.into(), advice: None }
    }

    pub(crate) fn warning(name: &'static str, found: impl Into<String>, advice: &'static str) -> Check {
        Check { name, health: Health::Warning, found: found.into(), advice: Some(advice) }
    }

    pub(crate) fn bad(name: &'static str, found: impl Into<String>, advice: &'static str) -> Check {
        Check { name, health: Health::Bad, found: found.into(), advice: Some(advice) }
    }
}
