//! What an empty store shows: how to get the first run in.

use maud::{Markup, html};

/// How to get the first run in.
pub(super) fn first_run() -> Markup {
    html! {
        section.start aria-labelledby="start" {
            h1 #start { "Nothing here yet" }
            p { "No run was ever made in this store. Get the first one in, and it appears here by itself." }
            h2 { "Put a command under watch" }
            pre tabindex="0" role="region" aria-label="Run a command" { code { "export LASTBEAT_SERVER=http://127.0.0.1:7171\nlastbeat exec --lane nightly -- sleep 600" } }
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
