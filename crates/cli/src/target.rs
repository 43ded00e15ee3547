//! What a command line works on: a database, or a server.

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory};
use lastbeat_client::Options;

use crate::args::{Cli, DATABASE};
use crate::failure::Failure;

/// What a command line works on.
pub(crate) enum Target {
    /// The database at a URL.
    Database(String),
    /// A server, or several replicas of one.
    Server(Options),
}

impl Target {
    /// Tells what is meant. What stands on the command line goes before what stands in the environment, and there the
    /// server goes before the database, which has a default.
    pub(crate) fn of(cli: &Cli, matches: &ArgMatches) -> Result<Target, clap::Error> {
        let named = |name| matches.value_source(name) == Some(ValueSource::CommandLine);
        let bad = |kind, message: String| Cli::command().error(kind, message);
        let (database, server) = (named("database"), named("server"));
        if database && server {
            let message = "--database and --server cannot be given together: name one or the other".to_owned();
            return Err(bad(ErrorKind::ArgumentConflict, message));
        }
        let servers = cli.server.join(",");
        if database || servers.is_empty() && !server {
            return Ok(Target::Database(cli.database.clone().unwrap_or_else(|| DATABASE.to_owned())));
        }
        let options = Options::new(&servers).map_err(|error| bad(ErrorKind::ValueValidation, error.to_string()))?;
        Ok(Target::Server(match &cli.token {
            Some(token) => options.token(token.clone()),
            None => options,
        }))
    }

    /// Returns the database for a command that needs one.
    pub(crate) fn database(&self, command: &str) -> Result<&str, Failure> {
        match self {
            Target::Database(url) => Ok(url),
            Target::Server(_) => Err(needs_database(command)),
        }
    }
}

/// Says that a command is nothing for a server.
pub(crate) fn needs_database(command: &str) -> Failure {
    let message = format!(
        "`lastbeat {command}` works on the database itself, not through a server; name it with --database (--server or \
         LASTBEAT_SERVER names a server)"
    );
    Failure::new("needs_database", message)
}
