//! Medians and spreads of a few rounds.
//!
//! Contestants take turns (A B A B …), and the ratio is taken within each round: what slows the machine down for a
//! while slows both. The median of the ratios is the figure, the smallest and the largest say how far to trust it.

use serde::Serialize;

/// What a few rounds came to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Sums up the rounds. Where there are none, all is NaN, which meets no goal.
    pub(crate) fn of(rounds: &[f64]) -> Spread {
        Spread { median: percentile(rounds, 0.5), min: percentile(rounds, 0.0), max: percentile(rounds, 1.0) }
    }

    /// Sums up the ratios of two contestants, round by round.
    pub(crate) fn of_ratios(ours: &[f64], theirs: &[f64]) -> Spread {
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
        Spread::of(&ratios)
    }
}

/// Returns the smallest value that at least `share` of the values do not exceed; of an even number of values the median
/// is thus the lower of the two in the middle, a value that was measured. NaN if there are no values.
pub(crate) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_a_value_that_was_measured() {
        assert_eq!(percentile(&[3.0, 1.0, 2.0], 0.5), 2.0);
        assert_eq!(percentile(&[4.0, 1.0, 2.0, 3.0], 0.5), 2.0);
        assert_eq!(percentile(&[7.0], 0.5), 7.0);
    }

    #[test]
    fn a_percentile_is_exceeded_by_no_more_than_the_rest() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.99), 99.0);
        assert_eq!(percentile(&hundred, 1.0), 100.0);
        assert_eq!(percentile(&hundred, 0.0), 1.0);
        // Of fewer than a hundred values, the worst one is the 99th percentile.
        assert_eq!(percentile(&hundred[..50], 0.99), 50.0);
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // The machine was twice as slow in the second round, for both.
        let spread = Spread::of_ratios(&[100.0, 50.0, 120.0], &[10.0, 5.0, 10.0]);
        assert_eq!(spread, Spread { median: 10.0, min: 10.0, max: 12.0 });
    }

    #[test]
    fn nothing_measured_is_not_a_number() {
        let spread = Spread::of(&[]);
        assert!(spread.median.is_nan() && spread.min.is_nan() && spread.max.is_nan());
    }
}
