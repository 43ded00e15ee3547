//! How much is measured, and how long.

use std::time::Duration;

/// How much is measured, and how long.
#[derive(Clone, Debug)]
pub(crate) struct Size {
    /// Runs in flight.
    pub(crate) runs: usize,
    /// Runs in flight in the small store that the empty sweep is compared with.
    pub(crate) few_runs: usize,
    /// How many of the runs beat while heartbeats are measured.
    pub(crate) beating: usize,
    /// Heartbeats on their way at any time.
    pub(crate) in_flight: [usize; 2],
    /// How often the contestants take turns.
    pub(crate) rounds: usize,
    /// How long a contestant beats in each round.
    pub(crate) turn: Duration,
    /// How many runs lapse at once.
    pub(crate) lapsing: usize,
    /// How many runs die one by one.
    pub(crate) deaths: usize,
    /// How many rows the form with a row for each heartbeat is measured over.
    pub(crate) rows: usize,
    /// How many runs live before a compaction, each for 240 heartbeats.
    pub(crate) compacted: usize,
    /// How many bytes of WAL the heartbeats may take.
    pub(crate) wal: i64,
}

impl Size {
    /// The whole benchmark.
    pub(crate) fn full(runs: usize, rounds: usize, turn: Duration) -> Size {
        let (few_runs, beating, lapsing) = (10_000, 20_480, 10_000);
        Size {
            runs,
            few_runs,
            beating,
            in_flight: [256, 2_048],
            rounds,
            turn,
            lapsing,
            deaths: 500,
            rows: 1_000_000,
            compacted: 5_000,
            wal: 3 << 30,
        }
    }

    /// A small form that shows that the benchmark works. Its figures say little.
    pub(crate) fn quick() -> Size {
        let turn = Duration::from_millis(300);
        let (few_runs, beating, lapsing) = (2_000, 4_096, 1_000);
        Size {
            runs: 20_000,
            few_runs,
            beating,
            in_flight: [256, 2_048],
            rounds: 3,
            turn,
            lapsing,
            deaths: 50,
            rows: 50_000,
            compacted: 500,
            wal: 256 << 20,
        }
    }

    /// The runs that lapse in the round of that number: they stand at the end of the fleet.
    pub(crate) fn lapsing_in(&self, round: usize) -> std::ops::Range<usize> {
        let end = self.runs - round * self.lapsing;
        end - self.lapsing..end
    }

    /// The round in which a run lapses, if it does.
    pub(crate) fn round_of(&self, place: usize) -> Option<usize> {
        let round = (self.runs - 1 - place) / self.lapsing;
        (round < self.rounds).then_some(round)
    }

    /// The fewest runs that leave room for those that beat and those that lapse.
    pub(crate) fn runs_min(&self) -> usize {
        self.beating + self.rounds * self.lapsing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_lapses_in_the_round_whose_range_it_is_in() {
        let size = Size::quick();
        for place in 0..size.runs {
            let round = (0..size.rounds).find(|round| size.lapsing_in(*round).contains(&place));
            assert_eq!(size.round_of(place), round, "run {place}");
        }
    }

    #[test]
    fn those_that_beat_do_not_lapse() {
        let size = Size::quick();
        assert!(size.runs >= size.runs_min());
        assert_eq!(size.round_of(size.beating - 1), None);
    }
}
