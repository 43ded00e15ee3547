//! The facts, and the JSON lines in which they travel.
//!
//! Every fact is an event in the past tense. A run's events form its stream, `version` 1, 2, 3 … without a hole;
//! service events stand in the same log without a run. A stored event never changes, so what is written here is
//! forever: a field may be added, none may change its meaning.
//!
//! The JSON form is one object a line: the envelope (`run`, `version`, `recorded_at`), then `type` and the fields of
//! that type. A field that the program does not know is an error, not a thing to skip: dropping half of a fact would
//! be lying about it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::ids::{ClaimId, Name, RunId};
use crate::listening::{Beacon, BeaconRole};
use crate::policy::Terms;
use crate::time::{Span, Timestamp};
use crate::token::TokenDigest;
use crate::verdict::{BasisFact, Rule};

/// A fact of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum RunEvent {
    /// The run exists and waits to be claimed.
    Created {
        /// The kind of the run.
        lane: Name,
        /// The goal that it serves.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        goal: Option<Name>,
        /// The only device that may claim it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<Name>,
        /// The log time before which it may not be claimed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        not_before: Option<Timestamp>,
        /// At most one run with this key is open at a time.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unique_key: Option<Name>,
        /// Free labels.
        #[serde(default)]
        labels: BTreeMap<Name, String>,
        /// What the executor works on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        input: Option<Value>,
    },
    /// An executor took the run.
    Claimed {
        /// 1 for the first claim of the run, one more for each later claim.
        attempt: u32,
        /// The random half of the fencing token; imported claims may lack it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        claim: Option<ClaimId>,
        /// Who took it.
        executor: Name,
        /// The device that the executor presented.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<Name>,
    },
    /// The executor began to work.
    Started {
        /// The attempt that began.
        attempt: u32,
    },
    /// "I am still working on this attempt."
    Heartbeat {
        /// The attempt that is worked on.
        attempt: u32,
        /// How far it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        progress: Option<Value>,
    },
    /// The work is done.
    Completed {
        /// The attempt that did it.
        attempt: u32,
        /// What came out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<Value>,
        /// True when the completion was adopted after a reap.
        #[serde(default)]
        late: bool,
    },
    /// The executor says that the work failed.
    Failed {
        /// The attempt that failed.
        attempt: u32,
        /// Why.
        error: String,
    },
    /// The run was reaped.
    TimedOut {
        /// The attempt that was reaped, 0 for a run that nobody had claimed.
        attempt: u32,
        /// The rule under which it lapsed.
        rule: Rule,
        /// What the verdict rested on; imported facts may lack it.
        #[serde(default, with = "evidence_or_empty")]
        evidence: Option<Box<Evidence>>,
        /// The same in a sentence.
        message: String,
    },
    /// The run waits for its next attempt.
    Requeued {
        /// The attempt that the next claim will be.
        next_attempt: u32,
        /// The log time before which it may not be claimed.
        not_before: Timestamp,
        /// Who requeued it by hand.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<Name>,
        /// Why it was requeued by hand.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Somebody asked the executor to stop.
    CancelRequested {
        /// Who asked.
        by: Name,
        /// Why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The run was cancelled.
    Cancelled {
        /// The attempt that stopped, 0 for a run that was pending.
        attempt: u32,
        /// Who cancelled it: the executor that stopped, or whoever cancelled a pending run.
        by: Name,
    },
    /// An executor said something about an attempt after it was reaped.
    LateSignal {
        /// The reaped attempt.
        attempt: u32,
        /// What it said.
        signal: Signal,
        /// Who said it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        executor: Option<Name>,
    },
}

impl RunEvent {
    /// Returns the value of `type` in the JSON form.
    pub fn type_name(&self) -> &'static str {
        match self {
            RunEvent::Created { .. } => "created",
            RunEvent::Claimed { .. } => "claimed",
            RunEvent::Started { .. } => "started",
            RunEvent::Heartbeat { .. } => "heartbeat",
            RunEvent::Completed { .. } => "completed",
            RunEvent::Failed { .. } => "failed",
            RunEvent::TimedOut { .. } => "timed_out",
            RunEvent::Requeued { .. } => "requeued",
            RunEvent::CancelRequested { .. } => "cancel_requested",
            RunEvent::Cancelled { .. } => "cancelled",
            RunEvent::LateSignal { .. } => "late_signal",
        }
    }
}

/// What an executor may say of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// It still works.
    Heartbeat,
    /// It began.
    Started,
    /// It is done.
    Completed,
    /// It failed.
    Failed,
}

/// What a reap rested on: enough to check the verdict without any other record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// The rule that governed.
    pub rule: Rule,
    /// The fact from which the silence was charged.
    pub basis: BasisEvidence,
    /// The window of the rule.
    #[serde(rename = "window_seconds")]
    pub window: Span,
    /// The listening time between the basis and the verdict.
    #[serde(rename = "charged_seconds")]
    pub charged: Span,
    /// The wall time between the basis and the verdict.
    #[serde(rename = "wall_seconds")]
    pub wall: Span,
    /// The part of the wall time in which nobody could have heard the executor.
    #[serde(rename = "deaf_seconds")]
    pub deaf: Span,
    /// The log time of the verdict.
    pub judged_at: Timestamp,
    /// The policy under which it was judged.
    pub policy_version: u32,
    /// Who held the run.
    pub executor: Option<Name>,
    /// Who reaped it.
    pub sweeper: Name,
}

/// The fact from which a silence was charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BasisEvidence {
    /// The type of the fact.
    pub fact: BasisFact,
    /// Its version in the run's stream.
    pub version: u64,
    /// The log time from which charging starts.
    pub at: Timestamp,
}

/// A fact of the service itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ServiceEvent {
    /// A lane has a new policy.
    PolicySet {
        /// The lane.
        lane: Name,
        /// 1 for the first policy that was set in the lane, one more for each later one.
        policy_version: u32,
        /// The policy.
        policy: Terms,
        /// Who set it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<Name>,
    },
    /// Nobody could have recorded a heartbeat in this span of log time.
    Deaf {
        /// Its start.
        from: Timestamp,
        /// Its end.
        to: Timestamp,
        /// The instant by which somebody had promised to be heard of; in a line that leaves it out, `from`.
        promised_until: Timestamp,
        /// What made the service deaf.
        cause: DeafCause,
    },
    /// The host's clock was set back; log time stood still meanwhile.
    ClockBack {
        /// What the clock said before.
        from: Timestamp,
        /// What it said after.
        to: Timestamp,
    },
    /// Reaping by silence was stopped in a lane, because too much of it went silent at once.
    ReapingHeld {
        /// The lane.
        lane: Name,
        /// How many of its beating runs were lapsed.
        lapsed: u64,
        /// How many of its beating runs were quiet or lapsed.
        silent: u64,
        /// How many of its runs were beating.
        beating: u64,
    },
    /// Reaping by silence goes on in a lane.
    ReapingReleased {
        /// The lane.
        lane: Name,
        /// Why.
        cause: ReleaseCause,
        /// Who released it by hand.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<Name>,
        /// Why it was released by hand.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The packed rows of heartbeats up to a point were moved into their runs' segments.
    BeatsCompacted {
        /// The last position that was compacted.
        through: u64,
        /// How many rows went.
        rows: u64,
        /// How many heartbeats they held.
        beats: u64,
    },
    /// A beacon no longer counts.
    BeaconRetired {
        /// The process that had kept it.
        process: Name,
        /// Who retired it.
        by: Name,
    },
    /// A token was made.
    TokenIssued {
        /// Identifies the token; not its secret.
        token: Name,
        /// Its name.
        name: Name,
        /// What it may do: the word for a role.
        role: Name,
        /// The executor that it speaks for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        executor: Option<Name>,
        /// The lanes that it is for; empty: all.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        lanes: Vec<Name>,
        /// The device that its executor presents.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<Name>,
        /// The log time from which it admits nobody.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires_at: Option<Timestamp>,
        /// The digest of its secret; without it the token admits nobody.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<TokenDigest>,
        /// Who made it.
        by: Name,
    },
    /// A token was revoked.
    TokenRevoked {
        /// Identifies the token.
        token: Name,
        /// Who revoked it.
        by: Name,
    },
    /// Somebody reaped a lapsed run by hand.
    ReapForced {
        /// The run.
        target: RunId,
        /// Who did it.
        by: Name,
        /// Why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
}

impl ServiceEvent {
    /// Returns the value of `type` in the JSON form.
    pub fn type_name(&self) -> &'static str {
        match self {
            ServiceEvent::PolicySet { .. } => "policy_set",
            ServiceEvent::Deaf { .. } => "deaf",
            ServiceEvent::ClockBack { .. } => "clock_back",
            ServiceEvent::ReapingHeld { .. } => "reaping_held",
            ServiceEvent::ReapingReleased { .. } => "reaping_released",
            ServiceEvent::BeatsCompacted { .. } => "beats_compacted",
            ServiceEvent::BeaconRetired { .. } => "beacon_retired",
            ServiceEvent::TokenIssued { .. } => "token_issued",
            ServiceEvent::TokenRevoked { .. } => "token_revoked",
            ServiceEvent::ReapForced { .. } => "reap_forced",
        }
    }
}

/// What made the service deaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeafCause {
    /// Every process that listens missed the instant by which it had promised to be heard of.
    Gap,
    /// The clock was set forward.
    ClockStep,
}

/// Why reaping goes on in a lane that was held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseCause {
    /// Enough runs were heard of again.
    Recovered,
    /// Somebody released it.
    Operator,
    /// It was held for as long as the policy allows.
    Expired,
}

/// A fact that [`decide`](crate::decide::decide) wants appended.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// To the stream of the command's run.
    Run(RunEvent),
    /// To the log, without a run.
    Service(ServiceEvent),
}

/// A fact of a run as it stands in the log.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recorded {
    /// The run.
    pub run: RunId,
    /// Its place in the run's stream, from 1.
    pub version: u64,
    /// The log time of its append; strictly increasing within the stream.
    pub recorded_at: Timestamp,
    /// The fact.
    #[serde(flatten)]
    pub event: RunEvent,
}

/// A fact of the service as it stands in the log.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServiceRecorded {
    /// The log time of its append.
    pub recorded_at: Timestamp,
    /// The fact.
    #[serde(flatten)]
    pub event: ServiceEvent,
}

/// One line of an import file, as it is read: versions may be left out.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// A fact of a run.
    Run {
        /// The run.
        run: RunId,
        /// Its version, or the next one of its stream where the line has none.
        version: Option<u64>,
        /// Its log time.
        recorded_at: Timestamp,
        /// The fact.
        event: RunEvent,
    },
    /// A fact of the service.
    Service(ServiceRecorded),
    /// The last sign of life of a process that listened, from a bundle. It is no fact: without it nobody could tell
    /// where a gap began that nobody has recorded.
    Beacon(Beacon),
}

/// A beacon as it stands in a bundle.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BeaconLine {
    recorded_at: Timestamp,
    #[serde(rename = "type")]
    type_name: String,
    process: Name,
    role: BeaconRole,
    promise: Option<Timestamp>,
}

/// The type of the line of a beacon.
const BEACON: &str = "beacon";

/// Writes a beacon as a line of a bundle.
pub fn beacon_line(beacon: &Beacon) -> String {
    let Beacon { process, role, at, promise } = beacon.clone();
    let line = BeaconLine { recorded_at: at, type_name: BEACON.to_owned(), process, role, promise };
    // It has nothing in it that JSON cannot hold.
    serde_json::to_string(&line).unwrap_or_default()
}

/// Says why a text is no event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// The text is no JSON object.
    #[error("it is not a JSON object: {0}")]
    NotAnObject(String),
    /// A field of the envelope or of the event cannot be read.
    #[error("{0}")]
    BadField(String),
    /// The type is none that this program knows.
    #[error("unknown event type `{0}`")]
    UnknownType(String),
}

/// The types of service events, by which a line without a run is told from a line that lacks one.
const SERVICE_TYPES: [&str; 10] = [
    "policy_set",
    "deaf",
    "clock_back",
    "reaping_held",
    "reaping_released",
    "beats_compacted",
    "beacon_retired",
    "token_issued",
    "token_revoked",
    "reap_forced",
];

/// The types of run events.
const RUN_TYPES: [&str; 11] = [
    "created",
    "claimed",
    "started",
    "heartbeat",
    "completed",
    "failed",
    "timed_out",
    "requeued",
    "cancel_requested",
    "cancelled",
    "late_signal",
];

impl Line {
    /// Reads one line of the JSON form.
    ///
    /// # Errors
    /// If it is no JSON object, lacks a field, has a field that its type does not have, or is of an unknown type.
    pub fn parse(text: &str) -> Result<Line, LineError> {
        let mut object: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| LineError::NotAnObject(error.to_string()))?;
        let recorded_at = take(&mut object, "recorded_at")?
            .ok_or_else(|| LineError::BadField("`recorded_at` is missing".to_owned()))?;
        let type_name = match object.get("type") {
            Some(Value::String(name)) => name.clone(),
            Some(_) => return Err(LineError::BadField("`type` is not a string".to_owned())),
            None => return Err(LineError::BadField("`type` is missing".to_owned())),
        };
        if type_name == BEACON {
            object.insert("recorded_at".to_owned(), serde_json::json!(recorded_at));
            let BeaconLine { recorded_at: at, type_name: _, process, role, promise } = decode(&type_name, object)?;
            return Ok(Line::Beacon(Beacon { process, role, at, promise }));
        }
        if is_known_service_event(&type_name) {
            if type_name == "deaf" {
                complete_deaf(&mut object);
            }
            let event = decode(&type_name, object)?;
            return Ok(Line::Service(ServiceRecorded { recorded_at, event }));
        }
        if !RUN_TYPES.contains(&type_name.as_str()) {
            return Err(LineError::UnknownType(type_name));
        }
        let run = take(&mut object, "run")?
            .ok_or_else(|| LineError::BadField(format!("`run` is missing; `{type_name}` is a fact of a run")))?;
        let version = take(&mut object, "version")?;
        let event = decode(&type_name, object)?;
        Ok(Line::Run { run, version, recorded_at, event })
    }
}

fn take<T: serde::de::DeserializeOwned>(object: &mut Map<String, Value>, field: &str) -> Result<Option<T>, LineError> {
    match object.remove(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            serde_json::from_value(value).map(Some).map_err(|error| LineError::BadField(format!("`{field}`: {error}")))
        }
    }
}

fn decode<T: serde::de::DeserializeOwned>(type_name: &str, object: Map<String, Value>) -> Result<T, LineError> {
    serde_json::from_value(Value::Object(object))
        .map_err(|error| LineError::BadField(format!("bad `{type_name}`: {error}")))
}

/// Says whether this program knows a service event of that type.
pub fn is_known_service_event(type_name: &str) -> bool {
    SERVICE_TYPES.contains(&type_name)
}

/// Adds to the fields of a `deaf` event what may be left out: without another promise, the one that was broken ended
/// when the span began.
pub fn complete_deaf(object: &mut Map<String, Value>) {
    let promised = object.get("promised_until").is_some_and(|promise| !promise.is_null());
    if let Some(from) = object.get("from").filter(|_| !promised).cloned() {
        object.insert("promised_until".to_owned(), from);
    }
}

/// Says whether this program knows a run event of that type; a stored one that it does not know quarantines its run.
pub fn is_known_run_event(type_name: &str) -> bool {
    RUN_TYPES.contains(&type_name)
}

/// Writes missing evidence as `{}`, and reads `{}` as missing.
mod evidence_or_empty {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use serde_json::{Map, Value};

    use super::Evidence;

    #[allow(clippy::ref_option)] // The signature that `serde(with)` asks for.
    pub(super) fn serialize<S: Serializer>(evidence: &Option<Box<Evidence>>, serializer: S) -> Result<S::Ok, S::Error> {
        match evidence {
            Some(evidence) => evidence.serialize(serializer),
            None => Map::new().serialize(serializer),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<Evidence>>, D::Error> {
        let object = Map::<String, Value>::deserialize(deserializer)?;
        if object.is_empty() {
            return Ok(None);
        }
        serde_json::from_value(Value::Object(object))
            .map(Some)
            .map_err(|error| serde::de::Error::custom(format!("`evidence` is neither whole nor {{}}: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_and_written_in_the_published_form() {
        let text = r#"{"run":"01930000-0000-7000-8000-000000000001","version":2,"recorded_at":"2026-05-04T02:37:00.000000Z","type":"claimed","attempt":1,"claim":"b1f0","executor":"mac-7","device":"macbook-air"}"#;
        let Line::Run { run, version, recorded_at, event } = Line::parse(text).unwrap() else {
            panic!("not a run's line")
        };
        let recorded = Recorded { run, version: version.unwrap(), recorded_at, event };
        assert_eq!(serde_json::to_string(&recorded).unwrap(), text);
    }

    #[test]
    fn a_policy_line_takes_defaults_and_is_written_whole() {
        let text = r#"{"recorded_at":"2026-05-03T00:00:00Z","type":"policy_set","lane":"watcher","policy_version":1,"policy":{"claim_window_seconds":7200}}"#;
        let Line::Service(recorded) = Line::parse(text).unwrap() else { panic!("not a service line") };
        let written = serde_json::to_value(&recorded).unwrap();
        assert_eq!(written["policy"]["claim_window_seconds"], 7200);
        assert_eq!(written["policy"]["heartbeat_window_seconds"], 180);
    }

    #[test]
    fn imported_evidence_may_be_empty_but_not_half() {
        let line = |evidence: &str| {
            format!(
                r#"{{"run":"01930000-0000-7000-8000-000000000001","recorded_at":"2026-05-04T02:37:00Z","type":"timed_out","attempt":1,"rule":"coarse_ttl","evidence":{evidence},"message":"m"}}"#
            )
        };
        let Line::Run { event, version, .. } = Line::parse(&line("{}")).unwrap() else { panic!("not a run's line") };
        assert_eq!(version, None);
        assert!(matches!(&event, RunEvent::TimedOut { evidence: None, .. }));
        assert_eq!(serde_json::to_value(&event).unwrap()["evidence"], serde_json::json!({}));
        assert!(Line::parse(&line(r#"{"rule":"coarse_ttl"}"#)).is_err());
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let error = |text: &str| Line::parse(text).unwrap_err().to_string();
        assert!(error("[1]").contains("not a JSON object"));
        assert!(error(r#"{"type":"created"}"#).contains("`recorded_at` is missing"));
        assert!(error(r#"{"recorded_at":"2026-05-04T02:37:00Z"}"#).contains("`type` is missing"));
        assert_eq!(error(r#"{"recorded_at":"2026-05-04T02:37:00Z","type":"paused"}"#), "unknown event type `paused`");
        assert!(error(r#"{"recorded_at":"2026-05-04T02:37:00Z","type":"created","lane":"l"}"#).contains("`run`"));
        let unknown_field = r#"{"run":"01930000-0000-7000-8000-000000000001","recorded_at":"2026-05-04T02:37:00Z","type":"started","attempt":1,"extra":2}"#;
        assert!(error(unknown_field).contains("extra"));
    }

    #[test]
    fn a_beacon_reads_back_as_it_was_written() {
        let at: Timestamp = "2026-05-04T02:37:00Z".parse().unwrap();
        for promise in [None, Some(at.next())] {
            let beacon = Beacon { process: Name::new("p").unwrap(), role: BeaconRole::Serve, at, promise };
            assert_eq!(Line::parse(&beacon_line(&beacon)), Ok(Line::Beacon(beacon)));
        }
        let text =
            r#"{"recorded_at":"2026-05-04T02:37:00Z","type":"beacon","process":"p","role":"boss","promise":null}"#;
        assert!(Line::parse(text).unwrap_err().to_string().contains("boss"));
    }

    #[test]
    fn a_service_event_has_no_run() {
        let text = r#"{"run":"01930000-0000-7000-8000-000000000001","recorded_at":"2026-05-04T02:37:00Z","type":"clock_back","from":"2026-05-04T02:37:00Z","to":"2026-05-04T02:36:00Z"}"#;
        assert!(Line::parse(text).unwrap_err().to_string().contains("run"));
    }
}
