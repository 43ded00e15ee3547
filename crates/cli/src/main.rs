//! The binary `lastbeat`.

mod args;
mod demo;
mod exec;
mod failure;
mod hold;
mod house;
mod lane;
mod log;
mod look;
mod obtain;
mod output;
mod progress;
mod run;
mod serve;
mod token;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, Parser};
use lastbeat_server::config::LogFormat;
use lastbeat_store::Store;

use crate::args::{Cli, Command, Output};
use crate::failure::Failure;

fn main() -> ExitCode {
    let cli = Cli::parse();
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
    match runtime.block_on(dispatch(cli)) {
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

async fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    if let Command::Serve(arguments) = cli.command {
        serve::serve(cli.database, *arguments).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let (database, output) = (cli.database.unwrap_or_else(|| args::DATABASE.to_owned()), cli.format);
    match cli.command {
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "lastbeat", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Guard { group } => {
            exec::guard(group);
            Ok(ExitCode::SUCCESS)
        }
        Command::Migrate(arguments) => {
            house::migrate(&database, &arguments, output).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Demo { keep } => {
            let broken = demo::demo(&database, keep).await?;
            if broken.is_empty() {
                output::line("\nEvery claim of the story held.")?;
                return Ok(ExitCode::SUCCESS);
            }
            Err(Failure::new("demo", format!("these claims did not hold: {}", broken.join("; "))))
        }
        command => {
            let store = lastbeat_store::open(&database, writes(&command)).await?;
            let result = on_store(Arc::clone(&store), command, output).await;
            store.close().await;
            result
        }
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
        Command::Exec(arguments) => return exec::exec(store, arguments).await,
        Command::Run(command) => run::run(store.as_ref(), command, output).await?,
        Command::Why(arguments) => look::why(store.as_ref(), &arguments, output).await?,
        Command::History(arguments) => look::history(store.as_ref(), &arguments, output).await?,
        Command::Lane(command) => lane::lane(store.as_ref(), command, output).await?,
        Command::Hold(command) => hold::hold(store.as_ref(), command, output).await?,
        Command::Token(command) => token::token(store.as_ref(), command, output).await?,
        Command::Sweep(arguments) => house::sweep(store.as_ref(), &arguments, output).await?,
        Command::Import { file } => house::import(store.as_ref(), &file, output).await?,
        Command::Export => house::export(store.as_ref()).await?,
        Command::Generate(arguments) => house::generate(store.as_ref(), arguments, output).await?,
        Command::Replay(arguments) => look::replay(store.as_ref(), &arguments, output).await?,
        Command::Verify => house::verify(store.as_ref(), output).await?,
        Command::Rebuild => house::rebuild(store.as_ref(), output).await?,
        Command::Backup { file } => house::backup(store.as_ref(), &file, output).await?,
        Command::Doctor => house::doctor(store.as_ref(), output).await?,
        Command::Completions { .. }
        | Command::Guard { .. }
        | Command::Demo { .. }
        | Command::Migrate(_)
        | Command::Serve(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}
