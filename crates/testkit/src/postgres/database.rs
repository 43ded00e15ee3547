//! A database for one test.

use std::sync::OnceLock;
use std::time::Duration;

use uuid::Uuid;

use super::Cluster;
use super::session;

/// The environment variable with the URL of a server on which the tests may make databases of their own.
const SERVER_VARIABLE: &str = "LASTBEAT_TEST_POSTGRES_URL";

/// A database for one test. It is dropped with this value, with those who are still connected to it.
#[derive(Debug)]
pub struct Database {
    /// Where it is, with a user who may do everything in it.
    pub url: String,
    name: String,
    /// The URL of another database on the server: nobody drops the database that he is connected to.
    server: String,
}

impl Database {
    /// Runs a statement (or several, with semicolons) and returns the first column of each row, as text.
    ///
    /// It blocks, and works in and outside of asynchronous code.
    pub fn sql(&self, statements: &str) -> Vec<String> {
        session::run(&self.url, statements).unwrap_or_else(|error| panic!("{statements}: {error}"))
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // On a thread of its own, and not waited for without end: a test may have stopped the server or the process.
        let (server, statement) = (self.server.clone(), format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
        let (done, dropped) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let _ = session::run(&server, &statement);
            let _ = done.send(());
        });
        let _ = dropped.recv_timeout(Duration::from_secs(10));
    }
}

/// Makes an empty database for one test.
///
/// It lies on the server whose URL the environment variable `LASTBEAT_TEST_POSTGRES_URL` holds (with a user who may
/// make databases); without it, on a [`Cluster`] that this process starts at the first call and shares from then on.
///
/// # Panics
///
/// If there is no such server: then the message says how to get one.
pub async fn fresh_database() -> Database {
    tokio::task::spawn_blocking(|| make(&server())).await.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(error) => panic!("{error}"),
    })
}

fn make(server: &str) -> Database {
    let name = create(server);
    Database { url: session::with_database(server, &name), name, server: server.to_owned() }
}

/// The URL of the server on which this process makes its databases.
fn server() -> String {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    match std::env::var(SERVER_VARIABLE) {
        Ok(url) if !url.is_empty() => url,
        _ => SHARED.get_or_init(Cluster::start).url("postgres"),
    }
}

/// Makes a database with a name of its own and returns the name.
///
/// `template0` rather than `template1`, because nobody is ever connected to it, which would be in the way; and because
/// only it can be had in the encoding and the order of letters that the tests expect, whatever the server's are.
pub(super) fn create(server: &str) -> String {
    let name = format!("lastbeat_{}", Uuid::new_v4().simple());
    let statement =
        format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER libc LOCALE 'C'");
    session::run(server, &statement).unwrap_or_else(|error| panic!("no database can be made for the test: {error}"));
    name
}
