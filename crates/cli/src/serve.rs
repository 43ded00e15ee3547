//! `lastbeat serve`: the HTTP API and a sweeper, until it is told to stop.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use lastbeat_server::config::{Config, ConfigError, LogFormat, Settings, Sweeping, Time};
use lastbeat_server::{Options, ServeError};
use lastbeat_store::Store;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Failure;
use crate::house::process_name;
use crate::{log, output};

/// The file that is read if none is named, and it is there.
const FILE: &str = "lastbeat.toml";

#[derive(Args)]
#[command(after_long_help = "\
Each setting may come as a flag, from the environment or from a file, in this order; --print-config shows what came of \
it, in the form of the file. The file is lastbeat.toml in the working directory, or the one that --config names:\n\
\n  database = \"postgres://lastbeat@db/lastbeat\"\
\n  listen = \"0.0.0.0:7171\"\
\n  sweep_interval = \"1s\"        # or \"off\": others sweep\
\n  compact_interval = \"10m\"     # or \"off\": others compact\
\n  compact_older_than = \"1h\"\
\n  log_format = \"json\"\
\n  on_reap = \"https://ops.example/reaped\"\
\n  on_reap_secret_file = \"/run/secrets/on-reap\"\
\n\n  [limits]\
\n  rate = 200.0                 # requests a second for each token, heartbeats aside\
\n  burst = 1000.0")]
pub(crate) struct Serve {
    /// The address to listen on; 127.0.0.1:7171 if not given.
    #[arg(long, env = "LASTBEAT_LISTEN", value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// The file with settings.
    #[arg(long, env = "LASTBEAT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the settings as they are taken together, secrets masked, and stop.
    #[arg(long)]
    print_config: bool,
    /// How long the sweeper sleeps at the most, or `off` where others sweep; 1s if not given.
    #[arg(long, env = "LASTBEAT_SWEEP_INTERVAL", value_name = "SPAN")]
    sweep_interval: Option<Sweeping>,
    /// How long to wait between two compactions of old heartbeats, or `off`; 10m if not given. Replicas may all do it.
    #[arg(long, env = "LASTBEAT_COMPACT_INTERVAL", value_name = "SPAN")]
    compact_interval: Option<Sweeping>,
    /// How old a heartbeat must be to be compacted; 1h if not given.
    #[arg(long, env = "LASTBEAT_COMPACT_OLDER_THAN", value_name = "SPAN")]
    compact_older_than: Option<Time>,
    /// How logs are written: `text` or `json`.
    #[arg(long, env = "LASTBEAT_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// Which events are logged, for example `info` or `warn,lastbeat_server=debug`; `info` if not given.
    #[arg(long, env = "LASTBEAT_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// Post each reap to this URL, signed, in order, at least once.
    #[arg(long, env = "LASTBEAT_ON_REAP", value_name = "URL")]
    on_reap: Option<String>,
    /// What these posts are signed with. A flag can be seen by others on the host: better name a file.
    #[arg(long, env = "LASTBEAT_ON_REAP_SECRET", hide_env_values = true, value_name = "SECRET")]
    on_reap_secret: Option<String>,
    /// The file that holds what these posts are signed with.
    #[arg(long, env = "LASTBEAT_ON_REAP_SECRET_FILE", value_name = "FILE")]
    on_reap_secret_file: Option<PathBuf>,
    /// A limit, by its name in the file; may be given several times.
    #[arg(long = "limit", env = "LASTBEAT_LIMITS", value_delimiter = ',', value_name = "NAME=VALUE")]
    limits: Vec<String>,
}

/// It may hold a secret.
impl std::fmt::Debug for Serve {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serve").finish_non_exhaustive()
    }
}

impl Serve {
    /// Takes the settings together; `database` is that of the command line or the environment.
    fn resolve(self, database: Option<String>) -> Result<Config, ConfigError> {
        let file = match &self.config {
            Some(file) => Settings::read(file)?,
            None if Path::new(FILE).exists() => Settings::read(Path::new(FILE))?,
            None => Settings::default(),
        };
        let above = Settings {
            database,
            listen: self.listen,
            sweep_interval: self.sweep_interval,
            compact_interval: self.compact_interval,
            compact_older_than: self.compact_older_than,
            log_format: self.log_format,
            log: self.log,
            on_reap: self.on_reap,
            on_reap_secret: self.on_reap_secret,
            on_reap_secret_file: self.on_reap_secret_file,
            limits: Settings::limits(&self.limits)?,
        };
        above.or(file).resolve()
    }
}

/// Serves until the process is told to stop.
pub(crate) async fn serve(database: Option<String>, arguments: Serve) -> Result<(), Failure> {
    let print = arguments.print_config;
    let config = arguments.resolve(database).map_err(|error| Failure::new("bad_config", error.to_string()))?;
    if print {
        return output::line(config.print().trim_end());
    }
    log::start(&config.log, config.log_format)?;
    let store = lastbeat_store::open(&config.database, true).await?;
    let result = on_store(Arc::clone(&store), config).await;
    store.close().await;
    result
}

/// Lets the process have as many descriptors as the system allows it: each connection is one, and the usual limit is for
/// programs that open files.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit on open connections stays as it is");
    }
}

async fn on_store(store: Arc<dyn Store>, config: Config) -> Result<(), Failure> {
    raise_descriptor_limit();
    let Config { listen, sweep_interval, compaction, on_reap, limits, .. } = config;
    let process = process_name(&format!("serve-{}", std::process::id()))?;
    let options = Options { sweep_interval, compaction, on_reap, limits, ..Options::new(listen, process) };
    // Caught from the start, so that a signal that comes early ends a server cleanly too.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let server = lastbeat_server::serve(store, options).await?;
    tracing::info!("listening on http://{}", server.address);
    if server.is_open {
        tracing::warn!(
            "there are no tokens, so everybody on this machine may do everything; `lastbeat token create` makes the first"
        );
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping; requests in flight are finished first");
    server.stop().await;
    Ok(())
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Failure {
        match error {
            ServeError::Store(error) => error.into(),
            ServeError::Listen { .. } => Failure::new("cannot_listen", error.to_string()),
            ServeError::NoTokens(_) => Failure::new("no_tokens", error.to_string()),
            ServeError::Hook(_) => Failure::new("bad_config", error.to_string()),
        }
    }
}
