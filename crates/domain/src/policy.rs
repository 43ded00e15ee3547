//! A lane's policy: the windows within which an executor must be heard of, and what follows when it is not.

use serde::{Deserialize, Deserializer, Serialize};

use crate::time::Span;

/// The policy of a lane at a moment: its terms, and which `policy_set` event of the lane laid them down.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct LanePolicy {
    /// The number of the lane's `policy_set` event; 0 for the default that every lane starts with.
    pub version: u32,
    /// What the policy says.
    pub terms: Terms,
}

/// What a policy says. The [default](Terms::default) is what a lane has from its first mention.
///
/// In JSON each span is a number of seconds under a name ending in `_seconds`, null means *off*, and a field left out
/// takes its default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Terms {
    /// How often an executor is asked to beat. A run is `quiet` after one and a half of these without a beat.
    #[serde(rename = "heartbeat_interval_seconds")]
    pub heartbeat_interval: Span,
    /// How long a run that beats may be silent.
    #[serde(rename = "heartbeat_window_seconds")]
    pub heartbeat_window: Span,
    /// How long after its claim a run that never beats is believed.
    #[serde(rename = "coarse_ttl_seconds")]
    pub coarse_ttl: Span,
    /// How long a due run may wait to be claimed; off by default.
    #[serde(rename = "claim_window_seconds", deserialize_with = "span_or_off")]
    pub claim_window: Option<Span>,
    /// How long a claimed run may take to start; off by default.
    #[serde(rename = "start_window_seconds", deserialize_with = "span_or_off")]
    pub start_window: Option<Span>,
    /// How long an attempt may take at all, beating or not; off by default, since it kills live runs.
    #[serde(rename = "max_runtime_seconds", deserialize_with = "span_or_off")]
    pub max_runtime: Option<Span>,
    /// How long a run that beats and has reported progress may go on without any; off by default, since an executor may
    /// be well and have nothing to report.
    #[serde(rename = "stall_window_seconds", deserialize_with = "span_or_off")]
    pub stall_window: Option<Span>,
    /// How many reaps a run survives, less one: a reaped run is requeued while it was reaped fewer times than this.
    pub max_attempts: u32,
    /// How long a requeued run waits after its first reap; doubled for each further attempt.
    #[serde(rename = "retry_backoff_base_seconds")]
    pub retry_backoff_base: Span,
    /// The longest that a requeued run waits.
    #[serde(rename = "retry_backoff_max_seconds")]
    pub retry_backoff_max: Span,
    /// What becomes of the work of an executor that completes after its run was reaped.
    pub late_completion: LateCompletion,
    /// Whether lapsed runs are reaped, or only reported.
    pub mode: Mode,
    /// How many beating runs must be silent at once for the lane to be held; `None`: the lane is never held.
    pub hold_min: Option<u32>,
    /// Which share of the lane's beating runs must be silent at once for the lane to be held.
    pub hold_share: f64,
    /// How long a lane is held at the most.
    #[serde(rename = "hold_max_seconds")]
    pub hold_max: Span,
    /// How many runs a second are reaped after a hold was released or ran out.
    pub reap_rate: u32,
}

impl Default for Terms {
    fn default() -> Terms {
        Terms {
            heartbeat_interval: Span::from_seconds(30),
            heartbeat_window: Span::from_seconds(180),
            coarse_ttl: Span::from_seconds(7_200),
            claim_window: None,
            start_window: None,
            max_runtime: None,
            stall_window: None,
            max_attempts: 1,
            retry_backoff_base: Span::from_seconds(10),
            retry_backoff_max: Span::from_seconds(600),
            late_completion: LateCompletion::Adopt,
            mode: Mode::Enforce,
            hold_min: Some(20),
            hold_share: 0.5,
            hold_max: Span::from_seconds(600),
            reap_rate: 10,
        }
    }
}

/// What becomes of the work of an executor that completes after its run was reaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LateCompletion {
    /// The completion is taken, as long as nobody has claimed the next attempt.
    Adopt,
    /// The completion is refused and recorded as a late signal.
    Refuse,
}

/// Whether lapsed runs are reaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Lapsed runs are reaped.
    Enforce,
    /// Lapsed runs are judged and reported, never reaped by a sweeper.
    Shadow,
}

/// Says which of a policy's terms cannot stand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct PolicyError {
    /// The field of the policy, as it is named in JSON without `_seconds`.
    pub field: &'static str,
    /// What is wrong with it and what would do.
    pub problem: String,
}

impl Terms {
    /// How many heartbeat intervals a heartbeat window must hold at least, so that one lost beat reaps nobody.
    pub const INTERVALS_PER_WINDOW_MIN: u64 = 3;

    /// Checks the terms of a policy that somebody wants to set. Imported and hypothetical policies are not checked.
    ///
    /// # Errors
    /// Names the first term that cannot stand.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let bad = |field, problem: String| Err(PolicyError { field, problem });
        if self.heartbeat_interval == Span::ZERO {
            return bad("heartbeat_interval", "must be longer than 0s".to_owned());
        }
        let window_min = self.heartbeat_interval.times(Self::INTERVALS_PER_WINDOW_MIN);
        if self.heartbeat_window < window_min {
            return bad(
                "heartbeat_window",
                format!(
                    "{} is under three heartbeat intervals of {}, so that one lost beat could reap a live run; \
                     use at least {window_min}, or a shorter heartbeat_interval",
                    self.heartbeat_window, self.heartbeat_interval
                ),
            );
        }
        let windows = [
            ("coarse_ttl", Some(self.coarse_ttl)),
            ("claim_window", self.claim_window),
            ("start_window", self.start_window),
            ("max_runtime", self.max_runtime),
            ("stall_window", self.stall_window),
            ("hold_max", Some(self.hold_max)),
        ];
        for (field, window) in windows {
            if window == Some(Span::ZERO) {
                return bad(field, "must be longer than 0s".to_owned());
            }
        }
        if self.max_attempts == 0 {
            return bad("max_attempts", "must be at least 1".to_owned());
        }
        if self.retry_backoff_base > self.retry_backoff_max {
            return bad(
                "retry_backoff_base",
                format!("{} is over retry_backoff_max ({})", self.retry_backoff_base, self.retry_backoff_max),
            );
        }
        if !(self.hold_share > 0.0 && self.hold_share <= 1.0) {
            return bad("hold_share", format!("{} is not a share above 0 and up to 1", self.hold_share));
        }
        if self.reap_rate == 0 {
            return bad("reap_rate", "must be at least 1 a second".to_owned());
        }
        Ok(())
    }

    /// Returns how long a run waits after the reap of `attempt` before it may be claimed again:
    /// base · 2^(attempt−1), at most the maximum.
    pub fn retry_backoff(&self, attempt: u32) -> Span {
        let factor = 1_u64.checked_shl(attempt.saturating_sub(1)).unwrap_or(u64::MAX);
        self.retry_backoff_base.times(factor).min(self.retry_backoff_max)
    }
}

fn span_or_off<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Span>, D::Error> {
    Option::<Span>::deserialize(deserializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_policy_is_the_published_one() {
        let json = serde_json::to_value(Terms::default()).unwrap();
        let published = serde_json::json!({
            "heartbeat_interval_seconds": 30, "heartbeat_window_seconds": 180, "coarse_ttl_seconds": 7200,
            "claim_window_seconds": null, "start_window_seconds": null, "max_runtime_seconds": null,
            "stall_window_seconds": null, "max_attempts": 1, "retry_backoff_base_seconds": 10, "retry_backoff_max_seconds": 600,
            "late_completion": "adopt", "mode": "enforce", "hold_min": 20, "hold_share": 0.5,
            "hold_max_seconds": 600, "reap_rate": 10
        });
        assert_eq!(json, published);
        assert_eq!(Terms::default().validate(), Ok(()));
    }

    #[test]
    fn fields_left_out_take_the_default() {
        let terms: Terms = serde_json::from_str(r#"{"claim_window_seconds":7200}"#).unwrap();
        assert_eq!(terms, Terms { claim_window: Some(Span::from_seconds(7_200)), ..Terms::default() });
    }

    #[test]
    fn the_two_main_windows_cannot_be_off_and_unknown_fields_are_refused() {
        assert!(serde_json::from_str::<Terms>(r#"{"heartbeat_window_seconds":null}"#).is_err());
        assert!(serde_json::from_str::<Terms>(r#"{"coarse_ttl_seconds":null}"#).is_err());
        assert!(serde_json::from_str::<Terms>(r#"{"hartbeat_window_seconds":60}"#).is_err());
    }

    #[test]
    fn a_window_under_three_intervals_is_refused() {
        let window = |seconds| Terms { heartbeat_window: Span::from_seconds(seconds), ..Terms::default() };
        assert_eq!(window(90).validate(), Ok(()));
        assert_eq!(window(89).validate().unwrap_err().field, "heartbeat_window");
    }

    #[test]
    fn backoff_doubles_up_to_its_maximum() {
        let terms = Terms::default();
        let seconds: Vec<u64> = (1..=8).map(|n| terms.retry_backoff(n).as_micros() / 1_000_000).collect();
        assert_eq!(seconds, [10, 20, 40, 80, 160, 320, 600, 600]);
        assert_eq!(terms.retry_backoff(200), terms.retry_backoff_max);
    }
}
