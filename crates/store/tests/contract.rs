//! What every store promises.

#![allow(clippy::unwrap_used)]

use std::io::Cursor;
use std::ops::ControlFlow;
use std::sync::Arc;

use lastbeat_domain::alternative::{Alternative, Window};
use lastbeat_domain::backtest::{Backtest, BacktestReport};
use lastbeat_domain::decide::{Claimant, Command, CursorMove, IdempotencyKey, Report, RunSpec};
use lastbeat_domain::listening::{BeaconRole, Promise};
use lastbeat_domain::token::{TokenSpec, TokenState};
use lastbeat_domain::{LanePolicy, RefusalCode, Run, RunId, Span, Status, Terms, Timestamp};
use lastbeat_store::generate::{self, Workload};
use lastbeat_store::secret::{Secret, digest_of};
use lastbeat_store::{
    Answer, CommandError, FeedFact, Filter, Health, ImportError, Question, Store, StoreError, Stored, ask,
    check_import, fold,
};
use lastbeat_testkit::{Backend, Place, claimant, name, on_each_backend, report, run_id};
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

on_each_backend! {
    super::NOW;
    a_run_of_a_hundred_beats_keeps_every_one_of_them,
    log_time_stands_still_while_the_clock_runs_backwards,
    log_time_stands_still_though_the_last_beacon_is_gone,
    a_heartbeat_that_comes_before_the_reap_wins,
    a_lane_is_taken_first_in_first_out_and_nobody_gets_a_run_twice,
    a_device_pin_is_respected_and_nobody_behind_it_starves,
    a_unique_key_is_open_once_even_in_one_batch,
    a_unique_key_is_open_once_however_many_race_for_it,
    a_repeated_create_or_claim_gets_its_first_answer,
    an_idempotency_key_of_another_request_or_sender_is_another_matter,
    racing_repetitions_do_it_once,
    what_is_done_twice_is_recorded_once,
    one_bad_command_fails_no_other,
    a_shorter_window_is_noticed_by_the_next_rearming,
    nothing_is_imported_into_a_store_with_runs,
    every_recorded_situation_gets_its_verdict_from_the_store,
    many_claimants_get_each_run_once,
    a_fenced_heartbeat_is_refused_however_it_comes,
    a_claim_that_is_no_uuid_holds_its_run_as_any_other_does,
    heartbeats_among_other_facts_and_after_long_silence_are_kept_to_the_microsecond,
    an_executor_is_told_when_its_run_lapses_in_whichever_lane_it_is,
    each_command_of_a_batch_gets_its_own_answer_in_whatever_order_they_come,
    heartbeats_of_many_runs_share_a_commit_and_each_is_kept,
    the_facts_of_a_commit_stand_in_the_order_of_their_stamps,
    a_retry_comes_with_its_reap_and_a_late_completion_voids_it,
    racing_sweepers_reap_each_run_once,
    the_service_log_is_the_same_for_everybody,
    a_rebuilt_projection_is_the_same,
    runs_are_listed_newest_first_in_pages,
    goals_are_listed_once_each_in_pages,
    doctor_finds_nothing_bad,
    a_token_is_found_by_its_digest_until_it_is_revoked,
    tokens_come_through_export_and_import_as_they_were,
    a_token_without_a_digest_admits_nobody,
    a_cursor_begins_at_the_end_of_the_log_and_never_goes_back,
    a_cursor_cannot_be_ahead_of_the_log,
    what_is_imported_is_no_news_to_those_who_follow_the_log,
    a_backtest_is_made_of_every_fact_of_the_lane_and_of_no_other,
    a_backtest_since_an_instant_leaves_out_the_runs_that_were_created_before,
    a_backtest_tries_what_is_useful_if_nothing_is_named_and_ends_when_told_to,
    every_run_is_made_anew_from_the_log_as_its_projection_says,
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

async fn a_run_of_a_hundred_beats_keeps_every_one_of_them(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    let run = run_id(1);
    one(store, create(run, Some("c"))).await.unwrap();
    let mut instants = Vec::new();
    for _ in 0..100 {
        place.clock.advance(Span::from_seconds(30));
        let answer = one(store, beat(run, "c")).await.unwrap();
        instants.push(answer.facts()[0].recorded_at);
    }
    let stream = ask::whole_stream(store, run).await.unwrap();
    let beats: Vec<_> = stream.iter().filter(|fact| fact.type_name() == "heartbeat").collect();
    assert_eq!(beats.iter().map(|fact| fact.recorded_at()).collect::<Vec<_>>(), instants);
    assert_eq!(fold(&stream).unwrap(), store.run(run).await.unwrap());
    let (first, second) = (store.stream(run, 0, 50).await.unwrap(), store.stream(run, 50, 1_000).await.unwrap());
    let pages: Vec<Stored> = first.facts.into_iter().chain(second.facts).collect();
    assert_eq!((first.next, second.next, pages), (Some(50), None, stream));
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
}

async fn log_time_stands_still_while_the_clock_runs_backwards(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    one(store, create(run_id(1), Some("c"))).await.unwrap();
    let before = store.now().await.unwrap();
    place.clock.set(before.minus(Span::from_seconds(3_600)));
    let answer = one(store, beat(run_id(1), "c")).await.unwrap();
    assert_eq!(answer.facts()[0].recorded_at, before.next());
}

async fn log_time_stands_still_though_the_last_beacon_is_gone(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    one(store, create(run_id(1), Some("c"))).await.unwrap();
    let promise = Promise::Within(Span::from_seconds(10));
    let beacon = Command::Beacon { process: name("p"), role: BeaconRole::Local, promise };
    one(store, beacon).await.unwrap();
    place.clock.advance(Span::from_seconds(5));
    one(store, Command::RemoveBeacon { process: name("p") }).await.unwrap();
    let before = store.now().await.unwrap();
    place.clock.set(before.minus(Span::from_seconds(3_600)));
    assert!(store.now().await.unwrap() >= before);
    assert!(one(store, beat(run_id(1), "c")).await.unwrap().facts()[0].recorded_at > before);
}

async fn a_heartbeat_that_comes_before_the_reap_wins(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    let run = run_id(1);
    one(store, create(run, Some("c"))).await.unwrap();
    one(store, beat(run, "c")).await.unwrap();
    place.clock.advance(Span::from_seconds(181));
    assert!(ask::run(store, run).await.unwrap().unwrap().verdict.is_lapsed());
    one(store, beat(run, "c")).await.unwrap();
    assert_eq!(refused(one(store, reap(run)).await), RefusalCode::NotLapsed);
    place.clock.advance(Span::from_seconds(181));
    one(store, reap(run)).await.unwrap();
    assert_eq!(refused(one(store, reap(run)).await), RefusalCode::NotLapsed);
    assert_eq!(refused(one(store, beat(run, "c")).await), RefusalCode::Settled);
    let types: Vec<String> = types(store, run).await;
    assert_eq!(types, ["created", "claimed", "heartbeat", "heartbeat", "timed_out", "late_signal"]);
}

async fn types(store: &dyn Store, run: RunId) -> Vec<String> {
    let stream = ask::whole_stream(store, run).await.unwrap();
    stream.iter().map(|fact| fact.type_name().to_owned()).collect()
}

async fn a_lane_is_taken_first_in_first_out_and_nobody_gets_a_run_twice(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    for number in 1..=3 {
        place.clock.advance(Span::from_seconds(1));
        one(store, create(run_id(number), None)).await.unwrap();
    }
    let claim = |claim: &str| Command::Claim { lanes: vec![name("watcher")], claimant: claimant("mac-7", claim) };
    let outcomes = store.execute(vec![claim("a"), claim("b"), claim("c"), claim("d")]).await;
    let claimed: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()?.judged.as_ref()).collect();
    assert_eq!(claimed.iter().map(|judged| judged.run.id).collect::<Vec<_>>(), [run_id(1), run_id(2), run_id(3)]);
    assert_eq!(refused(outcomes.into_iter().next_back().unwrap()), RefusalCode::NothingToClaim);
}

async fn a_unique_key_is_open_once_even_in_one_batch(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    let keyed = |number: u128| {
        let spec = RunSpec { unique_key: Some(name("nightly")), ..RunSpec::of_lane(name("watcher")) };
        Command::Create { run: run_id(number), spec: Box::new(spec), claim: None }
    };
    let outcomes = store.execute(vec![keyed(1), keyed(2)]).await;
    let answers: Vec<Answer> = outcomes.into_iter().map(Result::unwrap).collect();
    // They come at once, so either may be the first.
    assert_ne!(answers[0].existing, answers[1].existing);
    assert_eq!(run_of(&answers[0]).id, run_of(&answers[1]).id);
}

async fn one_bad_command_fails_no_other(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    let outcomes = store.execute(vec![create(run_id(1), None), beat(run_id(9), "c"), create(run_id(2), None)]).await;
    let fine: Vec<bool> = outcomes.iter().map(Result::is_ok).collect();
    assert_eq!(fine, [true, false, true]);
}

async fn a_shorter_window_is_noticed_by_the_next_rearming(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    let run = run_id(1);
    one(store, create(run, Some("c"))).await.unwrap();
    place.clock.advance(Span::from_seconds(60));
    let terms = Box::new(Terms { coarse_ttl: Span::from_seconds(30), ..Terms::default() });
    one(store, Command::SetPolicy { lane: name("watcher"), terms, expected_version: Some(0), by: None }).await.unwrap();
    assert_eq!(store.lanes_to_rearm().await.unwrap(), [name("watcher")]);
    let rearm = Command::RearmLane { lane: name("watcher"), limit: 500 };
    assert_eq!(one(store, rearm).await.unwrap().rearmed, 1);
    assert_eq!(store.lanes_to_rearm().await.unwrap(), []);
    let due = store.due(store.now().await.unwrap(), 10).await.unwrap();
    assert!(due[0].judged.verdict.is_lapsed());
}

async fn nothing_is_imported_into_a_store_with_runs(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    one(store, create(run_id(1), None)).await.unwrap();
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

async fn projection_is_the_fold_and_export_loses_nothing(backend: Backend, steps: Vec<Step>) {
    let place = Place::on(backend, "2026-05-04T00:00:00Z");
    let store = place.store("a").await;
    let store = store.as_ref();
    let terms = Box::new(Terms { max_attempts: 2, ..Terms::default() });
    one(store, Command::SetPolicy { lane: name("watcher"), terms, expected_version: None, by: None }).await.unwrap();
    for step in &steps {
        place.clock.advance(Span::from_seconds(step.2));
        if let Err(CommandError::Failed(error)) = one(store, command(*step)).await {
            panic!("{step:?}: {error}");
        }
    }
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
    store.close().await;
    let store = place.store("a").await;
    let store = store.as_ref();
    let text = exported(store).await;
    let copy = place.store("b").await;
    let copy = copy.as_ref();
    let checked = check_import(Cursor::new(&text), copy.now().await.unwrap().plus(Span::from_seconds(1))).unwrap();
    copy.import(checked).await.unwrap();
    assert_eq!(exported(copy).await, text);
    assert_eq!(copy.verify(&|_, _| ()).await.unwrap().damage, []);
    for number in 0..3 {
        let (here, there) = (ask::run(store, run_id(number)).await, ask::run(copy, run_id(number)).await);
        let of = |judged: Option<lastbeat_store::Judged>| judged.map(|judged| (judged.run, judged.verdict.liveness));
        assert_eq!(of(here.unwrap()), of(there.unwrap()));
        let ended = store.run(run_id(number)).await.unwrap().is_some_and(|run| run.status == Status::TimedOut);
        assert!(!ended || types(store, run_id(number)).await.contains(&"timed_out".to_owned()));
    }
}

fn any_sequence(backend: Backend, cases: u32) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let persistence = FileFailurePersistence::WithSource("regressions");
    let config = Config {
        cases,
        failure_persistence: Some(Box::new(persistence)),
        source_file: Some(file!()),
        ..Config::default()
    };
    let step = (0_u8..30, 0_u128..3, prop_oneof![4 => 0_u64..60, 1 => 0_u64..10_000]);
    let steps = prop::collection::vec(step, 1..150);
    let check = |steps| {
        runtime.block_on(projection_is_the_fold_and_export_loses_nothing(backend, steps));
        Ok(())
    };
    TestRunner::new(config).run(&steps, check).unwrap();
}

#[test]
fn sqlite_the_projection_is_the_fold_after_any_sequence_and_an_export_loses_nothing() {
    any_sequence(Backend::Sqlite, 24);
}

#[test]
fn postgres_the_projection_is_the_fold_after_any_sequence_and_an_export_loses_nothing() {
    any_sequence(Backend::Postgres, 12);
}

async fn every_recorded_situation_gets_its_verdict_from_the_store(place: Place) {
    let cases: Vec<serde_json::Value> = serde_json::from_str(include_str!("../../../tests/cases/seed.json")).unwrap();
    place.clock.set("2026-06-01T00:00:00Z".parse().unwrap());
    for (number, case) in cases.iter().enumerate() {
        let store = place.store(&number.to_string()).await;
        let store = store.as_ref();
        let lines: String = case["history"].as_array().unwrap().iter().map(|line| format!("{line}\n")).collect();
        let checked = check_import(Cursor::new(lines), store.now().await.unwrap()).unwrap();
        store.import(checked).await.unwrap();
        let (run, at) = (case["run"].as_str().unwrap().parse().unwrap(), case["at"].as_str().unwrap().parse().unwrap());
        let judged = ask::run_at(store, run, at).await.unwrap().unwrap();
        let found = serde_json::json!({"verdict": judged.verdict.liveness, "rule": judged.verdict.rule()});
        for field in ["verdict", "rule"] {
            assert_eq!(found[field], case["expect"][field], "{}", case["name"]);
        }
    }
}

fn take(executor: &str, device: Option<&str>, claim: &str) -> Command {
    let claimant = Claimant { device: device.map(name), ..claimant(executor, claim) };
    Command::Claim { lanes: vec![name("watcher")], claimant }
}

fn once(scope: &str, key: &str, command: Command) -> Command {
    let key = IdempotencyKey { scope: name(scope), key: name(key) };
    Command::Idempotent { key, command: Box::new(command) }
}

fn run_of(answer: &Answer) -> &Run {
    &answer.judged.as_ref().unwrap().run
}

async fn a_device_pin_is_respected_and_nobody_behind_it_starves(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    let pinned = RunSpec { device: Some(name("phone")), ..RunSpec::of_lane(name("watcher")) };
    one(store, Command::Create { run: run_id(1), spec: Box::new(pinned), claim: None }).await.unwrap();
    place.clock.advance(Span::from_seconds(1));
    one(store, create(run_id(2), None)).await.unwrap();
    let outcomes = store.execute(vec![take("mac-7", Some("laptop"), "a"), take("mac-8", None, "b")]).await;
    let mut outcomes = outcomes.into_iter();
    assert_eq!(run_of(&outcomes.next().unwrap().unwrap()).id, run_id(2));
    assert_eq!(refused(outcomes.next().unwrap()), RefusalCode::NothingToClaim);
    assert_eq!(run_of(&one(store, take("mac-9", Some("phone"), "c")).await.unwrap()).id, run_id(1));
}

async fn a_unique_key_is_open_once_however_many_race_for_it(place: Place) {
    let store = place.store("a").await;
    let make = |number: u128| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let spec = RunSpec { unique_key: Some(name("nightly")), ..RunSpec::of_lane(name("watcher")) };
            let command = Command::Create { run: run_id(number), spec: Box::new(spec), claim: None };
            let answer = one(store.as_ref(), command).await.unwrap();
            (answer.existing, run_of(&answer).id)
        })
    };
    let mut made = Vec::new();
    for task in (1..=20).map(make).collect::<Vec<_>>() {
        made.push(task.await.unwrap());
    }
    assert_eq!(made.iter().filter(|(existing, _)| !existing).count(), 1);
    assert!(made.iter().all(|(_, run)| *run == made[0].1), "everybody got the same run");
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
}

async fn a_repeated_create_or_claim_gets_its_first_answer(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    let spec = RunSpec { input: Some(serde_json::json!({"n": 1})), ..RunSpec::of_lane(name("watcher")) };
    let make = |number: u128| {
        once("t", "k1", Command::Create { run: run_id(number), spec: Box::new(spec.clone()), claim: None })
    };
    let first = one(store, make(1)).await.unwrap();
    place.clock.advance(Span::from_seconds(60));
    let taken = one(store, once("t", "k2", take("mac-7", None, "c"))).await.unwrap();
    one(store, Command::Complete { report: report(run_id(1), 1, "c"), output: None }).await.unwrap();
    place.clock.advance(Span::from_seconds(60));
    // The same request, with the ids that are made anew for each try.
    let again = one(store, make(2)).await.unwrap();
    let (was, is) = (first.judged.unwrap(), again.judged.unwrap());
    assert_eq!((was.run, was.verdict.liveness, was.at), (is.run, is.verdict.liveness, is.at));
    assert_eq!((first.appended, first.existing), (again.appended, again.existing));
    let again = one(store, once("t", "k2", take("mac-7", None, "another"))).await.unwrap();
    assert_eq!(run_of(&again), run_of(&taken));
    assert_eq!((&again.appended, &again.input), (&taken.appended, &taken.input));
    assert_eq!(again.input, Some(serde_json::json!({"n": 1})));
    assert!(store.run(run_id(2)).await.unwrap().is_none());
    // What appended nothing is not remembered.
    assert_eq!(refused(one(store, once("t", "k3", take("mac-7", None, "d"))).await), RefusalCode::NothingToClaim);
    one(store, create(run_id(3), None)).await.unwrap();
    assert_eq!(run_of(&one(store, once("t", "k3", take("mac-7", None, "d"))).await.unwrap()).id, run_id(3));
    // After a day the key is forgotten.
    place.clock.advance(Span::from_seconds(24 * 3_600));
    assert_eq!(run_of(&one(store, make(4)).await.unwrap()).id, run_id(4));
    assert_eq!(run_of(&one(store, make(5)).await.unwrap()).id, run_id(4));
}

async fn an_idempotency_key_of_another_request_or_sender_is_another_matter(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    one(store, once("t", "k", create(run_id(1), None))).await.unwrap();
    let other = once("t", "k", create(run_id(2), Some("c")));
    assert_eq!(refused(one(store, other).await), RefusalCode::IdempotencyKeyReused);
    assert!(store.run(run_id(2)).await.unwrap().is_none());
    assert_eq!(run_of(&one(store, once("u", "k", create(run_id(3), None))).await.unwrap()).id, run_id(3));
}

async fn racing_repetitions_do_it_once(place: Place) {
    let stores = [place.store("a").await, place.store("a").await];
    for number in 1..=3 {
        one(stores[0].as_ref(), create(run_id(number), None)).await.unwrap();
    }
    let ask = |try_: usize| {
        let store = Arc::clone(&stores[try_ % 2]);
        tokio::spawn(async move {
            let command = once("t", "k", take("mac-7", None, &format!("c{try_}")));
            run_of(&one(store.as_ref(), command).await.unwrap()).clone()
        })
    };
    let mut got = Vec::new();
    for task in (0..12).map(ask).collect::<Vec<_>>() {
        got.push(task.await.unwrap());
    }
    assert!(got.iter().all(|run| *run == got[0]), "one run, under one claim");
    assert_eq!(stores[0].count(&name("watcher")).await.unwrap()[&Status::Pending], 2);
}

async fn what_is_done_twice_is_recorded_once(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    one(store, create(run_id(1), Some("c"))).await.unwrap();
    let report = report(run_id(1), 1, "c");
    for _ in 0..2 {
        one(store, Command::Start(report.clone())).await.unwrap();
    }
    for _ in 0..2 {
        one(store, Command::Complete { report: report.clone(), output: Some(serde_json::json!(7)) }).await.unwrap();
    }
    let other = Command::Complete { report, output: Some(serde_json::json!(8)) };
    assert_eq!(refused(one(store, other).await), RefusalCode::Settled);
    assert_eq!(types(store, run_id(1)).await, ["created", "claimed", "started", "completed"]);
}

async fn many_claimants_get_each_run_once(place: Place) {
    let stores = [place.store("a").await, place.store("a").await, place.store("a").await];
    let runs = 60;
    let made = (1..=runs).map(|number| create(run_id(number), None)).collect();
    assert!(stores[0].execute(made).await.iter().all(Result::is_ok));
    let work = |worker: usize| {
        let store = Arc::clone(&stores[worker % 3]);
        tokio::spawn(async move {
            let mut got = Vec::new();
            for turn in 0.. {
                let claim = format!("w{worker}-{turn}");
                match one(store.as_ref(), take(&format!("mac-{worker}"), None, &claim)).await {
                    Ok(answer) => got.push(run_of(&answer).id),
                    Err(CommandError::Refused(refusal)) if refusal.code == RefusalCode::NothingToClaim => {
                        // Another one may hold the last for a moment.
                        let left = store.count(&name("watcher")).await.unwrap();
                        if !left.contains_key(&Status::Pending) {
                            break;
                        }
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            got
        })
    };
    let mut got = Vec::new();
    for task in (0..9).map(work).collect::<Vec<_>>() {
        got.extend(task.await.unwrap());
    }
    got.sort_unstable();
    assert_eq!(got, (1..=runs).map(run_id).collect::<Vec<_>>());
    assert_eq!(stores[0].verify(&|_, _| ()).await.unwrap().damage, []);
}

/// What the heartbeats of one batch got: the version of those that were taken, the code of those that were refused.
async fn beaten(store: &dyn Store, reports: Vec<Report>) -> Vec<Result<u64, RefusalCode>> {
    let beats = reports.into_iter().map(|report| Command::Heartbeat { report, progress: None }).collect();
    let say = |outcome: Result<Answer, CommandError>| match outcome {
        Ok(answer) => Ok(answer.heard.unwrap().version),
        Err(CommandError::Refused(refusal)) => Err(refusal.code),
        Err(error) => panic!("{error}"),
    };
    store.execute(beats).await.into_iter().map(say).collect()
}

async fn a_fenced_heartbeat_is_refused_however_it_comes(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    for number in 1..=5 {
        one(store, create(run_id(number), Some("c"))).await.unwrap();
        one(store, beat(run_id(number), "c")).await.unwrap();
    }
    place.clock.advance(Span::from_seconds(1));
    one(store, Command::Complete { report: report(run_id(5), 1, "c"), output: None }).await.unwrap();
    one(store, Command::RequestCancel { run: run_id(4), by: name("me"), reason: None }).await.unwrap();
    let unclaimed = Report { claim: None, ..report(run_id(2), 1, "c") };
    let reports = vec![
        report(run_id(1), 1, "c"),
        unclaimed,
        report(run_id(3), 1, "other"),
        report(run_id(4), 1, "c"),
        report(run_id(5), 1, "c"),
        report(run_id(6), 1, "c"),
    ];
    let found = beaten(store, reports).await;
    let (stale, settled, unknown) = (RefusalCode::StaleAttempt, RefusalCode::Settled, RefusalCode::UnknownRun);
    assert_eq!(found, [Ok(4), Ok(4), Err(stale), Ok(5), Err(settled), Err(unknown)]);
    assert_eq!(beaten(store, vec![report(run_id(1), 2, "c"), report(run_id(2), 0, "c")]).await, [Err(stale); 2]);
    let told = one(store, beat(run_id(4), "c")).await.unwrap().heard.unwrap();
    assert!(told.cancel_requested);
    // What the rule says of it is what the executor is told.
    let judged = ask::run(store, run_id(4)).await.unwrap().unwrap();
    assert_eq!(told.lapses_at, judged.verdict.lapses_at());
    assert_eq!((told.version, told.at), (judged.run.version, judged.run.updated_at));
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
}

async fn a_claim_that_is_no_uuid_holds_its_run_as_any_other_does(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    let claimant = Claimant { claim: "b1f0".parse().unwrap(), ..claimant("mac-7", "c") };
    let spec = Box::new(RunSpec::of_lane(name("watcher")));
    one(store, Command::Create { run: run_id(1), spec, claim: Some(claimant.clone()) }).await.unwrap();
    one(store, create(run_id(2), Some("c"))).await.unwrap();
    let its = |run: RunId| Report { claim: Some(claimant.claim.clone()), ..report(run, 1, "c") };
    let unclaimed = Report { claim: None, ..its(run_id(1)) };
    let stale = Err(RefusalCode::StaleAttempt);
    for version in 3..6 {
        place.clock.advance(Span::from_seconds(1));
        let beats = vec![its(run_id(1)), report(run_id(2), 1, "c")];
        assert_eq!(beaten(store, beats).await, [Ok(version), Ok(version)]);
    }
    place.clock.advance(Span::from_seconds(1));
    assert_eq!(beaten(store, vec![unclaimed, its(run_id(2))]).await, [Ok(6), stale]);
    assert_eq!(beaten(store, vec![report(run_id(1), 1, "c")]).await, [stale]);
    for again in [false, true] {
        if again {
            store.rebuild(&|_, _| ()).await.unwrap();
        }
        assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
        let run = store.run(run_id(1)).await.unwrap().unwrap();
        assert_eq!((run.version, run.claim.unwrap().id), (6, Some(claimant.claim.clone())));
    }
}

async fn heartbeats_among_other_facts_and_after_long_silence_are_kept_to_the_microsecond(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    one(store, create(run_id(1), Some("c"))).await.unwrap();
    let mut heard = Vec::new();
    for step in 0..300_u32 {
        // Pauses of a second and a bit; of half an hour; and such as are longer than a step of a tail can say. Then for a
        // while none that is long, so that tails come to their end by what they span.
        let pause = match step {
            11 | 12 | 30 | 51 | 280 => Span::from_seconds(1_800),
            20 | 31 | 281 => Span::from_seconds(3_600),
            _ => Span::from_micros(1_000_003),
        };
        place.clock.advance(pause);
        // For a while nothing but plain ones, then every other one is a fact of its own, then a few in a row are.
        let own = match step {
            0..70 => false,
            70..170 => step % 2 == 0,
            _ => step % 9 < 4,
        };
        let command = if own {
            Command::Heartbeat {
                report: report(run_id(1), 1, "c"),
                progress: Some(serde_json::json!({ "done": step })),
            }
        } else {
            beat(run_id(1), "c")
        };
        let facts = one(store, command).await.unwrap().facts();
        heard.extend(facts.iter().map(|fact| (fact.version, fact.recorded_at)));
        if step % 30 == 29 {
            assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
            store.rebuild(&|_, _| ()).await.unwrap();
        }
    }
    let stream = ask::whole_stream(store, run_id(1)).await.unwrap();
    let kept: Vec<(u64, Timestamp)> = stream.iter().skip(2).map(|fact| (fact.version(), fact.recorded_at())).collect();
    assert_eq!(kept, heard);
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
}

async fn an_executor_is_told_when_its_run_lapses_in_whichever_lane_it_is(place: Place) {
    let first = place.store("a").await;
    let lanes = [("plain", None), ("short", Some(Span::from_seconds(60))), ("long", Some(Span::from_seconds(86_400)))];
    for (lane, max_runtime) in lanes {
        let terms = Terms { max_runtime, ..Terms::default() };
        one(&*first, Command::SetPolicy { lane: name(lane), terms: Box::new(terms), expected_version: None, by: None })
            .await
            .unwrap();
    }
    // Another process has read no older policies.
    let store = place.store("a").await;
    let store = store.as_ref();
    let runs: Vec<RunId> = (1..=9).map(run_id).collect();
    for (number, run) in runs.iter().enumerate() {
        place.clock.advance(Span::from_seconds(5));
        let spec = Box::new(RunSpec::of_lane(name(lanes[number % 3].0)));
        one(store, Command::Create { run: *run, spec, claim: Some(claimant("mac-7", "c")) }).await.unwrap();
        one(store, beat(*run, "c")).await.unwrap();
    }
    one(store, Command::RequestCancel { run: runs[3], by: name("me"), reason: None }).await.unwrap();
    // Twice, since the second time it is known where most of them are.
    for _ in 0..2 {
        place.clock.advance(Span::from_seconds(2));
        let beats = runs.iter().map(|run| beat(*run, "c")).collect();
        let mut lapses = Vec::new();
        for (run, outcome) in runs.iter().zip(store.execute(beats).await) {
            let told = outcome.unwrap().heard.unwrap();
            let judged = ask::run(store, *run).await.unwrap().unwrap();
            assert_eq!(told.lapses_at, judged.verdict.lapses_at(), "{}", judged.run.lane);
            assert_eq!((told.run, told.cancel_requested), (*run, *run == runs[3]));
            lapses.push(told.lapses_at);
        }
        assert_ne!(lapses[1], lapses[4], "in the short lane it matters when a run was claimed");
    }
}

async fn each_command_of_a_batch_gets_its_own_answer_in_whatever_order_they_come(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    let lanes = [("short", 60), ("middle", 180), ("long", 600)];
    for (lane, seconds) in lanes {
        let heartbeat_window = Span::from_seconds(seconds);
        let terms = Terms { heartbeat_window, heartbeat_interval: Span::from_seconds(seconds / 4), ..Terms::default() };
        let set = Command::SetPolicy { lane: name(lane), terms: Box::new(terms), expected_version: None, by: None };
        one(store, set).await.unwrap();
    }
    let (runs, cancelled) = (60_u64, [7, 32]);
    let run = |number: u64| run_id(u128::from(number) + 1);
    for number in 0..runs {
        let spec = Box::new(RunSpec::of_lane(name(lanes[number as usize % 3].0)));
        one(store, Command::Create { run: run(number), spec, claim: Some(claimant("mac-7", "c")) }).await.unwrap();
        for _ in 0..=number % 4 {
            one(store, beat(run(number), "c")).await.unwrap();
        }
    }
    for number in cancelled {
        one(store, Command::RequestCancel { run: run(number), by: name("me"), reason: None }).await.unwrap();
    }
    // Twice, since the second time it is known where most of them are.
    for round in 1..=2 {
        place.clock.advance(Span::from_seconds(2));
        let order: Vec<u64> = (0..runs).map(|nth| nth * 37 % runs).collect();
        let (mut commands, mut versions) = (Vec::new(), Vec::new());
        for &number in &order {
            versions.push(ask::run(store, run(number)).await.unwrap().unwrap().run.version);
            commands.push(match number % 10 {
                3 => beat(run(number), "other"),
                6 => Command::Heartbeat { report: report(run(number), 1, "c"), progress: Some(number.into()) },
                9 => create(run(1_000 * round + number), None),
                _ => beat(run(number), "c"),
            });
        }
        let outcomes = store.execute(commands).await;
        assert_eq!(outcomes.len(), order.len());
        for ((number, version), outcome) in order.into_iter().zip(versions).zip(outcomes) {
            match number % 10 {
                3 => assert_eq!(refused(outcome), RefusalCode::StaleAttempt),
                9 => assert_eq!(outcome.unwrap().judged.unwrap().run.id, run(1_000 * round + number)),
                _ => {
                    let heard = outcome.unwrap().heard.unwrap();
                    let now = ask::run(store, run(number)).await.unwrap().unwrap();
                    assert_eq!((heard.run, heard.version), (run(number), version + 1));
                    assert_eq!(heard.cancel_requested, cancelled.contains(&number));
                    assert_eq!(heard.interval, Span::from_seconds(lanes[number as usize % 3].1 / 4));
                    assert_eq!(heard.lapses_at, now.verdict.lapses_at());
                }
            }
        }
    }
}

async fn heartbeats_of_many_runs_share_a_commit_and_each_is_kept(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    let (runs, rounds) = (50, 75);
    let made = (1..=runs).map(|number| create(run_id(number), Some("c"))).collect();
    assert!(store.execute(made).await.iter().all(Result::is_ok));
    let mut expected = Vec::new();
    for round in 0..rounds {
        place.clock.advance(Span::from_seconds(10));
        let reports = (1..=runs).map(|number| report(run_id(number), 1, "c")).collect();
        assert_eq!(beaten(store, reports).await, vec![Ok(3 + round); runs as usize]);
        expected.push(store.run(run_id(7)).await.unwrap().unwrap().updated_at);
    }
    for number in [1, 7, runs] {
        let stream = ask::whole_stream(store, run_id(number)).await.unwrap();
        assert_eq!(fold(&stream).unwrap(), store.run(run_id(number)).await.unwrap());
    }
    let stream = ask::whole_stream(store, run_id(7)).await.unwrap();
    let beats = stream.iter().filter(|fact| fact.type_name() == "heartbeat").map(Stored::recorded_at);
    assert_eq!(beats.collect::<Vec<_>>(), expected);
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
}

async fn the_facts_of_a_commit_stand_in_the_order_of_their_stamps(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    let run = run_id;
    let claimed = store.execute((1..=5).map(|number| create(run(number), Some("c"))).collect()).await;
    assert!(claimed.iter().all(Result::is_ok));
    one(store, beat(run(1), "c")).await.unwrap();
    one(store, beat(run(2), "c")).await.unwrap();
    place.clock.advance(Span::from_seconds(200));
    one(store, reap(run(1))).await.unwrap();
    // An end, first heartbeats, one that is too late, and a plain one.
    let complete = Command::Complete { report: report(run(3), 1, "c"), output: None };
    let batch = vec![complete, beat(run(4), "c"), beat(run(1), "c"), beat(run(5), "c"), beat(run(2), "c")];
    let outcomes = store.execute(batch).await;
    assert_eq!(outcomes.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, true, false, true, true]);
    let stamps = store.feed(0, 100).await.unwrap().into_iter().map(|entry| match entry.fact {
        FeedFact::Run(fact) => (fact.recorded_at(), fact.type_name().to_owned()),
        FeedFact::Service(line) => panic!("{line}"),
    });
    let stamps: Vec<_> = stamps.collect();
    assert!(stamps.is_sorted_by(|before, after| before.0 < after.0), "{stamps:?}");
    assert_eq!(stamps.iter().filter(|(_, type_name)| type_name == "late_signal").count(), 1);
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
}

async fn a_retry_comes_with_its_reap_and_a_late_completion_voids_it(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    let terms = Box::new(Terms { max_attempts: 2, ..Terms::default() });
    one(store, Command::SetPolicy { lane: name("watcher"), terms, expected_version: None, by: None }).await.unwrap();
    for number in [1, 2] {
        one(store, create(run_id(number), Some("c"))).await.unwrap();
        one(store, beat(run_id(number), "c")).await.unwrap();
    }
    place.clock.advance(Span::from_seconds(200));
    assert!(store.execute(vec![reap(run_id(1)), reap(run_id(2))]).await.iter().all(Result::is_ok));
    assert_eq!(store.run(run_id(1)).await.unwrap().unwrap().status, Status::Pending);
    let late = Command::Complete { report: report(run_id(1), 1, "c"), output: None };
    assert_eq!(run_of(&one(store, late).await.unwrap()).status, Status::Completed);
    place.clock.advance(Span::from_seconds(60));
    let second = one(store, take("mac-8", None, "d")).await.unwrap();
    assert_eq!((run_of(&second).id, run_of(&second).attempt), (run_id(2), 2));
    assert_eq!(refused(one(store, take("mac-8", None, "e")).await), RefusalCode::NothingToClaim);
    let late = Command::Complete { report: report(run_id(2), 1, "c"), output: None };
    assert_eq!(refused(one(store, late).await), RefusalCode::StaleAttempt);
}

async fn racing_sweepers_reap_each_run_once(place: Place) {
    let stores = [place.store("a").await, place.store("a").await, place.store("a").await, place.store("a").await];
    let runs = 40;
    for number in 1..=runs {
        one(stores[0].as_ref(), create(run_id(number), Some("c"))).await.unwrap();
    }
    let beats = (1..=runs).map(|number| beat(run_id(number), "c")).collect();
    assert!(stores[0].execute(beats).await.iter().all(Result::is_ok));
    place.clock.advance(Span::from_seconds(181));
    let sweep = |worker: usize| {
        let store = Arc::clone(&stores[worker]);
        tokio::spawn(async move {
            let reaps = (1..=runs).map(|number| reap(run_id(number))).collect();
            let outcomes = store.execute(reaps).await;
            let reaped = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
            let lost = outcomes.iter().filter(|outcome| {
                let Err(CommandError::Refused(refusal)) = outcome else { return false };
                matches!(refusal.code, RefusalCode::NotLapsed | RefusalCode::Busy)
            });
            assert_eq!(reaped + lost.count(), outcomes.len());
            reaped
        })
    };
    let mut reaped = 0;
    for task in (0..4).map(sweep).collect::<Vec<_>>() {
        reaped += task.await.unwrap();
    }
    assert_eq!(reaped as u128, runs);
    for number in 1..=runs {
        let facts = types(stores[0].as_ref(), run_id(number)).await;
        assert_eq!(facts, ["created", "claimed", "heartbeat", "timed_out"]);
    }
    assert_eq!(stores[0].verify(&|_, _| ()).await.unwrap().damage, []);
}

async fn the_service_log_is_the_same_for_everybody(place: Place) {
    let (store, other) = (place.store("a").await, place.store("a").await);
    let terms = Box::new(Terms { heartbeat_window: Span::from_seconds(400), ..Terms::default() });
    let set = Command::SetPolicy { lane: name("watcher"), terms, expected_version: Some(0), by: Some(name("me")) };
    one(store.as_ref(), set.clone()).await.unwrap();
    assert_eq!(refused(one(other.as_ref(), set).await), RefusalCode::PolicyChanged);
    let promise = Promise::Within(Span::from_seconds(10));
    let beacon = |process: &str| Command::Beacon { process: name(process), role: BeaconRole::Local, promise };
    one(store.as_ref(), beacon("a")).await.unwrap();
    place.clock.advance(Span::from_seconds(60));
    // Both see the open gap; the one that beacons first records it.
    let at = other.now().await.unwrap();
    assert!(other.service_log().await.unwrap().listening(at).deaf_since().is_some());
    assert_eq!(one(other.as_ref(), beacon("b")).await.unwrap().service.len(), 1);
    assert_eq!(one(store.as_ref(), beacon("a")).await.unwrap().service.len(), 0);
    let (here, there) = (store.service_log().await.unwrap(), other.service_log().await.unwrap());
    assert_eq!((here.deaf_spans(), &here.beacons), (there.deaf_spans(), &there.beacons));
    assert_eq!((here.deaf_spans().len(), here.policy(&name("watcher"), at).version), (1, 1));
    assert_eq!(exported(store.as_ref()).await, exported(other.as_ref()).await);
}

async fn a_rebuilt_projection_is_the_same(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    for number in 1..=5 {
        one(store, create(run_id(number), Some("c"))).await.unwrap();
        for _ in 0..35 {
            place.clock.advance(Span::from_seconds(1));
            one(store, beat(run_id(number), "c")).await.unwrap();
        }
    }
    one(store, Command::Complete { report: report(run_id(5), 1, "c"), output: None }).await.unwrap();
    let report = store.rebuild(&|_, _| ()).await.unwrap();
    assert_eq!((report.runs, report.differed), (5, 0));
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
    one(store, beat(run_id(1), "c")).await.unwrap();
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
}

async fn runs_are_listed_newest_first_in_pages(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    for number in 1..=7 {
        one(store, create(run_id(number), (number % 2 == 0).then_some("c"))).await.unwrap();
    }
    let ids = |runs: Vec<Run>| runs.into_iter().map(|run| run.id).collect::<Vec<_>>();
    let all = Filter::default();
    assert_eq!(ids(store.list(&all, None, 3).await.unwrap()), [7, 6, 5].map(run_id));
    assert_eq!(ids(store.list(&all, Some(run_id(5)), 10).await.unwrap()), [4, 3, 2, 1].map(run_id));
    assert_eq!(ids(store.list(&all, Some(run_id(99)), 10).await.unwrap()), []);
    let claimed = Filter { lane: Some(name("watcher")), statuses: vec![Status::Claimed], ..Filter::default() };
    assert_eq!(ids(store.list(&claimed, None, 10).await.unwrap()), [6, 4, 2].map(run_id));
    let elsewhere = Filter { lane: Some(name("other")), ..Filter::default() };
    assert_eq!(ids(store.list(&elsewhere, None, 10).await.unwrap()), []);
}

async fn goals_are_listed_once_each_in_pages(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    for (number, goal) in (1..).zip([Some("b"), None, Some("a"), Some("c"), Some("b")]) {
        let spec = RunSpec { goal: goal.map(name), ..RunSpec::of_lane(name("watcher")) };
        one(store, Command::Create { run: run_id(number), spec: Box::new(spec), claim: None }).await.unwrap();
    }
    assert_eq!(store.goals(None, 2).await.unwrap(), [name("a"), name("b")]);
    assert_eq!(store.goals(Some(&name("b")), 2).await.unwrap(), [name("c")]);
    assert_eq!(store.goals(Some(&name("c")), 2).await.unwrap(), []);
}

async fn doctor_finds_nothing_bad(place: Place) {
    let store = place.store("a").await;
    one(store.as_ref(), create(run_id(1), None)).await.unwrap();
    let checks = store.doctor().await.unwrap();
    assert!(checks.len() >= 10);
    // A throwaway server runs without fsync, and doctor says so.
    let bad: Vec<_> = checks.iter().filter(|check| check.health == Health::Bad).map(|check| check.name).collect();
    assert!(bad.is_empty() || bad == ["durability"], "{checks:?}");
}

/// Makes an executor's token; its name is that of the secret.
fn issue(token: &str, called: &str, secret: &Secret) -> Command {
    let spec = TokenSpec {
        name: name(called),
        role: name("executor"),
        executor: Some(name("mac-7")),
        lanes: vec![name("watcher"), name("sync")],
        device: Some(name("air")),
        expires_at: Some("2026-06-04T06:00:00Z".parse().unwrap()),
        digest: secret.digest(),
    };
    Command::IssueToken { token: name(token), spec: Box::new(spec), by: name("ada") }
}

async fn a_token_is_found_by_its_digest_until_it_is_revoked(place: Place) {
    let (store, other) = (place.store("a").await, place.store("a").await);
    let store = store.as_ref();
    let (secret, another) = (Secret::random().unwrap(), Secret::random().unwrap());
    assert!(store.service_log().await.unwrap().tokens.is_empty());
    one(store, issue("t1", "mac", &secret)).await.unwrap();
    assert_eq!(refused(one(store, issue("t1", "mini", &another)).await), RefusalCode::TokenExists);
    assert_eq!(refused(one(store, issue("t2", "mac", &another)).await), RefusalCode::TokenExists);
    // Others see it at once, and one batch sees its own.
    let log = other.service_log().await.unwrap();
    let token = log.token(&digest_of(secret.reveal())).unwrap();
    let now = other.now().await.unwrap();
    assert_eq!(token.admits(now).unwrap().lanes, [name("watcher"), name("sync")]);
    assert_eq!(log.token(&another.digest()), None);
    let revoke = || Command::RevokeToken { token: name("t1"), by: name("bob") };
    let outcomes = store.execute(vec![revoke(), revoke(), issue("t2", "mac", &another)]).await;
    let appended: Vec<usize> = outcomes.into_iter().map(|outcome| outcome.unwrap().service.len()).collect();
    assert_eq!(appended, [1, 0, 1]);
    let log = other.service_log().await.unwrap();
    let token = log.token(&secret.digest()).unwrap();
    assert_eq!((token.admits(now), token.state(now)), (None, TokenState::Revoked));
    assert_eq!(token.revoked.as_ref().unwrap().1, name("bob"));
    let unknown = Command::RevokeToken { token: name("t9"), by: name("bob") };
    assert_eq!(refused(one(store, unknown).await), RefusalCode::UnknownToken);
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
}

async fn tokens_come_through_export_and_import_as_they_were(place: Place) {
    let (from, to) = (place.store("a").await, place.store("b").await);
    let secret = Secret::random().unwrap();
    one(from.as_ref(), issue("t1", "mac", &secret)).await.unwrap();
    one(from.as_ref(), Command::RevokeToken { token: name("t1"), by: name("bob") }).await.unwrap();
    one(from.as_ref(), issue("t2", "mac", &secret)).await.unwrap();
    let text = exported(from.as_ref()).await;
    assert!(text.contains(&secret.digest().to_string()) && !text.contains(secret.reveal()), "{text}");
    let checked = check_import(Cursor::new(&text), from.now().await.unwrap().next()).unwrap();
    to.import(checked).await.unwrap();
    assert_eq!(exported(to.as_ref()).await, text);
    assert_eq!(to.service_log().await.unwrap().tokens, from.service_log().await.unwrap().tokens);
}

async fn a_token_without_a_digest_admits_nobody(place: Place) {
    let store = place.store("a").await;
    let line = r#"{"recorded_at":"2026-05-04T05:00:00.000000Z","type":"token_issued","token":"t1","name":"ci","role":"admin","by":"ada"}"#;
    let checked = check_import(Cursor::new(line), store.now().await.unwrap()).unwrap();
    store.import(checked).await.unwrap();
    let log = store.service_log().await.unwrap();
    let token = log.tokens.of_id(&name("t1")).unwrap();
    assert_eq!(token.admits(store.now().await.unwrap()), None);
    assert_eq!(exported(store.as_ref()).await, format!("{line}\n"));
    one(store.as_ref(), Command::RevokeToken { token: name("t1"), by: name("bob") }).await.unwrap();
}

fn move_cursor(to: CursorMove) -> Command {
    Command::MoveCursor { name: name("hook:1"), to }
}

async fn a_cursor_begins_at_the_end_of_the_log_and_never_goes_back(place: Place) {
    let (store, other) = (place.store("a").await, place.store("a").await);
    let store = store.as_ref();
    one(store, create(run_id(1), Some("c"))).await.unwrap();
    assert_eq!(store.cursor(&name("hook:1")).await.unwrap(), None);
    let answer = one(store, move_cursor(CursorMove::Begin)).await.unwrap();
    assert_eq!((answer.appended.len(), answer.service.len()), (0, 0));
    assert_eq!(other.cursor(&name("hook:1")).await.unwrap(), Some(2));
    one(store, create(run_id(2), Some("c"))).await.unwrap();
    // Whoever comes later begins nothing anew.
    one(other.as_ref(), move_cursor(CursorMove::Begin)).await.unwrap();
    assert_eq!(store.cursor(&name("hook:1")).await.unwrap(), Some(2));
    one(store, move_cursor(CursorMove::To(4))).await.unwrap();
    one(other.as_ref(), move_cursor(CursorMove::To(3))).await.unwrap();
    assert_eq!(store.cursor(&name("hook:1")).await.unwrap(), Some(4));
    let moves = [CursorMove::Begin, CursorMove::To(1), CursorMove::To(3), CursorMove::To(2)];
    let moves = moves.map(|to| Command::MoveCursor { name: name("hook:2"), to });
    assert!(store.execute(moves.to_vec()).await.iter().all(Result::is_ok));
    assert_eq!(store.cursor(&name("hook:2")).await.unwrap(), Some(4));
    assert_eq!(store.feed(0, 100).await.unwrap().len(), 4);
    store.rebuild(&|_, _| ()).await.unwrap();
    assert_eq!(store.cursor(&name("hook:1")).await.unwrap(), Some(4));
}

async fn a_cursor_cannot_be_ahead_of_the_log(place: Place) {
    let store = place.store("a").await;
    one(store.as_ref(), create(run_id(1), None)).await.unwrap();
    for position in [2, u64::MAX] {
        let outcome = one(store.as_ref(), move_cursor(CursorMove::To(position))).await;
        assert_eq!(refused(outcome), RefusalCode::Invalid);
    }
    assert_eq!(store.cursor(&name("hook:1")).await.unwrap(), None);
}

async fn what_is_imported_is_no_news_to_those_who_follow_the_log(place: Place) {
    let (from, to) = (place.store("a").await, place.store("b").await);
    one(from.as_ref(), create(run_id(1), Some("c"))).await.unwrap();
    let text = exported(from.as_ref()).await;
    one(to.as_ref(), move_cursor(CursorMove::Begin)).await.unwrap();
    let checked = check_import(Cursor::new(&text), from.now().await.unwrap().next()).unwrap();
    to.import(checked).await.unwrap();
    assert_eq!(to.cursor(&name("hook:1")).await.unwrap(), Some(2));
}

/// A store with a generated workload, and with runs of two lanes that are beating: of heartbeats in events, segments and
/// a tail.
async fn with_a_past(place: &Place, runs: u64, events: u64) -> Arc<dyn Store> {
    let store = place.store(&format!("{runs}")).await;
    let until = store.now().await.unwrap();
    let workload = Workload { runs, events, seed: 7, lane: name("watcher"), policy: LanePolicy::default(), until };
    store.import(generate::checked(&workload, &|_, _| ()).unwrap()).await.unwrap();
    for (number, lane) in [(1, "watcher"), (2, "sync")] {
        let spec = Box::new(RunSpec::of_lane(name(lane)));
        let claim = Some(claimant("mac-7", "c"));
        one(store.as_ref(), Command::Create { run: run_id(number), spec, claim }).await.unwrap();
    }
    for beat in 0..35 {
        place.clock.advance(Span::from_seconds(if beat == 20 { 150 } else { 20 }));
        for number in [1, 2] {
            let progress = (beat % 5 == 0).then(|| serde_json::json!({"done": beat}));
            let report = report(run_id(number), 1, "c");
            one(store.as_ref(), Command::Heartbeat { report, progress }).await.unwrap();
        }
    }
    store
}

fn windows(seconds: &[u64]) -> Vec<Alternative> {
    let lengths = seconds.iter().map(|length| Some(Span::from_seconds(*length))).collect();
    Alternative::combinations(&[(Window::HeartbeatWindow, lengths)]).unwrap()
}

fn question(seconds: &[u64], since: Option<Timestamp>) -> Question {
    Question { lane: name("watcher"), alternatives: windows(seconds), since, named_max: 50 }
}

/// The same from the histories of the runs, one after the other.
async fn by_hand(store: &dyn Store, question: &Question) -> BacktestReport {
    let (now, service) = (store.now().await.unwrap(), store.service_log().await.unwrap());
    let (policies, alternatives) = (service.policies(&question.lane).iter().cloned(), question.alternatives.clone());
    let mut backtest = Backtest::new(policies, alternatives, service.listening(now), now, question.named_max);
    let filter = Filter { lane: Some(question.lane.clone()), ..Filter::default() };
    let mut runs = store.list(&filter, None, 100_000).await.unwrap();
    runs.reverse();
    for run in runs.iter().filter(|run| question.since.is_none_or(|since| run.created_at >= since)) {
        for fact in ask::whole_stream(store, run.id).await.unwrap() {
            backtest.take(fact.known().unwrap()).unwrap();
        }
    }
    backtest.finish()
}

async fn a_backtest_is_made_of_every_fact_of_the_lane_and_of_no_other(place: Place) {
    // Many runs are read together; of the three long ones each is read in pieces.
    for (runs, events) in [(300, 6_000), (3, 30_000)] {
        let store = with_a_past(&place, runs, events).await;
        let question = question(&[60, 120, 180, 600], None);
        let report = store.backtest(&question, &|_, _| ControlFlow::Continue(())).await.unwrap();
        assert_eq!(report, by_hand(store.as_ref(), &question).await);
        assert_eq!((report.runs, report.facts), (runs + 1, events + 2 + 35));
        assert!(report.outcomes[1].newly_wrong > 0, "a minute is too short for whoever is slow");
        assert!(runs < 100 || (report.reaps > 10 && report.wrong > 10 && report.outcomes[1].sooner.reaps > 10));
    }
}

async fn a_backtest_since_an_instant_leaves_out_the_runs_that_were_created_before(place: Place) {
    let store = with_a_past(&place, 100, 2_000).await;
    let filter = Filter { lane: Some(name("watcher")), ..Filter::default() };
    let mut created: Vec<Timestamp> =
        store.list(&filter, None, 1_000).await.unwrap().iter().map(|run| run.created_at).collect();
    created.sort_unstable();
    for since in [created[0], created[40], created[40].next(), created[100].next()] {
        let question = question(&[60], Some(since));
        let report = store.backtest(&question, &|_, _| ControlFlow::Continue(())).await.unwrap();
        assert_eq!(report.runs, created.iter().filter(|at| **at >= since).count() as u64);
        assert_eq!(report, by_hand(store.as_ref(), &question).await);
    }
}

async fn a_backtest_tries_what_is_useful_if_nothing_is_named_and_ends_when_told_to(place: Place) {
    let store = with_a_past(&place, 20, 400).await;
    let report = store.backtest(&question(&[], None), &|_, _| ControlFlow::Continue(())).await.unwrap();
    let tried: Vec<Alternative> = report.outcomes[1..].iter().map(|outcome| outcome.alternative.clone()).collect();
    assert_eq!(tried, Alternative::suggested(&Terms::default()));
    let nobody = Question { lane: name("nobody's"), ..question(&[60], None) };
    let report = store.backtest(&nobody, &|_, _| ControlFlow::Continue(())).await.unwrap();
    assert_eq!((report.runs, report.outcomes.len()), (0, 2));
    let seen = std::sync::Mutex::new(Vec::new());
    let watch = |done, all| {
        seen.lock().unwrap().push((done, all));
        if done < 21 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let stopped = store.backtest(&question(&[60], None), &watch).await;
    assert!(matches!(stopped, Err(StoreError::Stopped)));
    assert_eq!(seen.lock().unwrap().clone(), [(0, 21), (21, 21)]);
}

async fn every_run_is_made_anew_from_the_log_as_its_projection_says(place: Place) {
    let store = with_a_past(&place, 300, 6_000).await;
    let seen = std::sync::Mutex::new((0, 0));
    let report = store.replay_all(&|done, all| *seen.lock().unwrap() = (done, all)).await.unwrap();
    assert_eq!((report.runs, report.events, report.damage), (302, 6_000 + 2 * 37, Vec::new()));
    assert_eq!(*seen.lock().unwrap(), (302, 302));
}
