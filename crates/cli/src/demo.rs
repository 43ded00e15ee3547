//! `lastbeat demo`: the whole story with real processes, on a fresh embedded store.
//!
//! Five executors, each a process of its own: one finishes; one beats and is killed; one is an old client that never
//! beats and dies; one lives on, beating, far past the coarse window; one is stopped between two beats, reaped,
//! continued, and told that it is fenced. A sweeper, a process too, judges them. Then our own faults: the sweeper is
//! killed and the host sleeps for longer than the window, which reaps nobody; and a whole rack goes dark at once, which
//! is held until a person says that it is real. The windows are scaled down. At the end the demo checks its own claims
//! against the log. With `--serve` the dashboard shows it, and goes on showing it until somebody has seen enough.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use lastbeat_domain::decide::Command as Decision;
use lastbeat_domain::event::RunEvent;
use lastbeat_domain::{Liveness, Name, Rule, RunId, Span, Status, Terms, Timestamp};
use lastbeat_server::Options;
use lastbeat_store::{Filter, Judged, Store, Stored, ask, postgres};
use lastbeat_wire::answers::AskError;
use rustix::process::{Pid, Signal, kill_process};

use crate::args::{self, Output};
use crate::failure::Failure;
use crate::house::process_name;
use crate::place::Place;
use crate::{look, output, run};

const INTERVAL: Span = Span::from_millis(500);
const WINDOW: Span = Span::from_seconds(2);
const COARSE: Span = Span::from_seconds(6);
/// How long any step of the story may take.
const PATIENCE: Duration = Duration::from_secs(25);

/// A part of the story: who plays it, and what must have come of it.
struct Part {
    name: &'static str,
    fate: &'static str,
    status: Status,
    rule: Option<Rule>,
    child: Child,
    run: Option<RunId>,
}

impl Drop for Part {
    /// However the story ends, no process of it stays behind.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A sweeper in a process of its own, which does not outlive the story either.
struct Sweeping(Child);

impl Drop for Sweeping {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What is left when the story is told: the claims that did not hold, and what still runs.
struct Told {
    broken: Vec<String>,
    _parts: Vec<Part>,
    _sweeper: Sweeping,
}

struct Demo {
    store: Arc<dyn Store>,
    url: String,
    started: std::time::Instant,
    /// For how long a lane stays held before somebody looks; where people do look, long enough for them to see it.
    held_for: Duration,
}

/// Plays the story. Returns the claims that did not hold.
///
/// # Errors
/// If a step of the story never comes.
pub(crate) async fn demo(
    database: &str,
    keep: Option<PathBuf>,
    serve: Option<SocketAddr>,
) -> Result<Vec<String>, Failure> {
    if postgres::is_url(database) {
        return in_schema(database, keep, serve).await;
    }
    let folder = tempfile::tempdir()?;
    let path = match &keep {
        Some(path) if path.exists() => {
            let message = format!("{} exists already; name a new file for --keep", path.display());
            return Err(Failure::new("exists", message));
        }
        Some(path) => std::path::absolute(path)?,
        None => folder.path().join("demo.db"),
    };
    let url = format!("sqlite://{}", path.display());
    let store = lastbeat_store::open(&url, true).await?;
    let demo = Demo::new(Arc::clone(&store), url, serve.is_some());
    let broken = demo.shown(serve).await;
    store.close().await;
    if let (Some(path), Ok(_)) = (keep, &broken) {
        output::line(&format!("\nThe database is kept: lastbeat --database sqlite://{} run list", path.display()))?;
    }
    broken
}

/// Plays the story in a schema of its own, so that it meets nobody's runs. The schema is dropped at the end.
async fn in_schema(database: &str, keep: Option<PathBuf>, serve: Option<SocketAddr>) -> Result<Vec<String>, Failure> {
    if keep.is_some() {
        return Err(Failure::new("invalid", "--keep names a file, and there is none in PostgreSQL"));
    }
    let schema = postgres::Schema::make(database).await?;
    let store = lastbeat_store::open(schema.url(), true).await?;
    let demo = Demo::new(Arc::clone(&store), schema.url().to_owned(), serve.is_some());
    let broken = demo.shown(serve).await;
    store.close().await;
    schema.drop().await?;
    broken
}

/// Completes when somebody has seen enough.
async fn seen_enough() -> Result<(), Failure> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    Ok(())
}

impl Demo {
    fn new(store: Arc<dyn Store>, url: String, is_shown: bool) -> Demo {
        let held_for = if is_shown { Duration::from_secs(4) } else { Duration::ZERO };
        Demo { store, url, started: std::time::Instant::now(), held_for }
    }

    /// Plays the story, in the dashboard too if an address is given.
    async fn shown(&self, serve: Option<SocketAddr>) -> Result<Vec<String>, Failure> {
        let Some(listen) = serve else { return Ok(self.play().await?.broken) };
        let process = process_name(&format!("demo-{}", std::process::id()))?;
        // The executors of the story write to the store themselves, and the one who listens for them is the sweeper.
        let options = Options { sweep_interval: None, beacons: false, ..Options::new(listen, process) };
        let server = lastbeat_server::serve(Arc::clone(&self.store), options).await?;
        output::line(&format!("The dashboard shows it: http://{}\n", server.address))?;
        let broken = self.play_until_seen().await;
        server.stop().await;
        broken
    }

    async fn play_until_seen(&self) -> Result<Vec<String>, Failure> {
        let told = tokio::select! {
            told = self.play() => told?,
            seen = seen_enough() => {
                seen?;
                return Err(Failure::new("interrupted", "the story was not told to its end"));
            }
        };
        output::line("\nThe story is told; the dashboard stays up until Ctrl-C.")?;
        seen_enough().await?;
        Ok(told.broken)
    }

    async fn play(&self) -> Result<Told, Failure> {
        output::line("Lastbeat, the whole story in under a minute. Five executors, each a real process.")?;
        output::line(&format!(
            "Windows are scaled down: beats every {INTERVAL} (30s), heartbeat window {WINDOW} (3m), coarse window {COARSE} (2h).\n"
        ))?;
        let terms =
            Terms { heartbeat_interval: INTERVAL, heartbeat_window: WINDOW, coarse_ttl: COARSE, ..Terms::default() };
        let lane = name("demo")?;
        let set = Decision::SetPolicy { lane, terms: Box::new(terms), expected_version: None, by: None };
        run::execute(self.store.as_ref(), set).await?;
        let mut sweeper = self.sweeper()?;
        self.say("a sweeper starts in a process of its own")?;
        let (parts, mut broken) = self.play_parts(&mut sweeper).await?;
        broken.extend(self.check(&parts).await?);
        Ok(Told { broken, _parts: parts, _sweeper: sweeper })
    }

    async fn play_parts(&self, sweeper: &mut Sweeping) -> Result<(Vec<Part>, Vec<String>), Failure> {
        let parts = self.act().await?;
        let mut broken = Vec::new();
        if let Some(long) = parts.iter().find(|part| part.name == "long-liver") {
            broken.extend(self.sleep_of_the_host(sweeper, long).await?);
        }
        broken.extend(self.dark_rack().await?);
        Ok((parts, broken))
    }

    fn sweeper(&self) -> Result<Sweeping, Failure> {
        Ok(Sweeping(self.lastbeat(&["sweep", "--interval", "200ms"]).stdout(Stdio::null()).spawn()?))
    }

    /// The sweeper is killed and the executor stands still, for longer than the window: as when a laptop is closed.
    async fn sleep_of_the_host(&self, sweeper: &mut Sweeping, long: &Part) -> Result<Vec<String>, Failure> {
        let Some(run) = long.run else { return Ok(Vec::new()) };
        let beats = self.judged(run).await?.run.beats;
        self.until("the long-liver has just beaten", run, |judged| judged.run.beats > beats).await?;
        // A moment later its transaction is over for sure; it must not be stopped while it holds the file.
        tokio::time::sleep(Duration::from_millis(100)).await;
        signal(&long.child, Signal::STOP);
        sweeper.0.kill()?;
        sweeper.0.wait()?;
        let asleep = WINDOW.times(2);
        self.say(&format!(
            "the host sleeps: sweeper killed, long-liver stopped, for {asleep} (the window is {WINDOW})"
        ))?;
        tokio::time::sleep(asleep.to_std()).await;
        *sweeper = self.sweeper()?;
        let started = std::time::Instant::now();
        let span = loop {
            match self.store.service_log().await?.deaf_spans().last() {
                Some(span) => break *span,
                None if started.elapsed() > PATIENCE => return Err(Failure::new("demo", "the gap was never recorded")),
                None => tokio::time::sleep(Duration::from_millis(25)).await,
            }
        };
        signal(&long.child, Signal::CONT);
        let deaf = span.to.since(span.from);
        self.say(&format!(
            "it wakes: the new sweeper records that nobody listened for {deaf}, which nobody is charged for"
        ))?;
        let beats = self.judged(run).await?.run.beats;
        let judged = self.until("the long-liver is heard of again", run, |judged| judged.run.beats > beats).await?;
        self.say("long-liver beats on; it was not reaped")?;
        let mut broken = Vec::new();
        if deaf < WINDOW || judged.run.attempt != 1 || judged.run.status != Status::Running {
            broken.push(format!("the sleep of the host: deaf for {deaf}, and the run is {}", judged.run.status));
        }
        Ok(broken)
    }

    /// Eight executors die at once: that is held, until a person says that it is no fault of ours.
    async fn dark_rack(&self) -> Result<Vec<String>, Failure> {
        let lane = name("rack")?;
        let terms = Terms {
            heartbeat_interval: INTERVAL,
            heartbeat_window: WINDOW,
            hold_min: Some(5),
            reap_rate: 2,
            ..Terms::default()
        };
        let set = Decision::SetPolicy { lane: lane.clone(), terms: Box::new(terms), expected_version: None, by: None };
        run::execute(self.store.as_ref(), set).await?;
        let mut rack = Vec::new();
        for number in 1..=8 {
            let executor = format!("rack-{number}");
            let arguments = ["exec", "--lane", "rack", "--executor", &executor, "--", "sleep", "60"];
            let child = self.lastbeat(&arguments).stderr(Stdio::null()).spawn()?;
            rack.push(Part { name: "rack", fate: "", status: Status::TimedOut, rule: None, child, run: None });
        }
        let filter = Filter { lane: Some(lane.clone()), ..Filter::default() };
        self.until_all(&filter, "the rack beats", |judged| judged.run.beats >= 2, 8).await?;
        rack.iter().for_each(|part| signal(&part.child, Signal::KILL));
        self.say("eight executors of another lane lose power at once (there a hold begins at five)")?;
        let started = std::time::Instant::now();
        while !self.store.service_log().await?.hold(&lane).is_held() {
            if started.elapsed() > PATIENCE {
                return Err(Failure::new("demo", "the silent lane was never held"));
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        self.until_all(&filter, "all have lapsed", |judged| judged.verdict.is_lapsed(), 8).await?;
        let reaped = self.store.count(&lane).await?.get(&Status::TimedOut).copied().unwrap_or(0);
        self.say(&format!("all eight have lapsed, the lane is held, {reaped} were reaped: that may be our fault"))?;
        tokio::time::sleep(self.held_for).await;
        let (by, reason) = (run::person()?, Some("the power is really gone".to_owned()));
        run::execute(self.store.as_ref(), Decision::ReleaseHold { lane, by, reason }).await?;
        self.say("a person looks, and releases the hold; they are reaped at two a second")?;
        self.until_all(&filter, "all are reaped", |judged| judged.run.status == Status::TimedOut, 8).await?;
        self.say("all eight are reaped")?;
        let broken =
            if reaped == 0 { Vec::new() } else { vec![format!("{reaped} were reaped while the lane was held")] };
        Ok(broken)
    }

    async fn until_all(
        &self,
        filter: &Filter,
        what: &str,
        holds: impl Fn(&Judged) -> bool,
        count: usize,
    ) -> Result<(), Failure> {
        let started = std::time::Instant::now();
        loop {
            let page = ask::list(self.store.as_ref(), filter, None, None, 100).await?;
            if page.runs.len() == count && page.runs.iter().all(&holds) {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                return Err(Failure::new("demo", format!("waited in vain until {what}")));
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    fn lastbeat(&self, arguments: &[&str]) -> Command {
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("lastbeat"));
        let mut command = Command::new(program);
        command.args(["--database", &self.url]).args(arguments).stdin(Stdio::null());
        command
    }

    fn say(&self, text: &str) -> Result<(), Failure> {
        output::line(&format!("{:>6.1}s  {text}", self.started.elapsed().as_secs_f64()))
    }

    fn exec(&self, executor: &str, script: &str) -> Result<Child, Failure> {
        let arguments = ["exec", "--lane", "demo", "--executor", executor, "--", "sh", "-c", script];
        Ok(self.lastbeat(&arguments).stderr(Stdio::null()).spawn()?)
    }

    async fn act(&self) -> Result<Vec<Part>, Failure> {
        let part = |name, fate, status, rule, child| Part { name, fate, status, rule, child, run: None };
        let silence = Some(Rule::HeartbeatSilence);
        let old = format!(
            "'{}' --database '{}' run create --lane demo --claim old-client -o json >/dev/null && exec sleep 60",
            std::env::current_exe()?.display(),
            self.url
        );
        let old = Command::new("sh").args(["-c", &old]).stdin(Stdio::null()).spawn()?;
        let mut parts = vec![
            part("worker", "worked and finished", Status::Completed, None, self.exec("worker", "sleep 3")?),
            part("victim", "beat, then kill -9", Status::TimedOut, silence, self.exec("victim", "sleep 60")?),
            part("old-client", "never beat, died", Status::TimedOut, Some(Rule::CoarseTtl), old),
            part("long-liver", "beats on and on", Status::Running, silence, self.exec("long-liver", "sleep 60")?),
            part("sleeper", "stopped, then continued", Status::TimedOut, silence, self.exec("sleeper", "sleep 60")?),
        ];
        for part in &mut parts {
            part.run = Some(self.until_claimed(part.name).await?);
            self.say(&format!("{} claims a run", part.name))?;
        }
        let id = |index: usize| parts.get(index).and_then(|part: &Part| part.run);
        let (Some(worker), Some(victim), Some(old), Some(long), Some(sleeper)) = (id(0), id(1), id(2), id(3), id(4))
        else {
            return Err(Failure::new("demo", "a run was not claimed"));
        };
        self.until("the victim was heard of twice", victim, |judged| judged.run.beats >= 2).await?;
        signal(&parts[1].child, Signal::KILL);
        self.say("victim is killed with SIGKILL: nobody is left to say that it died")?;
        signal(&parts[2].child, Signal::KILL);
        self.say("old-client is killed too; it never beat, so its silence tells nothing")?;
        let beats = self.judged(sleeper).await?.run.beats;
        self.until("the sleeper has just beaten", sleeper, |judged| judged.run.beats > beats).await?;
        // A moment later its transaction is over for sure; it must not be stopped while it holds the file.
        tokio::time::sleep(Duration::from_millis(100)).await;
        signal(&parts[4].child, Signal::STOP);
        self.say("sleeper is stopped with SIGSTOP between two beats, as by a laptop lid")?;
        self.until("the worker finishes", worker, |judged| judged.run.status == Status::Completed).await?;
        self.say("worker finishes; its run is completed")?;
        self.until_reaped("victim", victim).await?;
        self.until_reaped("sleeper", sleeper).await?;
        signal(&parts[4].child, Signal::CONT);
        self.say("sleeper is continued; it beats as if nothing had happened")?;
        let code = exit_code(&mut parts[4].child).await?;
        self.say(&format!("sleeper was told that it is fenced, ended its command and exited with {code}"))?;
        if code != 75 {
            return Err(Failure::new("demo", format!("the fenced executor exited with {code}, not with 75")));
        }
        self.until_reaped("old-client", old).await?;
        let far = COARSE.plus(Span::from_seconds(2));
        self.until("the long-liver is far past the coarse window", long, |judged| {
            judged.run.claimed_at().is_some_and(|claimed| judged.at.since(claimed) > far)
        })
        .await?;
        self.say(&format!("long-liver is {far} past its claim, over the coarse window, and is left alone"))?;
        Ok(parts)
    }

    async fn judged(&self, id: RunId) -> Result<Judged, Failure> {
        ask::run(self.store.as_ref(), id).await?.ok_or_else(|| AskError::UnknownRun(id).into())
    }

    async fn until(&self, what: &str, id: RunId, holds: impl Fn(&Judged) -> bool) -> Result<Judged, Failure> {
        let started = std::time::Instant::now();
        loop {
            let judged = self.judged(id).await?;
            if holds(&judged) {
                return Ok(judged);
            }
            if started.elapsed() > PATIENCE {
                return Err(Failure::new("demo", format!("waited in vain until {what}")));
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    async fn until_claimed(&self, executor: &str) -> Result<RunId, Failure> {
        let started = std::time::Instant::now();
        while started.elapsed() < PATIENCE {
            let page = ask::list(self.store.as_ref(), &Filter::default(), None, None, 100).await?;
            let found =
                page.runs.iter().find(|judged| judged.run.executor().is_some_and(|name| name.as_str() == executor));
            if let Some(judged) = found {
                return Ok(judged.run.id);
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        Err(Failure::new("demo", format!("{executor} never claimed its run")))
    }

    async fn until_reaped(&self, name: &str, id: RunId) -> Result<(), Failure> {
        let judged =
            self.until(&format!("{name} is reaped"), id, |judged| judged.run.status == Status::TimedOut).await?;
        let message = judged.run.outcome.map(|outcome| match outcome.event {
            RunEvent::TimedOut { message, .. } => message,
            other => other.type_name().to_owned(),
        });
        self.say(&format!("{name} is reaped: {}", message.unwrap_or_default()))
    }

    /// Compares what became of each run with what the story claims, and shows it.
    async fn check(&self, parts: &[Part]) -> Result<Vec<String>, Failure> {
        let (mut rows, mut broken) = (Vec::new(), Vec::new());
        for part in parts {
            let Some(id) = part.run else { continue };
            let judged = self.judged(id).await?;
            let stream = ask::whole_stream(self.store.as_ref(), id).await?;
            let reap = stream.iter().filter_map(Stored::known).find_map(|recorded| match &recorded.event {
                RunEvent::TimedOut { rule, evidence, .. } => Some((*rule, evidence.clone(), recorded.recorded_at)),
                _ => None,
            });
            let rule = reap.as_ref().map(|(rule, _, _)| *rule).or(judged.verdict.rule());
            let mut claim = |holds: bool, what: String| {
                if !holds {
                    broken.push(format!("{}: {what}", part.name));
                }
            };
            claim(judged.run.status == part.status, format!("it is {}, not {}", judged.run.status, part.status));
            claim(rule == part.rule, "another rule governs it".to_owned());
            let detected = reap.as_ref().map(|(_, evidence, at)| detection(evidence.as_deref(), *at));
            if let Some((over, _)) = detected {
                claim(over < Span::from_millis(1_500), format!("it was detected {over} after it lapsed"));
            }
            if part.name == "long-liver" {
                let lives = matches!(judged.verdict.liveness, Liveness::Live | Liveness::Quiet);
                claim(lives && reap.is_none(), format!("it is {}, not alive", judged.verdict.liveness));
            }
            if part.name == "sleeper" {
                let spoke = stream.iter().any(|fact| fact.type_name() == "late_signal");
                claim(spoke, "its late signal was not recorded".to_owned());
            }
            rows.push(vec![
                part.name.to_owned(),
                part.fate.to_owned(),
                judged.run.status.to_string(),
                output::liveness(judged.verdict.liveness),
                rule.map_or_else(|| "-".to_owned(), |rule| rule.to_string()),
                detected.map_or_else(|| "-".to_owned(), |(over, silent)| format!("{silent} ({over} after it lapsed)")),
            ]);
        }
        output::line("")?;
        output::table(&["RUN", "WHAT HAPPENED", "STATUS", "VERDICT", "RULE", "SILENT UNTIL DETECTED"], rows)?;
        if let Some(victim) = parts.iter().find(|part| part.name == "victim").and_then(|part| part.run) {
            output::line(&format!("\n$ lastbeat why {victim}"))?;
            let question = args::Why { run: victim, at: None, attempt: None };
            look::why(&Place::Store(Arc::clone(&self.store)), &question, Output::Table).await?;
        }
        let damage = self.store.verify(&|_, _| ()).await?.damage;
        broken.extend(damage.iter().map(ToString::to_string));
        Ok(broken)
    }
}

/// How long after the lapse the reap came, and how long the silence was.
fn detection(evidence: Option<&lastbeat_domain::event::Evidence>, reaped_at: Timestamp) -> (Span, Span) {
    match evidence {
        Some(evidence) => (evidence.charged.minus(evidence.window), reaped_at.since(evidence.basis.at)),
        None => (Span::MAX, Span::MAX),
    }
}

fn name(text: &str) -> Result<Name, Failure> {
    Name::new(text).map_err(|error| Failure::new("invalid", error.to_string()))
}

fn signal(child: &Child, signal: Signal) {
    // A child that is gone already shows in the claims.
    let _ = kill_process(Pid::from_child(child), signal);
}

async fn exit_code(child: &mut Child) -> Result<i32, Failure> {
    let started = std::time::Instant::now();
    loop {
        match child.try_wait()? {
            Some(status) => return Ok(status.code().unwrap_or(-1)),
            None if started.elapsed() > PATIENCE => {
                return Err(Failure::new("demo", "the fenced executor did not end"));
            }
            None => tokio::time::sleep(Duration::from_millis(25)).await,
        }
    }
}
