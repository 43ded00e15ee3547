//! Many processes on one PostgreSQL server, any of which may die, be stopped or be slow; and a server that goes away.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use lastbeat_acceptance::soak::{Soak, play};
use lastbeat_acceptance::{Numbers, Place, Started, extent, helper, opened, pause, until};
use lastbeat_domain::decide::{Command as Told, RunSpec};
use lastbeat_domain::event::ServiceEvent;
use lastbeat_domain::{RunEvent, Span};
use lastbeat_store::{FeedEntry, FeedFact};
use lastbeat_testkit::postgres::{Cluster, ClusterOptions};
use lastbeat_testkit::{claimant, name, report, run_id};
use rustix::process::Signal;
use serde_json::Value;

/// Wide enough that a busy machine keeps it.
const INTERVAL: &str = "500ms";
const WINDOW: Duration = Duration::from_secs(3);

/// `cargo xtask soak MINUTES` plays it for longer.
#[test]
fn among_eight_sweepers_and_fifty_executors_the_dead_are_reaped_once_and_nobody_who_beats() {
    let report = play(Soak::default());
    println!("{report}");
    assert!(report.violations.is_empty(), "{report}");
    assert!(report.runs >= 500 && report.reaps > 0, "hardly anything was tried: {report}");
}

/// Fifty executors that beat, each for one run without an end, and sweepers, on a server of their own.
struct Scene {
    cluster: Cluster,
    database: String,
    place: Place,
    sweepers: Vec<Started>,
    executors: BTreeMap<String, Started>,
}

impl Scene {
    fn new() -> Scene {
        let cluster = Cluster::start();
        let url = cluster.create_database();
        let database = url.rsplit('/').next().unwrap().to_owned();
        let place = Place::on(&url);
        let window = format!("{}s", WINDOW.as_secs());
        let windows = ["--heartbeat-interval", INTERVAL, "--heartbeat-window", &window];
        place.json(&[&["lane", "set", "night", "--hold-min", "off"], &windows[..]].concat());
        let sweeper = |_| Started::new(place.lastbeat(&["sweep"]).stdout(Stdio::null()).stderr(Stdio::null()));
        let sweepers = (0..3).map(sweeper).collect();
        let executors = (0..50).map(|number| {
            let name = format!("e{number}");
            let mut command = if number < 4 {
                place.lastbeat(&["exec", "--lane", "night", "--executor", &name, "--", "sleep", "600"])
            } else {
                let mut command = Command::new(helper("executor"));
                command.args([&url, &name, "night", "1", "500", "0", &(number + 1).to_string()]);
                command
            };
            let process = Started::new(command.stdout(Stdio::null()).stderr(Stdio::null()));
            (name, process)
        });
        let executors = executors.collect();
        let scene = Scene { cluster, database, place, sweepers, executors };
        until("all are heard of", || scene.all_are_heard_of(2));
        scene
    }

    /// The runs by their executors.
    fn runs(&self) -> BTreeMap<String, Value> {
        let list = self.place.json(&["run", "list", "--limit", "200"]);
        let runs = list["runs"].as_array().unwrap().iter().filter(|run| run["executor"].is_string());
        runs.map(|run| (run["executor"].as_str().unwrap().to_owned(), run.clone())).collect()
    }

    fn all_are_heard_of(&self, beats: u64) -> bool {
        let runs = self.runs();
        self.executors.keys().all(|name| runs.get(name).is_some_and(|run| run["beats"].as_u64() >= Some(beats)))
    }

    /// Lets the database be away from `begin` to `end`, and kills some executors meanwhile: they are reaped, within the
    /// window and two seconds of listening time, and nobody else is. At least so many seconds are deaf.
    fn nobody_else_is_blamed(mut self, away: Duration, begin: impl FnOnce(&Scene), end: impl FnOnce(&Scene)) {
        begin(&self);
        pause(away / 2);
        let doomed = ["e0", "e20", "e40"];
        let dead: Vec<Started> = doomed.iter().map(|name| self.executors.remove(*name).unwrap()).collect();
        dead.iter().for_each(|executor| executor.signal(Signal::KILL));
        pause(away - away / 2);
        end(&self);
        until("the dead are reaped", || {
            let runs = self.runs();
            doomed.iter().all(|name| runs[*name]["status"] == "timed_out")
        });
        // Who was silent all the while would be reaped by the end of this.
        pause(WINDOW);

        let runs = self.runs();
        let audit = self.place.audit();
        assert_eq!(audit.violations, Vec::<String>::new());
        let reaped: BTreeSet<&str> = audit.reaps.iter().map(|reap| reap.executor.as_str()).collect();
        assert_eq!(reaped, BTreeSet::from(doomed));
        for reap in &audit.reaps {
            assert!(reap.over < 2.0, "reaped {} s too late: {reap:?}", reap.over);
            assert!(reap.deaf > WINDOW.as_secs_f64(), "{reap:?}");
            let why = self.place.json(&["why", &reap.run.to_string()]);
            assert_eq!(why["deaf_seconds"].as_f64(), Some(reap.deaf), "{why}");
            assert!(why["message"].as_str().unwrap().contains("deaf time not charged"), "{why}");
        }
        for name in self.executors.keys() {
            assert_eq!((runs[name]["status"].as_str(), runs[name]["attempt"].as_u64()), (Some("running"), Some(1)));
        }
        let spans = audit.service.iter().filter_map(|recorded| match recorded.event {
            ServiceEvent::Deaf { from, to, .. } => Some((to.since(from), from)),
            _ => None,
        });
        let (longest, from) = spans.max().unwrap();
        assert!(longest.as_seconds() > away.as_secs_f64() - 1.5, "deaf for {longest} only");
        // Of one that lives, too, it is known that it was not heard of then because nobody listened.
        let then = from.plus(Span::from_micros(longest.as_micros() / 2));
        let why = self.place.json(&["why", runs["e10"]["run"].as_str().unwrap(), "--at", &then.to_string()]);
        assert!(why["deaf_seconds"].as_f64().unwrap() > longest.as_seconds() / 2.0 - 1.0, "{why}");
        self.place.verified();
        self.sweepers.into_iter().for_each(|sweeper| drop(sweeper.terminate()));
    }
}

#[test]
fn a_server_that_was_stopped_blames_nobody_but_the_dead_and_those_in_time() {
    Scene::new().nobody_else_is_blamed(
        2 * WINDOW,
        |scene| scene.cluster.stop_immediate(),
        |scene| scene.cluster.start_again(),
    );
}

#[test]
fn a_server_that_was_read_only_blames_nobody_but_the_dead_and_those_in_time() {
    Scene::new().nobody_else_is_blamed(
        2 * WINDOW,
        |scene| scene.cluster.set("default_transaction_read_only", "on"),
        |scene| {
            let run = scene.runs()["e10"]["run"].as_str().unwrap().to_owned();
            // Whoever asks meanwhile is told that nobody listens.
            let why = scene.place.json(&["why", &run]);
            assert!(why["deaf_since"].is_string() && why["deaf_seconds"].as_f64().unwrap() > 3.0, "{why}");
            scene.cluster.set("default_transaction_read_only", "off");
        },
    );
}

/// Sessions of writers that wait for their client in the middle of a transaction.
const IN_THE_MIDDLE: &str = "SELECT pid || ' ' || xact_start FROM pg_stat_activity WHERE datname = current_database() \
     AND application_name = 'lastbeat writer' AND state = 'idle in transaction'";
/// Those of them that keep the log locked.
const KEEPS_THE_LOG: &str = "SELECT pid || ' ' || xact_start FROM pg_stat_activity JOIN pg_locks USING (pid) \
     WHERE datname = current_database() AND state = 'idle in transaction' AND locktype = 'advisory' AND granted";

/// Stops a process in the middle of a transaction, of which `sessions` finds the session; so it is stopped and
/// continued until it is caught there. Returns false when it never was.
fn caught(process: &Started, cluster: &Cluster, database: &str, sessions: &str, numbers: &mut Numbers) -> bool {
    let found = || cluster.sql(database, sessions).into_iter().collect::<BTreeSet<String>>();
    for _ in 0..100 {
        process.signal(Signal::STOP);
        let mut there = found();
        // Of those who go on, nobody stays in one transaction for so long.
        for _ in 0..5 {
            if there.is_empty() {
                break;
            }
            pause(Duration::from_millis(80));
            there = &there & &found();
        }
        if !there.is_empty() {
            return true;
        }
        process.signal(Signal::CONT);
        pause(Duration::from_millis(numbers.below(30)));
    }
    false
}

#[test]
fn a_stopped_process_that_keeps_the_log_locked_is_thrown_out_and_blames_nobody_but_the_dead() {
    let scene = Scene::new();
    let mut command = Command::new(helper("acknowledge"));
    let url = scene.cluster.url(&scene.database);
    let stopped = Started::new(command.args([&url, "1", "1000"]).stdout(Stdio::null()).stderr(Stdio::null()));
    let locked = |scene: &Scene| !scene.cluster.sql(&scene.database, KEEPS_THE_LOG).is_empty();
    scene.nobody_else_is_blamed(
        Duration::from_secs(4),
        |scene| {
            let held = caught(&stopped, &scene.cluster, &scene.database, KEEPS_THE_LOG, &mut Numbers(3));
            assert!(held, "it was never caught with the lock");
        },
        |scene| until("the server threw it out", || !locked(scene)),
    );
}

/// Tells other threads to end, also when this one panics: it waits for them.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Claims runs and beats for them, and is not heard of again, until `end`.
fn abandon(url: &str, end: &AtomicBool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = opened(url).await;
        let mut made = 0;
        while !end.load(Ordering::Relaxed) {
            let mut claims: Vec<Told> = Vec::new();
            for _ in 0..10 {
                made += 1;
                let spec = Box::new(RunSpec::of_lane(name("night")));
                let claimant = claimant("nobody", &format!("c{made}"));
                claims.push(Told::Create { run: run_id(made), spec, claim: Some(claimant.clone()) });
                claims.push(Told::Claim { lanes: vec![name("night")], claimant });
            }
            let answers = store.execute(claims).await;
            let claimed = answers.into_iter().flatten().flat_map(|answer| answer.appended);
            let beats = claimed.filter_map(|fact| match fact.event {
                RunEvent::Claimed { attempt, claim, .. } => {
                    let report = report(fact.run, attempt, &claim?.to_string());
                    Some(Told::Heartbeat { report, progress: None })
                }
                _ => None,
            });
            store.execute(beats.collect()).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        store.close().await;
    });
}

/// `LASTBEAT_KILLS` makes it more.
#[test]
fn sweepers_killed_between_reading_and_appending_leave_nothing_half_done() {
    let cluster = Cluster::start();
    let url = cluster.create_database();
    let database = url.rsplit('/').next().unwrap();
    let place = Place::on(&url);
    let windows = ["--heartbeat-interval", "100ms", "--heartbeat-window", "300ms", "--coarse-ttl", "300ms"];
    let retries = ["--max-attempts", "2", "--retry-backoff-base", "100ms", "--hold-min", "off"];
    place.json(&[&["lane", "set", "night"], &windows[..], &retries[..]].concat());
    let sweep = || Started::new(place.lastbeat(&["sweep"]).stdout(Stdio::null()).stderr(Stdio::null()));
    let kills = extent("LASTBEAT_KILLS", 10);
    let (end, mut numbers, mut in_the_middle) = (AtomicBool::new(false), Numbers(11), 0);
    std::thread::scope(|scope| {
        let _ends = Ends(&end);
        scope.spawn(|| abandon(&url, &end));
        for _ in 0..kills {
            let sweeper = sweep();
            pause(Duration::from_millis(200 + numbers.below(800)));
            in_the_middle += usize::from(caught(&sweeper, &cluster, database, IN_THE_MIDDLE, &mut numbers));
            sweeper.signal(Signal::KILL);
        }
    });
    let survivor = sweep();
    until("all are reaped", || {
        let counts = place.json(&["lane", "show", "night"])["runs"].clone();
        ["claimed", "running"].iter().all(|status| counts[status].as_u64().unwrap_or(0) == 0)
    });
    survivor.terminate();
    place.verified();
    let audit = place.audit();
    assert_eq!((audit.violations.len(), audit.open.len()), (0, 0), "{:?}", audit.violations);
    assert_eq!(audit.reaps.len(), audit.attempts, "each attempt was reaped, and once");
    let second = audit.reaps.iter().filter(|reap| reap.attempt == 2).count();
    println!("{kills} kills, {in_the_middle} of them in a transaction; {} reaps, {second} of a retry", audit.attempts);
    assert!(in_the_middle > 0 && second > 0, "hardly anything was tried");
}

/// Writers that write down what was acknowledged.
struct Writers(Vec<(Started, String)>);

impl Writers {
    fn new(place: &Place, url: &str, count: usize, beats: u64) -> Writers {
        let writer = |number: usize| {
            let file = format!("acknowledged-{number}");
            let mut command = Command::new(helper("acknowledge"));
            command.args([url, &number.to_string(), &beats.to_string()]);
            (Started::new(command.stdout(File::create(place.file(&file)).unwrap())), file)
        };
        Writers((0..count).map(writer).collect())
    }

    /// Ends them and holds the log against what they wrote down: nothing acknowledged is missing or was acknowledged
    /// twice, and nothing is there that was not. Returns how much that is.
    fn end(self, place: &Place) -> usize {
        let mut texts = Vec::new();
        self.0.iter().for_each(|(writer, _)| writer.signal(Signal::TERM));
        for (writer, file) in self.0 {
            writer.terminate();
            texts.push(std::fs::read_to_string(place.file(&file)).unwrap());
        }
        let audit = place.audit();
        assert_eq!(audit.violations, Vec::<String>::new());
        let mut unacknowledged = audit.versions();
        let (mut acknowledged, mut failed) = (0, BTreeSet::new());
        for line in texts.iter().flat_map(|text| text.lines()) {
            if let Some((run, _)) = line.split_once(" failed: ") {
                failed.insert(run);
                continue;
            }
            acknowledged += 1;
            assert!(unacknowledged.remove(line), "{line} was acknowledged, and is not there, or for the second time");
        }
        // Of a command that could not be answered the caller was told so, and nobody knows what became of it.
        unacknowledged.retain(|line| !failed.contains(line.split(' ').next().unwrap()));
        assert_eq!(unacknowledged, BTreeSet::new(), "written and never acknowledged");
        place.verified();
        println!(
            "{acknowledged} acknowledged facts; {} runs of which the database was away for too long",
            failed.len()
        );
        acknowledged
    }
}

/// Follows the feed until `end`, and then to its end. `seen` is how far it is.
async fn follow(url: &str, end: &AtomicBool, mut seen: impl FnMut(usize)) -> Vec<FeedEntry> {
    let store = opened(url).await;
    let mut entries: Vec<FeedEntry> = Vec::new();
    loop {
        let over = end.load(Ordering::Relaxed);
        let after = entries.last().map_or(0, |entry| entry.position);
        let page = match store.feed(after, 200).await {
            Ok(page) => page,
            Err(error) => {
                assert!(error.is_transient(), "{error}");
                Vec::new()
            }
        };
        if over && page.is_empty() {
            break;
        }
        for entry in page {
            let last = entries.last().map_or(0, |entry| entry.position);
            assert!(last < entry.position, "{} after {last}", entry.position);
            entries.push(entry);
        }
        seen(entries.len());
        tokio::task::yield_now().await;
    }
    store.close().await;
    entries
}

/// Begins to follow the feed on a thread of its own.
fn follower<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    url: &'scope str,
    end: &'scope AtomicBool,
    seen: impl FnMut(usize) + Send + 'scope,
) -> ScopedJoinHandle<'scope, Vec<FeedEntry>> {
    scope.spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(follow(url, end, seen))
    })
}

/// The feed that was followed is the one that is there now, and has every fact of the log but the plain heartbeats.
fn assert_followed(place: &Place, url: &str, followed: &[FeedEntry]) {
    let over = AtomicBool::new(true);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let there = runtime.block_on(follow(url, &over, |_| {}));
    assert!(followed == there, "the feed that was followed is not the one that is there");
    let key = |entry: &FeedEntry| match &entry.fact {
        FeedFact::Run(fact) => fact.known().map(|fact| (fact.run, fact.version)),
        FeedFact::Service(_) => None,
    };
    let told: Vec<_> = followed.iter().filter_map(key).collect();
    let once: BTreeSet<_> = told.iter().copied().collect();
    assert_eq!(told.len(), once.len(), "a fact was told twice");
    let mut others = 0;
    for fact in place.audit().streams.values().flatten() {
        let plain = matches!(fact.event, RunEvent::Heartbeat { progress: None, .. });
        let told = once.contains(&(fact.run, fact.version));
        assert!(told || plain, "{fact:?} was never told");
        others += usize::from(!told);
    }
    assert!(others > 0, "no heartbeat was plain");
}

/// `LASTBEAT_SERVER_KILLS` makes it more.
#[test]
fn a_server_that_is_killed_loses_nothing_that_was_acknowledged() {
    let cluster = Cluster::start_with(&ClusterOptions { durable: true, ..ClusterOptions::default() });
    let url = cluster.create_database();
    let place = Place::on(&url);
    let writers = Writers::new(&place, &url, 4, 20);
    let sweeper = Started::new(place.lastbeat(&["sweep"]).stdout(Stdio::null()).stderr(Stdio::null()));
    let kills = extent("LASTBEAT_SERVER_KILLS", 5);
    let (end, mut numbers) = (AtomicBool::new(false), Numbers(5));
    std::thread::scope(|scope| {
        let ends = Ends(&end);
        let followed = follower(scope, &url, &end, |_| {});
        for _ in 0..kills {
            pause(Duration::from_millis(300 + numbers.below(1_000)));
            cluster.kill();
            pause(Duration::from_millis(numbers.below(500)));
            cluster.start_again();
        }
        pause(Duration::from_secs(1));
        let acknowledged = writers.end(&place);
        sweeper.terminate();
        drop(ends);
        let followed = followed.join().unwrap();
        assert_followed(&place, &url, &followed);
        println!("{kills} kills of the server, {acknowledged} acknowledged facts, {} in the feed", followed.len());
        assert!(acknowledged > 500, "hardly anything was acknowledged, so nothing was tried");
    });
}

/// `LASTBEAT_FEED_EVENTS` makes it more.
#[test]
fn who_follows_the_feed_of_sixteen_writers_misses_nothing_and_sees_nothing_twice() {
    let cluster = Cluster::start();
    let url = cluster.create_database();
    let place = Place::on(&url);
    let wanted = usize::try_from(extent("LASTBEAT_FEED_EVENTS", 5_000)).unwrap();
    let (end, enough) = (AtomicBool::new(false), AtomicBool::new(false));
    let writers = Writers::new(&place, &url, 16, 40);
    std::thread::scope(|scope| {
        let ends = Ends(&end);
        let followed = follower(scope, &url, &end, |seen| enough.store(seen >= wanted, Ordering::Relaxed));
        while !enough.load(Ordering::Relaxed) {
            pause(Duration::from_millis(20));
        }
        let acknowledged = writers.end(&place);
        drop(ends);
        let followed = followed.join().unwrap();
        assert_followed(&place, &url, &followed);
        println!("{} events of the feed, {acknowledged} facts in all", followed.len());
    });
}
