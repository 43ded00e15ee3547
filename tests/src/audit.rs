//! Holds an exported log against the promises, without asking the program that wrote it.
//!
//! Silences are added up here from the stamps of the facts and from the deaf spans, in whole microseconds; nothing of
//! the rule, the listening record or the decisions is called. Only the lines are read by the program's own types.

use std::collections::{BTreeMap, BTreeSet};

use lastbeat_domain::event::{DeafCause, Evidence, RunEvent, ServiceEvent};
use lastbeat_domain::{Line, Name, Recorded, Rule, RunId, ServiceRecorded, Terms, Timestamp};

/// A reap that was found in a log.
#[derive(Clone, Debug)]
pub struct Reap {
    /// The run.
    pub run: RunId,
    /// The attempt that was reaped.
    pub attempt: u32,
    /// Who held it.
    pub executor: Name,
    /// When it was reaped, in log time.
    pub at: Timestamp,
    /// The listening time that was charged, as it is computed here, in seconds.
    pub charged: f64,
    /// The deaf time that was left out, as it is computed here, in seconds.
    pub deaf: f64,
    /// By how much the charge is over the window, in seconds: how late the reap was.
    pub over: f64,
}

/// A log that was read, and what is wrong with it.
#[derive(Debug, Default)]
pub struct Audit {
    /// The streams.
    pub streams: BTreeMap<RunId, Vec<Recorded>>,
    /// The facts of the service, in the order of their record.
    pub service: Vec<ServiceRecorded>,
    /// The reaps, run by run.
    pub reaps: Vec<Reap>,
    /// How many attempts were claimed.
    pub attempts: usize,
    /// How many heartbeats there are.
    pub heartbeats: usize,
    /// How many completions were taken after a reap.
    pub late_completions: usize,
    /// The attempts that have not ended: run, attempt, executor.
    pub open: Vec<(RunId, u32, Name)>,
    /// The promises that were not kept.
    pub violations: Vec<String>,
}

impl Audit {
    /// Reads an export and looks at every fact in it.
    pub fn of(export: &str) -> Audit {
        let mut audit = Audit::default();
        for text in export.lines() {
            match Line::parse(text).unwrap() {
                Line::Service(recorded) => audit.service.push(recorded),
                // Only a bundle has beacons, and they are no facts.
                Line::Beacon(_) => {}
                Line::Run { run, version, recorded_at, event } => {
                    let version = version.unwrap();
                    audit.streams.entry(run).or_default().push(Recorded { run, version, recorded_at, event });
                }
            }
        }
        for (run, facts) in std::mem::take(&mut audit.streams) {
            audit.look_at(run, &facts);
            audit.streams.insert(run, facts);
        }
        audit
    }

    /// Returns run and version of every fact, as acknowledgements name them.
    pub fn versions(&self) -> BTreeSet<String> {
        let facts = self.streams.values().flatten();
        facts.map(|fact| format!("{} {}", fact.run, fact.version)).collect()
    }

    /// Returns how much of the time between two instants nobody listened, by what was known at the later one, in
    /// microseconds.
    pub fn deaf(&self, from: Timestamp, to: Timestamp) -> i64 {
        let mut spans: Vec<(i64, i64)> = Vec::new();
        for recorded in &self.service {
            let ServiceEvent::Deaf { from, to: end, promised_until, cause } = &recorded.event else { continue };
            // A gap counts from the moment at which its promise was broken, though it was recorded later.
            let known = match cause {
                DeafCause::Gap => *promised_until < to,
                DeafCause::ClockStep => recorded.recorded_at <= to,
            };
            if known {
                spans.push((from.as_micros(), end.as_micros()));
            }
        }
        spans.sort_unstable();
        let (mut counted_to, mut sum) = (from.as_micros(), 0);
        for (start, end) in spans {
            let (start, end) = (start.max(counted_to), end.min(to.as_micros()));
            if start < end {
                sum += end - start;
                counted_to = end;
            }
        }
        sum
    }

    /// Returns for how long nobody listened in all, in seconds.
    pub fn deaf_in_all(&self) -> f64 {
        self.deaf(Timestamp::MIN, Timestamp::MAX) as f64 / 1e6
    }

    fn broken(&mut self, fact: &Recorded, what: &str) {
        self.violations.push(format!("{what}: {}", serde_json::to_string(fact).unwrap()));
    }

    fn terms(&self, lane: &Name, at: Timestamp) -> Terms {
        let set = self.service.iter().rev().find_map(|recorded| match &recorded.event {
            ServiceEvent::PolicySet { lane: named, policy, .. } if named == lane && recorded.recorded_at <= at => {
                Some(policy.clone())
            }
            _ => None,
        });
        set.unwrap_or_default()
    }

    fn look_at(&mut self, run: RunId, facts: &[Recorded]) {
        let Some(RunEvent::Created { lane, .. }) = facts.first().map(|fact| &fact.event) else {
            self.broken(&facts[0], "a stream that does not begin with `created`");
            return;
        };
        let mut holder: Option<Holder> = None;
        let (mut last_attempt, mut reaps) = (0, 0);
        for (index, fact) in facts.iter().enumerate() {
            let before = index.checked_sub(1).map(|before| &facts[before]);
            let follows = before.is_none_or(|before| before.recorded_at < fact.recorded_at);
            if fact.version != index as u64 + 1 || !follows {
                self.broken(fact, "a hole in the stream, or time that stands still");
            }
            let held = holder.as_ref().filter(|holder| holder.ended_by.is_none()).map(|holder| holder.attempt);
            match &fact.event {
                RunEvent::Claimed { attempt, executor, .. } => {
                    if held.is_some() || *attempt != last_attempt + 1 {
                        self.broken(fact, "claimed while somebody holds it, or as a wrong attempt");
                    }
                    last_attempt = *attempt;
                    self.attempts += 1;
                    holder = Some(Holder::new(fact, *attempt, executor));
                }
                RunEvent::Heartbeat { attempt, .. } => {
                    if held != Some(*attempt) {
                        self.broken(fact, "a heartbeat of an attempt that does not hold the run");
                    }
                    if let Some(holder) = &mut holder {
                        holder.heard = Some((fact.recorded_at, fact.version));
                    }
                    self.heartbeats += 1;
                }
                RunEvent::Completed { attempt, late: true, .. } => {
                    let reaped = holder.as_ref().is_some_and(|holder| holder.may_be_adopted(*attempt));
                    if !reaped {
                        self.broken(fact, "a late completion of what was not reaped last");
                    }
                    self.late_completions += 1;
                    holder.iter_mut().for_each(|holder| holder.ended_by = Some("completed"));
                }
                RunEvent::Completed { attempt, .. } | RunEvent::Failed { attempt, .. } => {
                    if held != Some(*attempt) {
                        self.broken(fact, "an attempt ends that does not hold the run, or a second time");
                    }
                    holder.iter_mut().for_each(|holder| holder.ended_by = Some(fact.event.type_name()));
                }
                RunEvent::TimedOut { attempt, rule, evidence, .. } => {
                    reaps += 1;
                    let terms = self.terms(lane, fact.recorded_at);
                    match &mut holder {
                        Some(holder) if held == Some(*attempt) => {
                            self.look_at_reap(fact, holder, *rule, evidence.as_deref(), &terms);
                            holder.ended_by = Some("timed_out");
                        }
                        _ => self.broken(fact, "reaped a second time, or while nobody holds it"),
                    }
                    let retried = facts
                        .get(index + 1)
                        .is_some_and(|next| matches!(&next.event, RunEvent::Requeued { by: None, .. }));
                    if retried != (reaps < terms.max_attempts) {
                        self.broken(fact, "a reap whose retry is missing, or one too many");
                    }
                }
                _ => {}
            }
        }
        if let Some(holder) = holder.filter(|holder| holder.ended_by.is_none()) {
            self.open.push((run, holder.attempt, holder.executor));
        }
    }

    /// The reap was by the rule that applies, over the window in truth, and its evidence says so.
    fn look_at_reap(
        &mut self,
        fact: &Recorded,
        holder: &Holder,
        rule: Rule,
        evidence: Option<&Evidence>,
        terms: &Terms,
    ) {
        let (applies, window, (basis, version)) = match holder.heard {
            Some(heard) => (Rule::HeartbeatSilence, terms.heartbeat_window, heard),
            None => (Rule::CoarseTtl, terms.coarse_ttl, holder.claimed),
        };
        let at = fact.recorded_at;
        let deaf = self.deaf(basis, at);
        let charged = at.as_micros() - basis.as_micros() - deaf;
        let over = charged - i64::try_from(window.as_micros()).unwrap();
        if rule != applies {
            self.broken(fact, "reaped by a rule that does not apply");
        }
        if over <= 0 {
            self.broken(fact, &format!("reaped although it was charged {charged} µs only"));
        }
        let told = evidence.map(|told| (told.basis.version, told.charged.as_micros(), told.deaf.as_micros()));
        if told != Some((version, u64::try_from(charged).unwrap_or(0), u64::try_from(deaf).unwrap_or(0))) {
            self.broken(fact, &format!("the evidence should be version {version}, {charged} µs, deaf {deaf} µs"));
        }
        let seconds = |micros: i64| micros as f64 / 1e6;
        self.reaps.push(Reap {
            run: fact.run,
            attempt: holder.attempt,
            executor: holder.executor.clone(),
            at,
            charged: seconds(charged),
            deaf: seconds(deaf),
            over: seconds(over),
        });
    }
}

/// Who holds a run, or held it last.
struct Holder {
    attempt: u32,
    executor: Name,
    /// Instant and version of the claim.
    claimed: (Timestamp, u64),
    /// Instant and version of the last heartbeat of the attempt.
    heard: Option<(Timestamp, u64)>,
    ended_by: Option<&'static str>,
}

impl Holder {
    fn new(fact: &Recorded, attempt: u32, executor: &Name) -> Holder {
        let (executor, claimed) = (executor.clone(), (fact.recorded_at, fact.version));
        Holder { attempt, executor, claimed, heard: None, ended_by: None }
    }

    fn may_be_adopted(&self, attempt: u32) -> bool {
        self.attempt == attempt && self.ended_by == Some("timed_out")
    }
}

#[cfg(test)]
mod tests {
    use super::Audit;

    /// A log in which a run beats at 4 s and nobody listens from 5 s to 8 s; `end` are its last facts.
    fn log(end: &[&str]) -> Audit {
        let head = r#"
{"recorded_at":"2026-01-01T00:00:00Z","type":"policy_set","lane":"l","policy_version":1,"policy":{"heartbeat_interval_seconds":1,"heartbeat_window_seconds":3}}
{"recorded_at":"2026-01-01T00:00:08Z","type":"deaf","from":"2026-01-01T00:00:05Z","to":"2026-01-01T00:00:08Z","promised_until":"2026-01-01T00:00:06Z","cause":"gap"}
{"run":"00000000-0000-0000-0000-000000000001","version":1,"recorded_at":"2026-01-01T00:00:01Z","type":"created","lane":"l"}
{"run":"00000000-0000-0000-0000-000000000001","version":2,"recorded_at":"2026-01-01T00:00:02Z","type":"claimed","attempt":1,"executor":"e"}
{"run":"00000000-0000-0000-0000-000000000001","version":3,"recorded_at":"2026-01-01T00:00:04Z","type":"heartbeat","attempt":1}
"#;
        Audit::of(&[&[head.trim()], end].concat().join("\n"))
    }

    fn reap(version: u64, second: u32, charged: u32) -> String {
        format!(
            r#"{{"run":"00000000-0000-0000-0000-000000000001","version":{version},"recorded_at":"2026-01-01T00:00:{second}Z","type":"timed_out","attempt":1,"rule":"heartbeat_silence","message":"","evidence":{{"rule":"heartbeat_silence","basis":{{"fact":"heartbeat","version":3,"at":"2026-01-01T00:00:04Z"}},"window_seconds":3,"charged_seconds":{charged},"wall_seconds":9,"deaf_seconds":3,"judged_at":"2026-01-01T00:00:{second}Z","policy_version":1,"executor":"e","sweeper":"s"}}}}"#
        )
    }

    #[test]
    fn a_reap_over_the_window_is_well_and_one_at_it_is_found() {
        assert_eq!(log(&[&reap(4, 11, 4)]).violations, Vec::<String>::new());
        let early = log(&[&reap(4, 10, 3)]).violations;
        assert!(early.len() == 1 && early[0].contains("charged 3000000 µs only"), "{early:?}");
    }

    #[test]
    fn evidence_that_is_not_true_is_found() {
        let violations = log(&[&reap(4, 12, 4)]).violations;
        assert!(violations.len() == 1 && violations[0].contains("the evidence should be"), "{violations:?}");
    }

    #[test]
    fn a_second_end_of_an_attempt_and_a_hole_are_found() {
        let violations = log(&[&reap(4, 11, 4), &reap(6, 12, 5)]).violations;
        assert!(violations.iter().any(|what| what.contains("reaped a second time")), "{violations:?}");
        assert!(violations.iter().any(|what| what.contains("a hole")), "{violations:?}");
    }

    #[test]
    fn an_attempt_without_an_end_is_named() {
        let log = log(&[]);
        assert_eq!((log.open.len(), log.violations.len()), (1, 0));
    }
}
