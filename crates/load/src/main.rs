//! What one server carries, as its users reach it: over HTTP, with a store that is full of runs in flight.
//!
//! The client shares the machine with the server and its database, so the figures are low rather than high.

mod beats;
mod connection;
mod deaths;
mod overview;
mod served;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use crate::served::{Backend, Served};

/// The most memory that a server may take, in MiB.
const MEMORY_MAX: f64 = 64.0;
/// How late a death may be noticed, in milliseconds: by 99 of 100.
const LAG_MAX: f64 = 100.0;
/// How late a browser may first paint the overview, in milliseconds.
const PAINT_MAX: f64 = 1_000.0;
/// By how much the slow heartbeats may be slower while the overview is open.
const SLOWER_MAX: f64 = 1.5;

#[derive(Parser)]
#[command(name = "cargo xtask load", about = "Loads a real server, and says what it carries")]
struct Arguments {
    /// How many runs are in flight
    #[arg(
        long,
        default_value_t = 1_000_000,
        default_value_if("overview", clap::builder::ArgPredicate::IsPresent, "100000")
    )]
    runs: usize,
    /// For how many seconds heartbeats are sent, of each kind
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// How many executors die
    #[arg(long, default_value_t = 1_000)]
    deaths: usize,
    /// Write the figures to this file too, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// A small form, to see that it works
    #[arg(long)]
    quick: bool,
    /// Measure the dashboard's overview instead: what it costs heartbeats, and when a browser has painted it. This command
    /// opens it in one, with the address in the place of {}
    #[arg(long, value_name = "COMMAND", num_args = 1.., allow_hyphen_values = true, hide = true)]
    overview: Vec<String>,
    /// The program that is loaded
    #[arg(long, default_value = "target/release/lastbeat")]
    program: PathBuf,
}

/// A figure, and the goal that it has, if it has one.
struct Figure {
    backend: Backend,
    name: String,
    value: f64,
    unit: &'static str,
    at_most: Option<f64>,
}

impl Figure {
    fn met(&self) -> Option<bool> {
        self.at_most.map(|most| self.value <= most)
    }

    fn json(&self) -> Value {
        json!({
            "backend": self.backend.name(), "name": self.name, "value": self.value, "unit": self.unit,
            "goal": self.at_most, "met": self.met(),
        })
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<ExitCode> {
    let mut arguments = Arguments::parse();
    if arguments.quick {
        (arguments.runs, arguments.seconds, arguments.deaths) = (10_000, 0.5, 20);
    }
    let mut figures = Vec::new();
    for backend in [Backend::Postgres, Backend::Sqlite] {
        eprintln!("load: {}", backend.name());
        let served = Served::start(backend, arguments.runs, &arguments.program).await?;
        figures.extend(match arguments.overview.is_empty() {
            true => measure(backend, &served, &arguments).await?,
            false => measure_overview(backend, &served, &arguments).await?,
        });
    }
    print(&figures);
    if let Some(file) = &arguments.json {
        let list: Vec<Value> = figures.iter().map(Figure::json).collect();
        fs::write(file, serde_json::to_string_pretty(&list)? + "\n")?;
    }
    let missed = figures.iter().any(|figure| figure.met() == Some(false));
    Ok(if missed && !arguments.quick { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn measure(backend: Backend, served: &Served, arguments: &Arguments) -> Result<Vec<Figure>> {
    let time = Duration::from_secs_f64(arguments.seconds);
    let singles = beats::singles(served, time).await?;
    let batches = beats::batches(served, time).await?;
    let lags = deaths::lags(served, arguments.deaths).await?;
    let (now, most) = served.memory()?;
    let figure = |name: &str, value, unit, at_most| Figure { backend, name: name.to_owned(), value, unit, at_most };
    Ok(vec![
        figure("single heartbeats, 64 connections", singles.rate, "/s", None),
        figure("  a request: median", percentile(&singles.millis, 0.5), "ms", None),
        figure("  a request: p99", percentile(&singles.millis, 0.99), "ms", None),
        figure("heartbeats in batches of 1,000", batches.rate, "/s", None),
        figure("  a request: p99", percentile(&batches.millis, 0.99), "ms", None),
        figure("detection lag: median", percentile(&lags, 0.5), "ms", None),
        figure("detection lag: p99", percentile(&lags, 0.99), "ms", Some(LAG_MAX)),
        figure("memory of serve afterwards", now, "MiB", Some(MEMORY_MAX)),
        figure("memory of serve at most", most, "MiB", Some(MEMORY_MAX)),
    ])
}

async fn measure_overview(backend: Backend, served: &Served, arguments: &Arguments) -> Result<Vec<Figure>> {
    let time = Duration::from_secs_f64(arguments.seconds);
    let seen = overview::measure(served, time, &arguments.overview).await?;
    // Of the rounds the one in the middle: one stall of the machine makes no difference then.
    let middle = |rounds: &[Vec<f64>], share| {
        percentile(&rounds.iter().map(|round| percentile(round, share)).collect::<Vec<f64>>(), 0.5)
    };
    let (alone, watched) = (middle(&seen.alone, 0.99), middle(&seen.watched, 0.99));
    let (rate, windows) = (overview::RATE, overview::VIEWERS);
    let (nobody, watched_by) =
        (format!("{rate} heartbeats a second, nobody looks"), format!("the same, overview open in {windows} windows"));
    let figure = |name: &str, value, unit, at_most| Figure { backend, name: name.to_owned(), value, unit, at_most };
    Ok(vec![
        figure(&format!("{nobody}: median"), middle(&seen.alone, 0.5), "ms", None),
        figure("  p99", alone, "ms", None),
        figure(&format!("{watched_by}: median"), middle(&seen.watched, 0.5), "ms", None),
        figure("  p99", watched, "ms", None),
        figure("  p99 against nobody looking", watched / alone, "times", Some(SLOWER_MAX)),
        figure("overview: how often it was looked at, all windows", seen.pages.len() as f64, "", None),
        figure("overview: a page, p99", percentile(&seen.pages, 0.99), "ms", None),
        figure("overview: first paint in a browser, the slowest", percentile(&seen.paints, 1.0), "ms", Some(PAINT_MAX)),
    ])
}

/// Returns the smallest value that at least `share` of the values do not exceed.
fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

fn print(figures: &[Figure]) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["backend", "what", "measured", "goal", ""]);
    for figure in figures {
        let goal = figure.at_most.map_or_else(String::new, |most| format!("≤ {most} {}", figure.unit));
        let standing = figure.met().map_or("", |met| if met { "met" } else { "MISSED" });
        let value = format!("{:.1} {}", figure.value, figure.unit);
        table.add_row([figure.backend.name(), &figure.name, &value, &goal, standing]);
    }
    println!("{table}");
}
