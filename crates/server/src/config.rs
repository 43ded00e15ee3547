//! What a server is told by whoever starts it: flags over the environment over a file over what is usual.
//!
//! Each source is read into [`Settings`], in which everything may be missing. [`Settings::or`] lays one over another,
//! and [`Settings::resolve`] fills in the rest. What a file says and nobody knows is refused: a limit that is spelled
//! wrong would be no limit.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use lastbeat_domain::Span;
use serde::de::{Deserializer, Error, Unexpected, Visitor};
use serde::{Deserialize, Serialize};

use crate::compaction::Compaction;
use crate::hook::{HookOptions, HookSecret};
use crate::limits::Limits;

/// Where a server listens if nothing is said.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7171);
/// Where the facts are kept if nothing is said.
const DATABASE: &str = "sqlite://lastbeat.db";
/// What stands for a secret where settings are shown.
const MASKED: &str = "********";

/// How logs are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// A line of text for each event, for people.
    #[default]
    Text,
    /// A JSON object on a line for each event.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<LogFormat, String> {
        match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err("it is `text` or `json`".to_owned()),
        }
    }
}

/// A span of time as people write it: `90s`, `3m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub Span);

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Time, String> {
        text.parse().map(Time).map_err(|error: lastbeat_domain::time::TimeError| error.to_string())
    }
}

/// How long the sweeper sleeps at the most, or that this server does not sweep. The same for compactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweeping {
    /// It does it.
    Every(Span),
    /// Others do.
    Off,
}

impl FromStr for Sweeping {
    type Err = String;

    fn from_str(text: &str) -> Result<Sweeping, String> {
        if text == "off" {
            return Ok(Sweeping::Off);
        }
        match text.parse::<Time>()? {
            Time(Span::ZERO) => Err("it must be above 0, or `off`".to_owned()),
            Time(interval) => Ok(Sweeping::Every(interval)),
        }
    }
}

/// Reads a string by its own rules.
struct Parsed<T>(std::marker::PhantomData<T>);

impl<T: FromStr<Err = String>> Visitor<'_> for Parsed<T> {
    type Value = T;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a text like \"30s\"")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(|why: String| {
            if why.contains(text) { E::custom(why) } else { E::invalid_value(Unexpected::Str(text), &why.as_str()) }
        })
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Time, D::Error> {
        deserializer.deserialize_str(Parsed(std::marker::PhantomData))
    }
}

impl<'de> Deserialize<'de> for Sweeping {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Sweeping, D::Error> {
        deserializer.deserialize_str(Parsed(std::marker::PhantomData))
    }
}

/// What one source says of a server. The names are those of the keys of `lastbeat.toml`.
#[derive(Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where the facts are kept.
    pub database: Option<String>,
    /// The address to listen on.
    pub listen: Option<SocketAddr>,
    /// The longest that the sweeper sleeps.
    pub sweep_interval: Option<Sweeping>,
    /// How long to wait between two compactions.
    pub compact_interval: Option<Sweeping>,
    /// How old a heartbeat must be to be compacted.
    pub compact_older_than: Option<Time>,
    /// How logs are written.
    pub log_format: Option<LogFormat>,
    /// Which events are logged.
    pub log: Option<String>,
    /// Where reaps are posted.
    pub on_reap: Option<String>,
    /// What these posts are signed with.
    pub on_reap_secret: Option<String>,
    /// A file that holds what they are signed with.
    pub on_reap_secret_file: Option<PathBuf>,
    /// What the server puts up with.
    pub limits: LimitSettings,
}

/// Makes [`LimitSettings`] out of the fields of [`Limits`], so that none can be forgotten.
macro_rules! limit_settings {
    ($($(#[$doc:meta])* $name:ident: $kind:ident),+ $(,)?) => {
        /// What one source says of the limits of a server.
        #[derive(Clone, Default, PartialEq, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct LimitSettings {
            $($(#[$doc])* pub $name: Option<limit_settings!(@setting $kind)>,)+
        }

        impl LimitSettings {
            fn or(self, below: LimitSettings) -> LimitSettings {
                LimitSettings { $($name: self.$name.or(below.$name),)+ }
            }

            fn resolve(self) -> Result<Limits, ConfigError> {
                let usual = Limits::default();
                Ok(Limits {
                    $($name: match self.$name {
                        Some(setting) => limit_settings!(@resolve $kind setting)
                            .filter(|limit| *limit > Default::default())
                            .ok_or(ConfigError::Limit(stringify!($name)))?,
                        None => usual.$name,
                    },)+
                })
            }
        }

        fn print_limits(limits: &Limits, text: &mut String) {
            let Limits { $($name,)+ } = limits;
            $(let _ = writeln!(text, "{} = {}", stringify!($name), limit_settings!(@print $kind $name));)+
        }
    };
    (@setting count) => { usize };
    (@setting number) => { f64 };
    (@setting time) => { Time };
    (@resolve count $setting:ident) => { Some($setting) };
    (@resolve number $setting:ident) => { Some($setting).filter(|number| number.is_finite()) };
    (@resolve time $setting:ident) => { Some($setting.0.to_std()) };
    (@print count $limit:ident) => { $limit };
    (@print number $limit:ident) => { format_args!("{:?}", $limit) };
    (@print time $limit:ident) => { quoted(&Span::from_micros(micros_of(*$limit)).to_string()) };
}

limit_settings! {
    /// The most bytes of a request's body.
    body_bytes: count,
    /// The most bytes of the body of a batch of heartbeats.
    batch_bytes: count,
    /// The most bytes of a request's line and headers.
    head_bytes: count,
    /// How long a client may take to send the head of a request.
    head_time: time,
    /// How long a connection may rest between two requests.
    idle_time: time,
    /// How long a client may take to send the body of a request.
    body_time: time,
    /// How long a client may take none of the answer that is ready for it.
    write_time: time,
    /// How long an answer may take, waiting for work aside.
    answer_time: time,
    /// How many connections are open at once.
    connections: count,
    /// How many requests, heartbeats aside, are answered at once.
    requests: count,
    /// How many requests with heartbeats are answered at once.
    beats: count,
    /// How many requests a second each token may make, heartbeats aside.
    rate: number,
    /// How many it may make at once after a pause.
    burst: number,
    /// How many feeds and followed runs are open at once.
    streams: count,
    /// How many claims wait for work at once.
    waiting_claims: count,
    /// How long requests in flight may go on after a shutdown began.
    grace: time,
}

fn micros_of(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// What a server is to be, nothing left open.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the facts are kept.
    pub database: String,
    /// The address to listen on.
    pub listen: SocketAddr,
    /// The longest that the sweeper sleeps; `None`: this server does not sweep.
    pub sweep_interval: Option<Span>,
    /// When heartbeats are compacted; `None`: this server does not do it.
    pub compaction: Option<Compaction>,
    /// How logs are written.
    pub log_format: LogFormat,
    /// Which events are logged.
    pub log: String,
    /// To whom reaps are posted.
    pub on_reap: Option<HookOptions>,
    /// What the server puts up with.
    pub limits: Limits,
}

/// Why settings are none.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is no settings.
    #[error("{}, line {line}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// A limit that was given by itself is none.
    #[error("limit `{pair}`: {why}")]
    Pair {
        /// What was given.
        pair: String,
        /// What is wrong with it.
        why: String,
    },
    /// A limit would let nothing through.
    #[error("limits.{0}: it must be above 0")]
    Limit(&'static str),
    /// There is a URL and no secret, or the other way round.
    #[error("on_reap and on_reap_secret (or on_reap_secret_file) need each other: posts are signed")]
    HalfAHook,
    /// A secret stands in two places, or is empty.
    #[error("on_reap_secret and on_reap_secret_file: give one of them, and not an empty one")]
    Secret,
}

impl Settings {
    /// Reads the settings of a file.
    ///
    /// # Errors
    /// If it cannot be read, is no TOML, or holds a key that is not known or a value that cannot be meant.
    pub fn read(path: &Path) -> Result<Settings, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Settings::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Settings, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let before = error.span().map_or("", |span| text.get(..span.start).unwrap_or(text));
            let line = before.matches('\n').count() + 1;
            // What stands in the line is not repeated: it may be a secret.
            ConfigError::File { path: path.to_owned(), line, why: error.message().to_owned() }
        })
    }

    /// Reads limits that are given one by one, as `name=value`.
    ///
    /// # Errors
    /// If one is no such pair, or its name is not known, or its value cannot be meant.
    pub fn limits(pairs: &[String]) -> Result<LimitSettings, ConfigError> {
        let mut limits = LimitSettings::default();
        for pair in pairs {
            let bad = |why: &str| ConfigError::Pair { pair: pair.clone(), why: why.to_owned() };
            let (name, value) = pair.split_once('=').ok_or_else(|| bad("write it as NAME=VALUE"))?;
            let table = |value| toml::Table::from_iter([(name.trim().to_owned(), value)]);
            let value = match value.trim() {
                value if value.parse::<i64>().is_ok() => toml::Value::Integer(value.parse().unwrap_or_default()),
                value if value.parse::<f64>().is_ok() => toml::Value::Float(value.parse().unwrap_or_default()),
                value => toml::Value::String(value.to_owned()),
            };
            let read: LimitSettings = table(value).try_into().map_err(|error: toml::de::Error| bad(error.message()))?;
            limits = read.or(limits);
        }
        Ok(limits)
    }

    /// Lays these settings over others, which say what these leave open.
    pub fn or(self, below: Settings) -> Settings {
        // A secret belongs together with its file: one of them given above replaces both.
        let secret_above = self.on_reap_secret.is_some() || self.on_reap_secret_file.is_some();
        let below_secrets = (below.on_reap_secret, below.on_reap_secret_file);
        let (secret, file) = if secret_above { (None, None) } else { below_secrets };
        Settings {
            database: self.database.or(below.database),
            listen: self.listen.or(below.listen),
            sweep_interval: self.sweep_interval.or(below.sweep_interval),
            compact_interval: self.compact_interval.or(below.compact_interval),
            compact_older_than: self.compact_older_than.or(below.compact_older_than),
            log_format: self.log_format.or(below.log_format),
            log: self.log.or(below.log),
            on_reap: self.on_reap.or(below.on_reap),
            on_reap_secret: self.on_reap_secret.or(secret),
            on_reap_secret_file: self.on_reap_secret_file.or(file),
            limits: self.limits.or(below.limits),
        }
    }

    /// Fills in what is left open, and reads the secret if it stands in a file.
    ///
    /// # Errors
    /// If what is said does not fit together, or the file of the secret cannot be read.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let secret = match (self.on_reap_secret, self.on_reap_secret_file) {
            (Some(_), Some(_)) => return Err(ConfigError::Secret),
            (None, Some(path)) => match std::fs::read_to_string(&path) {
                Ok(secret) => Some(secret.trim_end_matches(['\r', '\n']).to_owned()),
                Err(source) => return Err(ConfigError::Read { path, source }),
            },
            (secret, None) => secret,
        };
        if secret.as_ref().is_some_and(String::is_empty) {
            return Err(ConfigError::Secret);
        }
        let on_reap = match (self.on_reap, secret) {
            (Some(url), Some(secret)) => Some(HookOptions::new(url, HookSecret::new(secret))),
            (None, None) => None,
            _ => return Err(ConfigError::HalfAHook),
        };
        let sweep_interval = match self.sweep_interval {
            Some(Sweeping::Off) => None,
            Some(Sweeping::Every(interval)) => Some(interval),
            None => Some(Span::from_seconds(1)),
        };
        let usual = Compaction::default();
        let older_than = self.compact_older_than.map_or(usual.older_than, |Time(span)| span);
        let compaction = match self.compact_interval {
            Some(Sweeping::Off) => None,
            Some(Sweeping::Every(interval)) => Some(Compaction { interval, older_than }),
            None => Some(Compaction { older_than, ..usual }),
        };
        Ok(Config {
            compaction,
            database: self.database.unwrap_or_else(|| DATABASE.to_owned()),
            listen: self.listen.unwrap_or(LISTEN),
            sweep_interval,
            log_format: self.log_format.unwrap_or_default(),
            log: self.log.unwrap_or_else(|| "info".to_owned()),
            on_reap,
            limits: self.limits.resolve()?,
        })
    }
}

impl Config {
    /// Writes the settings as a file would say them, passwords and secrets masked.
    pub fn print(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: &str| {
            let _ = writeln!(text, "{key} = {}", quoted(value));
        };
        line("database", &masked(&self.database));
        line("listen", &self.listen.to_string());
        line("sweep_interval", &self.sweep_interval.map_or_else(|| "off".to_owned(), |interval| interval.to_string()));
        let compaction = self.compaction;
        line(
            "compact_interval",
            &compaction.map_or_else(|| "off".to_owned(), |compaction| compaction.interval.to_string()),
        );
        if let Some(compaction) = compaction {
            line("compact_older_than", &compaction.older_than.to_string());
        }
        line("log_format", if self.log_format == LogFormat::Json { "json" } else { "text" });
        line("log", &self.log);
        if let Some(hook) = &self.on_reap {
            line("on_reap", &masked(&hook.url));
            line("on_reap_secret", MASKED);
        }
        text.push_str("\n[limits]\n");
        print_limits(&self.limits, &mut text);
        text
    }
}

/// Hides what a URL may hold of secrets: its user's password, and the values of its query. A password may hold what
/// would end it elsewhere, and rather too much is hidden than too little.
fn masked(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let split = rest.rsplit_once('@').and_then(|(user, rest)| user.split_once(':').map(|(user, _)| (user, rest)));
    let (user, rest) = match split {
        // The `@` and the `:` stand in the path, or in what follows it.
        Some((user, _)) if user.contains(['/', '?', '#']) => (String::new(), rest),
        Some((user, rest)) => (format!("{user}:{MASKED}@"), rest),
        None => (String::new(), rest),
    };
    let rest = match rest.split_once('?') {
        Some((path, query)) => format!("{path}?{}", masked_query(query)),
        None => rest.to_owned(),
    };
    format!("{scheme}://{user}{rest}")
}

/// Hides the values of a query but for those that say how to connect, and hold no secret.
fn masked_query(query: &str) -> String {
    let shown = ["sslmode", "host", "port", "dbname", "user", "options", "application_name"];
    let parts = query.split('&').map(|part| match part.split_once('=') {
        Some((key, _)) if !shown.contains(&key) => format!("{key}={MASKED}"),
        _ => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join("&")
}

/// Writes a string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Settings, String> {
        Settings::parse(text, Path::new("lastbeat.toml")).map_err(|error| error.to_string())
    }

    fn error(text: &str) -> String {
        parsed(text).map(|_| ()).unwrap_err()
    }

    #[test]
    fn what_is_above_hides_what_is_below_and_the_usual_fills_the_rest() {
        let above = Settings { listen: Some("0.0.0.0:80".parse().unwrap()), ..Settings::default() };
        let file =
            parsed("listen = \"127.0.0.1:9\"\nsweep_interval = \"off\"\n[limits]\nrate = 7.5\nhead_time = \"5s\"\n");
        let config = above.or(file.unwrap()).resolve().unwrap();
        assert_eq!(config.listen.to_string(), "0.0.0.0:80");
        assert_eq!((config.sweep_interval, config.database.as_str()), (None, DATABASE));
        let limits = Limits { rate: 7.5, head_time: std::time::Duration::from_secs(5), ..Limits::default() };
        assert_eq!(config.limits, limits);
        let usual = Settings::default().resolve().unwrap();
        assert_eq!((usual.listen, usual.limits), (LISTEN, Limits::default()));
        assert_eq!(usual.sweep_interval, Some(Span::from_seconds(1)));
    }

    #[test]
    fn what_nobody_knows_is_refused_with_its_line() {
        assert!(
            error("listen = \"127.0.0.1:9\"\nlisen = 1\n").starts_with("lastbeat.toml, line 2: unknown field `lisen`")
        );
        let limit = error("\n\n[limits]\nbody_bytes = 5\nconections = 5\n");
        assert!(limit.starts_with("lastbeat.toml, line 5: unknown field `conections`"), "{limit}");
        assert!(error("[limits]\nhead_time = 5\n").starts_with("lastbeat.toml, line 2:"));
        assert!(error("[limits]\nhead_time = \"5 parsecs\"\n").contains("is not a duration"));
        assert!(error("sweep_interval = \"0s\"").contains("above 0"));
        assert!(error("listen = [").starts_with("lastbeat.toml, line 1:"));
        let secret = error("on_reap_secret = \"hush\nlisten = 5");
        assert!(!secret.contains("hush"), "{secret}");
    }

    #[test]
    fn a_limit_of_nought_is_refused() {
        for text in ["rate = 0.0", "rate = nan", "rate = inf", "streams = 0", "grace = \"0s\""] {
            let settings = parsed(&format!("[limits]\n{text}\n")).unwrap();
            assert!(matches!(settings.resolve(), Err(ConfigError::Limit(_))), "{text}");
        }
    }

    #[test]
    fn limits_are_given_one_by_one_too() {
        let limits = |pairs: &[&str]| {
            let pairs: Vec<String> = pairs.iter().map(|pair| (*pair).to_owned()).collect();
            Settings::limits(&pairs).map_err(|error| error.to_string())
        };
        let given = limits(&["rate=50", "head_time=5s", "streams=3", "rate=7.5"]).map(LimitSettings::resolve);
        let resolved = given.unwrap().unwrap();
        assert_eq!((resolved.rate, resolved.streams), (7.5, 3));
        assert_eq!(resolved.head_time, std::time::Duration::from_secs(5));
        for (pair, why) in [("rate", "NAME=VALUE"), ("rat=5", "unknown field"), ("streams=few", "few")] {
            let error = limits(&[pair]).map(|_| ()).unwrap_err();
            assert!(error.contains(pair) && error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_hook_has_a_url_and_a_secret_from_one_place() {
        let resolve = |text: &str| parsed(text).unwrap().resolve();
        assert!(matches!(resolve("on_reap = \"http://x/\""), Err(ConfigError::HalfAHook)));
        assert!(matches!(resolve("on_reap_secret = \"s\""), Err(ConfigError::HalfAHook)));
        let both = "on_reap = \"http://x/\"\non_reap_secret = \"s\"\non_reap_secret_file = \"f\"";
        assert!(matches!(resolve(both), Err(ConfigError::Secret)));
        assert!(matches!(resolve("on_reap = \"http://x/\"\non_reap_secret = \"\""), Err(ConfigError::Secret)));
        // A secret from the command line replaces the file's.
        let above = Settings { on_reap_secret: Some("s".to_owned()), ..Settings::default() };
        let below = parsed("on_reap = \"http://x/\"\non_reap_secret_file = \"/nowhere\"").unwrap();
        assert!(above.or(below).resolve().unwrap().on_reap.is_some());
    }

    #[test]
    fn passwords_are_hidden_wherever_they_stand() {
        assert_eq!(masked("postgres://ada:a:b@c/d?e@db/beat"), "postgres://ada:********@db/beat");
        assert_eq!(masked("postgres://ada@db/beat"), "postgres://ada@db/beat");
        assert_eq!(masked("https://x/y/a:b@c?to=d@e"), "https://x/y/a:b@c?to=********");
        assert_eq!(masked("sqlite://lastbeat.db"), "sqlite://lastbeat.db");
    }

    #[test]
    fn what_is_printed_reads_back_the_same_and_holds_no_secret() {
        let text = "database = \"postgres://ada:pa@ss/w@db:5432/beat?sslmode=require&password=pass3\"\n\
                    on_reap = \"https://u:pass2@x/y?key=pass4\"\non_reap_secret = \"pass5\"\n[limits]\nrate = 2.0\n";
        let config = parsed(text).unwrap().resolve().unwrap();
        let printed = config.print();
        assert!(!printed.contains("pass") || printed.matches("pass").count() == 1, "{printed}");
        assert!(
            printed.contains("postgres://ada:********@db:5432/beat?sslmode=require&password=********"),
            "{printed}"
        );
        let again = parsed(&printed).unwrap().resolve().unwrap();
        assert_eq!(
            (again.limits, again.listen, again.sweep_interval, again.compaction),
            (config.limits, config.listen, config.sweep_interval, config.compaction)
        );
    }
}
