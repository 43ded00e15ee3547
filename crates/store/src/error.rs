//! What can go wrong in a store, apart from refusals, which are answers.

use lastbeat_domain::decide::Refusal;
use lastbeat_domain::run::EvolveError;
use lastbeat_domain::{RunId, Timestamp};

/// A failure of the store. [`StoreError::is_transient`] says whether trying again can help.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database URL is of no form that this program knows.
    #[error(
        "`{0}` is not a database URL that this program knows; write it like \
             sqlite://lastbeat.db or postgres://user@host/database"
    )]
    BadUrl(String),
    /// The URL of a PostgreSQL server names no user.
    #[error("`{0}` names no user; write it like postgres://user@host/database, or set PGUSER")]
    NoUser(String),
    /// The schema of a PostgreSQL database is not there, or older than this program.
    #[error("the database's schema is version {found}, and this program needs {known}; run `lastbeat migrate`")]
    NotMigrated {
        /// The version of the database; 0 if it was never migrated.
        found: i64,
        /// The version that this program needs.
        known: i64,
    },
    /// The PostgreSQL server is too old.
    #[error("the server is PostgreSQL {found}; at least 15 is needed")]
    ServerTooOld {
        /// The version of the server.
        found: String,
    },
    /// A role's name cannot be taken.
    #[error("`{0}` cannot be the name of a role here; use lower-case letters, digits and underscores")]
    BadRole(String),
    /// The database's role has no right to do it.
    #[error(
        "the database's role may not do that: {0}; `lastbeat migrate --role-setup apply --role NAME`, as the role that \
         migrates, gives it the right"
    )]
    NoRight(String),
    /// This backend does not do that.
    #[error("this program does not do that for PostgreSQL: {0}")]
    Unsupported(&'static str),
    /// There is no database there, and the caller did not come to write.
    #[error("there is no database at {path}; `lastbeat migrate` makes one, and so does the first command that writes")]
    NoDatabase {
        /// The file that is missing.
        path: String,
    },
    /// The file is there, but it is not ours or cannot be read.
    #[error("cannot open {path}: {why}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        why: String,
    },
    /// A newer program has migrated the database.
    #[error(
        "the database's schema is version {found}, and this program knows up to {known}; \
         use the version of the program that migrated it, or a newer one"
    )]
    SchemaTooNew {
        /// The version of the database.
        found: i64,
        /// The newest version that this program knows.
        known: i64,
    },
    /// The linked SQLite has a bug that can corrupt the file.
    #[error("the linked SQLite is {found}; at least {needed} is needed, older ones can corrupt a database in WAL mode")]
    SqliteTooOld {
        /// The version that is linked.
        found: String,
        /// The oldest version that will do.
        needed: &'static str,
    },
    /// The database cannot be reached or written to at the moment.
    #[error("the database is unavailable: {0}; try again")]
    Unavailable(String),
    /// What is stored cannot have been written by a correct program.
    #[error("the database is damaged: {0}; `lastbeat verify` lists all that is wrong")]
    Corrupt(String),
    /// The stream of a run is impossible.
    #[error("the stream of run {run} is damaged: {source}; `lastbeat verify` lists all that is wrong")]
    CorruptStream {
        /// The run.
        run: RunId,
        /// What is impossible about it.
        source: EvolveError,
    },
    /// A statement failed for a reason that lies in its data or in this program.
    #[error("the database refused a statement: {0}")]
    Statement(#[source] sqlx::Error),
    /// The store was closed while the command waited.
    #[error("the store was closed before the command was carried out")]
    Closed,
    /// Whoever asked wanted no answer any longer.
    #[error("the question was broken off before it was answered")]
    Stopped,
    /// A file is there already and is not to be replaced.
    #[error("{path} exists already; name a new file")]
    Exists {
        /// The file.
        path: String,
    },
    /// What was read could not be written out.
    #[error("cannot write the output: {0}")]
    Output(#[source] std::io::Error),
}

impl StoreError {
    /// Says whether the same may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, StoreError::Unavailable(_))
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> StoreError {
        match &error {
            sqlx::Error::Database(database) => {
                let known = match database.try_downcast_ref::<sqlx::postgres::PgDatabaseError>() {
                    Some(postgres) => of_postgres(postgres),
                    None => of_sqlite(database.as_ref()),
                };
                known.unwrap_or(StoreError::Statement(error))
            }
            sqlx::Error::Io(io) => StoreError::Unavailable(io.to_string()),
            sqlx::Error::Tls(tls) => StoreError::Unavailable(tls.to_string()),
            sqlx::Error::Protocol(what) => StoreError::Unavailable(what.clone()),
            sqlx::Error::PoolTimedOut => StoreError::Unavailable("it gave no connection in time".to_owned()),
            sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => StoreError::Closed,
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => StoreError::Corrupt(error.to_string()),
            _ => StoreError::Statement(error),
        }
    }
}

/// What an error of SQLite means. Primary result codes stand in the low byte: <https://sqlite.org/rescode.html>
fn of_sqlite(error: &dyn sqlx::error::DatabaseError) -> Option<StoreError> {
    match error.code().and_then(|code| code.parse::<i32>().ok()).map(|code| code & 0xff) {
        Some(5 | 6) => Some(StoreError::Unavailable("another process keeps it locked".to_owned())),
        Some(8 | 10 | 13 | 14) => Some(StoreError::Unavailable(error.message().to_owned())),
        Some(11 | 26) => Some(StoreError::Corrupt(error.message().to_owned())),
        _ => None,
    }
}

/// What an error of PostgreSQL means: <https://www.postgresql.org/docs/current/errcodes-appendix.html>
fn of_postgres(error: &sqlx::postgres::PgDatabaseError) -> Option<StoreError> {
    let message = error.message().to_owned();
    match error.code() {
        // Lost connections, a server that stops, starts or is full, a read-only one; timeouts, deadlocks.
        "25006" | "25P03" | "40001" | "40P01" | "55P03" | "57014" | "57P01" | "57P02" | "57P03" | "57P05" => {
            Some(StoreError::Unavailable(message))
        }
        code if code.starts_with("08") || code.starts_with("53") || code.starts_with("58") => {
            Some(StoreError::Unavailable(message))
        }
        "42P01" | "42883" => Some(StoreError::NotMigrated { found: 0, known: crate::postgres::SCHEMA_VERSION }),
        code if code.starts_with("28") || code == "3D000" => {
            Some(StoreError::Unreadable { path: "the database".to_owned(), why: message })
        }
        code if code.starts_with("XX00") => Some(StoreError::Corrupt(message)),
        _ => None,
    }
}

/// Cuts user and password out of a URL, for messages.
pub(crate) fn without_password(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 <= at => format!("{}…{}", &url[..scheme + 3], &url[at..]),
        _ => url.to_owned(),
    }
}

/// Why one command of a batch was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It was decided against.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It could not be decided or written.
    #[error(transparent)]
    Failed(#[from] StoreError),
}

/// Why nothing of a file was imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A line cannot be imported.
    #[error("line {line}: {problem}; nothing was imported")]
    BadLine {
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// The store has runs.
    #[error("the store has runs already; import into an empty database, for example with --database sqlite://new.db")]
    NotEmpty,
    /// The file has service lines and the log is not empty.
    #[error("line {line}: service events can only be imported into an empty log; nothing was imported")]
    LogNotEmpty {
        /// The first line with a service event.
        line: u64,
    },
    /// The file cannot be read.
    #[error("cannot read the file: {0}; nothing was imported")]
    Read(#[from] std::io::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ImportError {
    /// Makes the error of one line.
    pub fn bad_line(line: u64, problem: impl std::fmt::Display) -> ImportError {
        ImportError::BadLine { line, problem: problem.to_string() }
    }

    /// Makes the error of a line whose stamp lies after the store's clock.
    pub fn in_the_future(line: u64, recorded_at: Timestamp, now: Timestamp) -> ImportError {
        ImportError::bad_line(line, format!("recorded at {recorded_at}, which lies in the future (it is {now})"))
    }
}
