//! A policy in words, and as a form.

use lastbeat_domain::policy::{LateCompletion, Mode};
use lastbeat_domain::{Span, Terms};
use maud::{Markup, html};
use serde::Deserialize;

use crate::problem::Problem;

/// Says what a policy means, a sentence each.
pub(super) fn sentences(terms: &Terms) -> Vec<String> {
    let mut said = vec![
        format!(
            "Executors are to beat every {}. A run that has beaten and is then silent for {} has lapsed; it is quiet \
             before that, from one and a half intervals on.",
            terms.heartbeat_interval, terms.heartbeat_window
        ),
        format!("A run that never beats is believed for {} from its claim.", terms.coarse_ttl),
    ];
    let optional = [
        (terms.claim_window, "A run that waits has lapsed if nobody claims it within"),
        (terms.start_window, "A claimed run has lapsed if it does not start within"),
        (terms.max_runtime, "An attempt has lapsed, beating or not, after"),
        (terms.stall_window, "A run that beats and has reported progress has lapsed if that does not change within"),
    ];
    said.extend(optional.into_iter().filter_map(|(window, what)| Some(format!("{what} {}.", window?))));
    said.push(match terms.max_attempts {
        1 => "A reaped run is not tried again.".to_owned(),
        attempts => format!(
            "A reaped run is tried again, up to {attempts} attempts, after {} at first, doubled each time up to {}.",
            terms.retry_backoff_base, terms.retry_backoff_max
        ),
    });
    said.push(
        match terms.late_completion {
            LateCompletion::Adopt => {
                "Work that is completed after a reap is taken, unless somebody else has claimed the run."
            }
            LateCompletion::Refuse => "Work that is completed after a reap is refused.",
        }
        .to_owned(),
    );
    said.push(match terms.hold_min {
        Some(least) => format!(
            "When {least} beating runs or more, and over {:.0} % of them, are silent at once, nothing is reaped for silence \
             for up to {}; then {} a second.",
            terms.hold_share * 100.0,
            terms.hold_max,
            terms.reap_rate
        ),
        None => "The lane is never held, however much of it goes silent at once.".to_owned(),
    });
    if terms.mode == Mode::Shadow {
        said.push("The lane is in shadow: lapsed runs are reported and never reaped.".to_owned());
    }
    said
}

/// A term of a policy as it stands in the form.
pub(super) struct Term {
    pub(super) name: &'static str,
    pub(super) label: &'static str,
    pub(super) value: String,
    pub(super) choices: &'static [&'static str],
}

/// The terms of a policy, as the form shows them.
pub(super) fn terms_of(terms: &Terms) -> Vec<Term> {
    let off = |span: Option<Span>| span.map_or_else(|| "off".to_owned(), exact);
    let text = |name, label, value| Term { name, label, value, choices: &[] };
    let late = if terms.late_completion == LateCompletion::Adopt { "adopt" } else { "refuse" };
    let mode = if terms.mode == Mode::Enforce { "enforce" } else { "shadow" };
    vec![
        text("heartbeat_interval", "Heartbeat interval", exact(terms.heartbeat_interval)),
        text("heartbeat_window", "Heartbeat window", exact(terms.heartbeat_window)),
        text("coarse_ttl", "Coarse window", exact(terms.coarse_ttl)),
        text("claim_window", "Claim window", off(terms.claim_window)),
        text("start_window", "Start window", off(terms.start_window)),
        text("max_runtime", "Longest runtime", off(terms.max_runtime)),
        text("stall_window", "Stall window", off(terms.stall_window)),
        text("max_attempts", "Attempts", terms.max_attempts.to_string()),
        text("retry_backoff_base", "Wait before the second attempt", exact(terms.retry_backoff_base)),
        text("retry_backoff_max", "Longest wait", exact(terms.retry_backoff_max)),
        Term {
            name: "late_completion",
            label: "Late completion",
            value: late.to_owned(),
            choices: &["adopt", "refuse"],
        },
        Term { name: "mode", label: "Mode", value: mode.to_owned(), choices: &["enforce", "shadow"] },
        text(
            "hold_min",
            "Silent runs for a hold",
            terms.hold_min.map_or_else(|| "off".to_owned(), |least| least.to_string()),
        ),
        text("hold_share", "Silent share for a hold", terms.hold_share.to_string()),
        text("hold_max", "Longest hold", exact(terms.hold_max)),
        text("reap_rate", "Reaps a second after a hold", terms.reap_rate.to_string()),
    ]
}

/// A span as it can be typed in again, to the microsecond.
fn exact(span: Span) -> String {
    let micros = span.as_micros();
    let (seconds, rest) = (micros / 1_000_000, micros % 1_000_000);
    match (seconds, rest) {
        (_, 0) => {
            let parts = [(seconds / 3_600, "h"), (seconds % 3_600 / 60, "m"), (seconds % 60, "s")];
            let said: String = parts
                .into_iter()
                .filter(|(count, _)| *count > 0)
                .map(|(count, unit)| format!("{count}{unit}"))
                .collect();
            if said.is_empty() { "0s".to_owned() } else { said }
        }
        (_, rest) if rest % 1_000 == 0 => format!("{}ms", micros / 1_000),
        _ => format!("{micros}us"),
    }
}

/// The fields of the form.
pub(super) fn fields(terms: &[Term]) -> Markup {
    html! {
        @for term in terms {
            label { (term.label)
                @if term.choices.is_empty() { input name=(term.name) value=(term.value) required maxlength="32"; }
                @else { select name=(term.name) { @for choice in term.choices { option value=(choice) selected[*choice == term.value] { (choice) } } } }
            }
        }
    }
}

/// The same fields, not to be changed any more.
pub(super) fn hidden_fields(terms: &[Term]) -> Markup {
    html! { @for term in terms { input type="hidden" name=(term.name) value=(term.value); } }
}

/// A policy as a form sends it.
#[derive(Deserialize)]
pub(super) struct PolicyForm {
    /// `preview`, or `set`.
    #[serde(rename = "do")]
    pub(super) act: String,
    /// The version that the form was made from.
    pub(super) version: u32,
    /// Whether it is to be set although runs would lapse.
    #[serde(default)]
    pub(super) force: Option<String>,
    heartbeat_interval: String,
    heartbeat_window: String,
    coarse_ttl: String,
    claim_window: String,
    start_window: String,
    max_runtime: String,
    stall_window: String,
    max_attempts: String,
    retry_backoff_base: String,
    retry_backoff_max: String,
    late_completion: String,
    mode: String,
    hold_min: String,
    hold_share: String,
    hold_max: String,
    reap_rate: String,
}

impl PolicyForm {
    /// Reads the policy.
    ///
    /// # Errors
    /// Names the field that cannot be read, or the term that cannot stand.
    pub(super) fn terms(&self) -> Result<Terms, Problem> {
        let terms = Terms {
            heartbeat_interval: read("heartbeat_interval", &self.heartbeat_interval)?,
            heartbeat_window: read("heartbeat_window", &self.heartbeat_window)?,
            coarse_ttl: read("coarse_ttl", &self.coarse_ttl)?,
            claim_window: or_off("claim_window", &self.claim_window)?,
            start_window: or_off("start_window", &self.start_window)?,
            max_runtime: or_off("max_runtime", &self.max_runtime)?,
            stall_window: or_off("stall_window", &self.stall_window)?,
            max_attempts: read("max_attempts", &self.max_attempts)?,
            retry_backoff_base: read("retry_backoff_base", &self.retry_backoff_base)?,
            retry_backoff_max: read("retry_backoff_max", &self.retry_backoff_max)?,
            late_completion: match self.late_completion.as_str() {
                "adopt" => LateCompletion::Adopt,
                "refuse" => LateCompletion::Refuse,
                _ => return Err(Problem::invalid("late_completion", "adopt or refuse")),
            },
            mode: match self.mode.as_str() {
                "enforce" => Mode::Enforce,
                "shadow" => Mode::Shadow,
                _ => return Err(Problem::invalid("mode", "enforce or shadow")),
            },
            hold_min: or_off("hold_min", &self.hold_min)?,
            hold_share: read("hold_share", &self.hold_share)?,
            hold_max: read("hold_max", &self.hold_max)?,
            reap_rate: read("reap_rate", &self.reap_rate)?,
        };
        terms.validate().map_err(|error| Problem::invalid(error.field, error.problem))?;
        Ok(terms)
    }
}

fn read<T: std::str::FromStr<Err: std::fmt::Display>>(field: &str, text: &str) -> Result<T, Problem> {
    text.trim().parse().map_err(|error| Problem::invalid(field, error))
}

fn or_off<T: std::str::FromStr<Err: std::fmt::Display>>(field: &str, text: &str) -> Result<Option<T>, Problem> {
    if text.trim() == "off" { Ok(None) } else { read(field, text).map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_form_shows_can_be_sent_back_as_it_is() {
        let terms = Terms {
            heartbeat_interval: Span::from_millis(500),
            heartbeat_window: Span::from_millis(1_500),
            claim_window: Some(Span::from_seconds(5_405)),
            hold_min: None,
            ..Terms::default()
        };
        let fields = terms_of(&terms);
        let query: Vec<String> = fields.iter().map(|term| format!("{}={}", term.name, term.value)).collect();
        let form: PolicyForm = serde_urlencoded::from_str(&format!("do=set&version=0&{}", query.join("&"))).unwrap();
        assert_eq!(form.terms().unwrap(), terms);
        assert!(sentences(&terms)[0].contains("silent for 1.5s has lapsed"), "{}", sentences(&terms)[0]);
    }
}
