//! The binary `lastbeat`.

mod args;
mod backtest;
mod contact;
mod demo;
mod exec;
mod export;
mod failure;
mod group;
mod hold;
mod house;
mod lane;
mod log;
mod look;
mod obtain;
mod output;
mod place;
mod progress;
mod run;
mod serve;
mod target;
mod token;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, FromArgMatches};
use lastbeat_server::config::LogFormat;
use lastbeat_store::Store;

use crate::args::{Cli, Command, Output};
use crate::failure::Failure;
use crate::place::Place;
use crate::target::Target;

fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let target = Target::of(&cli, &matches).unwrap_or_else(|error| error.exit());
    let output = cli.format;
    // A server is told how to log by its settings.
    if !matches!(cli.command, Command::Serve(_)) {
        let filter = std::env::var("LASTBEAT_LOG").unwrap_or_else(|_| "warn".to_owned());
        if let Err(failure) = log::start(&filter, LogFormat::Text) {
            return tell(&failure, output);
        }
    }
    // The main future is polled on the main thread, which lives as long as the process: `exec` depends on it.
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return tell(&Failure::new("internal", format!("cannot start: {error}")), output),
    };
    match runtime.block_on(dispatch(cli, target)) {
        Ok(code) => code,
        Err(failure) => tell(&failure, output),
    }
}

fn tell(failure: &Failure, output: Output) -> ExitCode {
    if failure.code == "broken_pipe" {
        return ExitCode::SUCCESS;
    }
    let line = match output {
        Output::Table => format!("error: {}", failure.message),
        Output::Json | Output::Jsonl => {
            serde_json::json!({"error": {"code": failure.code, "message": failure.message}}).to_string()
        }
    };
    let _ = writeln!(anstream::stderr(), "{line}");
    ExitCode::from(1)
}

async fn dispatch(cli: Cli, target: Target) -> Result<ExitCode, Failure> {
    if let Command::Serve(arguments) = cli.command {
        serve::serve(cli.database, *arguments).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let output = cli.format;
    match cli.command {
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "lastbeat", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Guard { group } => {
            group::guard(group);
            Ok(ExitCode::SUCCESS)
        }
        Command::Migrate(arguments) => {
            house::migrate(target.database("migrate")?, &arguments, output).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Demo { keep, serve } => {
            let broken = demo::demo(target.database("demo")?, keep, serve).await?;
            if broken.is_empty() {
                output::line("\nEvery claim of the story held.")?;
                return Ok(ExitCode::SUCCESS);
            }
            Err(Failure::new("demo", format!("these claims did not hold: {}", broken.join("; "))))
        }
        command => match target {
            Target::Database(database) => {
                let store = lastbeat_store::open(&database, writes(&command)).await?;
                let result = on_store(Arc::clone(&store), command, output).await;
                store.close().await;
                result
            }
            Target::Server(options) => on_server(options, command, output).await,
        },
    }
}

/// Says whether a command makes the database where there is none.
fn writes(command: &Command) -> bool {
    match command {
        Command::Exec(_) | Command::Sweep(args::Sweep { dry_run: false, .. }) => true,
        Command::Import { .. } | Command::Generate(_) | Command::Lane(args::Lane::Set(_)) => true,
        Command::Token(args::Token::Create(_)) => true,
        Command::Run(run) => matches!(run, args::Run::Create(_) | args::Run::Claim(_)),
        _ => false,
    }
}

async fn on_store(store: Arc<dyn Store>, command: Command, output: Output) -> Result<ExitCode, Failure> {
    match command {
        Command::Sweep(arguments) => house::sweep(store.as_ref(), &arguments, output).await?,
        Command::Import { file } => house::import(store.as_ref(), &file, output).await?,
        Command::Generate(arguments) => house::generate(store.as_ref(), arguments, output).await?,
        Command::Replay(args::Replay { all: true, .. }) => house::replay_all(store.as_ref(), output).await?,
        Command::Verify => house::verify(store.as_ref(), output).await?,
        Command::Rebuild => house::rebuild(store.as_ref(), output).await?,
        Command::Compact { older_than } => house::compact(store.as_ref(), older_than, output).await?,
        Command::Backup { file } => house::backup(store.as_ref(), &file, output).await?,
        Command::Doctor => house::doctor(store.as_ref(), output).await?,
        command => return anywhere(&Place::Store(store), command, output).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn on_server(options: lastbeat_client::Options, command: Command, output: Output) -> Result<ExitCode, Failure> {
    let options = match &command {
        Command::Exec(arguments) => contact::patient(options, arguments.report_for),
        // Somebody waits for the answer of all else.
        _ => options.report_patience(lastbeat_client::Options::PATIENCE),
    };
    let place = Place::Server(lastbeat_client::Api::new(options)?);
    anywhere(&place, command, output).await
}

/// The commands that are the same on a store and on a server.
async fn anywhere(place: &Place, command: Command, output: Output) -> Result<ExitCode, Failure> {
    match command {
        Command::Exec(arguments) => return exec::exec(place, arguments).await,
        Command::Run(command) => run::run(place, command, output).await?,
        Command::Why(arguments) => look::why(place, &arguments, output).await?,
        Command::History(arguments) => look::history(place, &arguments, output).await?,
        Command::Replay(args::Replay { run: Some(run), at, .. }) => look::replay(place, run, at, output).await?,
        Command::Replay(args::Replay { run: None, .. }) => return Err(target::needs_database("replay --all")),
        Command::Backtest(arguments) => backtest::backtest(place, *arguments, output).await?,
        Command::Lane(command) => lane::lane(place, command, output).await?,
        Command::Hold(command) => hold::hold(place, command, output).await?,
        Command::Token(command) => token::token(place, command, output).await?,
        Command::Export(arguments) => export::through(place, arguments).await?,
        command => return Err(target::needs_database(&command.name())),
    }
    Ok(ExitCode::SUCCESS)
}
