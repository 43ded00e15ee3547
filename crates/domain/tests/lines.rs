//! What is written to the log reads back as the same fact: every type of event, with any payload.

use lastbeat_domain::event::{BasisEvidence, DeafCause, Evidence, ReleaseCause, RunEvent, ServiceEvent, Signal};
use lastbeat_domain::policy::{LateCompletion, Mode};
use lastbeat_domain::verdict::BasisFact;
use lastbeat_domain::{
    ClaimId, Line, Name, Recorded, Rule, RunId, ServiceRecorded, Span, Terms, Timestamp, TokenDigest,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence};
use serde_json::Value;

fn config() -> Config {
    let persistence = FileFailurePersistence::WithSource("regressions");
    Config { failure_persistence: Some(Box::new(persistence)), ..Config::default() }
}

fn timestamp() -> impl Strategy<Value = Timestamp> {
    (Timestamp::MIN.as_micros()..=Timestamp::MAX.as_micros()).prop_map(Timestamp::from_micros)
}

fn span() -> impl Strategy<Value = Span> {
    let any_size = prop_oneof![0_u64..2_000_000, 0..=Span::MAX.as_micros()];
    prop_oneof![any_size.prop_map(Span::from_micros), (0_u64..1_000_000).prop_map(Span::from_seconds)]
}

fn text() -> impl Strategy<Value = String> {
    prop::collection::vec(any::<char>(), 0..12).prop_map(String::from_iter)
}

fn name() -> impl Strategy<Value = Name> {
    text().prop_map(|text| Name::new(format!("n{}", text.replace(char::is_control, "-"))).expect("short and printable"))
}

fn maybe<T: std::fmt::Debug>(inner: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    prop::option::of(inner)
}

/// Any JSON but null, which a fact never holds in place of nothing.
fn payload() -> impl Strategy<Value = Value> {
    let number = prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter("JSON has no such number", |number| number.is_finite()).prop_map(Value::from),
    ];
    let leaf =
        prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), number, text().prop_map(Value::from)];
    let tree = leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(text(), inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    });
    tree.prop_filter("null is nothing", |value| !value.is_null())
}

fn rule() -> impl Strategy<Value = Rule> {
    prop::sample::select(&Rule::ALL[..])
}

fn claim_id() -> impl Strategy<Value = ClaimId> {
    any::<u128>().prop_map(|number| ClaimId::from_uuid(uuid::Uuid::from_u128(number)))
}

fn signal() -> impl Strategy<Value = Signal> {
    prop::sample::select(vec![Signal::Heartbeat, Signal::Started, Signal::Completed, Signal::Failed])
}

fn basis() -> impl Strategy<Value = BasisEvidence> {
    let facts = vec![BasisFact::Created, BasisFact::Requeued, BasisFact::Claimed, BasisFact::Heartbeat];
    let parts = (prop::sample::select(facts), any::<u64>(), timestamp());
    parts.prop_map(|(fact, version, at)| BasisEvidence { fact, version, at })
}

fn evidence() -> impl Strategy<Value = Box<Evidence>> {
    let spans = (span(), span(), span(), span());
    (rule(), basis(), spans, timestamp(), any::<u32>(), maybe(name()), name()).prop_map(
        |(rule, basis, (window, charged, wall, deaf), judged_at, policy_version, executor, sweeper)| {
            let whose =
                Evidence { rule, basis, window, charged, wall, deaf, judged_at, policy_version, executor, sweeper };
            Box::new(whose)
        },
    )
}

fn created() -> impl Strategy<Value = RunEvent> {
    let labels = prop::collection::btree_map(name(), text(), 0..4);
    let names = (name(), maybe(name()), maybe(name()), maybe(name()));
    (names, maybe(timestamp()), labels, maybe(payload())).prop_map(
        |((lane, goal, device, unique_key), not_before, labels, input)| RunEvent::Created {
            lane,
            goal,
            device,
            not_before,
            unique_key,
            labels,
            input,
        },
    )
}

fn reported() -> impl Strategy<Value = RunEvent> {
    prop_oneof![
        (any::<u32>(), maybe(claim_id()), name(), maybe(name()))
            .prop_map(|(attempt, claim, executor, device)| { RunEvent::Claimed { attempt, claim, executor, device } }),
        any::<u32>().prop_map(|attempt| RunEvent::Started { attempt }),
        (any::<u32>(), maybe(payload())).prop_map(|(attempt, progress)| RunEvent::Heartbeat { attempt, progress }),
        (any::<u32>(), maybe(payload()), any::<bool>()).prop_map(|(attempt, output, late)| RunEvent::Completed {
            attempt,
            output,
            late
        }),
        (any::<u32>(), text()).prop_map(|(attempt, error)| RunEvent::Failed { attempt, error }),
        (any::<u32>(), signal(), maybe(name())).prop_map(|(attempt, signal, executor)| RunEvent::LateSignal {
            attempt,
            signal,
            executor
        }),
    ]
}

fn decided() -> impl Strategy<Value = RunEvent> {
    prop_oneof![
        (any::<u32>(), rule(), maybe(evidence()), text())
            .prop_map(|(attempt, rule, evidence, message)| { RunEvent::TimedOut { attempt, rule, evidence, message } }),
        (any::<u32>(), timestamp(), maybe(name()), maybe(text())).prop_map(|(next_attempt, not_before, by, reason)| {
            RunEvent::Requeued { next_attempt, not_before, by, reason }
        }),
        (name(), maybe(text())).prop_map(|(by, reason)| RunEvent::CancelRequested { by, reason }),
        (any::<u32>(), name()).prop_map(|(attempt, by)| RunEvent::Cancelled { attempt, by }),
    ]
}

fn run_event() -> impl Strategy<Value = RunEvent> {
    prop_oneof![created(), reported(), decided()]
}

fn terms() -> impl Strategy<Value = Terms> {
    let windows = (span(), span(), span(), maybe(span()), maybe(span()), maybe(span()), maybe(span()));
    let retries = (any::<u32>(), span(), span(), any::<bool>());
    let holds = (any::<bool>(), maybe(any::<u32>()), 0.0_f64..=1.0, span(), any::<u32>());
    (windows, retries, holds).prop_map(|(windows, retries, holds)| {
        let (heartbeat_interval, heartbeat_window, coarse_ttl, claim_window, start_window, max_runtime, stall_window) =
            windows;
        let (max_attempts, retry_backoff_base, retry_backoff_max, adopt) = retries;
        let (shadow, hold_min, hold_share, hold_max, reap_rate) = holds;
        Terms {
            heartbeat_interval,
            heartbeat_window,
            coarse_ttl,
            claim_window,
            start_window,
            max_runtime,
            stall_window,
            max_attempts,
            retry_backoff_base,
            retry_backoff_max,
            late_completion: if adopt { LateCompletion::Adopt } else { LateCompletion::Refuse },
            mode: if shadow { Mode::Shadow } else { Mode::Enforce },
            hold_min,
            hold_share,
            hold_max,
            reap_rate,
        }
    })
}

fn token_issued() -> impl Strategy<Value = ServiceEvent> {
    let names = [name(), name(), name(), name()];
    let digest = maybe(any::<[u8; 32]>().prop_map(TokenDigest::from_bytes));
    let bound = (maybe(name()), prop::collection::vec(name(), 0..3), maybe(name()), maybe(timestamp()), digest);
    (names, bound).prop_map(|([token, name, role, by], (executor, lanes, device, expires_at, digest))| {
        ServiceEvent::TokenIssued { token, name, role, executor, lanes, device, expires_at, digest, by }
    })
}

fn service_event() -> impl Strategy<Value = ServiceEvent> {
    let deaf_causes = prop::sample::select(vec![DeafCause::Gap, DeafCause::ClockStep]);
    let causes = prop::sample::select(vec![ReleaseCause::Recovered, ReleaseCause::Operator, ReleaseCause::Expired]);
    let id = any::<u128>().prop_map(|number| RunId::from_uuid(uuid::Uuid::from_u128(number)));
    prop_oneof![
        (name(), any::<u32>(), terms(), maybe(name())).prop_map(|(lane, policy_version, policy, by)| {
            ServiceEvent::PolicySet { lane, policy_version, policy, by }
        }),
        (timestamp(), timestamp(), timestamp(), deaf_causes)
            .prop_map(|(from, to, promised_until, cause)| ServiceEvent::Deaf { from, to, promised_until, cause }),
        (timestamp(), timestamp()).prop_map(|(from, to)| ServiceEvent::ClockBack { from, to }),
        (name(), any::<[u64; 3]>()).prop_map(|(lane, [lapsed, silent, beating])| {
            ServiceEvent::ReapingHeld { lane, lapsed, silent, beating }
        }),
        (name(), causes, maybe(name()), maybe(text()))
            .prop_map(|(lane, cause, by, reason)| ServiceEvent::ReapingReleased { lane, cause, by, reason }),
        any::<[u64; 3]>().prop_map(|[through, rows, beats]| ServiceEvent::BeatsCompacted { through, rows, beats }),
        (name(), name()).prop_map(|(process, by)| ServiceEvent::BeaconRetired { process, by }),
        token_issued(),
        (name(), name()).prop_map(|(token, by)| ServiceEvent::TokenRevoked { token, by }),
        (id, name(), maybe(text())).prop_map(|(target, by, reason)| ServiceEvent::ReapForced { target, by, reason }),
    ]
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_fact_of_a_run_reads_back_as_it_was_written(
        id in any::<u128>(), version in any::<u64>(), recorded_at in timestamp(), event in run_event(),
    ) {
        let run = RunId::from_uuid(uuid::Uuid::from_u128(id));
        let recorded = Recorded { run, version, recorded_at, event };
        let line = serde_json::to_string(&recorded).expect("it can be written");
        prop_assert!(!line.contains('\n'), "{}", line);
        let Recorded { run, version, recorded_at, event } = recorded;
        prop_assert_eq!(Line::parse(&line), Ok(Line::Run { run, version: Some(version), recorded_at, event }), "{}", line);
    }

    #[test]
    fn a_fact_of_the_service_reads_back_as_it_was_written(recorded_at in timestamp(), event in service_event()) {
        let recorded = ServiceRecorded { recorded_at, event };
        let line = serde_json::to_string(&recorded).expect("it can be written");
        prop_assert!(!line.contains('\n'), "{}", line);
        prop_assert_eq!(Line::parse(&line), Ok(Line::Service(recorded)), "{}", line);
    }
}
