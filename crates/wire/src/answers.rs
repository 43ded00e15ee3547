//! Documents made from a store. Every answer about a run is a verdict of the rule, at the log's now.

use std::collections::BTreeMap;
use std::sync::Arc;

use lastbeat_domain::alternative::AlternativeError;
use lastbeat_domain::event::RunEvent;
use lastbeat_domain::hold::{HeldSpan, HoldState};
use lastbeat_domain::run::Outcome;
use lastbeat_domain::{Liveness, Name, Recorded, Rule, RunId, Span, Status, Terms, Timestamp, explain};
use lastbeat_store::ask::LookedBack;
use lastbeat_store::{
    Answer, Bundle, FeedEntry, FeedFact, Filter, Heard, Judged, Question, ReapCount, ReapTally, ServiceLog, Store,
    StoreError, Stored, Stretch, Watch, With, ask,
};

use crate::backtest::{BacktestDocument, BacktestRequest, EXAMPLES, EXAMPLES_MAX};
use crate::case::{CaseDocument, ExpectDocument};
use crate::events::{EventDocument, EventsPage};
use crate::heartbeat::{Directive, HeartbeatDocument};
use crate::hold::{HoldDocument, HoldKind, HoldsPage, ReleaseDocument};
use crate::lane::{FalseReapRateDocument, FalseReapsDocument, LaneDocument, LanesPage};
use crate::replay::{ReplayDocument, StretchDocument};
use crate::run::{AnswerDocument, RunDocument, RunsPage, Seen};
use crate::why::{Past, WhyDocument};

/// How many runs are named when a policy is refused.
const NAMED_MAX: usize = 5;

/// Says why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is no such run.
    #[error("there is no run {0}; `lastbeat run list` shows what there is")]
    UnknownRun(RunId),
    /// The run was made later.
    #[error("run {run} was not there at {at}; `lastbeat history` shows when it was created")]
    NotThereYet {
        /// The run.
        run: RunId,
        /// The instant that was asked about.
        at: Timestamp,
    },
    /// The attempt was not reaped.
    #[error("attempt {attempt} of run {run} was not reaped; leave the attempt out to see how it is")]
    NotReaped {
        /// The run.
        run: RunId,
        /// The attempt.
        attempt: u32,
    },
    /// Open runs would lapse at once under a policy.
    #[error(
        "under this policy {} open runs would lapse at once: {}; force it (--force, or ?force=true) to set it all the \
         same",
        .0.len(), named(.0)
    )]
    WouldLapse(Vec<RunId>),
    /// A policy cannot be tried.
    #[error(transparent)]
    Alternative(#[from] AlternativeError),
    /// More wrong reaps are to be named than are.
    #[error("examples: {0} are asked for, and at most {EXAMPLES_MAX} are given")]
    TooManyExamples(u32),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn named(runs: &[RunId]) -> String {
    let named: Vec<String> = runs.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    let more = runs.len().saturating_sub(NAMED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", named.join(", "))
}

impl AskError {
    /// Returns the word for it in JSON; `None` where the store failed, which has words of its own.
    pub const fn code(&self) -> Option<&'static str> {
        match self {
            AskError::UnknownRun(_) | AskError::NotThereYet { .. } => Some("unknown_run"),
            AskError::NotReaped { .. } => Some("not_reaped"),
            AskError::WouldLapse(_) => Some("would_lapse"),
            AskError::Alternative(_) | AskError::TooManyExamples(_) => Some("invalid"),
            AskError::Store(_) => None,
        }
    }
}

impl<'a> From<&'a Judged> for Seen<'a> {
    fn from(judged: &'a Judged) -> Seen<'a> {
        let Judged { run, verdict, policy, listening, at } = judged;
        Seen { run, verdict, policy, listening, at: *at }
    }
}

impl From<&Judged> for RunDocument {
    fn from(judged: &Judged) -> RunDocument {
        RunDocument::of(judged.into())
    }
}

impl From<&Heard> for HeartbeatDocument {
    fn from(heard: &Heard) -> HeartbeatDocument {
        HeartbeatDocument {
            run: heard.run,
            status: Status::Running,
            attempt: heard.attempt,
            version: heard.version,
            at: heard.at,
            directive: Directive::after_heartbeat(heard.cancel_requested),
            next_beat_within_seconds: heard.interval,
            lapses_at: heard.lapses_at,
        }
    }
}

impl From<Stored> for EventDocument {
    fn from(stored: Stored) -> EventDocument {
        match stored {
            Stored::Known(recorded) => recorded.into(),
            // A fact holds nothing that JSON cannot.
            Stored::Unknown(unknown) => EventDocument::Unknown(serde_json::to_value(unknown).unwrap_or_default()),
        }
    }
}

impl From<FeedEntry> for EventDocument {
    fn from(entry: FeedEntry) -> EventDocument {
        match entry.fact {
            FeedFact::Run(stored) => stored.into(),
            FeedFact::Service(line) => {
                EventDocument::parse(&line).unwrap_or(EventDocument::Unknown(serde_json::Value::String(line)))
            }
        }
    }
}

impl FalseReapsDocument {
    /// Tells how often the reaps of a lane were wrong.
    pub fn of(reaps: &ReapTally, lane: &Name) -> FalseReapsDocument {
        let all = reaps.of_lane(lane).fold(ReapCount::default(), |all, (_, count)| all.plus(count));
        let by_window = reaps.of_lane(lane).map(|(kind, count)| FalseReapRateDocument {
            rule: kind.rule,
            heartbeat_window_seconds: kind.window,
            reaped: count.reaped,
            wrong: count.wrong,
            rate: count.rate(),
        });
        FalseReapsDocument { reaped: all.reaped, wrong: all.wrong, rate: all.rate(), by_window: by_window.collect() }
    }
}

impl From<Stretch> for StretchDocument {
    fn from(stretch: Stretch) -> StretchDocument {
        let Stretch { from, to, status, attempt, verdict, rule, because } = stretch;
        StretchDocument { from, to, status, attempt, verdict, rule, because }
    }
}

impl AnswerDocument {
    /// Shows the run that a command was about, after it; `None` for a heartbeat and a command about no run.
    pub fn after(answer: &Answer) -> Option<AnswerDocument> {
        let judged = answer.judged.as_deref()?;
        Some(AnswerDocument::of(judged.into(), answer.existing, answer.input.clone()))
    }
}

/// Shows a run.
///
/// # Errors
/// If there is no such run, or the store fails.
pub async fn run(store: &dyn Store, id: RunId) -> Result<RunDocument, AskError> {
    let judged = ask::run(store, id).await?.ok_or(AskError::UnknownRun(id))?;
    Ok((&judged).into())
}

/// Lists runs, newest first. `next` is the run after which the next page begins.
///
/// # Errors
/// If the run `after` is not there, or the store fails.
pub async fn runs(
    store: &dyn Store,
    filter: &Filter,
    liveness: Option<Liveness>,
    after: Option<RunId>,
    limit: usize,
) -> Result<RunsPage, AskError> {
    if let Some(after) = after
        && store.run(after).await?.is_none()
    {
        return Err(AskError::UnknownRun(after));
    }
    let page = ask::list(store, filter, liveness, after, limit).await?;
    let next = page.next.map(|next| next.to_string());
    Ok(RunsPage { runs: page.runs.iter().map(RunDocument::from).collect(), next })
}

/// Says why a run is as it is, now or at log time `at`; of an attempt: why that was reaped.
///
/// Of a run that is open now the projection says it all. Else its stream is read, a page at a time.
///
/// # Errors
/// If there is no such run, it was not there yet, the attempt was not reaped, or the store fails.
pub async fn why(
    store: &dyn Store,
    id: RunId,
    at: Option<Timestamp>,
    attempt: Option<u32>,
) -> Result<WhyDocument, AskError> {
    let run = store.run(id).await?.ok_or(AskError::UnknownRun(id))?;
    if at.is_none() && attempt.is_none() && !run.status.is_terminal() {
        let judged = ask::run(store, id).await?.ok_or(AskError::UnknownRun(id))?;
        let held = held_since_basis(store, &judged).await?;
        return Ok(WhyDocument::of((&judged).into(), Past { life: None, held: &held }));
    }
    let at = match at {
        Some(at) => at,
        None => store.now().await?.max(run.updated_at),
    };
    let back = ask::look_back(store, &run, at, attempt).await?.ok_or(AskError::NotThereYet { run: id, at })?;
    let LookedBack { judged, life } = &back;
    if let Some(attempt) = attempt {
        let reap = life.reap.as_ref().ok_or(AskError::NotReaped { run: id, attempt })?;
        let held = held_before(store, judged, reap).await?;
        return Ok(WhyDocument::of_reap(judged.into(), Past { life: Some(life), held: &held }, reap));
    }
    let held = match (&life.reap, judged.run.status) {
        (Some(reap), Status::TimedOut) => held_before(store, judged, reap).await?,
        _ => held_since_basis(store, judged).await?,
    };
    let life = Some(life).filter(|_| judged.run.status.is_terminal());
    Ok(WhyDocument::of(judged.into(), Past { life, held: &held }))
}

/// When the lane was held while the silence lasted that the governing rule charges.
async fn held_since_basis(store: &dyn Store, judged: &Judged) -> Result<Vec<HeldSpan>, StoreError> {
    match &judged.verdict.charge {
        Some(charge) if charge.rule == Rule::HeartbeatSilence => {
            let service = store.service_log().await?;
            Ok(service.held_between(&judged.run.lane, charge.basis.at, judged.at))
        }
        _ => Ok(Vec::new()),
    }
}

/// When the lane was held while the silence lasted for which an attempt was reaped.
async fn held_before(store: &dyn Store, judged: &Judged, reap: &Recorded) -> Result<Vec<HeldSpan>, StoreError> {
    match &reap.event {
        RunEvent::TimedOut { rule: Rule::HeartbeatSilence, evidence: Some(evidence), .. } => {
            let service = store.service_log().await?;
            Ok(service.held_between(&judged.run.lane, evidence.basis.at, reap.recorded_at))
        }
        _ => Ok(Vec::new()),
    }
}

/// Replays a run up to log time `at`, or up to now.
///
/// # Errors
/// If there is no such run, it was not there yet, or the store fails.
pub async fn replay(store: &dyn Store, id: RunId, at: Option<Timestamp>) -> Result<ReplayDocument, AskError> {
    if store.run(id).await?.is_none() {
        return Err(AskError::UnknownRun(id));
    }
    let at = match at {
        Some(at) => at,
        None => store.now().await?,
    };
    let replay = lastbeat_store::replay(store, id, at).await?.ok_or(AskError::NotThereYet { run: id, at })?;
    let stretches = replay.stretches.into_iter().map(StretchDocument::from).collect();
    Ok(ReplayDocument { run: id, at, stretches, state: (&replay.judged).into() })
}

/// Makes a case of a run for a regression test: its history with all that bears on it, an instant, and the verdict that
/// it had then. Without an instant it is the one just before the run ended, or now.
///
/// # Errors
/// If there is no such run, it was not there yet, or the store fails.
pub async fn case(store: Arc<dyn Store>, id: RunId, at: Option<Timestamp>) -> Result<CaseDocument, AskError> {
    let run = store.run(id).await?.ok_or(AskError::UnknownRun(id))?;
    // What was adopted had ended before, by the reap.
    let ended = match &run.outcome {
        Some(Outcome { event: RunEvent::Completed { attempt, late: true, .. }, .. }) => {
            run.reaped_attempt(*attempt).map(|reaped| reaped.at)
        }
        Some(outcome) if run.status.is_terminal() => Some(outcome.at),
        _ => None,
    };
    let at = match (at, ended) {
        (Some(at), _) => at,
        (None, Some(ended)) => ended.minus(Span::from_micros(1)),
        (None, None) => store.now().await?.max(run.updated_at),
    };
    let judged = ask::run_at(store.as_ref(), id, at).await?.ok_or(AskError::NotThereYet { run: id, at })?;
    let mut history = Vec::new();
    let mut bundle = Bundle::begin(store, vec![id], With { policy: true, deaf: true }).await?;
    while let Some(lines) = bundle.next().await? {
        // What the store wrote is JSON.
        history.extend(lines.iter().map(|line| serde_json::from_str(&line.text()).unwrap_or_default()));
    }
    let charge = judged.verdict.charge;
    Ok(CaseDocument {
        name: format!("{} run {id} is {}", run.lane, judged.verdict.liveness),
        why: explain::sentence(&judged.run, &judged.verdict, &judged.policy, at),
        at,
        history,
        run: id,
        expect: ExpectDocument {
            verdict: judged.verdict.liveness,
            rule: (judged.verdict.liveness != Liveness::Settled).then(|| judged.verdict.rule()),
            charged_seconds: charge.map(|charge| charge.charged.as_seconds()),
            deaf_seconds: charge.map(|charge| charge.deaf.as_seconds()),
            lapses_at: judged.verdict.lapses_at(),
        },
    })
}

/// Returns at most `limit` facts of a run after a version. `next` is the version after which the next page begins.
///
/// # Errors
/// If there is no such run, or the store fails.
pub async fn history(store: &dyn Store, id: RunId, after: u64, limit: usize) -> Result<EventsPage, AskError> {
    let page = store.stream(id, after, limit).await?;
    // A run has facts, so only an empty page leaves open whether there is one.
    if page.facts.is_empty() && store.run(id).await?.is_none() {
        return Err(AskError::UnknownRun(id));
    }
    let next = page.next.map(|next| next.to_string());
    Ok(EventsPage { events: page.facts.into_iter().map(EventDocument::from).collect(), next })
}

/// Shows a lane, which need not have been named before.
///
/// # Errors
/// If the store fails.
pub async fn lane(store: &dyn Store, lane: &Name) -> Result<LaneDocument, AskError> {
    let (service, now, reaps) = (store.service_log().await?, store.now().await?, store.reap_tally().await?);
    shown_lane(store, &service, &reaps, now, lane).await
}

async fn shown_lane(
    store: &dyn Store,
    service: &ServiceLog,
    reaps: &ReapTally,
    now: Timestamp,
    lane: &Name,
) -> Result<LaneDocument, AskError> {
    let runs: BTreeMap<Status, u64> = store.count(lane).await?;
    Ok(LaneDocument::of(lane.clone(), service.policy(lane, now), runs, FalseReapsDocument::of(reaps, lane)))
}

/// Shows all lanes.
///
/// # Errors
/// If the store fails.
pub async fn lanes(store: &dyn Store) -> Result<LanesPage, AskError> {
    let (service, now, reaps) = (store.service_log().await?, store.now().await?, store.reap_tally().await?);
    let mut lanes = Vec::new();
    for lane in store.lanes().await? {
        lanes.push(shown_lane(store, &service, &reaps, now, &lane).await?);
    }
    Ok(LanesPage { lanes, next: None })
}

/// Makes sure that no open run of a lane would lapse at once under other terms.
///
/// # Errors
/// Names the runs that would, or if the store fails.
pub async fn nothing_would_lapse(store: &dyn Store, lane: &Name, terms: &Terms) -> Result<(), AskError> {
    let lapsing = ask::would_lapse(store, lane, terms).await?;
    if lapsing.is_empty() { Ok(()) } else { Err(AskError::WouldLapse(lapsing)) }
}

/// Judges a lane's recorded past under other policies. `watch` may break it off.
///
/// # Errors
/// If what is asked for cannot be tried, or the store fails.
pub async fn backtest(
    store: &dyn Store,
    lane: Name,
    request: &BacktestRequest,
    watch: &Watch<'_>,
) -> Result<BacktestDocument, AskError> {
    let (alternatives, since) = (request.alternatives()?, request.since);
    let examples = request.examples.unwrap_or(EXAMPLES);
    if examples > EXAMPLES_MAX {
        return Err(AskError::TooManyExamples(examples));
    }
    let question = Question { lane, alternatives, since, named_max: examples as usize };
    let report = store.backtest(&question, watch).await?;
    Ok(BacktestDocument::of(question.lane, since, &report))
}

/// Shows the lanes that are held or drained.
///
/// # Errors
/// If the store fails.
pub async fn holds(store: &dyn Store) -> Result<HoldsPage, AskError> {
    let (service, now) = (store.service_log().await?, store.now().await?);
    let mut holds = Vec::new();
    for (lane, hold) in service.holds() {
        let terms = service.policy(lane, now).terms;
        let (state, since, ends_by) = match hold.state {
            HoldState::Held { since } => (HoldKind::Held, since, Some(since.plus(terms.hold_max))),
            HoldState::Draining { since } => (HoldKind::Draining, since, None),
            HoldState::Free => continue,
        };
        let census = ask::census(store, lane).await?;
        holds.push(HoldDocument {
            lane: lane.clone(),
            state,
            since,
            ends_by,
            held_at: hold.held_at,
            silent_when_held: hold.census.silent,
            beating_when_held: hold.census.beating,
            lapsed: census.lapsed,
            silent: census.silent,
            beating: census.beating,
            reap_rate: terms.reap_rate,
        });
    }
    Ok(HoldsPage { holds, next: None })
}

/// Shows a lane whose hold was just released.
///
/// # Errors
/// If the store fails.
pub async fn released(store: &dyn Store, lane: Name) -> Result<ReleaseDocument, AskError> {
    let reap_rate = store.service_log().await?.policy(&lane, store.now().await?).terms.reap_rate;
    Ok(ReleaseDocument { lane, state: HoldKind::Draining, reap_rate })
}
