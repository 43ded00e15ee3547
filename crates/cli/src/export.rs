//! `lastbeat export`: the whole log, the bundle of an incident, or a case for a regression test.

use std::io::{BufWriter, Write};
use std::sync::Arc;

use lastbeat_domain::RunId;
use lastbeat_store::bundle::{beacon_lines, runs_since};
use lastbeat_store::{Bundle, Store, With};
use lastbeat_wire::answers;

use crate::args;
use crate::failure::Failure;
use crate::place::Place;
use crate::target::needs_database;

pub(crate) async fn through(place: &Place, arguments: args::Export) -> Result<(), Failure> {
    let api = match place {
        Place::Store(store) => return export(Arc::clone(store), arguments).await,
        Place::Server(api) => api,
    };
    // A server gives bundles, whole and one run at a time.
    let [run] = arguments.runs[..] else { return Err(needs_database("export")) };
    if arguments.as_case || !(arguments.with_policy && arguments.with_deaf) {
        let message = "a server exports one run as a whole: give --run once, --with-policy and --with-deaf, or name the \
                       database with --database";
        return Err(Failure::new("needs_database", message));
    }
    let text = api.bundle(run).await?;
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

async fn export(store: Arc<dyn Store>, arguments: args::Export) -> Result<(), Failure> {
    let args::Export { runs, goal, since, with_policy, with_deaf, as_case, at } = arguments;
    let mut out = BufWriter::new(std::io::stdout());
    if as_case {
        let [run] = runs[..] else {
            return Err(Failure::new("invalid", "a case is of one run; give --run once"));
        };
        let case = answers::case(store, run, at).await?;
        writeln!(out, "{}", serde_json::to_string_pretty(&[case]).unwrap_or_default())?;
    } else if runs.is_empty() && goal.is_none() && since.is_none() {
        // The policies are among the facts anyway. The beacons first: so they are no later than what they stand beside.
        if with_deaf {
            let beacons = beacon_lines(&store.service_log().await?.beacons);
            beacons.iter().try_for_each(|line| writeln!(out, "{line}"))?;
        }
        store.export(&mut |line: &str| writeln!(out, "{line}")).await?;
    } else {
        let runs = match runs.is_empty() {
            true => runs_since(store.as_ref(), goal.as_ref(), since).await?,
            false => there(store.as_ref(), runs).await?,
        };
        let mut bundle = Bundle::begin(store, runs, With { policy: with_policy, deaf: with_deaf }).await?;
        while let Some(lines) = bundle.next().await? {
            lines.iter().try_for_each(|line| writeln!(out, "{}", line.text()))?;
        }
    }
    out.flush()?;
    Ok(())
}

/// Makes sure that all runs are there before anything is written, and that each is written once.
async fn there(store: &dyn Store, runs: Vec<RunId>) -> Result<Vec<RunId>, Failure> {
    let mut known = Vec::with_capacity(runs.len());
    for run in runs {
        if store.run(run).await?.is_none() {
            return Err(answers::AskError::UnknownRun(run).into());
        }
        if !known.contains(&run) {
            known.push(run);
        }
    }
    Ok(known)
}
