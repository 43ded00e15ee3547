//! Facts: the feed of all of them, and the stream of one run, in pages or as they come.
//!
//! A stream is read by a task of its own, which ends when its reader goes away or the server stops. What is new is
//! noticed by one look at the end of the log for all streams together.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use lastbeat_domain::access::Action;
use lastbeat_domain::event::ServiceEvent;
use lastbeat_domain::{RunId, Status};
use lastbeat_store::{Bundle, BundleLine, FeedEntry, With};
use lastbeat_wire::events::{EventDocument, EventsPage, FeedEvent, FeedPage};
use lastbeat_wire::{answers, schema};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use utoipa::IntoParams;

use crate::app::App;
use crate::body::{Named, Params};
use crate::caller::{Caller, permitted_run};
use crate::cursor;
use crate::problem::{Problem, Refused};

/// How many facts a stream reads at a time.
const PAGE_FACTS: usize = 500;
/// How many events wait for a slow reader.
const BUFFERED: usize = 64;
/// How many pages of a bundle wait for a slow reader.
const BUNDLE_BUFFERED: usize = 2;
/// How often a run that is followed is looked at: its plain heartbeats are in no feed.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(500);
/// How long to wait after the store failed.
const PAUSE: Duration = Duration::from_secs(1);
/// How often it is looked whether the reader of a stream would still be admitted.
const ADMITTED_INTERVAL: Duration = Duration::from_millis(200);
/// How often a stream without events says that it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Where to begin, and how much to read.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct EventsParams {
    /// Where to begin: the `next` of the page before, or after the event with this number (`position` in the feed,
    /// `version` in the stream of a run).
    after: Option<String>,
    /// How many at the most; a stream has no end.
    #[param(minimum = 1, maximum = 500, default = 50)]
    limit: Option<u32>,
}

/// Tells all facts in the order of their commits, but for plain heartbeats, which are read by run. As a page, or with
/// `Accept: text/event-stream` as they come; the id of an event is its position.
#[utoipa::path(
    get, path = "/v1/events", tag = "events",
    params(EventsParams, ("Last-Event-ID" = Option<String>, Header, description = "of a stream: the last event that was seen")),
    responses(
        (status = 200, description = "facts", content((FeedPage = "application/json"), (String = "text/event-stream"))),
        Refused,
    )
)]
pub(crate) async fn feed(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    Params(params): Params<EventsParams>,
) -> Result<Response, Problem> {
    caller.check(Action::SeeService)?;
    let limit = cursor::limit(params.limit)?;
    let after = begin(&headers, params.after.as_ref())?;
    if wants_stream(&headers) {
        let permit = permit(&app)?;
        let (events, receiver) = mpsc::channel(BUFFERED);
        tokio::spawn(follow_feed(app, caller, after, events, permit));
        return Ok(streamed(receiver));
    }
    let mut entries = app.store().feed(after, limit + 1).await?;
    let more = entries.len() > limit;
    entries.truncate(limit);
    let next = entries.last().filter(|_| more).map(|last| cursor::cursor(last.position));
    Ok(Json(FeedPage { events: entries.into_iter().map(shown).collect(), next }).into_response())
}

/// Tells the facts of a run. As a page, or with `Accept: text/event-stream` as they come, until the run is settled; the
/// id of an event is its version.
#[utoipa::path(
    get, path = "/v1/runs/{id}/events", tag = "events",
    params(
        ("id" = schema::RunId, Path, description = "the run"), EventsParams,
        ("Last-Event-ID" = Option<String>, Header, description = "of a stream: the last event that was seen"),
    ),
    responses(
        (status = 200, description = "facts", content((EventsPage = "application/json"), (String = "text/event-stream"))),
        (status = 204, description = "of a stream: the run is settled, and there is nothing more"),
        Refused,
    )
)]
pub(crate) async fn of_run(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<RunId>,
    headers: HeaderMap,
    Params(params): Params<EventsParams>,
) -> Result<Response, Problem> {
    let run = permitted_run(&app, &caller, Action::SeeRun, id).await?;
    let limit = cursor::limit(params.limit)?;
    let after = begin(&headers, params.after.as_ref())?;
    if !wants_stream(&headers) {
        let mut page = answers::history(app.store(), id, after, limit).await?;
        page.next = page.next.map(cursor::cursor);
        page.events.iter_mut().for_each(|fact| caller.veil_fact(fact));
        return Ok(Json(page).into_response());
    }
    if run.status.is_terminal() && after >= run.version {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let permit = permit(&app)?;
    let (events, receiver) = mpsc::channel(BUFFERED);
    tokio::spawn(follow_run(app, caller, (id, after), events, permit));
    Ok(streamed(receiver))
}

/// Gives a run as a bundle: its facts, the policies of its lane, and when nobody listened or nothing was reaped, one JSON
/// object a line. Imported into an empty database it answers every `why` about the run the same.
#[utoipa::path(
    get, path = "/v1/runs/{id}/bundle", tag = "events", params(("id" = schema::RunId, Path, description = "the run")),
    responses(
        (status = 200, description = "the lines of an import file", content((String = "application/x-ndjson"))),
        Refused,
    )
)]
pub(crate) async fn bundle(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<RunId>,
) -> Result<Response, Problem> {
    permitted_run(&app, &caller, Action::SeeRun, id).await?;
    let permit = permit(&app)?;
    let bundle = Bundle::begin(std::sync::Arc::clone(&app.store), vec![id], With { policy: true, deaf: true }).await?;
    let (pages, receiver) = mpsc::channel(BUNDLE_BUFFERED);
    tokio::spawn(tell_bundle(app, caller, bundle, pages, permit));
    let body = stream::unfold(Some(receiver), |receiver| async move {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Some(Told::Page(text)) => Some((Ok(text), Some(receiver))),
            Some(Told::End) => None,
            // It breaks off, so that nobody takes it for whole.
            None => Some((Err(std::io::Error::other("the bundle could not be finished")), None)),
        }
    });
    let file = format!("attachment; filename=\"{id}.jsonl\"");
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson".to_owned()), (header::CONTENT_DISPOSITION, file)];
    Ok((headers, Body::from_stream(body)).into_response())
}

/// What is told of a bundle.
enum Told {
    /// Some lines.
    Page(String),
    /// There is nothing more.
    End,
}

/// Writes a bundle, page by page.
async fn tell_bundle(
    app: App,
    caller: Caller,
    mut bundle: Bundle,
    pages: mpsc::Sender<Told>,
    _permit: OwnedSemaphorePermit,
) {
    loop {
        let told = match bundle.next().await {
            Ok(Some(lines)) => Told::Page(lines.into_iter().map(|line| bundled(&caller, line)).collect()),
            Ok(None) => Told::End,
            Err(error) => return tracing::warn!(%error, "a bundle cannot be finished"),
        };
        let over = matches!(told, Told::End);
        let sent = tokio::select! {
            sent = pages.send(told) => sent.is_ok(),
            () = no_longer_admitted(&app, &caller) => false,
            () = app.shutdown.begins() => false,
        };
        if over || !sent {
            return;
        }
    }
}

/// A line of a bundle as the caller may see it.
fn bundled(caller: &Caller, line: BundleLine) -> String {
    let mut text = match line {
        BundleLine::Service(text) => text,
        BundleLine::Run(fact) => {
            let mut fact = EventDocument::from(fact);
            caller.veil_fact(&mut fact);
            serde_json::to_string(&fact).unwrap_or_default()
        }
    };
    text.push('\n');
    text
}

fn wants_stream(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|kind| kind.split(';').next().unwrap_or_default().trim() == "text/event-stream")
}

/// A stream that is taken up again begins where it broke off, wherever it once began.
fn begin(headers: &HeaderMap, after: Option<&String>) -> Result<u64, Problem> {
    match headers.get("last-event-id").filter(|_| wants_stream(headers)) {
        None => cursor::number(after),
        Some(id) => {
            let seen = id.to_str().ok().and_then(|id| id.parse().ok());
            seen.ok_or_else(|| Problem::invalid("Last-Event-ID", "this is the id of no event"))
        }
    }
}

/// Takes one of the places that streams have.
///
/// # Errors
/// 503 if all are taken.
pub(crate) fn permit(app: &App) -> Result<OwnedSemaphorePermit, Problem> {
    let permit = std::sync::Arc::clone(&app.streams).try_acquire_owned();
    permit.map_err(|_| Problem::unavailable("overloaded", "too many streams are open; try again").after(5))
}

/// Answers with the events that a task sends.
pub(crate) fn streamed(receiver: mpsc::Receiver<Event>) -> Response {
    let events = stream::unfold(receiver, |mut receiver| async move {
        let event = receiver.recv().await?;
        Some((Ok::<_, Infallible>(event), receiver))
    });
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    // Proxies that collect an answer before they pass it on would collect this one for ever.
    response.headers_mut().insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    response
}

/// A fact as the feed tells it. What a thief could look a stolen list of tokens up by is left out.
fn shown(entry: FeedEntry) -> FeedEvent {
    let position = entry.position;
    let mut event = EventDocument::from(entry);
    match &mut event {
        EventDocument::Service(recorded) => {
            if let ServiceEvent::TokenIssued { digest, .. } = &mut recorded.event {
                *digest = None;
            }
        }
        EventDocument::Unknown(body) => {
            if let Some(fields) = body.as_object_mut() {
                fields.remove("digest");
            }
        }
        EventDocument::Run(_) => {}
    }
    FeedEvent { position, event }
}

fn event<T: Serialize>(id: u64, kind: &str, document: &T) -> Option<Event> {
    Event::default().id(id.to_string()).event(kind).json_data(document).ok()
}

async fn follow_feed(
    app: App,
    caller: Caller,
    mut after: u64,
    events: mpsc::Sender<Event>,
    _permit: OwnedSemaphorePermit,
) {
    let mut end = app.log_end.subscribe();
    loop {
        let entries = match app.store().feed(after, PAGE_FACTS).await {
            Ok(entries) => entries,
            Err(error) => {
                tracing::debug!(%error, "the feed cannot be read");
                if wait(&app, &caller, &events, tokio::time::sleep(PAUSE)).await { continue } else { return }
            }
        };
        let is_last = entries.len() < PAGE_FACTS;
        for entry in entries.into_iter().map(shown) {
            after = entry.position;
            let Some(event) = event(after, entry.event.type_name(), &entry) else { continue };
            if !send(&app, &caller, &events, event).await {
                return;
            }
        }
        let grown = async {
            let _ = end.wait_for(|end| *end > after).await;
        };
        if is_last && !wait(&app, &caller, &events, grown).await {
            return;
        }
    }
}

async fn follow_run(
    app: App,
    caller: Caller,
    (id, mut after): (RunId, u64),
    events: mpsc::Sender<Event>,
    _permit: OwnedSemaphorePermit,
) {
    loop {
        // The run first: what ended it is then among the facts.
        let settled = match app.store().run(id).await {
            Ok(run) => run.is_none_or(|run| run.status.is_terminal() && run.status != Status::Pending),
            Err(_) => false,
        };
        match answers::history(app.store(), id, after, PAGE_FACTS).await {
            Ok(page) => {
                for mut fact in page.events {
                    caller.veil_fact(&mut fact);
                    after = fact.version().unwrap_or(after + 1);
                    let Some(event) = event(after, fact.type_name(), &fact) else { continue };
                    if !send(&app, &caller, &events, event).await {
                        return;
                    }
                }
                if page.next.is_some() {
                    continue;
                }
                if settled {
                    return;
                }
            }
            Err(error) => tracing::debug!(%error, "a run cannot be followed"),
        }
        if !wait(&app, &caller, &events, tokio::time::sleep(FOLLOW_INTERVAL)).await {
            return;
        }
    }
}

/// Sends an event; false if nobody reads any more, the reader's token admits nobody any more, or the server stops.
pub(crate) async fn send(app: &App, caller: &Caller, events: &mpsc::Sender<Event>, event: Event) -> bool {
    tokio::select! {
        place = events.reserve() => match place {
            // After the wait: a slow reader may have made it long.
            Ok(place) if caller.is_still_admitted(app) => {
                place.send(event);
                true
            }
            _ => false,
        },
        () = no_longer_admitted(app, caller) => false,
        () = app.shutdown.begins() => false,
    }
}

/// Waits for something; false if nobody reads any more, the reader's token admits nobody any more, or the server stops.
pub(crate) async fn wait(
    app: &App,
    caller: &Caller,
    events: &mpsc::Sender<Event>,
    until: impl Future<Output = ()>,
) -> bool {
    tokio::select! {
        () = until => true,
        () = events.closed() => false,
        () = no_longer_admitted(app, caller) => false,
        () = app.shutdown.begins() => false,
    }
}

/// Completes soon after the reader would not be admitted any more: a stream that was opened with a token ends with it.
async fn no_longer_admitted(app: &App, caller: &Caller) {
    while caller.is_still_admitted(app) {
        tokio::time::sleep(ADMITTED_INTERVAL).await;
    }
}
