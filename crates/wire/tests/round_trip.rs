//! What is written is read back as it was; what a newer server adds is passed over, and what a request should not have
//! is refused.

#![allow(clippy::unwrap_used)]

use lastbeat_domain::decide::RunSpec;
use lastbeat_domain::event::{BasisEvidence, Evidence, RunEvent};
use lastbeat_domain::verdict::BasisFact;
use lastbeat_domain::{
    ClaimId, LanePolicy, Listening, Liveness, Name, Recorded, Rule, Run, RunId, Span, Terms, Timestamp, judge,
};
use lastbeat_wire::{
    AnswerDocument, BeatResult, BeatsDocument, BeatsRequest, ClaimRequest, CompleteRequest, CreateRequest, Directive,
    EventDocument, FailRequest, FalseReapsDocument, HeartbeatDocument, HeartbeatRequest, LaneDocument, Past,
    PolicyDocument, Problem, ReasonRequest, ReportRequest, RunDocument, Seen, TokenRequest, WhyDocument,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn at(seconds: u64) -> Timestamp {
    "2026-05-04T02:00:00Z".parse::<Timestamp>().unwrap().plus(Span::from_seconds(seconds))
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn id() -> RunId {
    RunId::from_uuid(uuid::Uuid::from_u128(7))
}

/// The run of lane `watcher`, folded from what happened to it, (second, fact) each.
fn stream(facts: Vec<(u64, RunEvent)>) -> Vec<Recorded> {
    let created = RunEvent::Created {
        lane: name("watcher"),
        goal: Some(name("g")),
        device: None,
        not_before: None,
        unique_key: None,
        labels: [(name("team"), "blue".to_owned())].into(),
        input: None,
    };
    let facts = [(0, created)].into_iter().chain(facts);
    let recorded = |(version, (second, event))| Recorded { run: id(), version, recorded_at: at(second), event };
    (1..).zip(facts).map(recorded).collect()
}

fn claimed() -> RunEvent {
    let claim = Some("secret".parse::<ClaimId>().unwrap());
    RunEvent::Claimed { attempt: 1, claim, executor: name("mac-7"), device: None }
}

fn beat() -> RunEvent {
    RunEvent::Heartbeat { attempt: 1, progress: Some(json!({"done": 0.1})) }
}

fn reaped() -> RunEvent {
    let basis = BasisEvidence { fact: BasisFact::Heartbeat, version: 3, at: at(20) };
    let (window, charged) = (Span::from_seconds(180), Span::from_millis(180_250));
    let evidence = Evidence {
        rule: Rule::HeartbeatSilence,
        basis,
        window,
        charged,
        wall: charged,
        deaf: Span::ZERO,
        judged_at: at(201),
        policy_version: 0,
        executor: Some(name("mac-7")),
        sweeper: name("sweeper-1"),
    };
    let (rule, evidence, message) = (Rule::HeartbeatSilence, Some(Box::new(evidence)), "silent".to_owned());
    RunEvent::TimedOut { attempt: 1, rule, evidence, message }
}

/// Shows the run at a second.
fn seen<T>(facts: Vec<(u64, RunEvent)>, second: u64, show: impl FnOnce(Seen<'_>) -> T) -> T {
    let run = Run::fold(&stream(facts)).unwrap().unwrap();
    let (policy, listening) = (LanePolicy::default(), Listening::default());
    let verdict = judge(&run, &policy, &listening, at(second));
    show(Seen { run: &run, verdict: &verdict, policy: &policy, listening: &listening, at: at(second) })
}

/// Writes a document and reads it back, once as it is and once with a field that this program does not know.
fn goes_there_and_back<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(document: &T) -> Value {
    let mut written = serde_json::to_value(document).unwrap();
    assert_eq!(&serde_json::from_value::<T>(written.clone()).unwrap(), document);
    let as_text = serde_json::to_string(document).unwrap();
    assert_eq!(&serde_json::from_str::<T>(&as_text).unwrap(), document);
    written["said_by_a_newer_server"] = json!([1]);
    serde_json::from_value::<T>(written.clone()).unwrap();
    written
}

#[test]
fn a_run_in_flight() {
    let facts = || vec![(10, claimed()), (20, beat())];
    let document = seen(facts(), 30, RunDocument::of);
    assert_eq!((document.verdict, document.rule), (Liveness::Live, Some(Rule::HeartbeatSilence)));
    assert_eq!((document.lapses_at, document.due_at, document.beats), (Some(at(200)), None, 1));
    let written = goes_there_and_back(&document);
    assert_eq!(written["outcome"], Value::Null, "a field without meaning is there, and null");
    assert_eq!(written["claim"], "secret");

    let answer = seen(facts(), 30, |seen| AnswerDocument::of(seen, false, Some(json!({"n": 1}))));
    let written = goes_there_and_back(&answer);
    assert_eq!(written["next_beat_within_seconds"], 30);
    assert_eq!((&written["run"], &written["input"]), (&json!(id()), &json!({"n": 1})));
}

#[test]
fn a_run_that_waits_says_from_when_on_it_may_be_claimed() {
    let document = seen(Vec::new(), 5, RunDocument::of);
    assert_eq!((document.verdict, document.due_at, document.attempt), (Liveness::Waiting, Some(at(0)), 0));
    goes_there_and_back(&document);
}

#[test]
fn why_not_yet_and_why_reaped() {
    let why = seen(vec![(10, claimed()), (20, beat())], 30, |seen| WhyDocument::of(seen, Past::default()));
    let written = goes_there_and_back(&why);
    assert_eq!(written["basis"], json!({"fact": "heartbeat", "version": 3, "at": at(20)}));
    assert_eq!((&written["charged_seconds"], &written["window_seconds"]), (&json!(10), &json!(180)));

    let why =
        seen(vec![(10, claimed()), (20, beat()), (201, reaped())], 900, |seen| WhyDocument::of(seen, Past::default()));
    let written = goes_there_and_back(&why);
    assert_eq!((&written["verdict"], &written["rule"]), (&json!("settled"), &json!("heartbeat_silence")));
    assert_eq!((&written["charged_seconds"], &written["reaped_at"]), (&json!(180.25), &json!(at(201))));
    assert_eq!((&written["lapses_at"], &written["sweeper"]), (&Value::Null, &json!("sweeper-1")));
}

#[test]
fn facts_come_through_as_they_were_written_known_or_not() {
    for recorded in stream(vec![(10, claimed()), (20, beat()), (201, reaped())]) {
        let text = serde_json::to_string(&recorded).unwrap();
        let read: EventDocument = serde_json::from_str(&text).unwrap();
        assert_eq!(read, EventDocument::Run(recorded));
        assert_eq!(serde_json::to_string(&read).unwrap(), text, "to the byte");
    }
    let service = r#"{"recorded_at":"2026-05-04T02:00:00.000000Z","type":"clock_back","from":"2026-05-04T02:00:00.000000Z","to":"2026-05-04T01:00:00.000000Z"}"#;
    let read: EventDocument = serde_json::from_str(service).unwrap();
    assert_eq!((read.type_name(), read.run(), read.version()), ("clock_back", None, None));
    assert_eq!(serde_json::to_string(&read).unwrap(), service);
    let newer = json!({"run": id(), "version": 4, "recorded_at": at(1), "type": "paused", "by": "ann"});
    let read: EventDocument = serde_json::from_value(newer.clone()).unwrap();
    assert_eq!((read.type_name(), read.run(), read.version()), ("paused", Some(id()), Some(4)));
    assert_eq!(read.recorded_at(), Some(at(1)));
    assert_eq!(serde_json::to_value(&read).unwrap(), newer);
    assert!(serde_json::from_value::<EventDocument>(json!("paused")).is_err());
}

#[test]
fn heartbeats_one_and_many() {
    let heard = HeartbeatDocument {
        run: id(),
        status: lastbeat_domain::Status::Running,
        attempt: 1,
        version: 9,
        at: at(1),
        directive: Directive::after_heartbeat(true),
        next_beat_within_seconds: Span::from_millis(1_500),
        lapses_at: Some(at(181)),
    };
    let written = goes_there_and_back(&heard);
    assert_eq!((&written["directive"], &written["next_beat_within_seconds"]), (&json!("cancel"), &json!(1.5)));
    let results =
        vec![BeatResult::taken(&heard), BeatResult::fenced(id()), BeatResult::failed(id(), "unknown_run", "no")];
    let written = goes_there_and_back(&BeatsDocument { results });
    assert_eq!(written["results"][1], json!({"run": id(), "directive": "stop"}));
    assert_eq!(written["results"][2], json!({"run": id(), "error": {"code": "unknown_run", "message": "no"}}));
}

#[test]
fn a_policy_that_is_told_may_have_terms_that_are_not_known() {
    let terms = Terms { claim_window: Some(Span::from_seconds(60)), ..Terms::default() };
    let document =
        LaneDocument::of(name("watcher"), LanePolicy { version: 2, terms }, [].into(), FalseReapsDocument::default());
    let mut written = goes_there_and_back(&document);
    assert_eq!(written["policy"]["start_window_seconds"], Value::Null, "off");
    written["policy"]["patience_seconds"] = json!(3);
    assert_eq!(serde_json::from_value::<LaneDocument>(written.clone()).unwrap(), document);
    assert!(serde_json::from_value::<Terms>(written["policy"].clone()).is_err(), "but none that is to be set");
    assert!(serde_json::from_value::<PolicyDocument>(json!({"heartbeat_window_seconds": -1})).is_err());
}

#[test]
fn problems_are_open_for_more() {
    let problem = Problem::new(409, "Conflict", "would_lapse", "no").with("runs", vec![id().to_string()]);
    let written = goes_there_and_back_problem(&problem);
    assert_eq!((&written["type"], &written["runs"]), (&json!("about:blank"), &json!([id()])));
    let foreign: Problem = serde_json::from_str(r#"{"title":"Bad Gateway"}"#).unwrap();
    assert_eq!((foreign.code.as_str(), foreign.directive), ("", None));
}

fn goes_there_and_back_problem(problem: &Problem) -> Value {
    let written = serde_json::to_value(problem).unwrap();
    assert_eq!(&serde_json::from_value::<Problem>(written.clone()).unwrap(), problem);
    written
}

#[test]
fn a_request_with_an_unknown_field_is_refused() {
    fn strict<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(least: &Value) {
        let request: T = serde_json::from_value(least.clone()).unwrap();
        assert_eq!(&serde_json::to_value(&request).unwrap(), least, "what is left out stays out");
        let mut more = least.clone();
        more["atempt"] = json!(1);
        assert!(serde_json::from_value::<T>(more).is_err());
    }
    strict::<CreateRequest>(&json!({"lane": "watcher"}));
    strict::<CreateRequest>(&json!({"lane": "watcher", "claim": {"executor": "mac-7"}, "labels": {"a": "b"}}));
    strict::<ClaimRequest>(&json!({"executor": "mac-7", "lanes": ["watcher"], "wait_seconds": 1.5}));
    strict::<ClaimRequest>(&json!({"executor": "mac-7", "run": id()}));
    strict::<ReportRequest>(&json!({"attempt": 1}));
    strict::<HeartbeatRequest>(&json!({"attempt": 1, "claim": "c", "progress": {"done": 1}}));
    strict::<CompleteRequest>(&json!({"attempt": 1, "output": [1]}));
    strict::<FailRequest>(&json!({"attempt": 1, "error": "e"}));
    strict::<ReasonRequest>(&json!({}));
    strict::<BeatsRequest>(&json!({"beats": [{"run": id(), "attempt": 1}]}));
    strict::<TokenRequest>(&json!({"name": "ci", "role": "submitter"}));
    strict::<TokenRequest>(&json!({"name": "ci", "role": "submitter", "expires_in_seconds": 90}));
    assert!(serde_json::from_value::<BeatsRequest>(json!({"beats": [{"run": id(), "attempt": 1, "at": 1}]})).is_err());
    assert!(serde_json::from_value::<CreateRequest>(json!({"lane": ""})).is_err());
}

#[test]
fn a_create_request_is_the_spec_of_a_run() {
    let spec = RunSpec {
        goal: Some(name("g")),
        not_before: Some(at(1)),
        input: Some(json!(1)),
        ..RunSpec::of_lane(name("watcher"))
    };
    let (back, claim) = CreateRequest::from(spec.clone()).into();
    assert_eq!((back, claim), (spec, None));
}
