//! What can go wrong between a client and its servers.

use lastbeat_wire::{Directive, Problem};

/// A call that has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// An address is none.
    #[error("`{address}` is not the address of a server: {why}; write it like http://127.0.0.1:7171")]
    BadAddress {
        /// The address.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// The client cannot be made.
    #[error("the HTTP client cannot be made: {0}")]
    Setup(String),
    /// The server refused: it answered with a problem.
    #[error("{}", said(.0))]
    Refused(Box<Problem>),
    /// No server answered for as long as the caller is patient; the request was not carried out, or repeating it is
    /// harmless.
    #[error("no server answered ({addresses}): {why}")]
    Unreachable {
        /// The addresses that were tried.
        addresses: String,
        /// Why the last try failed.
        why: String,
    },
    /// The answer to a request that must not be repeated was lost: it may have been carried out.
    #[error("the answer was lost: {why}; look whether it was carried out before you try again")]
    OutcomeUnknown {
        /// How it was lost.
        why: String,
    },
    /// The server's answer cannot be read.
    #[error("the answer of {address} cannot be read: {why}; is that a Lastbeat server?")]
    BadAnswer {
        /// The server.
        address: String,
        /// What is wrong with the answer.
        why: String,
    },
}

fn said(problem: &Problem) -> String {
    match (problem.detail.is_empty(), problem.title.is_empty()) {
        (false, _) => problem.detail.clone(),
        (true, false) => format!("the server answered {}: {}", problem.status, problem.title),
        (true, true) => format!("the server answered {}", problem.status),
    }
}

impl ClientError {
    /// Returns the problem with which a server answered, if it did.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            ClientError::Refused(problem) => Some(problem),
            _ => None,
        }
    }

    /// Returns the code of the problem, or a word for what else is the matter.
    pub fn code(&self) -> &str {
        match self {
            ClientError::Refused(problem) if problem.code.is_empty() => "refused",
            ClientError::Refused(problem) => &problem.code,
            ClientError::BadAddress { .. } => "bad_server_url",
            ClientError::Setup(_) => "internal",
            ClientError::Unreachable { .. } => "unavailable",
            ClientError::OutcomeUnknown { .. } => "outcome_unknown",
            ClientError::BadAnswer { .. } => "bad_answer",
        }
    }

    /// Says whether the run is no longer the caller's: another attempt goes on, or it ended.
    pub fn is_fenced(&self) -> bool {
        self.problem().is_some_and(|problem| {
            problem.directive == Some(Directive::Stop) || matches!(problem.code.as_str(), "stale_attempt" | "settled")
        })
    }

    /// Says whether the same may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            ClientError::Unreachable { .. } => true,
            ClientError::Refused(problem) => matches!(problem.status, 429 | 502 | 503 | 504),
            _ => false,
        }
    }
}
