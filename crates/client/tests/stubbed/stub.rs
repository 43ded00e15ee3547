//! A server that does as the test says: it answers, answers late, or loses the answer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What came in.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Method and path with query.
    pub(crate) line: String,
    /// The headers, names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Value,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// What goes out.
#[derive(Clone, Debug)]
pub(crate) enum Does {
    /// A status, headers and a body.
    Answers(u16, &'static str, Value),
    /// Nothing: the connection is closed, and the request may have been carried out.
    Loses,
    /// Nothing, ever.
    Hangs,
}

type Plan = dyn Fn(&Asked) -> Does + Send + Sync;

/// A server on a thread and a runtime of its own, so that no test that blocks its runtime blocks it.
pub(crate) struct Stub {
    pub(crate) url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    open: Arc<AtomicUsize>,
    end: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Stub {
    pub(crate) fn start(plan: impl Fn(&Asked) -> Does + Send + Sync + 'static) -> Stub {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let open = Arc::new(AtomicUsize::new(0));
        let (record, count, plan): (_, _, Arc<Plan>) = (Arc::clone(&asked), Arc::clone(&open), Arc::new(plan));
        let (end, ended) = tokio::sync::oneshot::channel();
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                let serve = async {
                    loop {
                        let (stream, _) = listener.accept().await.unwrap();
                        count.fetch_add(1, Ordering::SeqCst);
                        let (record, count, plan) = (Arc::clone(&record), Arc::clone(&count), Arc::clone(&plan));
                        tokio::spawn(async move {
                            speak(stream, record, plan).await;
                            count.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                };
                tokio::select! { () = serve => {}, _ = ended => {} }
            });
        });
        Stub { url: format!("http://{}", told.recv().unwrap()), asked, open, end: Some(end), thread: Some(thread) }
    }

    /// What came in so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// How many connections are open.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        drop(self.end.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

async fn speak(mut stream: TcpStream, record: Arc<Mutex<Vec<Asked>>>, plan: Arc<Plan>) {
    while let Some(asked) = read(&mut stream).await {
        record.lock().unwrap().push(asked.clone());
        match plan(&asked) {
            Does::Answers(status, headers, body) => {
                let body = if status == 204 { String::new() } else { body.to_string() };
                let head = format!("HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\n\r\n", body.len());
                stream.write_all((head + &body).as_bytes()).await.unwrap();
            }
            Does::Loses => return,
            Does::Hangs => tokio::time::sleep(Duration::from_secs(3_600)).await,
        }
    }
}

async fn read(stream: &mut TcpStream) -> Option<Asked> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        let mut chunk = [0; 4096];
        let read = stream.read(&mut chunk).await.ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&chunk[..read]);
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.lines();
    let line = lines.next().unwrap().trim_end_matches(" HTTP/1.1").to_owned();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let mut asked = Asked { line, headers, body: Value::Null };
    let length: usize = asked.header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = bytes[end..].to_vec();
    while body.len() < length {
        let mut chunk = [0; 4096];
        let read = stream.read(&mut chunk).await.ok().filter(|read| *read > 0)?;
        body.extend_from_slice(&chunk[..read]);
    }
    asked.body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Some(asked)
}

pub(crate) const RUN: &str = "01930000-0000-7000-8000-000000000001";

/// The answer to a claim.
pub(crate) fn claimed() -> Value {
    json!({
        "run": RUN, "lane": "watcher", "status": "claimed", "attempt": 1, "claim": "c", "executor": "mac-7",
        "created_at": "2026-05-04T02:00:00Z", "claimed_at": "2026-05-04T02:00:00Z", "beats": 0, "version": 2,
        "verdict": "presumed", "rule": "coarse_ttl", "lapses_at": "2026-05-04T04:00:00Z", "at": "2026-05-04T02:00:00Z",
        "existing": false, "next_beat_within_seconds": 0.1, "heartbeat_window_seconds": 0.6
    })
}

/// The answer to a heartbeat: the next within 100 ms, and the window is 600 ms.
pub(crate) fn heard(directive: &str) -> Does {
    let body = json!({
        "run": RUN, "status": "running", "attempt": 1, "version": 3, "at": "2026-05-04T02:00:00Z",
        "directive": directive, "next_beat_within_seconds": 0.1, "lapses_at": "2026-05-04T02:00:00.6Z"
    });
    Does::Answers(200, "", body)
}

/// A refusal of an attempt that is over.
pub(crate) fn fenced() -> Does {
    let body = json!({
        "type": "about:blank", "title": "Conflict", "status": 409, "code": "stale_attempt", "directive": "stop",
        "detail": "attempt 1 was reaped"
    });
    Does::Answers(409, "", body)
}

/// No database at the moment.
pub(crate) fn unavailable(headers: &'static str) -> Does {
    Does::Answers(503, headers, json!({"status": 503, "code": "unavailable", "detail": "the database is away"}))
}
