//! What an empty store shows: how to get the first run in.

use axum::http::{HeaderMap, header};
use lastbeat_domain::access::Action;
use maud::{Markup, html};

use super::session::Visitor;

/// What is added to a sentence about all there is for those who do not see all there is.
pub(super) fn as_seen(visitor: &Visitor) -> &'static str {
    let sees_all = visitor.caller.may_always(Action::SeeRun) && visitor.caller.may_always(Action::SeeLane);
    if sees_all { "" } else { " that you may see" }
}

/// By which address the browser came here, for a shell; `None` if it says none that a shell would leave as it is.
fn address(headers: &HeaderMap) -> Option<String> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST.as_str()).filter(|host| !host.is_empty())?;
    let is_plain = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte));
    // Only a proxy speaks TLS, and it says so.
    let scheme = if text("x-forwarded-proto") == Some("https") { "https" } else { "http" };
    is_plain.then(|| format!("{scheme}://{host}"))
}

/// How to get the first run in.
pub(super) fn first_run(visitor: &Visitor, headers: &HeaderMap) -> Markup {
    let server = address(headers).unwrap_or_else(|| "http://localhost:PORT".to_owned());
    html! {
        section.start aria-labelledby="start" {
            h1 #start { "Nothing here yet" }
            p { "No run" (as_seen(visitor)) " was ever made in this store. Get the first one in, and it appears here by itself." }
            h2 { "Put a command under watch" }
            pre tabindex="0" role="region" aria-label="Run a command" { code { "export LASTBEAT_SERVER=" (server) "\nlastbeat exec --lane nightly -- sleep 600" } }
            p { "Then end " code { "lastbeat" } " with " code { "kill -9" } " from another terminal, and see what becomes of the run." }
            h2 { "From any language" }
            pre tabindex="0" role="region" aria-label="Make a run with curl" { code {
                "curl -X POST $LASTBEAT_SERVER/v1/runs -H 'Content-Type: application/json' \\\n"
                "    -d '{\"lane\": \"nightly\", \"goal\": \"report\", \"claim\": {\"executor\": \"me\"}}'"
            } }
            p { "Once there are tokens, requests need one: " code { "-H \"Authorization: Bearer $LASTBEAT_TOKEN\"" } ". All routes: " a href="/docs" { "the API" } "." }
            h2 { "Just look" }
            pre tabindex="0" role="region" aria-label="Play the demo" { code { "lastbeat demo --serve" } }
            p { "plays the whole story with real processes, and shows it here." }
        }
    }
}
