//! `lastbeat hold …`: lanes in which nothing is reaped for silence, and letting it go on.

use lastbeat_domain::Name;
use lastbeat_wire::{HoldDocument, HoldKind};

use crate::args::{self, Output};
use crate::failure::Failure;
use crate::output;
use crate::place::Place;

pub(crate) async fn hold(place: &Place, command: args::Hold, form: Output) -> Result<(), Failure> {
    match command {
        args::Hold::List => list(place, form).await,
        args::Hold::Release { lane, reason } => release(place, lane, reason, form).await,
    }
}

async fn list(place: &Place, form: Output) -> Result<(), Failure> {
    let page = place.holds().await?;
    match form {
        Output::Json => output::json_line(&page),
        Output::Jsonl => page.holds.iter().try_for_each(output::json_line),
        Output::Table if page.holds.is_empty() => output::line("no lane is held"),
        Output::Table => {
            let heading = ["LANE", "STATE", "SINCE", "SILENT WHEN HELD", "SILENT NOW", "LAPSED NOW", "WHAT NEXT"];
            output::table(&heading, page.holds.iter().map(row).collect())?;
            output::line("`lastbeat hold release LANE --reason …` lets reaping by silence go on in a lane that is held")
        }
    }
}

fn row(hold: &HoldDocument) -> Vec<String> {
    let then = match (hold.state, hold.ends_by) {
        (HoldKind::Held, Some(by)) => format!("held until {by} at the latest, then {} reaps a second", hold.reap_rate),
        _ => format!("reaped at {} a second", hold.reap_rate),
    };
    vec![
        hold.lane.to_string(),
        hold.state.to_string(),
        hold.since.to_string(),
        format!("{} of {}", hold.silent_when_held, hold.beating_when_held),
        format!("{} of {}", hold.silent, hold.beating),
        hold.lapsed.to_string(),
        then,
    ]
}

async fn release(place: &Place, lane: Name, reason: Option<String>, form: Output) -> Result<(), Failure> {
    let released = place.release_hold(lane, reason).await?;
    if form != Output::Table {
        return output::json_line(&released);
    }
    let (lane, rate) = (&released.lane, released.reap_rate);
    output::line(&format!("lane {lane} is released; its silent runs are reaped at {rate} a second"))
}
