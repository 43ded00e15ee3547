//! A writer that is meant to be killed: claims runs and beats for them, ten commands at a time, and writes a line for
//! each that was acknowledged. `acknowledge URL NUMBER`: NUMBER keeps the runs of several writers apart.

#![allow(clippy::unwrap_used)]

use std::io::Write;

use lastbeat_domain::decide::{Command, RunSpec};
use lastbeat_testkit::{claimant, name, report, run_id};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap();
    let number: u128 = arguments.next().unwrap().parse().unwrap();
    let store = lastbeat_store::open(&url, true).await.unwrap();
    let mut out = std::io::stdout();
    for round in 0_u128.. {
        let runs: Vec<_> = (0..10).map(|index| run_id((number << 40) + (round << 8) + index + 1)).collect();
        let create = |run| {
            let claim = Some(claimant("writer", "c"));
            Command::Create { run, spec: Box::new(RunSpec::of_lane(name("writers"))), claim }
        };
        let beat = |run| Command::Heartbeat { report: report(run, 1, "c"), progress: None };
        let batches: [Vec<Command>; 3] = [
            runs.iter().copied().map(create).collect(),
            runs.iter().copied().map(beat).collect(),
            runs.iter().copied().map(beat).collect(),
        ];
        for batch in batches {
            for outcome in store.execute(batch).await {
                let last = outcome.unwrap().appended.pop().unwrap();
                writeln!(out, "{} {}", last.run, last.version).unwrap();
            }
            out.flush().unwrap();
        }
    }
}
