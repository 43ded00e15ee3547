//! What went wrong, as RFC 9457 has it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::heartbeat::Directive;

/// A problem: the body of every answer that is no success, as `application/problem+json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// Identifies the kind of problem; `about:blank` where `code` says all.
    #[serde(rename = "type", default = "about_blank")]
    pub kind: String,
    /// The kind of problem in a few words.
    #[serde(default)]
    pub title: String,
    /// The status of the answer.
    #[serde(default)]
    pub status: u16,
    /// What is the matter, and what to do.
    #[serde(default)]
    pub detail: String,
    /// What is the matter, for programs: the code that the command line prints, too.
    #[serde(default)]
    pub code: String,
    /// The path that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub instance: Option<String>,
    /// The id of the request, which the server's log names too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub request_id: Option<String>,
    /// What the executor is to do, where a report was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub directive: Option<Directive>,
    /// What else is to be known of this kind of problem.
    #[serde(flatten)]
    #[cfg_attr(feature = "openapi", schema(value_type = std::collections::HashMap<String, Value>))]
    pub extensions: Map<String, Value>,
}

/// The media type of a problem.
pub const PROBLEM_JSON: &str = "application/problem+json";

fn about_blank() -> String {
    "about:blank".to_owned()
}

impl Problem {
    /// Makes a problem.
    pub fn new(status: u16, title: impl Into<String>, code: impl Into<String>, detail: impl Into<String>) -> Problem {
        let (title, code, detail) = (title.into(), code.into(), detail.into());
        Problem { kind: about_blank(), title, status, detail, code, ..Problem::default() }
    }

    /// Adds what else is to be known.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Problem {
        self.extensions.insert(name.to_owned(), value.into());
        self
    }
}
