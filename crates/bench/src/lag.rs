//! Detection lag: how long after it lapsed a run that died is reaped, while others go on.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lastbeat_domain::decide::{Claimant, RunSpec};
use lastbeat_domain::{ClaimId, Command, Name, Recorded, RunEvent, Span};
use lastbeat_store::{Store, Stored};
use lastbeat_sweeper::{Sweeper, sweep_until};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::fleet::{Member, members};
use crate::lastbeat::{Lastbeat, heartbeat, tell, terms};
use crate::row::{Bound, Row};
use crate::size::Size;
use crate::statistics::percentile;

/// After how long a silence the runs lapse, and how often they beat until then.
const WINDOW: Span = Span::from_seconds(2);
const INTERVAL: Duration = Duration::from_millis(500);
/// How often one of them dies.
const DEATH_INTERVAL: Duration = Duration::from_millis(40);
/// How many of them beat to the end, for each that dies.
const SURVIVORS_PER_DEATH: usize = 2;
/// How often the sweeper looks at the least.
const SWEEP_INTERVAL: Span = Span::from_seconds(1);
/// How long after the last death all are reaped, or never will be.
const PATIENCE: Duration = Duration::from_secs(30);

/// Lets runs die one by one in a store that is full of others, and measures how late their reaps are.
pub(crate) async fn measure(lastbeat: &Lastbeat, size: &Size) -> Result<Row> {
    let store = &lastbeat.store;
    let fleet = members(size.deaths * (1 + SURVIVORS_PER_DEATH));
    let (dying, surviving) = fleet.split_at(size.deaths);
    let lane = Name::new("detection")?;
    let terms = Box::new(terms(WINDOW));
    tell(&**store, vec![Command::SetPolicy { lane: lane.clone(), terms, expected_version: None, by: None }]).await?;
    let (stop, stopped) = watch::channel(false);
    let mut sweeper = Sweeper::new(Name::new("bench-detector")?, store.clock());
    let (reaped, mut reaps) = watch::channel(0);
    let sweeping = tokio::spawn({
        let (store, mut stopped) = (Arc::clone(store), stopped.clone());
        async move {
            let stop = async move { drop(stopped.wait_for(|stop| *stop).await) };
            let told = |report: &lastbeat_sweeper::SweepReport| reaped.send_modify(|all| *all += report.reaped.len());
            sweep_until(&*store, &mut sweeper, SWEEP_INTERVAL, stop, told).await
        }
    });
    let mut executors = JoinSet::new();
    for (number, member) in fleet.iter().enumerate() {
        let dies_after = (number < dying.len()).then(|| INTERVAL * 4 + DEATH_INTERVAL * number as u32);
        executors.spawn(execute(Arc::clone(store), *member, lane.clone(), dies_after, stopped.clone()));
    }
    let patience = DEATH_INTERVAL * dying.len() as u32 + WINDOW.to_std() + PATIENCE;
    let all_reaped = tokio::time::timeout(patience, reaps.wait_for(|reaped| *reaped >= dying.len())).await;
    ensure!(all_reaped.is_ok(), "after {patience:?} not all of {} dead runs were reaped", dying.len());
    stop.send_replace(true);
    while let Some(executor) = executors.join_next().await {
        executor??;
    }
    sweeping.await??;
    row(&**store, dying, surviving).await
}

/// An executor: makes a run, claims it, and beats until its time has come or all is over.
async fn execute(
    store: Arc<dyn Store>,
    member: Member,
    lane: Name,
    dies_after: Option<Duration>,
    mut stopped: watch::Receiver<bool>,
) -> Result<()> {
    let claim = ClaimId::from_uuid(member.claim);
    let claimant = Claimant { executor: Name::new("bench-executor")?, device: None, claim };
    let spec = Box::new(RunSpec::of_lane(lane));
    tell(&*store, vec![Command::Create { run: member.run(), spec, claim: Some(claimant) }]).await?;
    let work = async {
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            ticks.tick().await;
            tell(&*store, vec![heartbeat(member)]).await?;
        }
    };
    let died = async {
        match dies_after {
            Some(span) => tokio::time::sleep(span).await,
            None => drop(stopped.wait_for(|stop| *stop).await),
        }
    };
    tokio::select! {
        failed = work => failed,
        () = died => Ok(()),
    }
}

async fn row(store: &dyn Store, dying: &[Member], surviving: &[Member]) -> Result<Row> {
    let mut lags = Vec::new();
    for member in dying {
        lags.push(lag(store, *member).await?);
    }
    for member in surviving {
        let run = store.run(member.run()).await?.context("a run that was made is not there")?;
        ensure!(run.reaped.is_empty(), "run {} was reaped although it beat", run.id);
    }
    let [half, most, worst] = [0.5, 0.99, 1.0].map(|share| percentile(&lags, share));
    let note = format!(
        "{} runs that died one by one while {} beat; median {half:.1} ms, worst {worst:.1} ms",
        dying.len(),
        surviving.len()
    );
    Ok(Row::new("detection lag, p99", "ms", &[most]).goal(Bound::AtMost(100.0)).note(note))
}

/// Returns by how many milliseconds the reap of a run followed on its lapse.
async fn lag(store: &dyn Store, member: Member) -> Result<f64> {
    let mut after = 0;
    loop {
        let page = store.stream(member.run(), after, 1_000).await?;
        if let Some(lag) = page.facts.iter().find_map(lag_of) {
            return Ok(lag);
        }
        after = page.next.with_context(|| format!("run {} has no reap in its stream", member.run()))?;
    }
}

fn lag_of(stored: &Stored) -> Option<f64> {
    let Stored::Known(Recorded { recorded_at, event: RunEvent::TimedOut { evidence, .. }, .. }) = stored else {
        return None;
    };
    let evidence = evidence.as_ref()?;
    // Nothing was deaf between the lapse and the verdict, so the clock and the charge ran alike.
    let lapses_at = evidence.judged_at.minus(evidence.charged.minus(evidence.window));
    Some(recorded_at.since(lapses_at).as_seconds() * 1e3)
}
