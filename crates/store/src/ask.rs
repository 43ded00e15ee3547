//! Questions about runs. Every answer is a verdict of [`judge`](lastbeat_domain::judge): reading is judging.

use std::sync::Arc;

use lastbeat_domain::hold::Census;
use lastbeat_domain::life::Surroundings;
use lastbeat_domain::{Life, Listening, Liveness, Name, Run, RunId, Status, Timestamp, Verdict};

use crate::error::StoreError;
use crate::record::{Stored, take_in};
use crate::{Filter, Judged, ServiceLog, Store};

/// How many facts are read of a stream at a time.
const PAGE_FACTS: usize = 10_000;
/// How many runs are read at a time while looking for those with a verdict.
const PAGE_RUNS: usize = 500;
/// How many runs are judged to tell how much of a lane is silent.
const SAMPLE_RUNS: usize = 1_000;

/// Returns a run judged at the log's now; `None` if there is no such run.
///
/// # Errors
/// If the store fails.
pub async fn run(store: &dyn Store, id: RunId) -> Result<Option<Judged>, StoreError> {
    let Some(run) = store.run(id).await? else {
        return Ok(None);
    };
    let at = store.now().await?.max(run.updated_at);
    Ok(Some(judged(store, run, at).await?))
}

/// Returns a run as it was at log time `at`, judged then by what was known then; `None` if it was not there yet. An
/// instant in the future is answered as if nothing more were heard until then.
///
/// # Errors
/// If the store fails, or the stream is damaged.
pub async fn run_at(store: &dyn Store, id: RunId, at: Timestamp) -> Result<Option<Judged>, StoreError> {
    match fold_until(store, id, at, &mut |_, _| ()).await? {
        Some(run) => Ok(Some(judged(store, run, at).await?)),
        None => Ok(None),
    }
}

/// A run looked back on.
#[derive(Clone, Debug)]
pub struct LookedBack {
    /// The run as it was at the instant of the question.
    pub judged: Judged,
    /// The attempt that was asked about.
    pub life: Life,
}

/// Looks back at log time `at` on an attempt of a run, or on the last one; `None` if the run was not there yet. Of what
/// came later nothing is known.
///
/// # Errors
/// If the store fails, or the stream is damaged.
pub async fn look_back(
    store: &dyn Store,
    run: &Run,
    at: Timestamp,
    attempt: Option<u32>,
) -> Result<Option<LookedBack>, StoreError> {
    let service = store.service_log().await?;
    let listening = Arc::new(service.listening(at));
    let policies = service.policies(&run.lane);
    // What was set later was not known.
    let known = policies.partition_point(|(set_at, _)| *set_at <= at);
    let around = Surroundings { policies: &policies[..known], listening: &listening };
    let mut life = Life::of(attempt);
    let mut told = |before: Option<&Run>, fact: &Stored| {
        if let Some(fact) = fact.known() {
            life.take_in(before, fact, around);
        }
    };
    let Some(run) = fold_until(store, run.id, at, &mut told).await? else { return Ok(None) };
    life.end(&run, at, around);
    let policy = service.policy(&run.lane, at);
    Ok(Some(LookedBack { judged: Judged::new(run, policy, listening, at), life }))
}

/// Folds a run's stream up to log time `at`, a page at a time, and tells each fact with the run as it was before it.
async fn fold_until(
    store: &dyn Store,
    id: RunId,
    at: Timestamp,
    told: &mut (dyn FnMut(Option<&Run>, &Stored) + Send),
) -> Result<Option<Run>, StoreError> {
    let (mut run, mut after) = (None, Some(0));
    while let Some(version) = after {
        let page = store.stream(id, version, PAGE_FACTS).await?;
        for fact in &page.facts {
            if fact.recorded_at() > at {
                return Ok(run);
            }
            told(run.as_ref(), fact);
            take_in(&mut run, fact).map_err(|source| StoreError::CorruptStream { run: id, source })?;
        }
        after = page.next;
    }
    Ok(run)
}

/// Returns the whole stream of a run; empty if there is no such run.
///
/// # Errors
/// If the store fails.
pub async fn whole_stream(store: &dyn Store, id: RunId) -> Result<Vec<Stored>, StoreError> {
    let mut stream = Vec::new();
    let mut after = Some(0);
    while let Some(version) = after {
        let page = store.stream(id, version, PAGE_FACTS).await?;
        stream.extend(page.facts);
        after = page.next;
    }
    Ok(stream)
}

/// A page of judged runs.
#[derive(Clone, Debug)]
pub struct Page {
    /// The runs, newest first.
    pub runs: Vec<Judged>,
    /// The run after which the next page begins; `None` when there is none.
    pub next: Option<RunId>,
}

/// Returns a page of runs, newest first, judged at the log's now. With `liveness` only those with that verdict.
///
/// # Errors
/// If the store fails.
pub async fn list(
    store: &dyn Store,
    filter: &Filter,
    liveness: Option<Liveness>,
    after: Option<RunId>,
    limit: usize,
) -> Result<Page, StoreError> {
    let keep = |judged: &Judged| liveness.is_none_or(|liveness| judged.verdict.liveness == liveness);
    list_where(store, filter, keep, after, limit, usize::MAX).await
}

/// The same with only those runs that `keep` keeps. After `examined_max` runs, about, it is content with fewer than
/// `limit`, or none, and says where to go on: few may be kept of many.
///
/// # Errors
/// If the store fails.
pub async fn list_where(
    store: &dyn Store,
    filter: &Filter,
    keep: impl Fn(&Judged) -> bool,
    after: Option<RunId>,
    limit: usize,
    examined_max: usize,
) -> Result<Page, StoreError> {
    let at = store.now().await?;
    let service = store.service_log().await?;
    let sitting = Sitting::at(at, &service);
    let (mut runs, mut after, mut examined) = (Vec::new(), after, 0);
    // Most often all are kept; the fewer are, the more are read at a time.
    let mut page = limit + 1;
    loop {
        let found = store.list(filter, after, page).await?;
        let last = found.len() < page;
        page = page.max((page * 2).min(PAGE_RUNS));
        after = found.last().map(|run| run.id).or(after);
        examined += found.len();
        for run in found {
            let judged = sitting.judge(run);
            if keep(&judged) {
                runs.push(judged);
            }
        }
        if runs.len() > limit {
            runs.truncate(limit);
            let next = runs.last().map(|judged| judged.run.id);
            return Ok(Page { runs, next });
        }
        if last {
            return Ok(Page { runs, next: None });
        }
        if examined >= examined_max {
            return Ok(Page { runs, next: after });
        }
    }
}

/// Returns the newest runs, at most `limit`, judged at the log's now. It reads no more than those.
///
/// # Errors
/// If the store fails.
pub async fn newest(store: &dyn Store, filter: &Filter, limit: usize) -> Result<Vec<Judged>, StoreError> {
    let (at, service) = (store.now().await?, store.service_log().await?);
    let sitting = Sitting::at(at, &service);
    let runs = store.list(filter, None, limit).await?;
    Ok(runs.into_iter().map(|run| sitting.judge(run)).collect())
}

/// Returns the running runs of a lane judged at the log's now, of more than `limit` a random choice; and how many there
/// are.
///
/// # Errors
/// If the store fails.
pub async fn running(store: &dyn Store, lane: &Name, limit: usize) -> Result<(Vec<Judged>, u64), StoreError> {
    let sample = store.running(lane, limit).await?;
    let (at, service) = (store.now().await?, store.service_log().await?);
    let sitting = Sitting::at(at, &service);
    Ok((sample.runs.into_iter().map(|run| sitting.judge(run)).collect(), sample.of))
}

/// The runs that may lapse next.
#[derive(Clone, Debug)]
pub struct Soonest {
    /// The runs that lapse if nothing more is heard of them, judged at the log's now, the soonest first.
    pub runs: Vec<Judged>,
    /// Up to which log time they are all there; `None`: all runs that may lapse are there. Lapsed runs that may not be
    /// reaped are put off, and need not be among them.
    pub through: Option<Timestamp>,
}

/// Returns those of the `limit` runs that a sweeper looks at next which may lapse. It never looks at a run later than
/// that lapses, so those that lapse next are among them.
///
/// # Errors
/// If the store fails.
pub async fn soonest(store: &dyn Store, limit: usize) -> Result<Soonest, StoreError> {
    let due = store.due(Timestamp::MAX, limit).await?;
    let (at, service) = (store.now().await?, store.service_log().await?);
    let through = due.last().filter(|_| due.len() >= limit).map(|last| last.check_at);
    let sitting = Sitting::at(at, &service);
    let judged = due.into_iter().map(|due| sitting.judge(due.judged.run));
    let mut runs: Vec<Judged> = judged.filter(|judged| judged.verdict.lapses_at().is_some()).collect();
    runs.sort_by_key(|judged| judged.verdict.lapses_at());
    Ok(Soonest { runs, through })
}

/// What many runs are judged with at one instant. The listening record is put together once for all of them: there may be
/// many spans in which nobody listened.
struct Sitting<'s> {
    at: Timestamp,
    service: &'s ServiceLog,
    listening: Arc<Listening>,
}

impl<'s> Sitting<'s> {
    fn at(at: Timestamp, service: &'s ServiceLog) -> Sitting<'s> {
        Sitting { at, service, listening: Arc::new(service.listening(at)) }
    }

    /// Judges a run; one that was heard of since, at the instant of its last fact.
    fn judge(&self, run: Run) -> Judged {
        let at = self.at.max(run.updated_at);
        let policy = self.service.policy(&run.lane, at);
        let listening = match at == self.at {
            true => Arc::clone(&self.listening),
            false => Arc::new(self.service.listening(at)),
        };
        Judged::new(run, policy, listening, at)
    }
}

/// Returns the open runs of a lane that would lapse at once under other terms, and have not lapsed under its own.
///
/// # Errors
/// If the store fails.
pub async fn would_lapse(
    store: &dyn Store,
    lane: &Name,
    terms: &lastbeat_domain::Terms,
) -> Result<Vec<RunId>, StoreError> {
    let statuses = vec![Status::Pending, Status::Claimed, Status::Running];
    let filter = Filter { lane: Some(lane.clone()), goal: None, statuses };
    let (mut lapsing, mut after) = (Vec::new(), None);
    loop {
        let page = list(store, &filter, None, after, PAGE_RUNS).await?;
        for judged in &page.runs {
            let mut policy = judged.policy.clone();
            policy.terms = terms.clone();
            let other = Judged::new(judged.run.clone(), policy, Arc::clone(&judged.listening), judged.at);
            if other.verdict.is_lapsed() && !judged.verdict.is_lapsed() {
                lapsing.push(judged.run.id);
            }
        }
        after = page.next;
        if after.is_none() {
            return Ok(lapsing);
        }
    }
}

/// Counts how many of a lane's beating runs are silent at the log's now; in a large lane from a random sample.
///
/// # Errors
/// If the store fails.
pub async fn census(store: &dyn Store, lane: &Name) -> Result<Census, StoreError> {
    let sample = store.running(lane, SAMPLE_RUNS).await?;
    let (at, service) = (store.now().await?, store.service_log().await?);
    let (policy, listening) = (service.policy(lane, at), Arc::new(service.listening(at)));
    let drawn = sample.runs.len() as u64;
    let beating = sample.runs.into_iter().filter(Run::is_beating);
    let verdicts: Vec<Verdict> = beating
        .map(|run| {
            let at = at.max(run.updated_at);
            Judged::new(run, policy.clone(), Arc::clone(&listening), at).verdict
        })
        .collect();
    let census = Census::of(&verdicts);
    if drawn == sample.of {
        return Ok(census);
    }
    let beating = u128::from(census.beating) * u128::from(sample.of) / u128::from(drawn.max(1));
    Ok(census.scaled_to(u64::try_from(beating).unwrap_or(u64::MAX)))
}

async fn judged(store: &dyn Store, run: Run, at: Timestamp) -> Result<Judged, StoreError> {
    let service = store.service_log().await?;
    let policy = service.policy(&run.lane, at);
    Ok(Judged::new(run, policy, Arc::new(service.listening(at)), at))
}
