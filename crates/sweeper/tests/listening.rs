//! Our own faults are not the executors': outages, clock steps, and silence that is too common to be theirs.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use lastbeat_domain::decide::{Command, RunSpec};
use lastbeat_domain::event::{DeafCause, ReleaseCause};
use lastbeat_domain::listening::BeaconRole;
use lastbeat_domain::listening::Promise;
use lastbeat_domain::{RefusalCode, Span, Status, Terms};
use lastbeat_store::{Clock, CommandError, Store, ask};
use lastbeat_sweeper::{SweepReport, Sweeper};
use lastbeat_testkit::{Place, claimant, name, on_each_backend, report, run_id};

const NOW: &str = "2026-05-04T06:00:00Z";

on_each_backend! {
    super::NOW;
    an_outage_longer_than_the_window_reaps_nobody_and_is_recorded_once,
    a_clock_that_is_set_back_is_recorded_and_delays_only,
    a_clean_stop_leaves_no_gap_and_a_kill_does,
    single_passes_promise_the_next_one_only_if_they_say_when,
    nobody_is_reaped_while_a_server_is_gone_until_somebody_retires_it,
    a_mass_silence_is_held_and_drained_at_the_rate,
    a_hold_ends_by_itself_when_they_are_heard_of_again_or_after_its_time,
    a_few_dead_among_many_are_reaped_at_once_and_other_lanes_are_not_held,
}

fn seconds(count: u64) -> Span {
    Span::from_seconds(count)
}

fn sweeper(place: &Place, process: &str) -> Sweeper {
    let clock: Arc<dyn Clock> = Arc::clone(&place.clock) as Arc<dyn Clock>;
    Sweeper::new(name(process), clock)
}

async fn one(store: &dyn Store, command: Command) {
    store.execute(vec![command]).await.pop().unwrap().unwrap();
}

async fn claim(store: &dyn Store, number: u128) {
    let (run, spec) = (run_id(number), Box::new(RunSpec::of_lane(name("watcher"))));
    one(store, Command::Create { run, spec, claim: Some(claimant("mac-7", "c")) }).await;
}

async fn beat(store: &dyn Store, number: u128) {
    one(store, Command::Heartbeat { report: report(run_id(number), 1, "c"), progress: None }).await;
}

/// Lets time pass with a pass each second, and gathers what the passes report.
async fn sweep_for(place: &Place, store: &dyn Store, sweeper: &mut Sweeper, span: u64) -> Vec<SweepReport> {
    let mut reports = Vec::new();
    for _ in 0..span {
        place.clock.advance(seconds(1));
        reports.push(sweeper.pass(store).await.unwrap());
    }
    reports
}

fn reaped(reports: &[SweepReport]) -> usize {
    reports.iter().map(|report| report.reaped.len()).sum()
}

async fn an_outage_longer_than_the_window_reaps_nobody_and_is_recorded_once(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    let (mut a, mut b) = (sweeper(&place, "a"), sweeper(&place, "b"));
    for number in 1..=2 {
        claim(store, number).await;
        beat(store, number).await;
    }
    for sweeper in [&mut a, &mut b] {
        sweeper.pass(store).await.unwrap();
    }
    // Everything stands still for an hour; then run 1 goes on, and run 2 is dead.
    place.clock.advance(seconds(3_600));
    let judged = ask::run(store, run_id(1)).await.unwrap().unwrap();
    assert!(judged.listening.deaf_since().is_some(), "whoever asks while the gap is open is told so");
    assert!(!judged.verdict.is_lapsed());
    let first = a.pass(store).await.unwrap();
    let second = b.pass(store).await.unwrap();
    assert_eq!((first.deaf.len(), second.deaf.len()), (1, 0), "whoever beacons first records the gap");
    assert_eq!(first.deaf[0].cause, DeafCause::Gap);
    assert_eq!(reaped(&[first, second]), 0);
    beat(store, 1).await;
    // What is charged to run 2 is the listening time alone.
    let reports = sweep_for(&place, store, &mut a, 170).await;
    assert_eq!(reaped(&reports), 0);
    beat(store, 1).await;
    let reports = sweep_for(&place, store, &mut a, 12).await;
    assert_eq!(reaped(&reports), 1);
    let run = store.run(run_id(2)).await.unwrap().unwrap();
    assert_eq!(run.status, Status::TimedOut);
    let why = serde_json::to_value(&run.outcome.unwrap().event).unwrap()["evidence"].clone();
    assert!(
        why["deaf_seconds"].as_f64().unwrap() > 3_595.0 && why["charged_seconds"].as_f64().unwrap() < 182.0,
        "{why}"
    );
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
}

#[tokio::test]
async fn a_clock_that_is_set_forward_reaps_nobody() {
    // By more than the promise, which looks like a gap too; and by less, which does not.
    for step in [3_600, 10] {
        let place = Place::at(NOW);
        let store = place.store("a").await;
        let store = store.as_ref();
        let window = Terms { heartbeat_interval: seconds(3), heartbeat_window: seconds(10), ..Terms::default() };
        let (lane, terms) = (name("watcher"), Box::new(window));
        one(store, Command::SetPolicy { lane, terms, expected_version: None, by: None }).await;
        let mut sweeper = sweeper(&place, "a");
        claim(store, 1).await;
        beat(store, 1).await;
        sweep_for(&place, store, &mut sweeper, 2).await;
        place.clock.set(place.clock.now().plus(seconds(step)));
        // A reap by another hand comes before the beacon can tell: it is refused.
        place.clock.advance(Span::from_millis(100));
        let reap = Command::Reap { run: run_id(1), by: name("b"), by_hand: None };
        match store.execute(vec![reap]).await.pop().unwrap() {
            Err(CommandError::Refused(refusal)) => {
                assert!([RefusalCode::Deaf, RefusalCode::NotLapsed].contains(&refusal.code), "{refusal:?}");
            }
            other => panic!("{other:?}"),
        }
        let reports = sweep_for(&place, store, &mut sweeper, 4).await;
        assert!(reports.iter().any(|report| report.deaf.iter().any(|deaf| deaf.cause == DeafCause::ClockStep)));
        assert_eq!(reaped(&reports), 0, "by {step} s");
        assert_eq!(reaped(&sweep_for(&place, store, &mut sweeper, 8).await), 1, "and the dead are reaped in time");
    }
}

async fn a_clock_that_is_set_back_is_recorded_and_delays_only(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    let mut sweeper = sweeper(&place, "a");
    claim(store, 1).await;
    beat(store, 1).await;
    sweep_for(&place, store, &mut sweeper, 2).await;
    place.clock.set(place.clock.now().minus(seconds(600)));
    assert_eq!(reaped(&sweep_for(&place, store, &mut sweeper, 300).await), 0, "log time stands still");
    assert!(store.service_log().await.unwrap().clock_back.is_some());
    assert_eq!(reaped(&sweep_for(&place, store, &mut sweeper, 600).await), 1);
}

async fn a_clean_stop_leaves_no_gap_and_a_kill_does(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    let mut stopped = sweeper(&place, "stopped");
    stopped.pass(store).await.unwrap();
    stopped.stop(store).await.unwrap();
    place.clock.advance(seconds(100));
    assert_eq!(store.service_log().await.unwrap().beacons, []);
    let mut killed = sweeper(&place, "killed");
    assert_eq!(killed.pass(store).await.unwrap().deaf, []);
    place.clock.advance(seconds(100));
    let mut next = sweeper(&place, "next");
    assert_eq!(next.pass(store).await.unwrap().deaf.len(), 1);
    next.stop(store).await.unwrap();
    assert_eq!(store.service_log().await.unwrap().beacons, [], "the killed one's beacon does not stay behind");
}

async fn single_passes_promise_the_next_one_only_if_they_say_when(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    let once = |every| {
        let clock: Arc<dyn Clock> = Arc::clone(&place.clock) as Arc<dyn Clock>;
        Sweeper::once(name("once"), clock, every)
    };
    once(None).pass(store).await.unwrap();
    place.clock.advance(seconds(3_600));
    assert_eq!(once(None).pass(store).await.unwrap().deaf, []);
    once(Some(seconds(60))).pass(store).await.unwrap();
    place.clock.advance(seconds(150));
    assert_eq!(once(Some(seconds(60))).pass(store).await.unwrap().deaf, []);
    place.clock.advance(seconds(151));
    assert_eq!(once(Some(seconds(60))).pass(store).await.unwrap().deaf.len(), 1);
}

async fn nobody_is_reaped_while_a_server_is_gone_until_somebody_retires_it(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    let (process, role) = (name("server"), BeaconRole::Serve);
    one(store, Command::Beacon { process, role, promise: Promise::Within(seconds(12)) }).await;
    claim(store, 1).await;
    beat(store, 1).await;
    let mut sweeper = sweeper(&place, "a");
    assert_eq!(reaped(&sweep_for(&place, store, &mut sweeper, 1_000).await), 0);
    let retire = Command::RetireServers { by: name("ada") };
    let answer = store.execute(vec![retire]).await.pop().unwrap().unwrap();
    let types: Vec<&str> = answer.service.iter().map(|recorded| recorded.event.type_name()).collect();
    assert_eq!(types, ["deaf", "beacon_retired"]);
    assert_eq!(reaped(&sweep_for(&place, store, &mut sweeper, 100).await), 0, "it was heard of just before the gap");
    assert_eq!(reaped(&sweep_for(&place, store, &mut sweeper, 150).await), 1);
}

async fn silent_lane(place: &Place, store: &dyn Store, runs: u128) {
    let hold = Terms { hold_max: seconds(60), ..Terms::default() };
    let (lane, terms) = (name("watcher"), Box::new(hold));
    one(store, Command::SetPolicy { lane, terms, expected_version: None, by: None }).await;
    for number in 1..=runs {
        claim(store, number).await;
        beat(store, number).await;
        place.clock.advance(Span::from_millis(10));
    }
}

async fn a_mass_silence_is_held_and_drained_at_the_rate(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    silent_lane(&place, store, 40).await;
    let mut sweeper = sweeper(&place, "a");
    let reports = sweep_for(&place, store, &mut sweeper, 185).await;
    assert_eq!((reaped(&reports), reports.iter().filter(|report| !report.newly_held.is_empty()).count()), (0, 1));
    let held = &reports.last().unwrap().held[0];
    assert_eq!((held.lapsed, held.beating), (40, 40));
    // An operator looks, and lets it go on: ten a second, until the share has fallen.
    let release = Command::ReleaseHold { lane: name("watcher"), by: name("ada"), reason: Some("rack 7".to_owned()) };
    one(store, release).await;
    let mut each = Vec::new();
    for _ in 0..40 {
        place.clock.advance(Span::from_millis(100));
        each.push(sweeper.pass(store).await.unwrap());
    }
    let half_second: Vec<usize> = each.chunks(5).map(reaped).collect();
    assert_eq!(half_second[..4], [5, 5, 5, 5], "{half_second:?}");
    // Below hold_min it is an ordinary lane again.
    assert!(each.iter().any(|report| report.released.iter().any(|it| it.cause == ReleaseCause::Recovered)));
    assert_eq!(reaped(&each), 40);
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
}

async fn a_hold_ends_by_itself_when_they_are_heard_of_again_or_after_its_time(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    silent_lane(&place, store, 40).await;
    let mut sweeper = sweeper(&place, "a");
    sweep_for(&place, store, &mut sweeper, 185).await;
    for number in 1..=39 {
        beat(store, number).await;
    }
    let reports = sweep_for(&place, store, &mut sweeper, 3).await;
    assert_eq!(reports.iter().flat_map(|report| &report.released).count(), 1);
    assert_eq!(reaped(&reports), 1, "the one that stayed silent, at once");
    // The next time nobody comes back: after hold_max they are reaped all the same.
    let reports = sweep_for(&place, store, &mut sweeper, 250).await;
    let causes: Vec<ReleaseCause> =
        reports.iter().flat_map(|report| &report.released).map(|released| released.cause).collect();
    assert_eq!(causes, [ReleaseCause::Expired, ReleaseCause::Recovered]);
    assert_eq!(reaped(&reports), 39);
}

async fn a_few_dead_among_many_are_reaped_at_once_and_other_lanes_are_not_held(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    silent_lane(&place, store, 40).await;
    let mut sweeper = sweeper(&place, "a");
    for _ in 0..7 {
        sweep_for(&place, store, &mut sweeper, 28).await;
        for number in 6..=40 {
            beat(store, number).await;
        }
    }
    assert_eq!(ask::census(store, &name("watcher")).await.unwrap().beating, 35);
    assert_eq!(store.service_log().await.unwrap().holds().count(), 0);
}
