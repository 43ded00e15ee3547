//! How fast the pure core folds streams, on one core.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lastbeat_domain::{Name, Recorded, Run, RunEvent, RunId, Timestamp};
use uuid::Uuid;

use crate::row::{Bound, Row};

/// Streams of both kinds: many with a whole life of a few facts, and one long one.
const LIVES: u128 = 2_000;
const BEATS_OF_A_LIFE: u64 = 46;
const BEATS_OF_THE_LONG_ONE: u64 = 100_000;

/// Measures the fold of long and short streams, `rounds` times for `seconds` each.
pub(crate) fn measure(rounds: usize, seconds: f64) -> Result<Row> {
    let mut streams = (0..LIVES).map(|life| stream(life, BEATS_OF_A_LIFE)).collect::<Result<Vec<_>>>()?;
    streams.push(stream(LIVES, BEATS_OF_THE_LONG_ONE)?);
    fold(&streams)?;
    let rates = (0..rounds).map(|_| rate(&streams, seconds)).collect::<Result<Vec<f64>>>()?;
    let note = format!(
        "{LIVES} streams of {} facts, create to complete, and one of {BEATS_OF_THE_LONG_ONE}; one thread",
        BEATS_OF_A_LIFE + 4
    );
    Ok(Row::new("fold in the domain", "events/s", &rates).goal(Bound::AtLeast(5e6)).note(note))
}

fn rate(streams: &[Vec<Recorded>], seconds: f64) -> Result<f64> {
    let (started, span) = (Instant::now(), Duration::from_secs_f64(seconds));
    let mut events = 0;
    while started.elapsed() < span {
        events += fold(streams)?;
    }
    Ok(events as f64 / started.elapsed().as_secs_f64())
}

fn fold(streams: &[Vec<Recorded>]) -> Result<u64> {
    let mut events = 0;
    for stream in streams {
        let run = Run::fold(black_box(stream))?.context("a stream has no facts")?;
        ensure!(run.status.is_terminal(), "the run {} is still open", run.id);
        events += black_box(run).version;
    }
    Ok(events)
}

/// The stream of a run that is created, claimed, started, beats and completes.
fn stream(number: u128, beats: u64) -> Result<Vec<Recorded>> {
    let run = RunId::from_uuid(Uuid::from_u128(number));
    let (lane, executor) = (Name::new("bench")?, Name::new("bench-executor")?);
    let created = RunEvent::Created {
        lane,
        goal: None,
        device: None,
        not_before: None,
        unique_key: None,
        labels: std::collections::BTreeMap::new(),
        input: None,
    };
    let claim = Some("00000000-0000-4000-8000-000000000000".parse()?);
    let beginning =
        [created, RunEvent::Claimed { attempt: 1, claim, executor, device: None }, RunEvent::Started { attempt: 1 }];
    let beats = (0..beats).map(|_| RunEvent::Heartbeat { attempt: 1, progress: None });
    let end = RunEvent::Completed { attempt: 1, output: None, late: false };
    let events = beginning.into_iter().chain(beats).chain([end]);
    let stamp = |version: u64| Timestamp::from_micros(1_770_000_000_000_000 + version as i64 * 30_000_000);
    Ok(events.zip(1..).map(|(event, version)| Recorded { run, version, recorded_at: stamp(version), event }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_a_whole_life() {
        let stream = stream(1, 5).unwrap();
        assert_eq!(fold(&[stream]).unwrap(), 9);
    }
}
