//! What can be asked of the past: how often reaps were wrong, and how near a run came to being reaped.

#![allow(clippy::unwrap_used)]

use std::io::Cursor;
use std::sync::Arc;

use lastbeat_domain::decide::{Command, RunSpec};
use lastbeat_domain::event::RunEvent;
use lastbeat_domain::hold::Census;
use lastbeat_domain::listening::{BeaconRole, Promise};
use lastbeat_domain::token::TokenSpec;
use lastbeat_domain::{Liveness, Rule, RunId, Span, Terms, Timestamp};
use lastbeat_store::bundle::runs_since;
use lastbeat_store::generate::{self, Workload};
use lastbeat_store::secret::Secret;
use lastbeat_store::{Answer, Bundle, CommandError, ImportError, ReapCount, ReapKind, Store, With, ask, check_import};
use lastbeat_testkit::{Backend, Place, claimant, name, on_each_backend, report, run_id};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};

const NOW: &str = "2026-05-04T06:00:00Z";

on_each_backend! {
    super::NOW;
    a_reap_is_wrong_once_its_executor_speaks_and_counts_once,
    a_late_completion_counts_whatever_its_output_holds,
    reaps_are_counted_under_the_window_that_was_in_force,
    the_false_reap_rate_of_a_workload_is_the_share_that_woke_again,
    a_run_is_looked_back_on_with_what_was_known_at_the_instant,
    a_bundle_makes_a_store_that_answers_the_same_of_any_instant,
    a_bundle_is_of_the_runs_that_were_asked_for_and_tells_no_secret,
    a_bundle_goes_into_an_empty_log_only,
    a_run_that_beats_without_progress_is_reaped_and_one_that_makes_some_is_not,
    whoever_beats_is_told_when_it_lapses_for_want_of_progress,
    a_first_progress_arms_the_run_anew,
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

async fn a_late_completion_counts_whatever_its_output_holds(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    beating(store, run_id(1)).await;
    place.clock.advance(Span::from_seconds(200));
    reap(store, run_id(1)).await;
    let output = Some(serde_json::json!({"type": "timed_out"}));
    one(store, Command::Complete { report: report(run_id(1), 1, "c"), output }).await.unwrap();
    assert_eq!(counts(store).await, [(Rule::HeartbeatSilence, 180, 1, 1)]);
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

async fn beacon(store: &dyn Store, role: BeaconRole) {
    let promise = Promise::Within(Span::from_millis(12_500));
    one(store, Command::Beacon { process: name("host/serve"), role, promise }).await.unwrap();
}

async fn window(store: &dyn Store, lane: &str, seconds: u64) {
    let terms = Box::new(Terms { heartbeat_window: Span::from_seconds(seconds), ..Terms::default() });
    one(store, Command::SetPolicy { lane: name(lane), terms, expected_version: None, by: None }).await.unwrap();
}

/// A run of which everything bears on the verdict: a policy that changes, a gap, a hold, a reap, a late signal, a second
/// attempt that is open, and a gap that is open too. Another run of another lane stands beside it.
async fn incident(place: &Place) -> Arc<dyn Store> {
    let whole = place.store("a").await;
    let store = whole.as_ref();
    let pass = |seconds| place.clock.advance(Span::from_seconds(seconds));
    window(store, "watcher", 120).await;
    window(store, "sync", 600).await;
    beacon(store, BeaconRole::Serve).await;
    beating(store, run_id(1)).await;
    let spec = Box::new(RunSpec::of_lane(name("sync")));
    one(store, Command::Create { run: run_id(2), spec, claim: None }).await.unwrap();
    pass(300);
    // Five minutes in which nobody listened.
    beacon(store, BeaconRole::Serve).await;
    let census = Census { beating: 40, silent: 40, lapsed: 40 };
    one(store, Command::ReviewHold { lane: name("watcher"), census }).await.unwrap();
    for _ in 0..14 {
        pass(10);
        beacon(store, BeaconRole::Serve).await;
    }
    let (lane, by) = (name("watcher"), name("ada"));
    one(store, Command::ReleaseHold { lane, by, reason: Some("they are dead".to_owned()) }).await.unwrap();
    reap(store, run_id(1)).await;
    pass(5);
    one(store, beat(run_id(1))).await.unwrap_err();
    one(store, Command::Requeue { run: run_id(1), by: name("ada"), reason: None }).await.unwrap();
    window(store, "watcher", 90).await;
    one(store, Command::ClaimRun { run: run_id(1), claimant: claimant("mac-8", "d") }).await.unwrap();
    one(store, Command::Heartbeat { report: report(run_id(1), 2, "d"), progress: None }).await.unwrap();
    // The gap that nobody has recorded.
    pass(60);
    whole
}

async fn bundled(store: &Arc<dyn Store>, runs: Vec<RunId>, with: With) -> String {
    let mut bundle = Bundle::begin(Arc::clone(store), runs, with).await.unwrap();
    let mut text = String::new();
    while let Some(lines) = bundle.next().await.unwrap() {
        lines.iter().for_each(|line| text.push_str(&format!("{}\n", line.text())));
    }
    text
}

async fn a_bundle_makes_a_store_that_answers_the_same_of_any_instant(place: Place) {
    let whole = incident(&place).await;
    let copy = place.store("b").await;
    let text = bundled(&whole, vec![run_id(1)], With { policy: true, deaf: true }).await;
    let checked = check_import(Cursor::new(text), copy.now().await.unwrap()).unwrap();
    copy.import(checked).await.unwrap();
    assert_eq!(copy.verify(&|_, _| ()).await.unwrap().damage, []);
    let (run, begin) = (whole.run(run_id(1)).await.unwrap().unwrap(), NOW.parse::<Timestamp>().unwrap());
    let (mut seen, mut deaf) = (std::collections::BTreeSet::new(), 0);
    for second in (0..2_000_u64).step_by(3) {
        let at = begin.minus(Span::from_seconds(2)).plus(Span::from_seconds(second));
        let (first, second) =
            (ask::look_back(whole.as_ref(), &run, at, None), ask::look_back(copy.as_ref(), &run, at, None));
        let (first, second) = (first.await.unwrap(), second.await.unwrap());
        let Some((first, second)) = first.as_ref().zip(second.as_ref()) else {
            assert!(first.is_none() && second.is_none(), "at {at}");
            continue;
        };
        assert_eq!(first.judged.verdict, second.judged.verdict, "at {at}");
        assert_eq!((&first.judged.run, &first.judged.policy), (&second.judged.run, &second.judged.policy), "at {at}");
        assert_eq!((&first.judged.listening, &first.life), (&second.judged.listening, &second.life), "at {at}");
        let held = |log: &lastbeat_store::ServiceLog| log.held_between(&run.lane, begin, at);
        assert_eq!(held(&whole.service_log().await.unwrap()), held(&copy.service_log().await.unwrap()), "at {at}");
        seen.insert(first.judged.verdict.liveness);
        deaf += u32::from(first.judged.listening.deaf_since().is_some());
    }
    assert!(seen.len() >= 4 && deaf > 100, "too little happened: {seen:?}, {deaf} instants in a gap");
    // Without what bears on it, the answers differ.
    let poor = place.store("c").await;
    let text = bundled(&whole, vec![run_id(1)], With::default()).await;
    poor.import(check_import(Cursor::new(text), poor.now().await.unwrap()).unwrap()).await.unwrap();
    let at = begin.plus(Span::from_seconds(430));
    let verdict = async |store: &dyn Store| ask::run_at(store, run_id(1), at).await.unwrap().unwrap().verdict;
    assert_ne!(verdict(whole.as_ref()).await, verdict(poor.as_ref()).await);
}

async fn a_bundle_is_of_the_runs_that_were_asked_for_and_tells_no_secret(place: Place) {
    let whole = incident(&place).await;
    let store = whole.as_ref();
    let (secret, role, lanes) = (Secret::random().unwrap(), name("admin"), Vec::new());
    let digest = secret.digest();
    let spec = TokenSpec { name: name("ada"), role, executor: None, lanes, device: None, expires_at: None, digest };
    one(store, Command::IssueToken { token: name("t1"), spec: Box::new(spec), by: name("ada") }).await.unwrap();
    let all = runs_since(store, None, None).await.unwrap();
    assert_eq!(all, [run_id(1), run_id(2)]);
    let since = NOW.parse::<Timestamp>().unwrap().plus(Span::from_seconds(100));
    assert_eq!(runs_since(store, None, Some(since)).await.unwrap(), [run_id(1)]);
    assert_eq!(runs_since(store, Some(&name("nothing")), None).await.unwrap(), []);
    let text = bundled(&whole, vec![run_id(1)], With { policy: true, deaf: true }).await;
    for (absent, why) in [("token", "a token"), ("\"sync\"", "another lane"), ("host/serve", "a process")] {
        assert!(!text.contains(absent), "{why} is in the bundle: {text}");
    }
    for present in ["policy_set", "\"deaf\"", "reaping_held", "reaping_released", "\"beacon\"", "late_signal"] {
        assert!(text.contains(present), "{present} is missing: {text}");
    }
    let bare = bundled(&whole, vec![run_id(1)], With::default()).await;
    assert!(bare.lines().all(|line| line.contains(&run_id(1).to_string())), "{bare}");
}

async fn a_bundle_goes_into_an_empty_log_only(place: Place) {
    let whole = incident(&place).await;
    let copy = place.store("b").await;
    window(copy.as_ref(), "watcher", 200).await;
    let text = bundled(&whole, vec![run_id(1)], With { policy: false, deaf: true }).await;
    let only_beacons: String =
        text.lines().filter(|line| line.contains("\"beacon\"")).map(|line| format!("{line}\n")).collect();
    let checked = check_import(Cursor::new(only_beacons.clone()), copy.now().await.unwrap()).unwrap();
    assert!(matches!(copy.import(checked).await, Err(ImportError::LogNotEmpty { line: 1 })));
    let twice = check_import(Cursor::new(only_beacons.repeat(2)), copy.now().await.unwrap());
    assert!(twice.unwrap_err().to_string().contains("line 2: there is a beacon of process `bundled-1` already"));
}

async fn stall_window(store: &dyn Store, seconds: u64) {
    let terms = Box::new(Terms { stall_window: Some(Span::from_seconds(seconds)), ..Terms::default() });
    let lane = name("watcher");
    one(store, Command::SetPolicy { lane, terms, expected_version: None, by: None }).await.unwrap();
}

fn progress(run: RunId, done: u64) -> Command {
    Command::Heartbeat { report: report(run, 1, "c"), progress: Some(serde_json::json!({"done": done, "total": 9})) }
}

/// Lets a run beat each 30 s for as long, with the progress, if any.
async fn go_on(place: &Place, store: &dyn Store, runs: &[(RunId, Option<u64>)], beats: u64) {
    for _ in 0..beats {
        place.clock.advance(Span::from_seconds(30));
        let beats = runs.iter().map(|(run, done)| done.map_or_else(|| beat(*run), |done| progress(*run, done)));
        for outcome in store.execute(beats.collect()).await {
            outcome.unwrap();
        }
    }
}

async fn a_run_that_beats_without_progress_is_reaped_and_one_that_makes_some_is_not(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    stall_window(store, 300).await;
    // One repeats itself, one says nothing more, one goes on, one never told of any.
    let runs = [1, 2, 3, 4].map(run_id);
    for run in runs {
        beating(store, run).await;
    }
    for run in &runs[..3] {
        one(store, progress(*run, 1)).await.unwrap();
    }
    let changed = store.run(runs[0]).await.unwrap().unwrap().progress_changed.unwrap();
    go_on(&place, store, &[(runs[0], Some(1)), (runs[1], None), (runs[2], Some(1)), (runs[3], None)], 5).await;
    assert_eq!(store.run(runs[0]).await.unwrap().unwrap().progress_changed, Some(changed), "the same is no progress");
    go_on(&place, store, &[(runs[0], Some(1)), (runs[1], None), (runs[2], Some(2)), (runs[3], None)], 6).await;
    let now = store.now().await.unwrap();
    let due: Vec<RunId> = store.due(now, 10).await.unwrap().into_iter().map(|due| due.judged.run.id).collect();
    for (run, expected) in runs.into_iter().zip([Liveness::Lapsed, Liveness::Lapsed, Liveness::Live, Liveness::Live]) {
        let judged = ask::run(store, run).await.unwrap().unwrap();
        assert_eq!(judged.verdict.liveness, expected, "{run}");
        // Of the one that goes on the silence would end later.
        let rule = if run == runs[3] { Rule::HeartbeatSilence } else { Rule::NoProgress };
        assert_eq!(judged.verdict.rule(), Some(rule), "{run}");
        let lapsed = expected == Liveness::Lapsed;
        assert!(!lapsed || due.contains(&run), "{run} is lapsed and not due");
    }
    let answer = one(store, Command::Reap { run: runs[1], by: name("sweeper"), by_hand: None }).await.unwrap();
    let RunEvent::TimedOut { rule, evidence: Some(evidence), message, .. } = &answer.appended[0].event else {
        panic!("no reap: {answer:?}")
    };
    assert_eq!((*rule, evidence.basis.version, evidence.window), (Rule::NoProgress, 4, Span::from_seconds(300)));
    assert!(message.starts_with("no progress for 5m") && message.contains("mac-7 has beaten on"), "{message}");
    // That it still beats is no news; that it is done would show that it should have been let alone.
    let count = || async {
        counts(store).await.into_iter().map(|(rule, _, all, wrong)| (rule, all, wrong)).collect::<Vec<_>>()
    };
    one(store, beat(runs[1])).await.unwrap_err();
    assert_eq!(count().await, [(Rule::NoProgress, 1, 0)]);
    one(store, Command::Complete { report: report(runs[1], 1, "c"), output: None }).await.unwrap();
    assert_eq!(count().await, [(Rule::NoProgress, 1, 1)]);
    let refused = one(store, Command::Reap { run: runs[2], by: name("sweeper"), by_hand: None }).await;
    assert!(refused.is_err());
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
    assert_eq!(store.rebuild(&|_, _| ()).await.unwrap().differed, 0);
    let again = place.store("a").await;
    assert_eq!(again.run(runs[0]).await.unwrap().unwrap().progress_changed, Some(changed));
}

async fn whoever_beats_is_told_when_it_lapses_for_want_of_progress(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    let runs = [1, 2, 3].map(run_id);
    for run in runs {
        beating(store, run).await;
    }
    one(store, progress(runs[0], 1)).await.unwrap();
    place.clock.advance(Span::from_seconds(60));
    one(store, progress(runs[1], 1)).await.unwrap();
    stall_window(store, 200).await;
    place.clock.advance(Span::from_seconds(100));
    // What a heartbeat is answered by may be half a second old.
    store.service_log().await.unwrap();
    // All in one batch, and one by one: the same answer as the rule's.
    let together = store.execute(runs.map(beat).to_vec()).await;
    for (outcome, run) in together.into_iter().zip(runs) {
        let heard = outcome.unwrap().heard.unwrap();
        let judged = ask::run(store, run).await.unwrap().unwrap();
        assert_eq!(heard.lapses_at, judged.verdict.lapses_at(), "{run}");
        let rule = if run == runs[2] { Rule::HeartbeatSilence } else { Rule::NoProgress };
        assert_eq!(judged.verdict.rule(), Some(rule), "{run}");
    }
    let changed = store.run(runs[0]).await.unwrap().unwrap().progress_changed.unwrap();
    let heard = one(store, beat(runs[0])).await.unwrap().heard.unwrap();
    assert_eq!(heard.lapses_at, Some(changed.at.plus(Span::from_seconds(200))));
}

async fn a_first_progress_arms_the_run_anew(place: Place) {
    let store = place.store("a").await;
    let store = store.as_ref();
    stall_window(store, 60).await;
    beating(store, run_id(1)).await;
    let first = store.next_due().await.unwrap().unwrap();
    place.clock.advance(Span::from_seconds(10));
    one(store, progress(run_id(1), 1)).await.unwrap();
    let lapses_at = ask::run(store, run_id(1)).await.unwrap().unwrap().verdict.lapses_at().unwrap();
    let armed = store.next_due().await.unwrap().unwrap();
    assert!(armed <= lapses_at && armed < first, "armed at {armed}, lapses at {lapses_at}, first {first}");
    // A plain heartbeat moves neither.
    place.clock.advance(Span::from_seconds(10));
    one(store, beat(run_id(1))).await.unwrap();
    assert_eq!(store.next_due().await.unwrap(), Some(armed));
    assert_eq!(ask::run(store, run_id(1)).await.unwrap().unwrap().verdict.lapses_at(), Some(lapses_at));
}

/// Runs whose progress changed, stayed as it was, changed back, was of an earlier attempt, or was never told of.
async fn with_progress(place: &Place) -> Vec<lastbeat_domain::Run> {
    let store = place.store("a").await;
    let store = store.as_ref();
    let tell = async |run: RunId, attempt: u32, progress: serde_json::Value| {
        place.clock.advance(Span::from_seconds(1));
        let report = lastbeat_domain::decide::Report { attempt, ..report(run, attempt, "c") };
        one(store, Command::Heartbeat { report, progress: Some(progress) }).await.unwrap();
    };
    for number in 1..=5 {
        beating(store, run_id(number)).await;
    }
    for done in [1, 1, 2, 1, 1] {
        tell(run_id(1), 1, serde_json::json!({"done": done, "note": "a \u{0} and a \" in it"})).await;
        one(store, beat(run_id(1))).await.unwrap();
    }
    for progress in [serde_json::json!(0.5), serde_json::json!(0.5)] {
        tell(run_id(2), 1, progress).await;
    }
    tell(run_id(3), 1, serde_json::json!(7)).await;
    let failure = "no disk".to_owned();
    one(store, Command::Fail { report: report(run_id(3), 1, "c"), error: failure }).await.unwrap();
    one(store, Command::Requeue { run: run_id(3), by: name("ada"), reason: None }).await.unwrap();
    one(store, Command::ClaimRun { run: run_id(3), claimant: claimant("mac-8", "c") }).await.unwrap();
    tell(run_id(4), 1, serde_json::json!(1)).await;
    one(store, Command::Complete { report: report(run_id(4), 1, "c"), output: None }).await.unwrap();
    let mut runs = Vec::new();
    for number in 1..=5 {
        runs.push(store.run(run_id(number)).await.unwrap().unwrap());
    }
    store.close().await;
    let changed: Vec<bool> = runs.iter().map(|run| run.progress_changed.is_some()).collect();
    assert_eq!(changed, [true, true, false, true, false]);
    runs
}

async fn is_as_it_was(place: &Place, runs: &[lastbeat_domain::Run]) {
    let store = place.store("a").await;
    for run in runs {
        assert_eq!(store.run(run.id).await.unwrap().as_ref(), Some(run));
    }
    assert_eq!(store.verify(&|_, _| ()).await.unwrap().damage, []);
}

#[tokio::test]
async fn a_file_of_an_older_schema_learns_when_progress_last_changed() {
    let place = Place::at(NOW);
    let runs = with_progress(&place).await;
    let statements = "DROP INDEX events_reaps; DROP INDEX events_reaps_of; \
        ALTER TABLE runs DROP COLUMN progress_changed_at; ALTER TABLE runs DROP COLUMN progress_changed_version; \
        PRAGMA user_version = 5;";
    let mut shell = SqliteConnectOptions::new().filename(place.file("a.db")).connect().await.unwrap();
    sqlx::raw_sql(statements).execute(&mut shell).await.unwrap();
    shell.close().await.unwrap();
    is_as_it_was(&place, &runs).await;
}

#[tokio::test]
async fn a_database_of_an_older_schema_learns_when_progress_last_changed() {
    let place = Place::on(Backend::Postgres, NOW);
    let runs = with_progress(&place).await;
    let url = place.database("a").await;
    let statements = lastbeat_testkit::postgres::fourth_schema()
        + "DROP INDEX events_reaps; DROP INDEX events_reaps_of; \
           UPDATE runs SET rest = regexp_replace(rest, ',\"progress_changed\":\\[\\d+,\\d+\\]', ''); \
           DELETE FROM lastbeat_schema WHERE version > 2";
    let mut shell = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(statements)).execute(&mut shell).await.unwrap();
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM runs WHERE strpos(rest, 'progress_changed') > 0")
        .fetch_one(&mut shell)
        .await
        .unwrap();
    assert_eq!(left, 0, "nothing of it is left");
    shell.close().await.unwrap();
    let versions = lastbeat_store::postgres::migrate(&url).await.unwrap();
    assert_eq!(versions.0, 2);
    is_as_it_was(&place, &runs).await;
}
