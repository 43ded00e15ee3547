//! An executor: it claims a run, says that it is alive while it works, and reports how it ended.
//!
//! ```sh
//! lastbeat serve &
//! cargo run -p lastbeat-client --example work -- http://127.0.0.1:7171
//! ```
//!
//! Without a run to claim it makes one. `LASTBEAT_TOKEN` is presented if it is set.

use std::time::Duration;

use anyhow::Context;
use lastbeat_client::{Api, Heart, Lease, Options, Stop};
use lastbeat_domain::Name;
use lastbeat_wire::{AnswerDocument, ClaimBy, ClaimRequest, CreateRequest};
use serde_json::json;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let servers = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:7171".to_owned());
    let mut options = Options::new(&servers)?;
    if let Ok(token) = std::env::var("LASTBEAT_TOKEN") {
        options = options.token(token);
    }
    let api = Api::new(options)?;
    let answer = obtain(&api).await?;
    let lease = Lease::of(&answer).context("the run was open already and is held by somebody else")?;
    println!("working on run {}, attempt {}", lease.run, lease.attempt);

    let heart = Heart::start(&api, lease.clone())?;
    tokio::select! {
        total = work(&heart) => {
            drop(heart);
            api.complete(&lease, Some(json!({"total": total}))).await?;
            println!("completed");
        }
        stop = heart.stopped() => {
            println!("stopped working: {stop}");
            if stop == Stop::Cancelled {
                api.cancelled(&lease).await?;
            }
        }
    }
    Ok(())
}

/// Takes the run that waits longest, or makes one.
async fn obtain(api: &Api) -> anyhow::Result<AnswerDocument> {
    let (lane, executor): (Name, Name) = ("example".parse()?, "example-1".parse()?);
    let request = ClaimRequest {
        executor: executor.clone(),
        lanes: vec![lane.clone()],
        device: None,
        wait_seconds: Some(1.0),
        run: None,
    };
    if let Some(claimed) = api.claim(&request).await? {
        return Ok(claimed);
    }
    let claim = Some(ClaimBy { executor, device: None });
    let request = CreateRequest { input: Some(json!({"numbers": [1, 2, 3]})), claim, ..CreateRequest::of_lane(lane) };
    Ok(api.create(&request).await?)
}

/// The work: whatever it is, it tells now and then how far it is.
async fn work(heart: &Heart) -> u64 {
    let mut total = 0;
    for done in 1..=10 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        total += done;
        heart.progress(json!({"done": done, "total": 10}));
    }
    total
}
