//! Logs go to standard error, as text for people or as JSON for machines.

use lastbeat_server::config::LogFormat;
use tracing_subscriber::EnvFilter;

use crate::failure::Failure;

/// Begins to log what `filter` lets through: `info`, `warn,lastbeat_server=debug`.
pub(crate) fn start(filter: &str, format: LogFormat) -> Result<(), Failure> {
    let filter =
        EnvFilter::try_new(filter).map_err(|error| Failure::new("invalid", format!("log: `{filter}`: {error}")))?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => logs.with_target(false).init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
    Ok(())
}
