//! A row of the table: what was measured, beside what, and what it must be.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::statistics::Spread;

/// What a figure must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    /// Says whether a figure is within the bound. What is not a number never is.
    pub(crate) fn holds(self, figure: f64) -> bool {
        match self {
            Bound::AtLeast(least) => figure >= least,
            Bound::AtMost(most) => figure <= most,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::AtLeast(least) => write!(f, "≥ {}", figure(*least)),
            Bound::AtMost(most) => write!(f, "≤ {}", figure(*most)),
        }
    }
}

/// What a bound is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judged {
    Value,
    Ratio,
}

/// What a value is compared with.
#[derive(Clone, Debug)]
struct Baseline {
    name: &'static str,
    value: Spread,
    ratio: Spread,
}

/// How a row stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// There is nothing that it must reach.
    Informs,
    /// It reaches its goal.
    Met,
    /// It misses its goal, and that is all.
    Missed,
    /// It misses what is required of it.
    Fails,
}

impl Standing {
    /// Returns the words for people.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Standing::Informs => "",
            Standing::Met => "met",
            Standing::Missed => "MISSED",
            Standing::Fails => "MISSED, REQUIRED",
        }
    }
}

/// One quantity, beside one baseline at the most.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    name: String,
    unit: &'static str,
    value: Spread,
    baseline: Option<Baseline>,
    judged: Judged,
    goal: Option<Bound>,
    required: Option<Bound>,
    note: Option<String>,
}

impl Row {
    /// Makes a row of the values of some rounds.
    pub(crate) fn new(name: impl Into<String>, unit: &'static str, rounds: &[f64]) -> Row {
        let (value, judged) = (Spread::of(rounds), Judged::Value);
        Row { name: name.into(), unit, value, baseline: None, judged, goal: None, required: None, note: None }
    }

    /// Says what the same rounds gave for another contestant. Goals set later are about the ratio.
    pub(crate) fn beside(mut self, name: &'static str, ours: &[f64], theirs: &[f64]) -> Row {
        let (value, ratio) = (Spread::of(theirs), Spread::of_ratios(ours, theirs));
        self.baseline = Some(Baseline { name, value, ratio });
        self.judged = Judged::Ratio;
        self
    }

    /// Makes the goals about the value itself, whatever it stands beside.
    pub(crate) fn judged_by_value(mut self) -> Row {
        self.judged = Judged::Value;
        self
    }

    /// Sets the goal.
    pub(crate) fn goal(mut self, goal: Bound) -> Row {
        self.goal = Some(goal);
        self
    }

    /// Sets what is required: a row that misses it fails the benchmark.
    pub(crate) fn required(mut self, required: Bound) -> Row {
        self.required = Some(required);
        self
    }

    /// Adds what one should know to read the row.
    pub(crate) fn note(mut self, note: impl Into<String>) -> Row {
        self.note = Some(note.into());
        self
    }

    /// Says how the row stands.
    pub(crate) fn standing(&self) -> Standing {
        let figure = self.figure();
        match (self.goal, self.required) {
            (_, Some(required)) if !required.holds(figure) => Standing::Fails,
            (Some(goal), _) if !goal.holds(figure) => Standing::Missed,
            (None, None) => Standing::Informs,
            _ => Standing::Met,
        }
    }

    /// The figure that the bounds are about.
    fn figure(&self) -> f64 {
        match (self.judged, &self.baseline) {
            (Judged::Ratio, Some(baseline)) => baseline.ratio.median,
            _ => self.value.median,
        }
    }

    /// Says a bound in words.
    fn say(&self, bound: Bound) -> String {
        match (self.judged, &self.baseline) {
            (Judged::Ratio, Some(baseline)) => format!("{bound} × {}", baseline.name),
            _ => format!("{bound} {}", self.unit),
        }
    }

    /// Returns what the row says of itself, if anything.
    pub(crate) fn notes(&self) -> Option<(&str, &str)> {
        self.note.as_deref().map(|note| (self.name.as_str(), note))
    }

    /// Returns the cells of the table for people.
    pub(crate) fn cells(&self) -> Vec<String> {
        let Spread { median, .. } = self.value;
        let baseline = self.baseline.as_ref();
        let required = self.required.filter(|required| Some(*required) != self.goal);
        let goal = match (self.goal, required) {
            (Some(goal), Some(required)) => format!("{} (required {required})", self.say(goal)),
            (Some(bound), None) | (None, Some(bound)) => self.say(bound),
            (None, None) => String::new(),
        };
        vec![
            self.name.clone(),
            format!("{} {}", figure(median), self.unit),
            baseline.map_or_else(String::new, |other| format!("{}: {}", other.name, figure(other.value.median))),
            baseline.map_or_else(String::new, |other| {
                let Spread { median, min, max } = other.ratio;
                format!("{} ({}..{})", figure(median), figure(min), figure(max))
            }),
            goal,
            self.standing().as_str().to_owned(),
        ]
    }

    /// Returns the row as JSON. `goal` and `required` are sentences about `ratio` where there is one, and otherwise
    /// about `value`, null where nothing is asked; `met` says whether the goal is reached, `required_met` whether what
    /// is required is.
    pub(crate) fn json(&self) -> Value {
        let baseline = self.baseline.as_ref();
        let holds = |bound: Option<Bound>| bound.map(|bound| bound.holds(self.figure()));
        let mut row = Map::new();
        let mut put = |key: &str, value: Value| row.insert(key.to_owned(), value);
        put("name", json!(self.name));
        put("value", json!(self.value.median));
        put("unit", json!(self.unit));
        put("baseline", json!(baseline.map(|other| other.value.median)));
        put("ratio", json!(baseline.map(|other| other.ratio.median)));
        put("goal", json!(self.goal.map(|goal| self.say(goal))));
        put("met", json!(holds(self.goal)));
        put("required", json!(self.required.map(|required| self.say(required))));
        put("required_met", json!(holds(self.required)));
        put("baseline_name", json!(baseline.map(|other| other.name)));
        put("value_spread", json!([self.value.min, self.value.max]));
        put("ratio_spread", json!(baseline.map(|other| [other.ratio.min, other.ratio.max])));
        put("note", json!(self.note));
        Value::Object(row)
    }
}

/// Writes a figure for people: three digits that mean something, thousands apart.
pub(crate) fn figure(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if !value.is_finite() => "–".to_owned(),
        _ if size >= 100.0 => thousands(value.round() as i64),
        _ if value.fract() == 0.0 => format!("{value}"),
        _ if size >= 10.0 => format!("{value:.1}"),
        _ if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

fn thousands(value: i64) -> String {
    let digits = value.abs().to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heartbeats(ratio: f64) -> Row {
        Row::new("heartbeats", "a second", &[ratio * 10.0])
            .beside("M1", &[ratio * 10.0], &[10.0])
            .goal(Bound::AtLeast(8.0))
            .required(Bound::AtLeast(4.0))
    }

    #[test]
    fn a_row_between_what_is_required_and_its_goal_is_missed_but_does_not_fail() {
        assert_eq!(heartbeats(8.0).standing(), Standing::Met);
        assert_eq!(heartbeats(7.9).standing(), Standing::Missed);
        assert_eq!(heartbeats(4.0).standing(), Standing::Missed);
        assert_eq!(heartbeats(3.9).standing(), Standing::Fails);
    }

    #[test]
    fn a_bound_is_about_the_ratio_unless_the_row_says_otherwise() {
        let row = |most| Row::new("sweep", "ms", &[0.5]).beside("M", &[0.5], &[0.1]).goal(Bound::AtMost(most));
        assert_eq!(row(1.0).standing(), Standing::Missed);
        assert_eq!(row(1.0).judged_by_value().standing(), Standing::Met);
    }

    #[test]
    fn what_could_not_be_measured_meets_nothing() {
        let row = Row::new("fold", "events/s", &[]).goal(Bound::AtLeast(0.0));
        assert_eq!(row.clone().standing(), Standing::Missed);
        assert_eq!(row.required(Bound::AtLeast(0.0)).standing(), Standing::Fails);
        assert_eq!(Row::new("memory", "MiB", &[]).standing(), Standing::Informs);
    }

    #[test]
    fn the_json_has_the_keys_that_scripts_rely_on() {
        let json = heartbeats(5.0).json();
        let keys = ["name", "value", "unit", "baseline", "ratio", "goal", "met", "required"];
        assert!(keys.iter().all(|key| json.get(key).is_some()), "{json}");
        assert_eq!(json["value"], 50.0);
        assert_eq!(json["baseline"], 10.0);
        assert_eq!(json["ratio"], 5.0);
        assert_eq!(json["goal"], "≥ 8 × M1");
        assert_eq!(json["met"], false);
        assert_eq!(json["required"], "≥ 4 × M1");
        assert_eq!(json["required_met"], true);
    }

    #[test]
    fn a_row_without_a_baseline_has_nulls_in_its_json() {
        let json = Row::new("fold", "events/s", &[6e6]).goal(Bound::AtLeast(5e6)).json();
        assert!(json["baseline"].is_null() && json["ratio"].is_null() && json["required"].is_null());
        assert_eq!(json["goal"], "≥ 5,000,000 events/s");
        assert_eq!(json["met"], true);
    }

    #[test]
    fn figures_have_the_digits_that_mean_something() {
        let figures = [0.0123, 0.456, 8.0, 8.25, 55.52, 1_234.6, 1_234_567.0, f64::NAN].map(figure);
        assert_eq!(figures, ["0.0123", "0.46", "8", "8.25", "55.5", "1,235", "1,234,567", "–"]);
    }
}
