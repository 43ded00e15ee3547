//! How `exec` keeps in contact with whoever records its run.
//!
//! A store is on this machine or as near as one, so its run is there before the command begins. A server may be away:
//! then the command begins without a run, which is made as soon as a server answers, and from then on it is like any
//! other. One that goes away later changes nothing for the command: the heart beats on, and the end is reported until
//! its answer is known. Whether the run was taken meanwhile, the server says when it is back.

use std::sync::Arc;
use std::time::Duration;

use lastbeat_client::{Api, Heart, Lease, Options, Stop};
use lastbeat_domain::decide::{Command, Report};
use lastbeat_domain::{Name, Span};
use lastbeat_store::{CommandError, Store};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::failure::Failure;
use crate::obtain::{Request, obtain};
use crate::place::Place;

/// How long to wait before a report that could not be written to a store is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How often the end of a run is tried to be written to a store.
const REPORT_TRIES_MAX: u32 = 20;
/// How long one request to a server may take, and for how long one is tried before the command begins without a run.
const SERVER_PATIENCE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(2));
/// How long to wait before a server is asked again for a run.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// Makes a client as impatient as `exec` is at its begin and as patient as it is at its end.
pub(crate) fn patient(options: Options, report_for: Span) -> Options {
    options.request_timeout(SERVER_PATIENCE.0).patience(SERVER_PATIENCE.1).report_patience(report_for.to_std())
}

/// How a command ended.
pub(crate) enum Ending {
    /// It is done.
    Completed(Value),
    /// It failed.
    Failed(String),
    /// It was stopped because somebody asked for it.
    Cancelled,
}

/// Who records the run, and what is known of it.
pub(crate) struct Contact {
    place: Place,
    executor: Name,
    lease: watch::Receiver<Known>,
    stops: mpsc::Receiver<Stop>,
    beating: JoinHandle<()>,
    end: watch::Sender<bool>,
}

/// What is known of the run.
#[derive(Clone, Debug)]
enum Known {
    /// No server has answered yet.
    Asking,
    /// It is ours.
    Lease(Lease),
    /// There will be none: a server refused it.
    Refused(String),
}

impl Contact {
    /// Obtains the run and begins to beat for it. Without a server that answers, and unless one is required, it goes on
    /// asking in the background.
    pub(crate) async fn begin(place: &Place, mut request: Request, required: bool) -> Result<Contact, Failure> {
        let executor = request.executor.clone();
        let known = match (obtain(place, &mut request).await, place) {
            (Ok(lease), _) => Known::Lease(lease),
            (Err(failure), Place::Server(_)) if failure.transient && !required => {
                eprintln!(
                    "lastbeat: {}; the command runs, and its run is recorded when a server answers",
                    failure.message
                );
                Known::Asking
            }
            (Err(failure), _) => return Err(failure),
        };
        if let (Place::Store(store), Known::Lease(lease)) = (place, &known) {
            first_beat(store.as_ref(), &report_of(lease, &executor)).await?;
        }
        let (tell, lease) = watch::channel(known);
        let (stop, stops) = mpsc::channel(1);
        let (end, ended) = watch::channel(false);
        let beating = match place.clone() {
            Place::Store(store) => {
                let known = lease.borrow().clone();
                let Known::Lease(lease) = known else { return Err(Failure::new("internal", "no run was obtained")) };
                let report = report_of(&lease, &executor);
                tokio::spawn(beat_on_store(store, report, lease.next_beat_within, stop))
            }
            Place::Server(api) => tokio::spawn(beat_on_server(api, request, tell, stop, ended)),
        };
        Ok(Contact { place: place.clone(), executor, lease, stops, beating, end })
    }

    /// Returns the lease, if there is one by now.
    pub(crate) fn lease(&self) -> Option<Lease> {
        match &*self.lease.borrow() {
            Known::Lease(lease) => Some(lease.clone()),
            Known::Asking | Known::Refused(_) => None,
        }
    }

    /// Returns what to call the run in messages.
    pub(crate) fn name(&self) -> String {
        self.lease().map_or_else(|| "the run".to_owned(), |lease| format!("run {}", lease.run))
    }

    /// Waits until the command has to stop, and says why.
    pub(crate) async fn stopped(&mut self) -> Stop {
        match self.stops.recv().await {
            Some(stop) => stop,
            // Nobody can stop it any more.
            None => std::future::pending().await,
        }
    }

    /// Reports how the command ended, again and again while nobody answers: on a server for as long as was asked for.
    pub(crate) async fn end(mut self, ending: Ending) -> Result<(), Failure> {
        match self.place.clone() {
            Place::Store(store) => {
                self.beating.abort();
                let lease = self.lease().ok_or_else(|| Failure::new("internal", "no run was obtained"))?;
                finish_on_store(store.as_ref(), command(ending, report_of(&lease, &self.executor))).await
            }
            Place::Server(api) => {
                let lease = self.known(api.report_patience()).await?;
                // The heart beats until the end is known: a run whose end is on its way is not to be reaped meanwhile.
                let reported = match ending {
                    Ending::Completed(output) => api.complete(&lease, Some(output)).await,
                    Ending::Failed(error) => api.fail(&lease, error).await,
                    Ending::Cancelled => api.cancelled(&lease).await,
                };
                self.end.send_replace(true);
                let _ = self.beating.await;
                reported?;
                Ok(())
            }
        }
    }

    /// Waits until it is known whether there is a run.
    async fn known(&mut self, patience: Duration) -> Result<Lease, Failure> {
        let known = self.lease.wait_for(|known| !matches!(known, Known::Asking));
        match tokio::time::timeout(patience, known).await.ok().and_then(Result::ok).as_deref() {
            Some(Known::Lease(lease)) => Ok(lease.clone()),
            Some(Known::Refused(why)) => Err(Failure::new("refused", why.clone())),
            Some(Known::Asking) | None => Err(Failure::new("unavailable", "no server answered")),
        }
    }
}

fn report_of(lease: &Lease, executor: &Name) -> Report {
    let Lease { run, attempt, claim, .. } = lease.clone();
    Report { run, attempt, claim, executor: Some(executor.clone()) }
}

fn command(ending: Ending, report: Report) -> Command {
    match ending {
        Ending::Completed(output) => Command::Complete { report, output: Some(output) },
        Ending::Failed(error) => Command::Fail { report, error },
        Ending::Cancelled => Command::AcknowledgeCancel(report),
    }
}

/// Beats as soon as there is a run, until the end.
async fn beat_on_server(
    api: Api,
    mut request: Request,
    tell: watch::Sender<Known>,
    stop: mpsc::Sender<Stop>,
    mut ended: watch::Receiver<bool>,
) {
    let known = tell.borrow().clone();
    let lease = match known {
        Known::Lease(lease) => lease,
        Known::Refused(_) => return,
        Known::Asking => match ask_on(&api, &mut request).await {
            Ok(lease) => {
                eprintln!("lastbeat: a server answers; the command is run {}", lease.run);
                tell.send_replace(Known::Lease(lease.clone()));
                lease
            }
            Err(failure) => {
                eprintln!("lastbeat: the run was refused, so it is not recorded: {}", failure.message);
                tell.send_replace(Known::Refused(failure.message));
                return;
            }
        },
    };
    let heart = match Heart::start(&api, lease) {
        Ok(heart) => heart,
        Err(error) => {
            eprintln!("lastbeat: {error}");
            return;
        }
    };
    let why = tokio::select! {
        why = heart.ended() => why,
        _ = ended.wait_for(|ended| *ended) => return,
    };
    let _ = stop.send(why).await;
    // Whoever was asked to stop is still at work until it has stopped.
    let _ = ended.wait_for(|ended| *ended).await;
}

/// Asks for the run until a server answers.
async fn ask_on(api: &Api, request: &mut Request) -> Result<Lease, Failure> {
    let place = Place::Server(api.clone());
    let mut pause = ASK_AGAIN.0;
    loop {
        tokio::time::sleep(pause).await;
        match obtain(&place, request).await {
            Err(failure) if failure.transient => pause = (pause * 2).min(ASK_AGAIN.1),
            obtained => return obtained,
        }
    }
}

/// Beats before the command is there: whoever lost the run already need not begin.
async fn first_beat(store: &dyn Store, report: &Report) -> Result<(), Failure> {
    beat(store, report).await.map_err(|stop| match stop {
        Stop::Fenced(why) => Failure::new("stale_attempt", why),
        Stop::Cancelled | Stop::LostContact => {
            Failure::new("cancelled", format!("run {} was asked to be cancelled", report.run))
        }
    })
}

/// Beats once. A store that cannot be written to is not a reason to stop: the next beat may get through.
async fn beat(store: &dyn Store, report: &Report) -> Result<(), Stop> {
    let command = Command::Heartbeat { report: report.clone(), progress: None };
    match store.execute(vec![command]).await.pop() {
        Some(Ok(answer)) if answer.heard.as_ref().is_some_and(|heard| heard.cancel_requested) => Err(Stop::Cancelled),
        Some(Err(CommandError::Refused(refusal))) => Err(Stop::Fenced(refusal.message)),
        Some(Err(CommandError::Failed(error))) => {
            tracing::warn!(%error, "a heartbeat was lost");
            Ok(())
        }
        _ => Ok(()),
    }
}

async fn beat_on_store(store: Arc<dyn Store>, report: Report, interval: Duration, stops: mpsc::Sender<Stop>) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if let Err(stop) = beat(store.as_ref(), &report).await {
            let _ = stops.send(stop).await;
            return;
        }
    }
}

/// Reports the end of the run, again and again while the store is away.
async fn finish_on_store(store: &dyn Store, command: Command) -> Result<(), Failure> {
    let mut tries = 0;
    loop {
        tries += 1;
        match store.execute(vec![command.clone()]).await.pop() {
            Some(Err(CommandError::Failed(error))) if error.is_transient() && tries < REPORT_TRIES_MAX => {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            Some(Err(error)) => return Err(error.into()),
            _ => return Ok(()),
        }
    }
}
