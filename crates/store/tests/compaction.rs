//! What compaction promises, of both kinds of store: no answer changes, whenever it is cut off, and whoever reads or
//! writes meanwhile.

#![allow(clippy::unwrap_used)]

use std::future::poll_fn;
use std::io::Cursor;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use lastbeat_domain::decide::{Command, RunSpec};
use lastbeat_domain::{RunId, Span, Terms, Timestamp};
use lastbeat_store::compact::{Bounds, CompactionReport, compact_all};
use lastbeat_store::postgres::PostgresStore;
use lastbeat_store::{Store, StoreError, ask, check_import, replay};
use lastbeat_testkit::{Backend, Place, SimulatedClock, claimant, exported, name, on_each_backend, report, run_id};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

const NOW: &str = "2026-05-04T06:00:00Z";
const RUNS: u128 = 12;
const ALL: Bounds = Bounds::ALL;

on_each_backend! {
    super::NOW;
    no_answer_changes_here_or_in_a_store_that_is_imported,
    a_compaction_that_is_cut_off_anywhere_leaves_all_as_it_was,
    whoever_reads_meanwhile_misses_nothing_and_sees_nothing_twice,
    young_rows_and_the_last_one_stay_and_few_are_not_worth_an_event,
    rows_of_so_many_heartbeats_that_a_step_holds_few_of_them_are_compacted,
    a_rebuild_after_a_compaction_finds_nothing_to_do,
    the_segments_of_a_settled_run_become_one,
    a_page_of_a_long_run_unpacks_no_more_than_it_holds,
    a_projection_that_lost_a_tail_loses_no_heartbeat,
    a_watermark_beyond_any_store_is_not_imported,
}

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

async fn told(store: &dyn Store, commands: Vec<Command>) -> usize {
    let outcomes = store.execute(commands).await;
    outcomes.into_iter().filter(Result::is_ok).count()
}

fn beat(run: RunId, attempt: u32) -> Command {
    Command::Heartbeat { report: report(run, attempt, &format!("c{attempt}")), progress: None }
}

/// Lets some runs be worked on, some silent, some reaped and tried again, some done, some late.
async fn live(place: &Place, store: &dyn Store, numbers: &mut Numbers, rounds: u64) {
    for _ in 0..rounds {
        place.clock.advance(Span::from_micros(20_000_000 + numbers.below(20_000_000)));
        let mut commands = Vec::new();
        for number in 1..=RUNS {
            let run = run_id(number);
            let Some(known) = store.run(run).await.unwrap() else {
                let spec = Box::new(RunSpec::of_lane(name("watcher")));
                commands.push(Command::Create { run, spec, claim: Some(claimant("mac-7", "c1")) });
                continue;
            };
            let attempt = known.attempt;
            let mut said = report(run, attempt, &format!("c{attempt}"));
            said.claim = None;
            commands.push(match numbers.below(500) {
                0 => Command::Complete { report: said, output: None },
                1 => Command::Fail { report: said, error: "no disk".to_owned() },
                2..=40 => Command::Reap { run, by: name("sweeper"), by_hand: None },
                41..=60 => Command::Heartbeat { report: said, progress: Some(serde_json::json!({"done": attempt})) },
                61 => Command::RequestCancel { run, by: name("ada"), reason: None },
                62..=64 => Command::Start(said),
                // Some are silent for long.
                _ if number % 4 == 0 && numbers.below(12) > 0 => Command::Rearm { run },
                _ => Command::Heartbeat { report: said, progress: None },
            });
        }
        told(store, commands).await;
        let claims = numbers.below(3);
        for _ in 0..claims {
            // The claim's id is not asked for: nobody quotes it.
            let take = Command::Claim { lanes: vec![name("watcher")], claimant: claimant("mac-8", "again") };
            told(store, vec![take]).await;
        }
    }
}

async fn filled(place: &Place, rounds: u64) -> (Arc<dyn Store>, Numbers) {
    let store = place.store("a").await;
    let terms = Box::new(Terms { max_attempts: 3, ..Terms::default() });
    let policy = Command::SetPolicy { lane: name("watcher"), terms, expected_version: None, by: None };
    assert_eq!(told(store.as_ref(), vec![policy]).await, 1);
    let mut numbers = Numbers(7);
    live(place, store.as_ref(), &mut numbers, rounds).await;
    (store, numbers)
}

/// The lines of an export, without the traces of compactions.
async fn facts(store: &dyn Store) -> Vec<String> {
    exported(store).await.into_iter().filter(|line| !line.contains("beats_compacted")).collect()
}

/// What is said of a run at an instant: all of it but what names the moment of the question.
async fn said(store: &dyn Store, run: RunId, at: Timestamp) -> String {
    match ask::run_at(store, run, at).await.unwrap() {
        Some(judged) => format!("{:?} {:?}", judged.run, judged.verdict),
        None => "not there".to_owned(),
    }
}

fn instants(place: &Place, numbers: &mut Numbers, pairs: usize) -> Vec<(RunId, Timestamp)> {
    let start: Timestamp = NOW.parse().unwrap();
    let span = lastbeat_store::Clock::now(place.clock.as_ref()).since(start).as_micros() + 600_000_000;
    (0..pairs)
        .map(|_| {
            (run_id(u128::from(numbers.below(RUNS as u64)) + 1), start.plus(Span::from_micros(numbers.below(span))))
        })
        .collect()
}

async fn compact(store: &dyn Store, bounds: Bounds) -> CompactionReport {
    compact_all(store, bounds, |_| true).await.unwrap()
}

async fn damage(store: &dyn Store) -> Vec<lastbeat_store::Damage> {
    store.verify(&|_, _| ()).await.unwrap().damage
}

async fn no_answer_changes_here_or_in_a_store_that_is_imported(place: Place) {
    let (store, mut numbers) = filled(&place, 200).await;
    let store = store.as_ref();
    let asked = instants(&place, &mut numbers, 200);
    let mut before = Vec::new();
    for (run, at) in &asked {
        before.push(said(store, *run, *at).await);
    }
    assert!(before.iter().filter(|said| *said != "not there").count() > 150);
    let (lines, now) = (facts(store).await, store.now().await.unwrap());
    let mut replayed = Vec::new();
    for number in 1..=RUNS {
        replayed.push(replay(store, run_id(number), now).await.unwrap().unwrap().stretches);
    }
    let report = compact(store, ALL).await;
    assert!(report.rows > 100 && report.beats > 800 && report.tails > 0 && report.merged > 0, "{report:?}");
    assert_eq!(damage(store).await, []);
    assert_eq!(facts(store).await, lines);
    for ((run, at), before) in asked.iter().zip(&before) {
        assert_eq!(said(store, *run, *at).await, *before);
    }
    for (number, before) in (1..=RUNS).zip(&replayed) {
        assert_eq!(replay(store, run_id(number), now).await.unwrap().unwrap().stretches, *before);
    }

    // And in a store that is made of what it exports, which is the same to the byte, the traces of the compaction too.
    let text = exported(store).await;
    assert!(text.iter().any(|line| line.contains("\"beats_compacted\"")));
    let copy = place.store("b").await;
    let copy = copy.as_ref();
    let limit = copy.now().await.unwrap().plus(Span::from_seconds(1));
    copy.import(check_import(Cursor::new(text.join("\n")), limit).unwrap()).await.unwrap();
    assert_eq!(exported(copy).await, text);
    assert_eq!(damage(copy).await, []);
    for ((run, at), before) in asked.iter().zip(&before) {
        assert_eq!(said(copy, *run, *at).await, *before);
    }

    // Life goes on in both, and can be compacted again.
    for store in [store, copy] {
        live(&place, store, &mut Numbers(3), 40).await;
        let (lines, verified) = (facts(store).await, damage(store).await);
        assert_eq!(verified, []);
        assert!(compact(store, ALL).await.beats > 0);
        assert_eq!(facts(store).await, lines);
        assert_eq!(damage(store).await, []);
    }
}

/// Carries a future on until it was looked at so many times, and then drops it. Says whether it came to its end.
async fn cut_off<T>(work: impl Future<Output = T>, looks: u32) -> Option<T> {
    let (mut work, mut left) = (pin!(work), looks);
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        work.as_mut().poll(context).map(Some)
    })
    .await
}

/// Opens the store of a place again, through a relay in this task's thread if it is on a server. So no answer is there before
/// whoever waits for it has let the relay have its turn, however soon the server has it.
async fn reached_in_turns(place: &Place) -> Arc<dyn Store> {
    if place.backend() == Backend::Sqlite {
        return place.store("a").await;
    }
    let url = place.database("a").await;
    let address = url.split('@').nth(1).unwrap().split('/').next().unwrap().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let relayed = url.replacen(&address, &listener.local_addr().unwrap().to_string(), 1);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = TcpStream::connect(&address).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
        }
    });
    let clock = Arc::<SimulatedClock>::clone(&place.clock);
    Arc::new(PostgresStore::open(&relayed, Some(clock)).await.unwrap())
}

async fn a_compaction_that_is_cut_off_anywhere_leaves_all_as_it_was(place: Place) {
    let (store, mut numbers) = filled(&place, 150).await;
    let (store, relayed) = (store.as_ref(), reached_in_turns(&place).await);
    let asked = instants(&place, &mut numbers, 200);
    let mut before = Vec::new();
    for (run, at) in &asked {
        before.push(said(store, *run, *at).await);
    }
    let (lines, mut looks, mut cuts) = (facts(store).await, 1, 0);
    loop {
        match cut_off(relayed.compact(ALL), looks).await {
            None => cuts += 1,
            Some(Ok(step)) if step.is_empty() => break,
            Some(Ok(_)) => {}
            // The server has not noticed yet that the one before is gone.
            Some(Err(StoreError::Unavailable(_))) => continue,
            Some(Err(error)) => panic!("{error}"),
        }
        assert_eq!(damage(store).await, [], "after {looks} looks");
        assert_eq!(facts(store).await, lines, "after {looks} looks");
        looks += 1;
    }
    assert!(cuts > 10, "cut off {cuts} times");
    for ((run, at), before) in asked.iter().zip(&before) {
        assert_eq!(said(store, *run, *at).await, *before);
    }
    assert_eq!(store.rebuild(&|_, _| ()).await.unwrap().differed, 0);
}

async fn whoever_reads_meanwhile_misses_nothing_and_sees_nothing_twice(place: Place) {
    let (store, _) = filled(&place, 60).await;
    let done = AtomicBool::new(false);
    let write = async {
        for number in 0..60_u64 {
            live(&place, store.as_ref(), &mut Numbers(number), 1).await;
        }
        done.store(true, Ordering::SeqCst);
    };
    let compacting = async {
        let mut report = CompactionReport::default();
        while !done.load(Ordering::SeqCst) {
            // Two at once, of which one may be told to come again.
            let (one, other) = tokio::join!(store.compact(ALL), store.compact(ALL));
            for step in [one, other] {
                match step {
                    Ok(step) => report.add(&step),
                    Err(StoreError::Unavailable(_)) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        report
    };
    let read = async {
        let mut looks = 0;
        while !done.load(Ordering::SeqCst) {
            let run = run_id(looks % RUNS + 1);
            let stream = ask::whole_stream(store.as_ref(), run).await.unwrap();
            let versions: Vec<u64> = stream.iter().map(lastbeat_store::Stored::version).collect();
            assert_eq!(versions, (1..=versions.len() as u64).collect::<Vec<u64>>());
            if looks % 20 == 0 {
                assert_eq!(damage(store.as_ref()).await, []);
            }
            if looks % 30 == 0 {
                assert_eq!(store.rebuild(&|_, _| ()).await.unwrap().differed, 0);
            }
            looks += 1;
        }
        looks
    };
    let ((), report, looks) = tokio::join!(write, compacting, read);
    assert!(report.beats > 300 && looks > 10, "{report:?}, {looks} looks");
    assert_eq!(damage(store.as_ref()).await, []);
    assert_eq!(store.rebuild(&|_, _| ()).await.unwrap().differed, 0);
}

/// A store with one run that beat so many times, each in a commit of its own.
async fn one_run(place: &Place, beats: u64) -> Arc<dyn Store> {
    let store = place.store("a").await;
    let (run, spec) = (run_id(1), Box::new(RunSpec::of_lane(name("watcher"))));
    told(store.as_ref(), vec![Command::Create { run, spec, claim: Some(claimant("mac-7", "c1")) }]).await;
    for _ in 0..=beats {
        place.clock.advance(Span::from_seconds(30));
        assert_eq!(told(store.as_ref(), vec![beat(run, 1)]).await, 1);
    }
    store
}

async fn young_rows_and_the_last_one_stay_and_few_are_not_worth_an_event(place: Place) {
    let store = one_run(&place, 50).await;
    let store = store.as_ref();
    let lines = exported(store).await;
    // 50 rows, the first of them 49 × 30 s old.
    let now = store.now().await.unwrap();
    let bounds = |seconds, rows_min| Bounds { until: now.minus(Span::from_seconds(seconds)), rows_min };
    assert!(store.compact(bounds(2_000, 0)).await.unwrap().is_empty());
    assert!(store.compact(bounds(0, 50)).await.unwrap().is_empty());
    assert_eq!(exported(store).await, lines, "nothing was done, and nothing is said");
    let step = store.compact(bounds(30 * 30, 0)).await.unwrap();
    assert_eq!((step.through, step.rows, step.beats, step.tails), (Some(20), 20, 20, 0));
    let step = store.compact(bounds(0, 29)).await.unwrap();
    assert_eq!((step.through, step.rows, step.tails), (Some(49), 29, 1));
    assert!(store.compact(ALL).await.unwrap().is_empty());
    assert_eq!(facts(store).await, lines);
    assert_eq!(damage(store).await, []);
    // Log time does not fall back, and positions go on.
    place.clock.set(store.now().await.unwrap().minus(Span::from_seconds(3_600)));
    assert_eq!(told(store, vec![beat(run_id(1), 1)]).await, 1);
    assert_eq!(store.compact(ALL).await.unwrap().through, Some(50));
    assert_eq!(damage(store).await, []);
}

/// A step holds 100,000 heartbeats at the most.
async fn rows_of_so_many_heartbeats_that_a_step_holds_few_of_them_are_compacted(place: Place) {
    const BEATING: u128 = 250;
    let store = place.store("a").await;
    let store = store.as_ref();
    let spec = || Box::new(RunSpec::of_lane(name("watcher")));
    let create = |number| Command::Create { run: run_id(number), spec: spec(), claim: Some(claimant("mac-7", "c1")) };
    assert_eq!(told(store, (1..=BEATING).map(create).collect()).await, BEATING as usize);
    // The first heartbeat of a run is no plain one.
    for _ in 0..405 {
        place.clock.advance(Span::from_seconds(30));
        told(store, (1..=BEATING).map(|number| beat(run_id(number), 1)).collect()).await;
    }
    let bounds = |rows_min| Bounds { rows_min, ..ALL };
    let rows = store.compact(bounds(u64::MAX)).await.unwrap().left;
    assert!(store.compact(bounds(rows)).await.unwrap().is_empty(), "the last of {rows} rows does not count");
    let step = store.compact(bounds(rows - 1)).await.unwrap();
    assert!(step.beats > 99_000 && step.beats <= 100_000 && step.rows < rows - 1, "{step:?} of {rows} rows");
    assert!(store.compact(bounds(rows - step.rows)).await.unwrap().is_empty());
}

async fn a_rebuild_after_a_compaction_finds_nothing_to_do(place: Place) {
    let (store, mut numbers) = filled(&place, 80).await;
    let store = store.as_ref();
    compact(store, Bounds::older_than(store, Span::from_seconds(600), 0).await.unwrap()).await;
    let lines = facts(store).await;
    let report = store.rebuild(&|_, _| ()).await.unwrap();
    assert_eq!((report.runs, report.differed), (u64::try_from(RUNS).unwrap(), 0));
    live(&place, store, &mut numbers, 5).await;
    compact(store, ALL).await;
    assert_eq!(store.rebuild(&|_, _| ()).await.unwrap().differed, 0);
    assert_eq!(facts(store).await[..3], lines[..3]);
    assert_eq!(damage(store).await, []);
}

async fn the_segments_of_a_settled_run_become_one(place: Place) {
    let store = one_run(&place, 100).await;
    let store = store.as_ref();
    told(store, vec![Command::Complete { report: report(run_id(1), 1, "c1"), output: None }]).await;
    let lines = exported(store).await;
    let step = store.compact(ALL).await.unwrap();
    // Three full tails and what was left when it was done.
    assert_eq!((step.tails, step.merged, step.merged_into), (0, 4, 1));
    assert!(step.bytes_after < step.bytes_before);
    assert_eq!(facts(store).await, lines);
    let (first, second) =
        (store.stream(run_id(1), 0, 50).await.unwrap(), store.stream(run_id(1), 50, 99).await.unwrap());
    assert_eq!((first.next, second.next, first.facts.len() + second.facts.len()), (Some(50), None, 104));
    assert_eq!(damage(store).await, []);
}

/// Runs a statement behind the store's back, of those for either kind.
async fn behind_its_back(place: &Place, database: &str, sqlite: &'static str, postgres: &'static str) {
    use sqlx::ConnectOptions;
    match place.backend() {
        lastbeat_testkit::Backend::Sqlite => {
            let file = sqlx::sqlite::SqliteConnectOptions::new().filename(place.file(&format!("{database}.db")));
            sqlx::raw_sql(sqlite).execute(&mut file.connect().await.unwrap()).await.unwrap();
        }
        lastbeat_testkit::Backend::Postgres => {
            let options: sqlx::postgres::PgConnectOptions = place.database(database).await.parse().unwrap();
            sqlx::raw_sql(postgres).execute(&mut options.connect().await.unwrap()).await.unwrap();
        }
    }
}

async fn a_page_of_a_long_run_unpacks_no_more_than_it_holds(place: Place) {
    const BEATS: u64 = 10_000;
    let run = run_id(1);
    let mut lines = exported(one_run(&place, 5).await.as_ref()).await;
    let (version, last) = (lines.len() as u64, lines.last().unwrap().clone());
    let mut at = lastbeat_store::Clock::now(place.clock.as_ref());
    for next in version + 1..=version + BEATS {
        at = at.plus(Span::from_seconds(30));
        let mut line: serde_json::Value = serde_json::from_str(&last).unwrap();
        line["version"] = next.into();
        line["recorded_at"] = at.to_string().into();
        lines.push(line.to_string());
    }
    place.clock.set(at.plus(Span::from_seconds(30)));
    let store = place.store("b").await;
    let store = store.as_ref();
    store.import(check_import(Cursor::new(lines.join("\n")), at).unwrap()).await.unwrap();
    for _ in 0..2 {
        place.clock.advance(Span::from_seconds(30));
        assert_eq!(told(store, vec![beat(run, 1)]).await, 1);
    }
    told(store, vec![Command::Complete { report: report(run, 1, "c1"), output: None }]).await;
    let step = store.compact(ALL).await.unwrap();
    assert!(step.merged > 15 && step.merged_into < 4, "{step:?}");

    let whole = ask::whole_stream(store, run).await.unwrap();
    assert_eq!(whole.len() as u64, version + BEATS + 3);
    for limit in [7, 512, 5_000] {
        let (mut facts, mut after) = (Vec::new(), Some(0));
        while let Some(version) = after {
            let page = store.stream(run, version, limit).await.unwrap();
            assert!(page.facts.len() == limit || page.next.is_none());
            facts.extend(page.facts);
            after = page.next;
        }
        assert_eq!(facts, whole, "in pages of {limit}");
    }

    // The last segment cannot be unpacked: who reads the first page does not notice.
    behind_its_back(
        &place,
        "b",
        "DROP TRIGGER segments_no_update; \
         UPDATE segments SET data = x'' WHERE first_version = (SELECT max(first_version) FROM segments)",
        "ALTER TABLE segments DISABLE TRIGGER segments_append_only; \
         UPDATE segments SET data = '' WHERE first_version = (SELECT max(first_version) FROM segments)",
    )
    .await;
    assert_eq!(store.stream(run, 0, 50).await.unwrap().facts, whole[..50]);
    let error = store.stream(run, whole.len() as u64 - 50, 50).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
}

/// Empties the tails behind the store's back.
async fn lose_tails(place: &Place) {
    behind_its_back(place, "a", "UPDATE runs SET tail = x''", "UPDATE beating SET tail = ''").await;
}

async fn a_projection_that_lost_a_tail_loses_no_heartbeat(place: Place) {
    let store = one_run(&place, 50).await;
    let store = store.as_ref();
    let lines = exported(store).await;
    lose_tails(&place).await;
    let error = store.compact(ALL).await.unwrap_err();
    assert!(matches!(&error, StoreError::Corrupt(what) if what.contains("is in no segment")), "{error}");
    store.rebuild(&|_, _| ()).await.unwrap();
    assert_eq!(exported(store).await, lines);
    assert_eq!(compact(store, ALL).await.beats, 49);
    assert_eq!(facts(store).await, lines);
}

async fn a_watermark_beyond_any_store_is_not_imported(place: Place) {
    let store = place.store("a").await;
    let line = |through: u64| {
        format!(
            r#"{{"recorded_at":"2026-05-04T02:00:00Z","type":"beats_compacted","through":{through},"rows":1,"beats":1}}"#
        )
    };
    let now = store.now().await.unwrap();
    let error = check_import(Cursor::new(line(u64::MAX)), now).unwrap_err().to_string();
    assert!(error.contains("line 1") && error.contains("no store ever had so many"), "{error}");
    store.import(check_import(Cursor::new(line(1_000)), now).unwrap()).await.unwrap();
    let store = one_run(&place, 5).await;
    assert_eq!(damage(store.as_ref()).await, []);
    assert_eq!(store.compact(ALL).await.unwrap().through, Some(1_004));
}
