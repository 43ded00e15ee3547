//! Backtests of a lane: its facts are read from one snapshot, and judged as they come. See [`lastbeat_domain::backtest`].

use lastbeat_domain::alternative::Alternative;
use lastbeat_domain::backtest::{Backtest, BacktestReport};
use lastbeat_domain::{Name, RunId, Timestamp};

use crate::Watch;
use crate::error::StoreError;
use crate::past::{self, Wanted};
use crate::record::Stored;
use crate::service::ServiceLog;
use crate::truth::Source;

/// What is asked of a lane's past.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// The lane.
    pub lane: Name,
    /// What is tried; none: heartbeat windows around the one that is in force.
    pub alternatives: Vec<Alternative>,
    /// Only runs that were created at this log time or later.
    pub since: Option<Timestamp>,
    /// How many wrong reaps are named for each alternative at the most.
    pub named_max: usize,
}

/// Answers a question, as of `now`, from what one snapshot shows.
pub(crate) async fn backtest(
    source: &mut dyn Source,
    service: &ServiceLog,
    now: Timestamp,
    question: &Question,
    watch: &Watch<'_>,
) -> Result<BacktestReport, StoreError> {
    let lane = &question.lane;
    let alternatives = match &question.alternatives[..] {
        [] => Alternative::suggested(&service.policy(lane, now).terms),
        named => named.to_vec(),
    };
    let now = now.max(source.head().await?.latest_at);
    let mut backtest = Backtest::new(
        service.policies(lane).iter().cloned(),
        alternatives,
        service.listening(now),
        now,
        question.named_max,
    );
    let wanted = Wanted { lane: lane.clone(), since: question.since };
    let mut take = |fact: &Stored| match fact {
        Stored::Known(recorded) => {
            backtest.take(recorded).map_err(|source| StoreError::CorruptStream { run: recorded.run, source })
        }
        Stored::Unknown(unknown) => {
            let (run, recorded_at): (RunId, Timestamp) = (unknown.run, unknown.recorded_at);
            backtest.take_unknown(run, recorded_at);
            Ok(())
        }
    };
    past::each_fact(source, &wanted, watch, &mut take).await?;
    Ok(backtest.finish())
}
