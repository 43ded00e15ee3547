//! One pass: what is due, planned and carried out.

use std::time::Instant;

use lastbeat_domain::decide::{Command, RefusalCode};
use lastbeat_domain::event::RunEvent;
use lastbeat_domain::{Name, Span, Timestamp, explain};
use lastbeat_store::{Answer, CommandError, Filter, Judged, Store, StoreError, ask};

use crate::plan::SweepPlan;
use crate::report::{ReapedRun, SweepReport};

/// How many runs are judged and written at a time.
const BATCH_RUNS: usize = 500;

/// Looks at every run that is due when the pass starts, reaps those that have lapsed, and re-arms the others. What is
/// due only because its lane's policy changed is re-armed first.
///
/// # Errors
/// If the store fails. What was reaped until then stays reaped.
pub async fn pass(store: &dyn Store, sweeper: &Name) -> Result<SweepReport, StoreError> {
    let started = Instant::now();
    let mut report = SweepReport::new(store.now().await?, false);
    finish_rearming(store, &mut report).await?;
    loop {
        let due = store.due(report.at, BATCH_RUNS).await?;
        let full = due.len() == BATCH_RUNS;
        let judged: Vec<Judged> = due.into_iter().map(|due| due.judged).collect();
        let plan = SweepPlan::new(&judged);
        carry_out(store, sweeper, &plan, &mut report).await?;
        if !full {
            break;
        }
    }
    report.duration = elapsed(started);
    Ok(report)
}

/// Judges every run that is open at log time `at` and says what a pass would reap then. Writes nothing.
///
/// # Errors
/// If the store fails.
pub async fn dry_run(store: &dyn Store, at: Option<Timestamp>) -> Result<SweepReport, StoreError> {
    let started = Instant::now();
    let now = store.now().await?;
    let mut report = SweepReport::new(at.unwrap_or(now), true);
    let mut after = None;
    loop {
        let page = ask::list(store, &Filter::default(), None, after, BATCH_RUNS).await?;
        for judged in page.runs {
            let judged = match at {
                Some(at) => ask::run_at(store, judged.run.id, at).await?,
                None => Some(judged),
            };
            if let Some(judged) = judged.filter(|judged| !judged.run.status.is_terminal()) {
                foresee(&judged, &mut report);
            }
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    report.duration = elapsed(started);
    Ok(report)
}

fn foresee(judged: &Judged, report: &mut SweepReport) {
    report.examined += 1;
    let may_be_reaped =
        judged.policy.terms.mode == lastbeat_domain::policy::Mode::Enforce && judged.listening.deaf_since().is_none();
    if let Some(charge) = judged.verdict.charge.filter(|_| judged.verdict.is_lapsed() && may_be_reaped) {
        let (run, lane) = (judged.run.id, judged.run.lane.clone());
        let message = explain::reap_message(&judged.run, &charge);
        report.reaped.push(ReapedRun { run, lane, rule: charge.rule, message });
    }
}

async fn finish_rearming(store: &dyn Store, report: &mut SweepReport) -> Result<(), StoreError> {
    for lane in store.lanes_to_rearm().await? {
        loop {
            let command = Command::RearmLane { lane: lane.clone(), limit: 500 };
            let mut rearmed = 0;
            for outcome in store.execute(vec![command]).await {
                match outcome {
                    Ok(answer) => rearmed = answer.rearmed,
                    Err(CommandError::Failed(error)) => return Err(error),
                    Err(CommandError::Refused(_)) => {}
                }
            }
            report.rearmed += rearmed;
            if rearmed < 500 {
                break;
            }
        }
    }
    Ok(())
}

async fn carry_out(
    store: &dyn Store,
    sweeper: &Name,
    plan: &SweepPlan,
    report: &mut SweepReport,
) -> Result<(), StoreError> {
    let reap = plan.reap.iter().map(|run| Command::Reap { run: *run, by: sweeper.clone(), by_hand: None });
    let rearm = plan.rearm.iter().map(|run| Command::Rearm { run: *run });
    let outcomes = store.execute(reap.chain(rearm).collect()).await;
    for (index, outcome) in outcomes.into_iter().enumerate() {
        report.examined += 1;
        let reaping = index < plan.reap.len();
        match outcome {
            Ok(answer) if reaping => report.reaped.extend(reaped(&answer)),
            Ok(_) => report.rearmed += 1,
            Err(CommandError::Failed(error)) => return Err(error),
            Err(CommandError::Refused(refusal)) => match refusal.code {
                RefusalCode::NotLapsed => report.lost_races += 1,
                _ => report.rearmed += 1,
            },
        }
    }
    Ok(())
}

fn reaped(answer: &Answer) -> Option<ReapedRun> {
    let run = &answer.judged.as_ref()?.run;
    answer.appended.iter().find_map(|recorded| match &recorded.event {
        RunEvent::TimedOut { rule, message, .. } => {
            Some(ReapedRun { run: run.id, lane: run.lane.clone(), rule: *rule, message: message.clone() })
        }
        _ => None,
    })
}

fn elapsed(started: Instant) -> Span {
    Span::from_micros(u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX))
}
