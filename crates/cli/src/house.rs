//! Keeping house: sweep, import, export, verify, migrate.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::time::Instant;

use lastbeat_domain::decide::Command;
use lastbeat_domain::event::{DeafCause, ReleaseCause};
use lastbeat_domain::{Name, RunId, Span};
use lastbeat_store::compact::{Bounds, CompactionReport, compact_all};
use lastbeat_store::generate::{self, Workload};
use lastbeat_store::{Health, Store, VerifyReport, check_import, postgres};
use lastbeat_sweeper::{Held, SweepReport, Sweeper, dry_run, sweep_until};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{self, Migrate, Output, RoleSetup};
use crate::failure::Failure;
use crate::output;
use crate::progress::{Counting, Progress};
use crate::run::{execute, person};

pub(crate) async fn sweep(store: &dyn Store, arguments: &args::Sweep, form: Output) -> Result<(), Failure> {
    if arguments.dry_run {
        let report = dry_run(store, arguments.at).await?;
        return tell(&report, form);
    }
    let mut sweeper = if arguments.once {
        // Each pass is a process of its own, and the next one takes up the promise of this one.
        Sweeper::once(process_name("sweep-once")?, store.clock(), arguments.every)
    } else {
        Sweeper::new(process_name(&format!("sweep-{}", std::process::id()))?, store.clock())
    };
    if arguments.local {
        execute(store, Command::RetireServers { by: person()? }).await?;
    }
    if arguments.once {
        let report = sweeper.pass(store).await?;
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
        if report.is_news() {
            let _ = tell(report, form);
        }
    };
    sweep_until(store, &mut sweeper, arguments.interval, stop, told).await?;
    Ok(())
}

/// A process is named by its host and what it is, so that evidence and beacons say who it was.
pub(crate) fn process_name(what: &str) -> Result<Name, Failure> {
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy();
    Name::new(format!("{host}/{what}")).map_err(|error| Failure::new("invalid", error.to_string()))
}

fn tell(report: &SweepReport, form: Output) -> Result<(), Failure> {
    if form != Output::Table {
        return output::json_line(report);
    }
    for deaf in &report.deaf {
        let (from, length) = (deaf.from.to_the_second(), deaf.to.since(deaf.from));
        let cause = match deaf.cause {
            DeafCause::Gap => "nobody listened",
            DeafCause::ClockStep => "the clock was set forward",
        };
        output::line(&format!("deaf for {length} from {from}: {cause}; nobody is charged for it"))?;
    }
    for lane in &report.newly_held {
        output::line(&format!("held lane {lane}: too many of its runs went silent at once; see `lastbeat hold list`"))?;
    }
    for released in &report.released {
        let why = match released.cause {
            ReleaseCause::Recovered => "enough of its runs are heard of",
            ReleaseCause::Expired => "it was held for as long as its policy allows",
            ReleaseCause::Operator => "an operator released it",
        };
        output::line(&format!("reaping goes on in lane {}: {why}", released.lane))?;
    }
    let verb = if report.dry_run { "would reap" } else { "reaped" };
    for reaped in &report.reaped {
        output::line(&format!("{verb} {} (lane {}, {}): {}", reaped.run, reaped.lane, reaped.rule, reaped.message))?;
    }
    for held in &report.held {
        let Held { lane, lapsed, beating } = held;
        output::line(&format!("lane {lane} is held: {lapsed} of its {beating} beating runs have lapsed"))?;
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
    let size = file.metadata().map_or(0, |data| data.len());
    let file = Counting::new(file, size, Progress::of("reading", "bytes"));
    let checked = check_import(BufReader::with_capacity(1 << 16, file), store.now().await?)?;
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

pub(crate) async fn generate(store: &dyn Store, arguments: args::Generate, form: Output) -> Result<(), Failure> {
    let now = store.now().await?;
    let until = arguments.until.unwrap_or(now);
    if until > now {
        let message = format!("--until {until} lies in the future (it is {now}); nothing was recorded then");
        return Err(Failure::new("invalid", message));
    }
    let args::Generate { runs, events, seed, lane, until: _ } = arguments;
    let policy = store.service_log().await?.policy(&lane, now);
    let workload = Workload { runs, events, seed, lane, policy, until };
    let progress = Progress::of("generating", "events");
    let generated = generate::checked(&workload, &|done, all| progress.at(done, all));
    drop(progress);
    let generated = generated.map_err(|error| Failure::new("invalid", error.to_string()))?;
    let report = store.import(generated).await?;
    match form {
        Output::Table => output::line(&format!(
            "generated {} runs with {} events in lane {}, the last of them at {until}",
            report.runs, report.events, workload.lane
        )),
        Output::Json | Output::Jsonl => {
            let (runs, events, lane) = (report.runs, report.events, workload.lane);
            output::json_line(&json!({"runs": runs, "events": events, "lane": lane, "seed": seed, "until": until}))
        }
    }
}

pub(crate) async fn verify(store: &dyn Store, form: Output) -> Result<(), Failure> {
    let progress = Progress::of("verifying", "runs");
    let report = store.verify(&|done, all| progress.at(done, all)).await?;
    drop(progress);
    if form == Output::Table {
        for damage in &report.damage {
            output::line(&damage.to_string())?;
        }
        let verdict = if report.damage.is_empty() { "all is well" } else { "damaged" };
        let quarantined = match report.quarantined {
            0 => String::new(),
            runs => format!(", {runs} of them quarantined (they hold facts of a newer program)"),
        };
        output::line(&format!("{} runs{quarantined} with {} events: {verdict}", report.runs, report.events))?;
    } else {
        output::json_line(&report)?;
    }
    if report.damage.is_empty() {
        return Ok(());
    }
    let what = if report.damage.iter().all(|damage| damage.kind.is_mended_by_rebuild()) {
        "the log itself is well: `lastbeat rebuild` makes the projection anew from it"
    } else {
        "the log itself is damaged: stop the writers, export what can be read, and restore a backup"
    };
    let many =
        if report.damage.len() == 1 { "1 thing is".to_owned() } else { format!("{} things are", report.damage.len()) };
    Err(Failure::new("damaged", format!("{many} wrong; {what}")))
}

/// Makes every run anew from the log and compares it with the projection.
pub(crate) async fn replay_all(store: &dyn Store, form: Output) -> Result<(), Failure> {
    let (progress, started) = (Progress::of("replaying", "runs"), Instant::now());
    let report = store.replay_all(&|done, all| progress.at(done, all)).await?;
    let took = started.elapsed().as_secs_f64();
    drop(progress);
    let VerifyReport { runs, events, quarantined, damage } = &report;
    // A rate is shown to no more digits than it is worth.
    let rate = (*events as f64 / took.max(0.001)).round();
    if form == Output::Table {
        damage.iter().try_for_each(|damage| output::line(&damage.to_string()))?;
        let verdict = if damage.is_empty() { "each as its projection says" } else { "not as the projection says" };
        output::line(&format!(
            "replayed {runs} runs with {events} events in {took:.1} s ({rate} a second): {verdict}"
        ))?;
    } else {
        let millis = (took * 1_000.0).round() / 1_000.0;
        output::json_line(&json!({
            "runs": runs, "events": events, "quarantined": quarantined, "damage": damage, "seconds": millis,
            "events_per_second": rate,
        }))?;
    }
    let differing: BTreeSet<RunId> = damage.iter().filter_map(|damage| damage.run).collect();
    if damage.is_empty() {
        return Ok(());
    }
    let many =
        if differing.len() == 1 { "1 run differs".to_owned() } else { format!("{} runs differ", differing.len()) };
    Err(Failure::new("damaged", format!("{many} from the log; `lastbeat verify` says what is wrong and what to do")))
}

pub(crate) async fn rebuild(store: &dyn Store, form: Output) -> Result<(), Failure> {
    let progress = Progress::of("rebuilding", "runs");
    let report = store.rebuild(&|done, all| progress.at(done, all)).await?;
    drop(progress);
    match form {
        Output::Table => output::line(&format!(
            "made {} runs anew from {} events; {} were not as they had been",
            report.runs, report.events, report.differed
        )),
        Output::Json | Output::Jsonl => output::json_line(&report),
    }
}

pub(crate) async fn compact(store: &dyn Store, older_than: Span, form: Output) -> Result<(), Failure> {
    let (progress, started) = (Progress::of("compacting", "rows"), Instant::now());
    let told = |report: &CompactionReport| {
        progress.at(report.rows, report.rows + report.left);
        true
    };
    let report = compact_all(store, Bounds::older_than(store, older_than, 0).await?, told).await?;
    drop(progress);
    let duration = Span::from_micros(u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX));
    let rate = report.beats as f64 / duration.as_seconds().max(1e-6);
    if form != Output::Table {
        let mut document = serde_json::to_value(report).unwrap_or_default();
        document["duration_seconds"] = json!(duration.as_seconds());
        document["beats_per_second"] = json!(rate.round());
        return output::json_line(&document);
    }
    let CompactionReport { rows, beats, tails, merged, merged_into, left, bytes_before, bytes_after, .. } = report;
    if report.is_empty() {
        return output::line(&format!(
            "nothing to compact: none of the rows of heartbeats is older than {older_than}, but for the last, which stays"
        ));
    }
    output::line(&format!(
        "compacted {rows} rows with {beats} heartbeats: {bytes_before} bytes became {bytes_after}; rows left: {left}"
    ))?;
    output::line(&format!(
        "wrote out {tails} tails, merged {merged} segments into {merged_into}; took {duration}, {rate:.0} heartbeats/s"
    ))
}

pub(crate) async fn backup(store: &dyn Store, file: &Path, form: Output) -> Result<(), Failure> {
    store.backup(file).await?;
    let bytes = std::fs::metadata(file)?.len();
    match form {
        Output::Table => output::line(&format!(
            "copied to {} ({bytes} bytes); look into it with --database sqlite://{}",
            file.display(),
            file.display()
        )),
        Output::Json | Output::Jsonl => output::json_line(&json!({"file": file.display().to_string(), "bytes": bytes})),
    }
}

pub(crate) async fn doctor(store: &dyn Store, form: Output) -> Result<(), Failure> {
    let checks = store.doctor().await?;
    if form == Output::Table {
        let rows =
            checks.iter().map(|check| vec![output::health(check.health), check.name.to_owned(), check.found.clone()]);
        output::table(&["HEALTH", "WHAT", "FOUND"], rows.collect())?;
        for check in &checks {
            if let Some(advice) = check.advice {
                output::line(&format!("{}: {advice}", check.name))?;
            }
        }
    } else {
        output::json_line(&json!({"checks": checks}))?;
    }
    let bad: Vec<&str> = checks.iter().filter(|check| check.health == Health::Bad).map(|check| check.name).collect();
    if bad.is_empty() {
        return Ok(());
    }
    Err(Failure::new("unwell", format!("not well: {}", bad.join(", "))))
}

/// Makes the database, or brings its schema up to date; and makes the application's role if asked to.
pub(crate) async fn migrate(database: &str, arguments: &Migrate, form: Output) -> Result<(), Failure> {
    if !postgres::is_url(database) {
        if arguments.role_setup.is_some() {
            let message = "only PostgreSQL has roles; name a database with --database postgres://user@host/database";
            return Err(Failure::new("invalid", message));
        }
        // Opening a file migrates it.
        lastbeat_store::open(database, true).await?.close().await;
        return migrated(form, None);
    }
    if arguments.role_setup == Some(RoleSetup::Print) {
        return output::line(postgres::role_setup(&arguments.role)?.trim_end());
    }
    let versions = postgres::migrate(database).await?;
    if arguments.role_setup == Some(RoleSetup::Apply) {
        postgres::set_up_role(database, &arguments.role).await?;
    }
    migrated(form, Some(versions))
}

fn migrated(form: Output, versions: Option<(i64, i64)>) -> Result<(), Failure> {
    match (form, versions) {
        (Output::Table, Some((from, to))) if from < to => {
            output::line(&format!("the database is migrated from schema {from} to {to}"))
        }
        (Output::Table, _) => output::line("the database is up to date"),
        (_, Some((from, to))) => output::json_line(&json!({"migrated": true, "from": from, "to": to})),
        (_, None) => output::json_line(&json!({"migrated": true})),
    }
}
