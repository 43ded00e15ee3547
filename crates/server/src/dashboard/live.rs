//! The stream that tells an open page when to look again, and what time it is by the log clock.

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use axum::response::sse::Event;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::session::Visitor;
use crate::app::App;
use crate::caller::Caller;
use crate::events::{permit, send, streamed, wait};
use crate::problem::Problem;

/// How often a page looks again though nothing came to the feed: plain heartbeats do not, and time passes.
const IDLE: Duration = Duration::from_secs(2);
/// How often at the most.
const BUSY: Duration = Duration::from_millis(500);

/// Tells a page when to look again.
pub(super) async fn follow(State(app): State<App>, visitor: Visitor) -> Result<Response, Problem> {
    let permit = permit(&app)?;
    let (events, receiver) = mpsc::channel(2);
    tokio::spawn(tell(app, visitor.caller, events, permit));
    Ok(streamed(receiver))
}

async fn tell(app: App, caller: Caller, events: mpsc::Sender<Event>, _permit: OwnedSemaphorePermit) {
    let mut end = app.log_end.subscribe();
    loop {
        let position = *end.borrow_and_update();
        // While the database is away there is nothing to look at; the page says since when.
        let told = match app.store().now().await {
            Ok(now) => json!({"now": now.as_micros(), "position": position}),
            Err(_) => json!({"position": position}),
        };
        let Ok(told) = Event::default().event("look").json_data(told) else { return };
        if !send(&app, &caller, &events, told).await || !wait(&app, &caller, &events, tokio::time::sleep(BUSY)).await {
            return;
        }
        let news = async {
            let _ = tokio::time::timeout(IDLE.saturating_sub(BUSY), end.changed()).await;
        };
        if !wait(&app, &caller, &events, news).await {
            return;
        }
    }
}
