//! What the user is told when a command fails: a code for programs and a sentence for people.

use std::borrow::Cow;

use lastbeat_client::ClientError;
use lastbeat_domain::decide::Refusal;
use lastbeat_store::{CommandError, ImportError, StoreError};
use lastbeat_wire::answers::AskError;

/// A command that failed; the process exits with 1.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Cow<'static, str>,
    pub(crate) message: String,
    /// Whether the same may succeed later: the database or the server is away.
    pub(crate) transient: bool,
}

impl Failure {
    pub(crate) fn new(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Failure {
        Failure { code: code.into(), message: message.into(), transient: false }
    }

    /// Says whether the run is no longer the executor's.
    pub(crate) fn is_fenced(&self) -> bool {
        matches!(&*self.code, "stale_attempt" | "settled")
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        let code = match &error {
            StoreError::Unavailable(_) => "unavailable",
            StoreError::NoDatabase { .. } => "no_database",
            StoreError::BadUrl(_) | StoreError::NoUser(_) => "bad_database_url",
            StoreError::NotMigrated { .. } => "not_migrated",
            StoreError::ServerTooOld { .. } => "server_too_old",
            StoreError::BadRole(_) => "invalid",
            StoreError::NoRight(_) => "no_right",
            StoreError::Unsupported(_) => "unsupported",
            StoreError::Unreadable { .. } => "unreadable_database",
            StoreError::SchemaTooNew { .. } => "schema_too_new",
            StoreError::Corrupt(_) | StoreError::CorruptStream { .. } => "corrupt",
            StoreError::Exists { .. } => "exists",
            StoreError::Stopped => "timeout",
            StoreError::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe => "broken_pipe",
            _ => "internal",
        };
        Failure { transient: error.is_transient(), ..Failure::new(code, error.to_string()) }
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Failure {
        match (error.code(), error) {
            (_, AskError::Store(error)) => error.into(),
            (code, error) => Failure::new(code.unwrap_or("internal"), error.to_string()),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        // A server that fails is no better than one that is not there.
        let failed = error.problem().is_some_and(|problem| problem.status >= 500);
        let transient = error.is_transient() || failed;
        Failure { transient, ..Failure::new(error.code().to_owned(), error.to_string()) }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        Failure::new(refusal.code.as_str(), refusal.message)
    }
}

impl From<CommandError> for Failure {
    fn from(error: CommandError) -> Failure {
        match error {
            CommandError::Refused(refusal) => refusal.into(),
            CommandError::Failed(error) => error.into(),
        }
    }
}

impl From<ImportError> for Failure {
    fn from(error: ImportError) -> Failure {
        match error {
            ImportError::Store(error) => error.into(),
            ImportError::BadLine { .. } | ImportError::LogNotEmpty { .. } => {
                Failure::new("bad_line", error.to_string())
            }
            ImportError::NotEmpty => Failure::new("not_empty", error.to_string()),
            ImportError::Read(_) => Failure::new("unreadable_file", error.to_string()),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        let code = if error.kind() == std::io::ErrorKind::BrokenPipe { "broken_pipe" } else { "io" };
        Failure::new(code, error.to_string())
    }
}
