//! What can be asked of the past: how often reaps were wrong, and how near a run came to being reaped.

#![allow(clippy::unwrap_used)]

use std::io::Cursor;

use lastbeat_domain::decide::{Command, RunSpec};
use lastbeat_domain::{Rule, RunId, Span, Terms};
use lastbeat_store::generate::{self, Workload};
use lastbeat_store::{Answer, CommandError, ReapCount, ReapKind, Store, ask, check_import};
use lastbeat_testkit::{Place, claimant, name, on_each_backend, report, run_id};

const NOW: &str = "2026-05-04T06:00:00Z";

on_each_backend! {
    super::NOW;
    a_reap_is_wrong_once_its_executor_speaks_and_counts_once,
    reaps_are_counted_under_the_window_that_was_in_force,
    the_false_reap_rate_of_a_workload_is_the_share_that_woke_again,
    a_run_is_looked_back_on_with_what_was_known_at_the_instant,
}

async fn one(store: &dyn Store, command: Command) -> Result<Answer, CommandError> {
    store.execute(vec![command]).await.pop().unwrap()
}

/// Makes a run that is claimed and has beaten once.
async fn beating(store: &dyn Store, run: RunId) {
    let spec = Box::new(RunSpec::of_lane(name("watcher")));
    one(store, Command::Create { run, spec, claim: Some(claimant("mac-7", "c")) }).await.unwrap();
    one(store, beat(run)).await.unwrap();
}

fn beat(run: RunId) -> Command {
    Command::Heartbeat { report: report(run, 1, "c"), progress: None }
}

async fn reap(store: &dyn Store, run: RunId) {
    one(store, Command::Reap { run, by: name("sweeper"), by_hand: None }).await.unwrap();
}

/// The counts of the lane `watcher`, by rule and window in seconds.
async fn counts(store: &dyn Store) -> Vec<(Rule, u64, u64, u64)> {
    let (tally, lane) = (store.reap_tally().await.unwrap(), name("watcher"));
    let count = |(kind, count): (&ReapKind, ReapCount)| {
        (kind.rule, kind.window.as_micros() / 1_000_000, count.reaped, count.wrong)
    };
    tally.of_lane(&lane).map(count).collect()
}

async fn a_reap_is_wrong_once_its_executor_speaks_and_counts_once(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    assert_eq!(counts(store).await, []);
    for number in 1..=4 {
        beating(store, run_id(number)).await;
    }
    place.clock.advance(Span::from_seconds(200));
    for number in 1..=4 {
        reap(store, run_id(number)).await;
    }
    let silence = Rule::HeartbeatSilence;
    assert_eq!(counts(store).await, [(silence, 180, 4, 0)]);
    // The first speaks twice, the second completes late, the third speaks and then completes late, the fourth is dead.
    one(store, beat(run_id(1))).await.unwrap_err();
    assert_eq!(counts(store).await, [(silence, 180, 4, 1)], "what came since is added to what was known");
    one(store, Command::Start(report(run_id(1), 1, "c"))).await.unwrap_err();
    one(store, beat(run_id(3))).await.unwrap_err();
    for number in [2, 3] {
        let output = Some(serde_json::json!({"late\":true": "\"late\":true"}));
        one(store, Command::Complete { report: report(run_id(number), 1, "c"), output }).await.unwrap();
    }
    assert_eq!(counts(store).await, [(silence, 180, 4, 3)]);
    // A completion in time that merely mentions it, and a run that nobody had claimed, are no wrong reaps.
    beating(store, run_id(5)).await;
    let output = Some(serde_json::json!({"late": true}));
    one(store, Command::Complete { report: report(run_id(5), 1, "c"), output }).await.unwrap();
    assert_eq!(counts(store).await, [(silence, 180, 4, 3)]);
    // Whoever has not looked before finds the same.
    let again = place.store("a").await;
    assert_eq!(counts(again.as_ref()).await, [(silence, 180, 4, 3)]);
}

async fn reaps_are_counted_under_the_window_that_was_in_force(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    for (number, window) in [(1, 180), (2, 90), (3, 90), (4, 300)] {
        let terms = Box::new(Terms { heartbeat_window: Span::from_seconds(window), ..Terms::default() });
        let lane = name("watcher");
        one(store, Command::SetPolicy { lane, terms, expected_version: None, by: None }).await.unwrap();
        beating(store, run_id(number)).await;
        place.clock.advance(Span::from_seconds(window + 1));
        reap(store, run_id(number)).await;
    }
    // It counts under the window of its reap, not of the time at which it spoke.
    one(store, beat(run_id(2))).await.unwrap_err();
    let silence = Rule::HeartbeatSilence;
    assert_eq!(counts(store).await, [(silence, 90, 2, 1), (silence, 180, 1, 0), (silence, 300, 1, 0)]);
}

async fn the_false_reap_rate_of_a_workload_is_the_share_that_woke_again(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    let until = NOW.parse().unwrap();
    let (lane, policy) = (name("watcher"), lastbeat_domain::LanePolicy::default());
    let workload = Workload { runs: 600, events: 20_000, seed: 7, lane: lane.clone(), policy, until };
    store.import(generate::checked(&workload, &|_, _| ()).unwrap()).await.unwrap();
    let tally = store.reap_tally().await.unwrap();
    let of_rule = |rule| {
        let counts = tally.of_lane(&lane).filter(|(kind, _)| kind.rule == rule).map(|(_, count)| count);
        counts.fold(ReapCount::default(), ReapCount::plus)
    };
    // Of every hundred runs 7 die, 5 sleep and wake, 4 are fenced and speak again; 2 never beat and are reaped for it.
    assert_eq!(of_rule(Rule::HeartbeatSilence), ReapCount { reaped: 6 * 16, wrong: 6 * 9 });
    assert_eq!(of_rule(Rule::CoarseTtl), ReapCount { reaped: 6 * 2, wrong: 0 });
    assert_eq!(of_rule(Rule::HeartbeatSilence).rate(), Some(9.0 / 16.0));
}

async fn a_run_is_looked_back_on_with_what_was_known_at_the_instant(place: Place) {
    let lines = r#"
        {"run":"01930000-0000-7000-8000-000000000001","recorded_at":"2026-05-04T02:00:00Z","type":"created","lane":"watcher"}
        {"run":"01930000-0000-7000-8000-000000000001","recorded_at":"2026-05-04T02:00:10Z","type":"claimed","attempt":1,"executor":"mac-7"}
        {"run":"01930000-0000-7000-8000-000000000001","recorded_at":"2026-05-04T02:00:20Z","type":"heartbeat","attempt":1}
        {"run":"01930000-0000-7000-8000-000000000001","recorded_at":"2026-05-04T02:01:01Z","type":"heartbeat","attempt":1}
        {"run":"01930000-0000-7000-8000-000000000001","recorded_at":"2026-05-04T02:04:10Z","type":"timed_out","attempt":1,"rule":"heartbeat_silence","evidence":{},"message":"silent"}
        {"run":"01930000-0000-7000-8000-000000000001","recorded_at":"2026-05-04T02:04:22Z","type":"late_signal","attempt":1,"signal":"heartbeat"}
    "#;
    let store = place.store("a").await;
    let store = store.as_ref();
    store.import(check_import(Cursor::new(lines), store.now().await.unwrap()).unwrap()).await.unwrap();
    let id = "01930000-0000-7000-8000-000000000001".parse().unwrap();
    let run = store.run(id).await.unwrap().unwrap();
    let look = async |at: &str| ask::look_back(store, &run, at.parse().unwrap(), None).await.unwrap();
    assert!(look("2026-05-04T01:59:59Z").await.is_none());
    let before = look("2026-05-04T02:03:00Z").await.unwrap();
    assert_eq!((before.life.beats, before.life.reap.is_some()), (2, false));
    let (nearest, silence) = (before.life.nearest.unwrap(), before.life.longest.unwrap());
    assert_eq!((nearest.left, silence.charged), (Span::from_seconds(61), Span::from_seconds(119)));
    let reaped = look("2026-05-04T02:04:10Z").await.unwrap();
    assert!(reaped.life.reap.is_some() && !reaped.life.was_probably_wrong());
    assert_eq!(reaped.life.nearest.unwrap().over, Span::from_seconds(9));
    let after = look("2026-05-04T03:00:00Z").await.unwrap();
    assert!(after.life.was_probably_wrong());
    assert_eq!(after.life.nearest, reaped.life.nearest);
}
