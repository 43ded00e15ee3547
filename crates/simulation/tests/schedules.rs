//! What the simulation itself promises: schedules keep the promises, and a seed always makes the same log.

#![allow(clippy::unwrap_used)]

use lastbeat_domain::Rule;
use lastbeat_simulation::{Tally, play, runtime, stay_on_one_core};

/// How many schedules are played here; `cargo xtask simulate` plays more.
const SEEDS: u64 = 60;

#[test]
fn the_promises_are_kept() {
    let played = |thread: usize, seeds: std::ops::Range<u64>| {
        stay_on_one_core(thread);
        let runtime = runtime();
        let mut tally = Tally::default();
        for seed in seeds {
            match runtime.block_on(play(seed)) {
                Ok(played) => tally.add(&played.tally),
                Err(failure) => panic!("seed {}: {:?}\n{}", failure.seed, failure.broken, failure.history.join("\n")),
            }
        }
        tally
    };
    let mut tally = std::thread::scope(|scope| {
        let halves = [scope.spawn(|| played(0, 0..SEEDS / 2)), scope.spawn(|| played(1, SEEDS / 2..SEEDS))];
        let mut tally = Tally::default();
        halves.into_iter().for_each(|half| tally.add(&half.join().unwrap()));
        tally
    });
    assert_eq!(tally.seeds, SEEDS);
    // A simulation in which nothing happens keeps every promise.
    let reaps = |rule| tally.reaps.get(&rule).copied().unwrap_or(0);
    let enough = reaps(Rule::HeartbeatSilence) > SEEDS / 2 && reaps(Rule::CoarseTtl) > SEEDS / 2;
    assert!(tally.reaps.len() == 3 && enough && reaps(Rule::NoProgress) > SEEDS / 8, "{tally:?}");
    assert!(tally.lost_races > 0 && tally.late_completions > 0 && tally.late_signals > 0, "{tally:?}");
    for kind in
        ["compactions", "outages", "clock steps forward", "clock steps back", "sweeper crashes", "sweeper stops"]
    {
        assert!(tally.faults.remove(kind).is_some_and(|count| count > SEEDS / 8), "{kind}: {tally:?}");
    }
}

#[test]
fn the_same_seed_makes_the_same_log() {
    stay_on_one_core(0);
    let mut facts = 0;
    for seed in 1_000..1_012 {
        let lines = || runtime().block_on(play(seed)).unwrap().lines;
        let first = lines();
        assert_eq!(first, lines(), "seed {seed}");
        facts += first.len();
    }
    assert!(facts > 200, "{facts} facts");
}
