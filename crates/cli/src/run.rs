//! `lastbeat run …`: each step of a run by hand, and looking at runs.

use lastbeat_domain::decide::{ByHand, Claimant, Command, Report, RunSpec};
use lastbeat_domain::{ClaimId, Name, RunId};
use lastbeat_store::{Answer, Store};
use lastbeat_wire::{AnswerDocument, Directive, HeartbeatDocument};
use uuid::Uuid;

use crate::args::{self, Output};
use crate::failure::Failure;
use crate::output;
use crate::place::{Done, Place};

pub(crate) async fn run(place: &Place, command: args::Run, form: Output) -> Result<(), Failure> {
    let command = match command {
        args::Run::List(arguments) => return list(place, arguments, form).await,
        args::Run::Show { run } => return show(place, run, form).await,
        args::Run::Create(arguments) => create(arguments),
        args::Run::Claim(arguments) => {
            let args::Claim { lanes, executor, device } = arguments;
            Command::Claim { lanes, claimant: claimant(executor, device) }
        }
        args::Run::Start(arguments) => Command::Start(report(arguments)),
        args::Run::Beat { report: arguments, progress } => Command::Heartbeat { report: report(arguments), progress },
        args::Run::Complete { report: arguments, output } => Command::Complete { report: report(arguments), output },
        args::Run::Fail { report: arguments, error } => Command::Fail { report: report(arguments), error },
        args::Run::Cancel(args::Act { run, reason }) => Command::RequestCancel { run, by: person()?, reason },
        args::Run::Requeue(args::Act { run, reason }) => Command::Requeue { run, by: person()?, reason },
        args::Run::Reap(args::Act { run, reason }) => {
            Command::Reap { run, by: person()?, by_hand: Some(ByHand { reason }) }
        }
    };
    match place.execute(command).await? {
        Done::Run(document) => answered(&document, form),
        Done::Heard(document) => told(&document, form),
        Done::Nothing => Ok(()),
    }
}

/// Carries out one command on a store.
pub(crate) async fn execute(store: &dyn Store, command: Command) -> Result<Answer, Failure> {
    let mut outcomes = store.execute(vec![command]).await;
    match outcomes.pop() {
        Some(outcome) => Ok(outcome?),
        None => Err(Failure::new("internal", "the command was not answered")),
    }
}

/// Makes the id of a new run.
pub(crate) fn new_run_id() -> RunId {
    RunId::from_uuid(Uuid::now_v7())
}

/// Makes a claim with a fencing token of its own.
pub(crate) fn claimant(executor: Name, device: Option<Name>) -> Claimant {
    Claimant { executor, device, claim: ClaimId::from_uuid(Uuid::new_v4()) }
}

/// Who acts by hand: the user that the system names.
pub(crate) fn person() -> Result<Name, Failure> {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "somebody".to_owned());
    Name::new(user).map_err(|error| Failure::new("invalid", format!("USER: {error}")))
}

fn create(arguments: args::Create) -> Command {
    let spec = RunSpec {
        lane: arguments.lane,
        goal: arguments.goal,
        device: arguments.device.clone(),
        not_before: arguments.not_before,
        unique_key: arguments.unique_key,
        labels: arguments.labels.into_iter().collect(),
        input: arguments.input,
    };
    // Who claims in the same breath as it pins the run presents the pinned device.
    let claim = arguments.claim.map(|executor| claimant(executor, arguments.device));
    Command::Create { run: new_run_id(), spec: Box::new(spec), claim }
}

fn report(arguments: args::Report) -> Report {
    let args::Report { run, attempt, claim } = arguments;
    Report { run, attempt, claim, executor: None }
}

fn answered(document: &AnswerDocument, form: Output) -> Result<(), Failure> {
    if form != Output::Table {
        return output::json_line(document);
    }
    let run = &document.run;
    let existing = if document.existing { " (it was open already, with that unique key)" } else { "" };
    output::line(&format!("run {} is {} at attempt {}{existing}", run.run, run.status, run.attempt))?;
    match &run.claim {
        Some(claim) if run.status.is_in_flight() => output::line(&format!("claim {claim}")),
        _ => Ok(()),
    }
}

fn told(document: &HeartbeatDocument, form: Output) -> Result<(), Failure> {
    if form != Output::Table {
        return output::json_line(document);
    }
    let HeartbeatDocument { run, attempt, at, directive, .. } = document;
    let stop = match directive {
        Directive::Continue => "",
        Directive::Cancel => "; it is to be cancelled: stop working on it",
        Directive::Stop => "; it is no longer yours: stop working on it",
    };
    output::line(&format!("run {run} was heard of at {at}, attempt {attempt}{stop}"))
}

async fn list(place: &Place, arguments: args::List, form: Output) -> Result<(), Failure> {
    let page = place.runs(arguments).await?;
    match form {
        Output::Json => output::json_line(&page),
        Output::Jsonl => page.runs.iter().try_for_each(output::json_line),
        Output::Table if page.runs.is_empty() => {
            output::line("no runs; `lastbeat exec --lane L -- CMD` or `lastbeat run create --lane L` makes one")
        }
        Output::Table => {
            output::table(&output::HEADING, page.runs.iter().map(output::row).collect())?;
            match page.next {
                Some(next) => output::line(&format!("there are more: --after {next}")),
                None => Ok(()),
            }
        }
    }
}

async fn show(place: &Place, id: RunId, form: Output) -> Result<(), Failure> {
    let document = place.run(id).await?;
    if form != Output::Table {
        return output::json_line(&document);
    }
    let document = serde_json::to_value(document).unwrap_or_default();
    let fields = document.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
    let pairs: Vec<(&str, String)> = fields.map(|(name, value)| (name.as_str(), text(value))).collect();
    output::pairs(&pairs)
}
