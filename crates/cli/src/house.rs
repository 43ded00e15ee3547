//! Keeping house: sweep, import, export, verify, migrate.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;

use lastbeat_domain::Name;
use lastbeat_store::{Store, check_import};
use lastbeat_sweeper::{SweepReport, dry_run, pass, sweep_until};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{self, Output};
use crate::failure::Failure;
use crate::output;

pub(crate) async fn sweep(store: &dyn Store, arguments: &args::Sweep, form: Output) -> Result<(), Failure> {
    let sweeper = sweeper_name()?;
    if arguments.dry_run {
        let report = dry_run(store, arguments.at).await?;
        return tell(&report, form);
    }
    if arguments.once {
        let report = pass(store, &sweeper).await?;
        return tell(&report, form);
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    let told = |report: &SweepReport| {
        if !report.reaped.is_empty() {
            let _ = tell(report, form);
        }
    };
    sweep_until(store, &sweeper, arguments.interval, stop, told).await?;
    Ok(())
}

/// A sweeper is named by its host and process, so that evidence says who reaped.
fn sweeper_name() -> Result<Name, Failure> {
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy();
    Name::new(format!("{host}/sweep-{}", std::process::id()))
        .map_err(|error| Failure::new("invalid", error.to_string()))
}

fn tell(report: &SweepReport, form: Output) -> Result<(), Failure> {
    if form != Output::Table {
        return output::json_line(report);
    }
    let verb = if report.dry_run { "would reap" } else { "reaped" };
    for reaped in &report.reaped {
        output::line(&format!("{verb} {} (lane {}, {}): {}", reaped.run, reaped.lane, reaped.rule, reaped.message))?;
    }
    output::line(&format!(
        "{}: examined {}, {verb} {}, re-armed {}, lost races {}, took {}",
        report.at.to_the_second(),
        report.examined,
        report.reaped.len(),
        report.rearmed,
        report.lost_races,
        report.duration
    ))
}

pub(crate) async fn import(store: &dyn Store, path: &Path, form: Output) -> Result<(), Failure> {
    let file = File::open(path).map_err(|error| {
        Failure::new("unreadable_file", format!("cannot open {}: {error}; nothing was imported", path.display()))
    })?;
    let checked = check_import(BufReader::new(file), store.now().await?)?;
    let report = store.import(checked).await?;
    if form != Output::Table {
        let (runs, events, service_events) = (report.runs, report.events, report.service_events);
        return output::json_line(&json!({"runs": runs, "events": events, "service_events": service_events}));
    }
    output::line(&format!(
        "imported {} runs with {} events, and {} service events",
        report.runs, report.events, report.service_events
    ))
}

pub(crate) async fn export(store: &dyn Store) -> Result<(), Failure> {
    let mut out = BufWriter::new(std::io::stdout());
    store.export(&mut |line: &str| writeln!(out, "{line}")).await?;
    out.flush()?;
    Ok(())
}

pub(crate) async fn verify(store: &dyn Store, form: Output) -> Result<(), Failure> {
    let report = store.verify().await?;
    if form == Output::Table {
        for damage in &report.damage {
            output::line(&damage.to_string())?;
        }
        let verdict = if report.damage.is_empty() { "all is well" } else { "damaged" };
        output::line(&format!("{} runs with {} events: {verdict}", report.runs, report.events))?;
    } else {
        output::json_line(&report)?;
    }
    if report.damage.is_empty() {
        return Ok(());
    }
    let message =
        format!("{} things are wrong; export what can be read and restore from a backup", report.damage.len());
    Err(Failure::new("damaged", message))
}

pub(crate) fn migrate(form: Output) -> Result<(), Failure> {
    // Opening the store has migrated it.
    match form {
        Output::Table => output::line("the database is up to date"),
        Output::Json | Output::Jsonl => output::json_line(&json!({"migrated": true})),
    }
}
