//! What every store promises.

#![allow(clippy::unwrap_used)]

use std::io::Cursor;

use lastbeat_domain::decide::{Command, RunSpec};
use lastbeat_domain::{RefusalCode, RunId, Span, Status, Terms};
use lastbeat_store::{Answer, CommandError, ImportError, Store, Stored, ask, check_import, fold};
use lastbeat_testkit::{Place, claimant, name, report, run_id};
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};

const NOW: &str = "2026-05-04T06:00:00Z";

fn create(run: RunId, claim: Option<&str>) -> Command {
    let claim = claim.map(|claim| claimant("mac-7", claim));
    Command::Create { run, spec: Box::new(RunSpec::of_lane(name("watcher"))), claim }
}

fn beat(run: RunId, claim: &str) -> Command {
    Command::Heartbeat { report: report(run, 1, claim), progress: None }
}

fn reap(run: RunId) -> Command {
    Command::Reap { run, by: name("sweeper"), by_hand: None }
}

async fn one(store: &dyn Store, command: Command) -> Result<Answer, CommandError> {
    store.execute(vec![command]).await.pop().unwrap()
}

fn refused(outcome: Result<Answer, CommandError>) -> RefusalCode {
    match outcome {
        Err(CommandError::Refused(refusal)) => refusal.code,
        other => panic!("not refused: {other:?}"),
    }
}

async fn exported(store: &dyn Store) -> String {
    let mut text = String::new();
    let mut sink = |line: &str| {
        text.push_str(line);
        text.push('\n');
        Ok(())
    };
    store.export(&mut sink).await.unwrap();
    text
}

#[tokio::test]
async fn a_run_of_a_hundred_beats_keeps_every_one_of_them() {
    let place = Place::at(NOW);
    let store = place.open("a.db").await;
    let run = run_id(1);
    one(&store, create(run, Some("c"))).await.unwrap();
    let mut instants = Vec::new();
    for _ in 0..100 {
        place.clock.advance(Span::from_seconds(30));
        let answer = one(&store, beat(run, "c")).await.unwrap();
        instants.push(answer.appended[0].recorded_at);
    }
    let stream = ask::whole_stream(&store, run).await.unwrap();
    let beats: Vec<_> = stream.iter().filter(|fact| fact.type_name() == "heartbeat").collect();
    assert_eq!(beats.iter().map(|fact| fact.recorded_at()).collect::<Vec<_>>(), instants);
    assert_eq!(fold(&stream).unwrap(), store.run(run).await.unwrap());
    let (first, second) = (store.stream(run, 0, 50).await.unwrap(), store.stream(run, 50, 1_000).await.unwrap());
    let pages: Vec<Stored> = first.facts.into_iter().chain(second.facts).collect();
    assert_eq!((first.next, second.next, pages), (Some(50), None, stream));
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
}

#[tokio::test]
async fn log_time_stands_still_while_the_clock_runs_backwards() {
    let place = Place::at(NOW);
    let store = place.open("a.db").await;
    one(&store, create(run_id(1), Some("c"))).await.unwrap();
    let before = store.now().await.unwrap();
    place.clock.set(before.minus(Span::from_seconds(3_600)));
    let answer = one(&store, beat(run_id(1), "c")).await.unwrap();
    assert_eq!(answer.appended[0].recorded_at, before.next());
}

#[tokio::test]
async fn a_heartbeat_that_comes_before_the_reap_wins() {
    let place = Place::at(NOW);
    let store = place.open("a.db").await;
    let run = run_id(1);
    one(&store, create(run, Some("c"))).await.unwrap();
    one(&store, beat(run, "c")).await.unwrap();
    place.clock.advance(Span::from_seconds(181));
    assert!(ask::run(&store, run).await.unwrap().unwrap().verdict.is_lapsed());
    one(&store, beat(run, "c")).await.unwrap();
    assert_eq!(refused(one(&store, reap(run)).await), RefusalCode::NotLapsed);
    place.clock.advance(Span::from_seconds(181));
    one(&store, reap(run)).await.unwrap();
    assert_eq!(refused(one(&store, reap(run)).await), RefusalCode::NotLapsed);
    assert_eq!(refused(one(&store, beat(run, "c")).await), RefusalCode::Settled);
    let types: Vec<String> = types(&store, run).await;
    assert_eq!(types, ["created", "claimed", "heartbeat", "heartbeat", "timed_out", "late_signal"]);
}

async fn types(store: &dyn Store, run: RunId) -> Vec<String> {
    let stream = ask::whole_stream(store, run).await.unwrap();
    stream.iter().map(|fact| fact.type_name().to_owned()).collect()
}

#[tokio::test]
async fn a_lane_is_taken_first_in_first_out_and_nobody_gets_a_run_twice() {
    let place = Place::at(NOW);
    let store = place.open("a.db").await;
    for number in 1..=3 {
        place.clock.advance(Span::from_seconds(1));
        one(&store, create(run_id(number), None)).await.unwrap();
    }
    let claim = |claim: &str| Command::Claim { lanes: vec![name("watcher")], claimant: claimant("mac-7", claim) };
    let outcomes = store.execute(vec![claim("a"), claim("b"), claim("c"), claim("d")]).await;
    let claimed: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()?.judged.as_ref()).collect();
    assert_eq!(claimed.iter().map(|judged| judged.run.id).collect::<Vec<_>>(), [run_id(1), run_id(2), run_id(3)]);
    assert_eq!(refused(outcomes.into_iter().next_back().unwrap()), RefusalCode::NothingToClaim);
}

#[tokio::test]
async fn a_unique_key_is_open_once_even_in_one_batch() {
    let place = Place::at(NOW);
    let store = place.open("a.db").await;
    let keyed = |number: u128| {
        let spec = RunSpec { unique_key: Some(name("nightly")), ..RunSpec::of_lane(name("watcher")) };
        Command::Create { run: run_id(number), spec: Box::new(spec), claim: None }
    };
    let outcomes = store.execute(vec![keyed(1), keyed(2)]).await;
    let answers: Vec<Answer> = outcomes.into_iter().map(Result::unwrap).collect();
    assert_eq!((answers[0].existing, answers[1].existing), (false, true));
    assert_eq!(answers[1].judged.as_ref().unwrap().run.id, run_id(1));
}

#[tokio::test]
async fn one_bad_command_fails_no_other() {
    let place = Place::at(NOW);
    let store = place.open("a.db").await;
    let outcomes = store.execute(vec![create(run_id(1), None), beat(run_id(9), "c"), create(run_id(2), None)]).await;
    let fine: Vec<bool> = outcomes.iter().map(Result::is_ok).collect();
    assert_eq!(fine, [true, false, true]);
}

#[tokio::test]
async fn a_shorter_window_is_noticed_by_the_next_rearming() {
    let place = Place::at(NOW);
    let store = place.open("a.db").await;
    let run = run_id(1);
    one(&store, create(run, Some("c"))).await.unwrap();
    place.clock.advance(Span::from_seconds(60));
    let terms = Box::new(Terms { coarse_ttl: Span::from_seconds(30), ..Terms::default() });
    one(&store, Command::SetPolicy { lane: name("watcher"), terms, expected_version: Some(0), by: None })
        .await
        .unwrap();
    assert_eq!(store.lanes_to_rearm().await.unwrap(), [name("watcher")]);
    let rearm = Command::RearmLane { lane: name("watcher"), limit: 500 };
    assert_eq!(one(&store, rearm).await.unwrap().rearmed, 1);
    assert_eq!(store.lanes_to_rearm().await.unwrap(), []);
    let due = store.due(store.now().await.unwrap(), 10).await.unwrap();
    assert!(due[0].judged.verdict.is_lapsed());
}

#[tokio::test]
async fn nothing_is_imported_into_a_store_with_runs() {
    let place = Place::at(NOW);
    let store = place.open("a.db").await;
    one(&store, create(run_id(1), None)).await.unwrap();
    let line = r#"{"run":"01930000-0000-7000-8000-000000000001","recorded_at":"2026-05-04T02:37:00Z","type":"created","lane":"l"}"#;
    let checked = check_import(Cursor::new(line), store.now().await.unwrap()).unwrap();
    assert!(matches!(store.import(checked).await, Err(ImportError::NotEmpty)));
}

/// What happens in one step of a random history: a command, by number, about one of three runs; and a pause before it.
type Step = (u8, u128, u64);

fn command((kind, number, _): Step) -> Command {
    let (run, by, reason) = (run_id(number), name("somebody"), None);
    let report = report(run, 1, "c");
    match kind {
        0 => create(run, None),
        1 => create(run, Some("c")),
        2 => Command::Claim { lanes: vec![name("watcher")], claimant: claimant("mac-8", "c") },
        3 => Command::Start(report),
        4 => Command::Heartbeat { report, progress: Some(serde_json::json!({"done": number as u64, "share": 0.1})) },
        5 => Command::Complete { report, output: None },
        6 => Command::Fail { report, error: "no disk".to_owned() },
        7 => Command::RequestCancel { run, by, reason },
        8 => reap(run),
        9 => Command::Requeue { run, by, reason },
        10 => Command::Rearm { run },
        _ => Command::Heartbeat { report, progress: None },
    }
}

async fn projection_is_the_fold_and_export_loses_nothing(steps: Vec<Step>) {
    let place = Place::at("2026-05-04T00:00:00Z");
    let store = place.open("a.db").await;
    let terms = Box::new(Terms { max_attempts: 2, ..Terms::default() });
    one(&store, Command::SetPolicy { lane: name("watcher"), terms, expected_version: None, by: None }).await.unwrap();
    for step in &steps {
        place.clock.advance(Span::from_seconds(step.2));
        if let Err(CommandError::Failed(error)) = one(&store, command(*step)).await {
            panic!("{step:?}: {error}");
        }
    }
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
    store.close().await;
    let store = place.open("a.db").await;
    let text = exported(&store).await;
    let copy = place.open("b.db").await;
    let checked = check_import(Cursor::new(&text), copy.now().await.unwrap().plus(Span::from_seconds(1))).unwrap();
    copy.import(checked).await.unwrap();
    assert_eq!(exported(&copy).await, text);
    assert_eq!(copy.verify(&|_, _| ()).await.unwrap().damage, []);
    for number in 0..3 {
        let (here, there) = (ask::run(&store, run_id(number)).await, ask::run(&copy, run_id(number)).await);
        let of = |judged: Option<lastbeat_store::Judged>| judged.map(|judged| (judged.run, judged.verdict.liveness));
        assert_eq!(of(here.unwrap()), of(there.unwrap()));
        let ended = store.run(run_id(number)).await.unwrap().is_some_and(|run| run.status == Status::TimedOut);
        assert!(!ended || types(&store, run_id(number)).await.contains(&"timed_out".to_owned()));
    }
}

#[test]
fn the_projection_is_the_fold_after_any_sequence_and_an_export_loses_nothing() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let persistence = FileFailurePersistence::WithSource("regressions");
    let config = Config {
        cases: 24,
        failure_persistence: Some(Box::new(persistence)),
        source_file: Some(file!()),
        ..Config::default()
    };
    let step = (0_u8..30, 0_u128..3, prop_oneof![4 => 0_u64..60, 1 => 0_u64..10_000]);
    let steps = prop::collection::vec(step, 1..150);
    let check = |steps| {
        runtime.block_on(projection_is_the_fold_and_export_loses_nothing(steps));
        Ok(())
    };
    TestRunner::new(config).run(&steps, check).unwrap();
}

#[tokio::test]
async fn every_recorded_situation_gets_its_verdict_from_the_store() {
    let cases: Vec<serde_json::Value> = serde_json::from_str(include_str!("../../../tests/cases/seed.json")).unwrap();
    for case in &cases {
        let place = Place::at("2026-06-01T00:00:00Z");
        let store = place.open("a.db").await;
        let lines: String = case["history"].as_array().unwrap().iter().map(|line| format!("{line}\n")).collect();
        let checked = check_import(Cursor::new(lines), store.now().await.unwrap()).unwrap();
        store.import(checked).await.unwrap();
        let (run, at) = (case["run"].as_str().unwrap().parse().unwrap(), case["at"].as_str().unwrap().parse().unwrap());
        let judged = ask::run_at(&store, run, at).await.unwrap().unwrap();
        let found = serde_json::json!({"verdict": judged.verdict.liveness, "rule": judged.verdict.rule()});
        for field in ["verdict", "rule"] {
            assert_eq!(found[field], case["expect"][field], "{}", case["name"]);
        }
    }
}
