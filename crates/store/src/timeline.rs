//! The timeline of a run, as it is drawn: its facts, and what each silence between them was worth.
//!
//! Just before each fact the run is judged as it was then. What the governing rule held against it at that instant is a
//! [`Silence`]: it began with the basis of the charge and ended with the fact. So what is drawn is what the rule said,
//! to the microsecond, deaf time and changed policies included, and nobody has to compute a charge a second time.

use lastbeat_domain::verdict::Charge;
use lastbeat_domain::{Listening, Rule, Run, RunId, Span, Timestamp, judge};

use crate::ask::whole_stream;
use crate::error::StoreError;
use crate::record::{Stored, take_in};
use crate::{Judged, ServiceLog, Store};

/// A run with its past, up to an instant of log time.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// Its facts, in order.
    pub facts: Vec<Stored>,
    /// Its silences, in order; the last one may still go on.
    pub silences: Vec<Silence>,
    /// When nobody listened, from its creation to its last fact, or until now while it is open: in order, each with its
    /// end.
    pub deaf: Vec<(Timestamp, Timestamp)>,
    /// The run at the end of it all.
    pub judged: Judged,
}

/// A time in which a rule held a silence against a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Silence {
    /// The log time from which it was charged.
    pub from: Timestamp,
    /// The log time of the fact that ended it, or up to which the timeline goes.
    pub to: Timestamp,
    /// The rule that governed at its end.
    pub rule: Rule,
    /// How much may be charged under it.
    pub window: Span,
    /// How much was charged at its end.
    pub charged: Span,
    /// The deaf time in it, which is not charged.
    pub deaf: Span,
    /// Whether the run had lapsed at its end, as the rule said.
    pub lapsed: bool,
    /// The version of the fact from which it was charged.
    basis: u64,
    /// How much was charged by and by: at the start, at the end, and where deaf time begins and ends.
    pub course: Vec<(Timestamp, Span)>,
}

impl Silence {
    fn of(charge: &Charge, lapsed: bool, listening: &Listening, to: Timestamp) -> Silence {
        let from = charge.basis.at;
        let mut instants = vec![from];
        for (start, end) in listening.spans_between(from, to) {
            instants.extend([start, end]);
        }
        instants.push(to);
        let course = instants.into_iter().map(|at| (at, listening.charged(from, at))).collect();
        let (rule, window, charged, deaf) = (charge.rule, charge.window, charge.charged, charge.deaf);
        Silence { from, to, rule, window, charged, deaf, lapsed, basis: charge.basis.version, course }
    }

    /// Returns which share of the window was charged at its end.
    pub fn share(&self) -> f64 {
        self.share_of(self.charged)
    }

    /// Returns which share of the window a charge is.
    pub fn share_of(&self, charged: Span) -> f64 {
        charged.as_seconds() / self.window.as_seconds().max(1e-6)
    }
}

/// Reads the timeline of a run up to the log's now; `None` if there is no such run.
///
/// # Errors
/// If the store fails, or the stream is damaged.
pub async fn timeline(store: &dyn Store, id: RunId) -> Result<Option<Timeline>, StoreError> {
    let facts = whole_stream(store, id).await?;
    let service = store.service_log().await?;
    let now = store.now().await?;
    let damaged = |source| StoreError::CorruptStream { run: id, source };
    let (mut run, mut silences): (Option<Run>, Vec<Silence>) = (None, Vec::new());
    for fact in &facts {
        if let Some(run) = &run {
            note(&mut silences, run, &service, fact.recorded_at());
        }
        take_in(&mut run, fact).map_err(damaged)?;
    }
    let (Some(run), Some(created)) = (run, facts.first().map(Stored::recorded_at)) else { return Ok(None) };
    let at = now.max(run.updated_at);
    note(&mut silences, &run, &service, at);
    let listening = service.listening(at);
    let end = if run.status.is_terminal() { run.updated_at } else { at };
    let deaf = listening.spans_between(created, end);
    let policy = service.policy(&run.lane, at);
    let judged = Judged::new(run, policy, listening.into(), at);
    Ok(Some(Timeline { facts, silences, deaf, judged }))
}

/// Judges a run at an instant and notes the silence that is held against it: one with the same basis goes on.
fn note(silences: &mut Vec<Silence>, run: &Run, service: &ServiceLog, at: Timestamp) {
    let listening = service.listening(at);
    let verdict = judge(run, &service.policy(&run.lane, at), &listening, at);
    let Some(charge) = verdict.charge else { return };
    let silence = Silence::of(&charge, verdict.is_lapsed(), &listening, at);
    match silences.last_mut() {
        Some(last) if last.basis == silence.basis && last.rule == silence.rule => *last = silence,
        _ => silences.push(silence),
    }
}
