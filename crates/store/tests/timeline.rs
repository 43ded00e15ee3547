//! What a timeline is drawn from: the silences are what the rule said, and deaf time stands still in them.
#![allow(clippy::unwrap_used)]

use lastbeat_domain::decide::{Command, RunSpec};
use lastbeat_domain::listening::{BeaconRole, Promise};
use lastbeat_domain::{Rule, Span};
use lastbeat_store::{Store, ask, timeline};
use lastbeat_testkit::{Place, claimant, name, on_each_backend, report, run_id};

async fn carried_out(store: &dyn Store, command: Command) {
    store.execute(vec![command]).await.pop().unwrap().unwrap();
}

async fn beaconed(store: &dyn Store, within: u64) {
    let promise = Promise::Within(Span::from_seconds(within));
    carried_out(store, Command::Beacon { process: name("here"), role: BeaconRole::Local, promise }).await;
}

on_each_backend!("2026-05-04T02:00:00Z"; a_silence_is_what_the_rule_held_against_the_run_and_stands_still_while_nobody_listens);

async fn a_silence_is_what_the_rule_held_against_the_run_and_stands_still_while_nobody_listens(place: Place) {
    let store = place.store("a").await;
    let run = run_id(1);
    let spec = Box::new(RunSpec::of_lane(name("watcher")));
    carried_out(store.as_ref(), Command::Create { run, spec, claim: Some(claimant("mac-7", "c1")) }).await;
    beaconed(store.as_ref(), 3_600).await;
    let beat = || Command::Heartbeat { report: report(run, 1, "c1"), progress: None };
    place.clock.advance(Span::from_seconds(10));
    carried_out(store.as_ref(), beat()).await;
    place.clock.advance(Span::from_seconds(30));
    carried_out(store.as_ref(), beat()).await;
    // Nobody listens for ten minutes; then a minute more is silent.
    beaconed(store.as_ref(), 5).await;
    place.clock.advance(Span::from_seconds(600));
    beaconed(store.as_ref(), 3_600).await;
    place.clock.advance(Span::from_seconds(60));

    let drawn = timeline(store.as_ref(), run).await.unwrap().unwrap();
    // Each fact is a microsecond after the one before it.
    let seconds = |span: Span| (span.as_micros() + 500_000) / 1_000_000;
    let told: Vec<(Rule, u64)> =
        drawn.silences.iter().map(|silence| (silence.rule, seconds(silence.charged))).collect();
    assert_eq!(told, [(Rule::CoarseTtl, 10), (Rule::HeartbeatSilence, 30), (Rule::HeartbeatSilence, 60)]);
    let last = drawn.silences.last().unwrap();
    let charge = ask::run(store.as_ref(), run).await.unwrap().unwrap().verdict.charge.unwrap();
    assert_eq!((last.charged, last.deaf, last.lapsed), (charge.charged, charge.deaf, false));
    // It rises, stands still, and rises again.
    let course: Vec<u64> = last.course.iter().map(|(_, charged)| seconds(*charged)).collect();
    assert_eq!(course, [0, 0, 0, 60]);
    assert_eq!(drawn.deaf.len(), 1);

    place.clock.advance(Span::from_seconds(122));
    let drawn = timeline(store.as_ref(), run).await.unwrap().unwrap();
    assert!(drawn.silences.last().unwrap().lapsed);
    assert!(timeline(store.as_ref(), run_id(2)).await.unwrap().is_none());
}
