//! What the user is told when a command fails: a code for programs and a sentence for people.

use lastbeat_domain::decide::Refusal;
use lastbeat_domain::{RunId, Timestamp};
use lastbeat_store::{CommandError, ImportError, StoreError};

/// A command that failed; the process exits with 1.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into() }
    }

    pub(crate) fn unknown_run(run: RunId) -> Failure {
        Failure::new("unknown_run", format!("there is no run {run}; `lastbeat run list` shows what there is"))
    }

    pub(crate) fn not_there_yet(run: RunId, at: Timestamp) -> Failure {
        Failure::new(
            "unknown_run",
            format!("run {run} was not there at {at}; `lastbeat history` shows when it was created"),
        )
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
            StoreError::Unsupported(_) => "unsupported",
            StoreError::Unreadable { .. } => "unreadable_database",
            StoreError::SchemaTooNew { .. } => "schema_too_new",
            StoreError::Corrupt(_) | StoreError::CorruptStream { .. } => "corrupt",
            StoreError::Exists { .. } => "exists",
            StoreError::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe => "broken_pipe",
            _ => "internal",
        };
        Failure::new(code, error.to_string())
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
