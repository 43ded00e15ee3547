//! Lastbeat itself, used as a server or an executor uses it: through the trait of its store.

use std::collections::VecDeque;
use std::io::{BufReader, Read};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use lastbeat_domain::{Command, Name, Span, Terms, Timestamp};
use lastbeat_store::{Answer, Store, check_import};
use serde_json::json;

use crate::crowd::Hears;
use crate::fleet::Member;
use crate::ground::Database;
use crate::size::Size;

/// The tables that are the log.
pub(crate) const LOG: [&str; 3] = ["events", "beats", "segments"];

/// How long ago the runs were claimed when they are put into the store.
const AGE: Span = Span::from_seconds(60);
/// How many commands are carried out at a time where it is not measured.
const BATCH: usize = 1_000;

/// A store, the database that it is in, and the runs that are in flight in it.
pub(crate) struct Lastbeat {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) database: Database,
    fleet: Arc<Vec<Member>>,
}

impl Lastbeat {
    /// Makes a store with the first `runs` of the fleet in flight, each of which has beaten once. They come in by
    /// import, so each has its history in the log, checked.
    pub(crate) async fn seed(
        database: Database,
        fleet: &Arc<Vec<Member>>,
        runs: usize,
        size: &Size,
    ) -> Result<Lastbeat> {
        let started = Instant::now();
        lastbeat_store::postgres::migrate(&database.url).await?;
        let store = lastbeat_store::open(&database.url, false).await?;
        let now = store.now().await?;
        let (members, size) = (Arc::clone(fleet), size.clone());
        let checked = tokio::task::spawn_blocking(move || {
            let file = BufReader::with_capacity(1 << 20, Lines::new(histories(&members[..runs], &size, now)));
            check_import(file, now)
        })
        .await??;
        let checking = started.elapsed().as_secs_f64();
        let report = store.import(checked).await?;
        database.vacuum().await?;
        let took = started.elapsed().as_secs_f64();
        eprintln!(
            "  {} runs and {} facts imported in {took:.1} s ({checking:.1} of them to check)",
            report.runs, report.events
        );
        Ok(Lastbeat { store, database, fleet: Arc::clone(fleet) })
    }

    /// Lets the first `runs` of the fleet be heard of once.
    pub(crate) async fn hear_all(&self, runs: usize) -> Result<()> {
        for batch in self.fleet[..runs].chunks(BATCH) {
            self.tell(batch.iter().map(|member| heartbeat(*member)).collect()).await?;
        }
        Ok(())
    }

    /// Carries out commands, none of which may be refused.
    pub(crate) async fn tell(&self, commands: Vec<Command>) -> Result<Vec<Answer>> {
        tell(&*self.store, commands).await
    }
}

impl Hears for Lastbeat {
    async fn heartbeat(&self, place: usize) -> Result<()> {
        // As little as possible beside the store: the baselines do not do more.
        let outcome = self.store.execute(vec![heartbeat(self.fleet[place])]).await.pop();
        outcome
            .context("a heartbeat of the benchmark has no outcome")?
            .context("a heartbeat of the benchmark failed")?;
        Ok(())
    }
}

/// Carries out commands, none of which may be refused.
pub(crate) async fn tell(store: &dyn Store, commands: Vec<Command>) -> Result<Vec<Answer>> {
    let outcomes = store.execute(commands).await;
    outcomes.into_iter().map(|outcome| outcome.context("a command of the benchmark failed")).collect()
}

/// Makes the plain heartbeat of a run.
pub(crate) fn heartbeat(member: Member) -> Command {
    Command::Heartbeat { report: member.report(), progress: None }
}

/// Makes the policy of the benchmark's lanes: without hold, since the benchmark kills many at once.
pub(crate) fn terms(heartbeat_window: Span) -> Terms {
    let heartbeat_interval = Span::from_micros(heartbeat_window.as_micros() / 4);
    Terms { heartbeat_interval, heartbeat_window, hold_min: None, ..Terms::default() }
}

/// Returns the lane of the runs that lapse in a round, or of the rest.
pub(crate) fn lane(round: Option<usize>) -> Result<Name> {
    Name::new(lane_text(round)).context("a lane of the benchmark has no valid name")
}

fn lane_text(round: Option<usize>) -> String {
    round.map_or_else(|| "bench".to_owned(), |round| format!("lapsing-{round}"))
}

/// The lines of an import: the policies, with windows in which nobody lapses, then what befell each run.
fn histories(members: &[Member], size: &Size, now: Timestamp) -> impl Iterator<Item = String> {
    let created_at = now.minus(AGE);
    let lanes = [None].into_iter().chain((0..size.rounds).map(Some)).map(lane_text);
    let terms = json!(terms(Span::from_seconds(86_400)));
    let policy = move |lane: String| {
        let (kind, version) = ("policy_set", 1);
        json!({"recorded_at": created_at, "type": kind, "lane": lane, "policy_version": version, "policy": terms})
            .to_string()
    };
    let runs = members
        .iter()
        .enumerate()
        .map(move |(place, member)| history(*member, &lane_text(size.round_of(place)), created_at));
    lanes.map(policy).chain(runs)
}

/// The lines of a run that was claimed when it was created, and has beaten once since.
fn history(member: Member, lane: &str, created_at: Timestamp) -> String {
    let Member { id: run, claim } = member;
    let claimed_at = created_at.plus(Span::from_millis(1));
    let beaten_at = created_at.plus(Span::from_millis(2));
    format!(
        r#"{{"run":"{run}","version":1,"recorded_at":"{created_at}","type":"created","lane":"{lane}"}}
{{"run":"{run}","version":2,"recorded_at":"{claimed_at}","type":"claimed","attempt":1,"claim":"{claim}","executor":"bench-executor"}}
{{"run":"{run}","version":3,"recorded_at":"{beaten_at}","type":"heartbeat","attempt":1}}"#
    )
}

/// Reads lines that are made as they are read: a million histories need not lie in memory as text.
struct Lines<I> {
    lines: I,
    rest: VecDeque<u8>,
}

impl<I: Iterator<Item = String>> Lines<I> {
    fn new(lines: I) -> Lines<I> {
        Lines { lines, rest: VecDeque::new() }
    }
}

impl<I: Iterator<Item = String>> Read for Lines<I> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.rest.len() < buffer.len() {
            let Some(line) = self.lines.next() else { break };
            self.rest.extend(line.as_bytes());
            self.rest.push_back(b'\n');
        }
        self.rest.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::members;

    #[test]
    fn the_histories_can_be_imported() {
        let size = Size::quick();
        let now: Timestamp = "2026-11-25T10:00:00Z".parse().unwrap();
        let members = members(100);
        let file = BufReader::new(Lines::new(histories(&members, &size, now)));
        assert!(check_import(file, now).is_ok());
    }
}
