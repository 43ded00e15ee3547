//! Alternative policies: what would have been in force had some windows been others.
//!
//! An [`Alternative`] says of some windows what they would have been, and nothing of all else: so it is laid over each
//! policy that a lane ever had, and what it does not name stays as it was at that time.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::policy::{LanePolicy, Terms};
use crate::time::Span;

/// A window of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    /// How long a run that beats may be silent.
    HeartbeatWindow,
    /// How long after its claim a run that never beats is believed.
    CoarseTtl,
    /// How long a due run may wait to be claimed.
    ClaimWindow,
    /// How long a claimed run may take to start.
    StartWindow,
    /// How long an attempt may take at all.
    MaxRuntime,
}

impl Window {
    /// All windows.
    pub const ALL: [Window; 5] =
        [Window::HeartbeatWindow, Window::CoarseTtl, Window::ClaimWindow, Window::StartWindow, Window::MaxRuntime];

    /// Returns the name of its term, as in JSON without `_seconds`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Window::HeartbeatWindow => "heartbeat_window",
            Window::CoarseTtl => "coarse_ttl",
            Window::ClaimWindow => "claim_window",
            Window::StartWindow => "start_window",
            Window::MaxRuntime => "max_runtime",
        }
    }

    /// Says whether it may be off.
    pub const fn may_be_off(self) -> bool {
        !matches!(self, Window::HeartbeatWindow | Window::CoarseTtl)
    }

    /// Returns how long it is in a policy; `None` if it is off.
    pub const fn of(self, terms: &Terms) -> Option<Span> {
        match self {
            Window::HeartbeatWindow => Some(terms.heartbeat_window),
            Window::CoarseTtl => Some(terms.coarse_ttl),
            Window::ClaimWindow => terms.claim_window,
            Window::StartWindow => terms.start_window,
            Window::MaxRuntime => terms.max_runtime,
        }
    }

    /// Makes it so long in a policy. One that cannot be off is left alone by `None`.
    fn set(self, terms: &mut Terms, length: Option<Span>) {
        match self {
            Window::HeartbeatWindow => terms.heartbeat_window = length.unwrap_or(terms.heartbeat_window),
            Window::CoarseTtl => terms.coarse_ttl = length.unwrap_or(terms.coarse_ttl),
            Window::ClaimWindow => terms.claim_window = length,
            Window::StartWindow => terms.start_window = length,
            Window::MaxRuntime => terms.max_runtime = length,
        }
    }

    /// Returns a policy in which this window is over at once, and no other one ever is. What is charged under it is
    /// charged against this window alone.
    pub(crate) fn alone(self) -> LanePolicy {
        let mut terms = Terms { heartbeat_window: Span::MAX, coarse_ttl: Span::MAX, ..Terms::default() };
        self.set(&mut terms, Some(Span::ZERO));
        LanePolicy { version: 0, terms }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What some windows would have been: each at most once, in their order. None: what was in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alternative(Vec<(Window, Option<Span>)>);

/// The most alternatives that are tried at a time.
pub const ALTERNATIVES_MAX: usize = 64;

/// Says why alternatives cannot be tried, and what could.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AlternativeError {
    /// A window that cannot be off was to be off.
    #[error("{0}: it cannot be off; give it a length")]
    Off(Window),
    /// A window was to have no length.
    #[error("{0}: must be longer than 0s")]
    Zero(Window),
    /// There are too many.
    #[error("the lists of windows combine to {0} policies, and {ALTERNATIVES_MAX} are tried at a time; give fewer")]
    TooMany(usize),
}

impl AlternativeError {
    /// Returns the window that it is about.
    pub const fn window(&self) -> Option<Window> {
        match self {
            AlternativeError::Off(window) | AlternativeError::Zero(window) => Some(*window),
            AlternativeError::TooMany(_) => None,
        }
    }
}

impl Alternative {
    /// Returns the windows that it names, in their order.
    pub fn windows(&self) -> &[(Window, Option<Span>)] {
        &self.0
    }

    /// Returns how long it makes a window, if it names it.
    pub fn window(&self, window: Window) -> Option<Option<Span>> {
        self.0.iter().find(|(named, _)| *named == window).map(|(_, length)| *length)
    }

    /// Lays it over a policy that was in force.
    pub fn over(&self, policy: &LanePolicy) -> LanePolicy {
        let mut policy = policy.clone();
        self.0.iter().for_each(|(window, length)| window.set(&mut policy.terms, *length));
        policy
    }

    /// Returns every combination of the windows that are listed, each once: the last window varies fastest. A window
    /// without a length that is listed stays as it was. Nothing listed: no alternative.
    ///
    /// # Errors
    /// If a length cannot be, or there are too many combinations.
    pub fn combinations(lists: &[(Window, Vec<Option<Span>>)]) -> Result<Vec<Alternative>, AlternativeError> {
        for (window, lengths) in lists {
            for length in lengths {
                match length {
                    None if !window.may_be_off() => return Err(AlternativeError::Off(*window)),
                    Some(Span::ZERO) => return Err(AlternativeError::Zero(*window)),
                    _ => {}
                }
            }
        }
        let mut combined = vec![Alternative::default()];
        for window in Window::ALL {
            let mut lengths: Vec<Option<Span>> = Vec::new();
            for length in lists.iter().filter(|(listed, _)| *listed == window).flat_map(|(_, lengths)| lengths) {
                if !lengths.contains(length) {
                    lengths.push(*length);
                }
            }
            if lengths.is_empty() {
                continue;
            }
            let count = combined.len().saturating_mul(lengths.len());
            if count > ALTERNATIVES_MAX {
                return Err(AlternativeError::TooMany(count));
            }
            let with = |alternative: &Alternative, length: &Option<Span>| {
                Alternative(alternative.0.iter().copied().chain([(window, *length)]).collect())
            };
            let with_each = |alternative: &Alternative| -> Vec<Alternative> {
                lengths.iter().map(|length| with(alternative, length)).collect()
            };
            combined = combined.iter().flat_map(with_each).collect();
        }
        combined.retain(|alternative| !alternative.0.is_empty());
        Ok(combined)
    }

    /// Returns alternatives that are worth a try where nobody names any: heartbeat windows around the one in force, none
    /// so short that `lane set` would refuse it.
    pub fn suggested(terms: &Terms) -> Vec<Alternative> {
        let (shortest, now) = (terms.heartbeat_interval.times(Terms::INTERVALS_PER_WINDOW_MIN), terms.heartbeat_window);
        let part = |numerator, denominator| Span::from_micros(now.times(numerator).as_micros() / denominator);
        let around = [part(1, 3), part(1, 2), part(2, 3), now, part(3, 2), part(2, 1), part(3, 1)];
        let mut lengths: Vec<Span> = around.into_iter().chain([shortest]).collect();
        lengths.retain(|length| *length >= shortest && *length > Span::ZERO);
        lengths.sort_unstable();
        lengths.dedup();
        lengths.into_iter().map(|length| Alternative(vec![(Window::HeartbeatWindow, Some(length))])).collect()
    }
}

impl fmt::Display for Alternative {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.pad("as it was");
        }
        let named = self.0.iter().map(|(window, length)| match length {
            Some(length) => format!("{window} {length}"),
            None => format!("{window} off"),
        });
        f.pad(&named.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u64) -> Option<Span> {
        Some(Span::from_seconds(count))
    }

    fn said(alternatives: &[Alternative]) -> Vec<String> {
        alternatives.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_windows_are_those_of_the_policy() {
        let json = serde_json::to_value(Terms::default()).unwrap();
        for window in Window::ALL {
            let term = &json[format!("{window}_seconds")];
            assert_eq!(term.is_null(), window.may_be_off(), "{window}");
            assert_eq!(serde_json::to_value(window.of(&Terms::default())).unwrap(), *term);
            let mut terms = Terms::default();
            window.set(&mut terms, seconds(7));
            assert_eq!(window.of(&terms), seconds(7));
            assert_eq!(serde_json::to_value(window).unwrap(), window.as_str());
        }
    }

    #[test]
    fn an_alternative_changes_what_it_names_and_nothing_else() {
        let lists = [(Window::StartWindow, vec![seconds(5)]), (Window::HeartbeatWindow, vec![seconds(60)])];
        let alternative = Alternative::combinations(&lists).unwrap().remove(0);
        let terms = Terms { max_attempts: 9, ..Terms::default() };
        let expected = Terms { start_window: seconds(5), heartbeat_window: Span::from_seconds(60), ..terms.clone() };
        let policy = alternative.over(&LanePolicy { version: 3, terms });
        assert_eq!(policy, LanePolicy { version: 3, terms: expected });
        assert_eq!(alternative.to_string(), "heartbeat_window 1m, start_window 5s");
        assert_eq!(alternative.window(Window::StartWindow), Some(seconds(5)));
        assert_eq!(alternative.window(Window::CoarseTtl), None);
    }

    #[test]
    fn lists_combine_and_nothing_listed_is_no_alternative() {
        let lists = [
            (Window::HeartbeatWindow, vec![seconds(60), seconds(90), seconds(60)]),
            (Window::ClaimWindow, vec![None, seconds(5)]),
            (Window::MaxRuntime, vec![]),
        ];
        let expected = [
            "heartbeat_window 1m, claim_window off",
            "heartbeat_window 1m, claim_window 5s",
            "heartbeat_window 1m 30s, claim_window off",
            "heartbeat_window 1m 30s, claim_window 5s",
        ];
        assert_eq!(said(&Alternative::combinations(&lists).unwrap()), expected);
        assert_eq!(Alternative::combinations(&[(Window::CoarseTtl, vec![])]), Ok(Vec::new()));
    }

    #[test]
    fn what_cannot_be_tried_is_refused() {
        let refused = |window, lengths| Alternative::combinations(&[(window, lengths)]).unwrap_err();
        assert_eq!(refused(Window::CoarseTtl, vec![None]), AlternativeError::Off(Window::CoarseTtl));
        assert_eq!(refused(Window::MaxRuntime, vec![Some(Span::ZERO)]), AlternativeError::Zero(Window::MaxRuntime));
        let many = |count| (1..=count).map(seconds).collect::<Vec<_>>();
        let lists = [(Window::HeartbeatWindow, many(8)), (Window::CoarseTtl, many(9))];
        assert_eq!(Alternative::combinations(&lists), Err(AlternativeError::TooMany(72)));
        assert!(Alternative::combinations(&[(Window::HeartbeatWindow, many(64))]).is_ok());
    }

    #[test]
    fn where_nobody_names_any_those_around_the_policy_are_tried() {
        let expected = ["1m 30s", "2m", "3m", "4m 30s", "6m", "9m"].map(|length| format!("heartbeat_window {length}"));
        assert_eq!(said(&Alternative::suggested(&Terms::default())), expected);
        let nothing = Terms { heartbeat_interval: Span::ZERO, heartbeat_window: Span::ZERO, ..Terms::default() };
        assert_eq!(Alternative::suggested(&nothing), []);
    }
}
