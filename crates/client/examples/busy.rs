//! An executor that computes on the only thread of its runtime, for as long as it is told to: nothing else runs there
//! meanwhile, and yet it beats.
//!
//! ```sh
//! lastbeat serve &
//! cargo run -p lastbeat-client --example busy -- http://127.0.0.1:7171 busy 60
//! ```
//!
//! The arguments are the servers, the lane, and how many seconds it computes.

use std::time::{Duration, Instant};

use anyhow::Context;
use lastbeat_client::{Api, Heart, Lease, Options};
use lastbeat_wire::{ClaimBy, CreateRequest};
use serde_json::json;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let servers = arguments.next().unwrap_or_else(|| "http://127.0.0.1:7171".to_owned());
    let lane = arguments.next().unwrap_or_else(|| "busy".to_owned()).parse()?;
    let seconds: f64 = arguments.next().map_or(Ok(10.0), |text| text.parse())?;
    let mut options = Options::new(&servers)?;
    if let Ok(token) = std::env::var("LASTBEAT_TOKEN") {
        options = options.token(token);
    }
    let api = Api::new(options)?;
    let claim = Some(ClaimBy { executor: "busy-1".parse()?, device: None });
    let answer = api.create(&CreateRequest { claim, ..CreateRequest::of_lane(lane) }).await?;
    let lease = Lease::of(&answer).context("nobody holds the run")?;

    let heart = Heart::start(&api, lease.clone())?;
    println!("{}", lease.run);
    let primes = count_primes(Duration::from_secs_f64(seconds));
    if let Some(stop) = heart.stop() {
        anyhow::bail!("it was all in vain: {stop}");
    }
    drop(heart);
    api.complete(&lease, Some(json!({"primes": primes}))).await?;
    Ok(())
}

/// Computes without ever giving way to anybody.
fn count_primes(time: Duration) -> u64 {
    let started = Instant::now();
    let (mut found, mut candidate) = (0, 2_u64);
    while started.elapsed() < time {
        if (2..).take_while(|divisor| divisor * divisor <= candidate).all(|divisor| candidate % divisor != 0) {
            found += 1;
        }
        candidate += 1;
    }
    found
}
