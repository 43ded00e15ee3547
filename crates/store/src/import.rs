//! Importing: a file is checked as a whole before anything of it is written.
//!
//! What is checked is what a stream must be: lines that can be read, versions without a hole, stamps that increase
//! within a stream and do not lie in the future, and steps that the fold accepts. Neither the rule nor the limits on
//! policies are asked: a history is what happened, not what should have.

use std::collections::{BTreeMap, HashMap};
use std::io::BufRead;

use lastbeat_domain::event::{RunEvent, ServiceEvent};
use lastbeat_domain::listening::Beacon;
use lastbeat_domain::{Line, Name, Recorded, Run, RunId, ServiceRecorded, Span, Timestamp, judge};

use crate::batch::{Head, RunRow, Writes};
use crate::error::ImportError;
use crate::log::{EventRow, SegmentRow, signed};
use crate::packing::{Beat, SEGMENT_BEATS_MAX};
use crate::service::ServiceLog;

/// No store ever had so many rows of heartbeats, and those that are to come still find room after them.
const COMPACTED_MAX: u64 = 1 << 53;

/// Histories that have been checked and wait to be written.
#[derive(Debug, Default)]
pub struct CheckedImport {
    pub(crate) runs: Vec<ImportedRun>,
    pub(crate) facts: Vec<ImportedFact>,
    /// The line of the first service event, or of the first beacon.
    pub(crate) first_service_line: Option<u64>,
    /// The beacons of a bundle.
    pub(crate) beacons: Vec<Beacon>,
    pub(crate) report: ImportReport,
}

/// What was imported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportReport {
    /// How many runs.
    pub runs: u64,
    /// How many facts of runs.
    pub events: u64,
    /// How many service events.
    pub service_events: u64,
}

impl CheckedImport {
    /// Returns what is to be written, and the end of the log after it. `head` is the end of the log before it, and
    /// `service` what the log says of the service; `clock` is the store's clock.
    pub(crate) fn writes(&self, mut head: Head, service: &ServiceLog, clock: Timestamp) -> (Writes, Head) {
        let (mut writes, mut service) = (Writes::default(), service.clone());
        let first_number = head.run + 1;
        for fact in &self.facts {
            head.position += 1;
            let (row, recorded_at) = match fact {
                ImportedFact::Run { index, recorded } => {
                    let number = first_number + *index as i64;
                    (EventRow::of_run(head.position, number, recorded), recorded.recorded_at)
                }
                ImportedFact::Service(recorded) => {
                    if let ServiceEvent::BeatsCompacted { through, .. } = recorded.event {
                        // What was compacted there has no rows here: those of this store come after the watermark.
                        head.beat_position = head.beat_position.max(signed(through));
                    }
                    service.push(ServiceRecorded::clone(recorded));
                    (EventRow::of_service(head.position, recorded), recorded.recorded_at)
                }
            };
            writes.events.push(row);
            head.latest_at = head.latest_at.max(recorded_at);
        }
        if !self.beacons.is_empty() {
            let known = |beacon: &&Beacon| !self.beacons.iter().any(|own| own.process == beacon.process);
            let others: Vec<Beacon> = service.beacons.iter().filter(known).cloned().collect();
            service.beacons = others.into_iter().chain(self.beacons.iter().cloned()).collect();
            service.beacons.sort_by(|a, b| a.process.cmp(&b.process));
            head.latest_at = service.beacons.iter().map(|beacon| beacon.at).fold(head.latest_at, Timestamp::max);
            writes.beacons = Some(service.beacons.clone());
        }
        let now = clock.max(head.latest_at);
        let listening = service.listening(now);
        for (imported, number) in self.runs.iter().zip(first_number..) {
            let segments = imported.segments.iter();
            writes.segments.extend(segments.map(|(attempt, beats)| SegmentRow::pack(number, *attempt, beats)));
            let run = imported.run.clone();
            let verdict = judge(&run, &service.policy(&run.lane, now), &listening, now);
            writes.due.insert(number, verdict.check_at().map(|at| (at, Span::ZERO)));
            writes.lanes.insert(run.lane.clone());
            head.latest_at = head.latest_at.max(run.updated_at);
            head.run = number;
            writes.runs.push(RunRow { number, run, tail: Ok(Vec::new()) });
        }
        writes.lanes.extend(service.lanes().cloned());
        (writes, head)
    }
}

/// A run as the file leaves it.
#[derive(Debug)]
pub(crate) struct ImportedRun {
    pub(crate) run: Run,
    /// The plain heartbeats, in stretches that become a segment each, with their attempt.
    pub(crate) segments: Vec<(u32, Vec<Beat>)>,
    created_on_line: u64,
}

/// A fact that becomes a row of its own, in the order of the file.
#[derive(Debug)]
pub(crate) enum ImportedFact {
    /// Of the run with that index.
    Run { index: usize, recorded: Box<Recorded> },
    /// Of the service.
    Service(Box<ServiceRecorded>),
}

/// Checks a file line by line. `now` is the store's clock, after which no stamp may lie.
///
/// # Errors
/// Names the first line that cannot be imported and what is wrong with it.
pub fn check(file: impl BufRead, now: Timestamp) -> Result<CheckedImport, ImportError> {
    let mut checker = Checker { now, ..Checker::default() };
    for (text, line) in file.split(b'\n').zip(1..) {
        let text = text?;
        let text = std::str::from_utf8(&text).map_err(|error| ImportError::bad_line(line, error))?;
        // A byte order mark and empty lines do no harm.
        let text = text.trim_start_matches('\u{feff}').trim();
        if !text.is_empty() {
            checker.take(line, text)?;
        }
    }
    checker.finish()
}

/// Checks facts that were never text, as [`check`] checks a file; the number of a fact stands for that of its line.
///
/// # Errors
/// Names the first fact that cannot be imported and what is wrong with it.
pub(crate) fn check_facts(facts: impl Iterator<Item = Recorded>, now: Timestamp) -> Result<CheckedImport, ImportError> {
    let mut checker = Checker { now, ..Checker::default() };
    for (recorded, line) in facts.zip(1..) {
        let index = checker.indexes.get(&recorded.run).copied();
        checker.run_fact(line, index, recorded)?;
    }
    checker.finish()
}

#[derive(Debug)]
struct Checker {
    now: Timestamp,
    import: CheckedImport,
    indexes: HashMap<RunId, usize>,
    /// For each lane the version and the stamp of its latest policy.
    policies: BTreeMap<Name, (u32, Timestamp)>,
}

impl Default for Checker {
    fn default() -> Checker {
        let (import, indexes, policies) = (CheckedImport::default(), HashMap::new(), BTreeMap::new());
        Checker { now: Timestamp::MAX, import, indexes, policies }
    }
}

impl Checker {
    fn take(&mut self, line: u64, text: &str) -> Result<(), ImportError> {
        let parsed = Line::parse(text).map_err(|error| ImportError::bad_line(line, error))?;
        match parsed {
            Line::Run { run, version, recorded_at, event } => {
                let index = self.indexes.get(&run).copied();
                let expected = index.map_or(0, |index| self.import.runs[index].run.version) + 1;
                let recorded = Recorded { run, version: version.unwrap_or(expected), recorded_at, event };
                self.run_fact(line, index, recorded)
            }
            Line::Service(recorded) => {
                self.check_stamp(line, recorded.recorded_at)?;
                self.service(line, recorded)
            }
            Line::Beacon(beacon) => {
                self.check_stamp(line, beacon.at)?;
                if self.import.beacons.iter().any(|known| known.process == beacon.process) {
                    let problem = format!("there is a beacon of process `{}` already", beacon.process);
                    return Err(ImportError::bad_line(line, problem));
                }
                self.import.first_service_line.get_or_insert(line);
                self.import.beacons.push(beacon);
                Ok(())
            }
        }
    }

    /// Takes a fact of the run with that index, or of a run that is new.
    fn run_fact(&mut self, line: u64, index: Option<usize>, recorded: Recorded) -> Result<(), ImportError> {
        self.check_stamp(line, recorded.recorded_at)?;
        match index {
            Some(index) => self.go_on(line, index, recorded),
            None => self.begin(line, recorded),
        }
    }

    fn check_stamp(&self, line: u64, recorded_at: Timestamp) -> Result<(), ImportError> {
        if recorded_at > self.now {
            return Err(ImportError::in_the_future(line, recorded_at, self.now));
        }
        Ok(())
    }

    fn begin(&mut self, line: u64, recorded: Recorded) -> Result<(), ImportError> {
        let run = Run::begin(&recorded).map_err(|error| ImportError::bad_line(line, error))?;
        let index = self.import.runs.len();
        self.indexes.insert(run.id, index);
        self.import.runs.push(ImportedRun { run, segments: Vec::new(), created_on_line: line });
        self.import.facts.push(ImportedFact::Run { index, recorded: Box::new(recorded) });
        self.import.report.events += 1;
        Ok(())
    }

    fn go_on(&mut self, line: u64, index: usize, recorded: Recorded) -> Result<(), ImportError> {
        let imported = &mut self.import.runs[index];
        let beaten_before = imported.run.last_beat.is_some();
        let say = |error| ImportError::bad_line(line, format!("run {}: {error}", recorded.run));
        imported.run.evolve(&recorded).map_err(say)?;
        self.import.report.events += 1;
        match &recorded.event {
            RunEvent::Heartbeat { attempt, progress: None } if beaten_before => {
                let beat = Beat { version: recorded.version, at: recorded.recorded_at.as_micros() };
                match imported.segments.last_mut() {
                    Some((same, beats)) if same == attempt && beats.len() < SEGMENT_BEATS_MAX => {
                        beats.push(beat);
                    }
                    _ => imported.segments.push((*attempt, vec![beat])),
                }
            }
            _ => self.import.facts.push(ImportedFact::Run { index, recorded: Box::new(recorded) }),
        }
        Ok(())
    }

    fn service(&mut self, line: u64, recorded: ServiceRecorded) -> Result<(), ImportError> {
        let recorded_at = recorded.recorded_at;
        match &recorded.event {
            ServiceEvent::Deaf { from, to, .. } if *from > *to => {
                return Err(ImportError::bad_line(
                    line,
                    format!("the deaf span ends at {to}, before it starts ({from})"),
                ));
            }
            ServiceEvent::Deaf { to, .. } if *to > self.now => {
                return Err(ImportError::bad_line(line, format!("the deaf span ends at {to}, in the future")));
            }
            ServiceEvent::BeatsCompacted { through, .. } if *through > COMPACTED_MAX => {
                let problem = format!("rows up to {through} were compacted, and no store ever had so many");
                return Err(ImportError::bad_line(line, problem));
            }
            ServiceEvent::PolicySet { lane, policy_version, .. } => {
                if let Some((version, at)) = self.policies.get(lane)
                    && (*policy_version <= *version || recorded_at < *at)
                {
                    let problem = format!(
                        "policy version {policy_version} of lane `{lane}`, recorded at {recorded_at}, follows on \
                             version {version}, recorded at {at}; both must increase"
                    );
                    return Err(ImportError::bad_line(line, problem));
                }
                self.policies.insert(lane.clone(), (*policy_version, recorded_at));
            }
            _ => {}
        }
        self.import.first_service_line.get_or_insert(line);
        self.import.facts.push(ImportedFact::Service(Box::new(recorded)));
        self.import.report.service_events += 1;
        Ok(())
    }

    fn finish(mut self) -> Result<CheckedImport, ImportError> {
        let mut open_keys: HashMap<&Name, RunId> = HashMap::new();
        for imported in &self.import.runs {
            let run = &imported.run;
            let Some(key) = run.unique_key.as_ref().filter(|_| !run.status.is_terminal()) else {
                continue;
            };
            if let Some(other) = open_keys.insert(key, run.id) {
                let problem = format!("run {} and run {other} are both open with the unique key `{key}`", run.id);
                return Err(ImportError::bad_line(imported.created_on_line, problem));
            }
        }
        self.import.report.runs = self.import.runs.len() as u64;
        Ok(self.import)
    }
}
