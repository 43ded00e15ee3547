//! The recorded situations through the pure rule: each must get the verdict that it is known to deserve.

#![allow(clippy::unwrap_used)]

use lastbeat_domain::event::{RunEvent, ServiceEvent};
use lastbeat_domain::listening::DeafSpan;
use lastbeat_domain::{LanePolicy, Line, Listening, Recorded, Run, Timestamp, judge};
use serde_json::Value;

#[test]
fn every_recorded_situation_gets_its_verdict() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../../../tests/cases/seed.json")).unwrap();
    assert!(cases.len() >= 16, "only {} cases", cases.len());
    for case in &cases {
        check(case);
    }
}

/// Judges a recorded situation, and panics if it does not get what it must.
pub(crate) fn check(case: &Value) {
    let name = case["name"].as_str().unwrap();
    let at: Timestamp = case["at"].as_str().unwrap().parse().unwrap();
    let (mut stream, mut policy, mut deaf, mut beacons) = (Vec::new(), LanePolicy::default(), Vec::new(), Vec::new());
    for (line, version) in case["history"].as_array().unwrap().iter().map(|line| (line, line.get("version"))) {
        match Line::parse(&line.to_string()).unwrap() {
            Line::Run { run, recorded_at, event, .. } if recorded_at <= at => {
                let version = version.and_then(Value::as_u64).unwrap();
                stream.push(Recorded { run, version, recorded_at, event });
            }
            Line::Run { .. } => {}
            Line::Beacon(beacon) => beacons.push(beacon),
            Line::Service(recorded) => match recorded.event {
                ServiceEvent::PolicySet { policy_version, policy: terms, .. } if recorded.recorded_at <= at => {
                    policy = LanePolicy { version: policy_version, terms };
                }
                ServiceEvent::Deaf { from, to, promised_until, cause } => {
                    deaf.push(DeafSpan { from, to, promised_until, cause, recorded_at: recorded.recorded_at });
                }
                _ => {}
            },
        }
    }
    assert!(matches!(stream[0].event, RunEvent::Created { .. }), "{name}");
    let run = Run::fold(&stream).unwrap().unwrap();
    let verdict = judge(&run, &policy, &Listening::as_of(at, &deaf, &beacons), at);
    for (field, expected) in case["expect"].as_object().unwrap() {
        let found = match field.as_str() {
            "verdict" => serde_json::to_value(verdict.liveness).unwrap(),
            "rule" => serde_json::to_value(verdict.rule()).unwrap(),
            "charged_seconds" => verdict.charge.unwrap().charged.as_seconds().into(),
            "deaf_seconds" => verdict.charge.unwrap().deaf.as_seconds().into(),
            "lapses_at" => serde_json::to_value(verdict.lapses_at()).unwrap(),
            other => panic!("{name}: unknown expectation `{other}`"),
        };
        assert_eq!(&found, expected, "{name}: {field}");
    }
}
