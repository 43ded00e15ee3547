//! Reaps that are posted: in order, at least once, whatever becomes of the receiver.

#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use hmac::{Hmac, Mac};
use lastbeat_domain::decide::{Command, RunSpec};
use lastbeat_domain::{Name, Span};
use lastbeat_server::hook::{Hook, HookError, HookOptions, HookSecret};
use lastbeat_store::Store;
use lastbeat_testkit::{Backend, Place, claimant, name, on_each_backend, run_id};
use serde_json::Value;
use sha2::Sha256;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

const NOW: &str = "2026-05-04T06:00:00Z";

/// What a receiver does with the next post.
#[derive(Clone, Copy, Debug)]
enum Does {
    Fail,
    Hang,
}

/// A post as it came.
struct Posted {
    headers: HeaderMap,
    body: String,
    taken: bool,
}

impl Posted {
    fn run(&self) -> String {
        let event: Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(event["type"], "timed_out");
        event["run"].as_str().unwrap().to_owned()
    }

    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }
}

/// A receiver that follows a script, and then takes everything.
struct Receiver {
    address: SocketAddr,
    script: Arc<Mutex<VecDeque<Does>>>,
    posts: mpsc::UnboundedReceiver<Posted>,
    sender: mpsc::UnboundedSender<Posted>,
    serving: Option<JoinHandle<()>>,
}

impl Receiver {
    async fn start(script: &[Does]) -> Receiver {
        let (sender, posts) = mpsc::unbounded_channel();
        let script = Arc::new(Mutex::new(script.iter().copied().collect()));
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut receiver = Receiver { address, script, posts, sender, serving: None };
        receiver.come_back().await;
        receiver
    }

    /// Listens on the same address as before.
    async fn come_back(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let (script, sender) = (Arc::clone(&self.script), self.sender.clone());
        let handler = move |headers: HeaderMap, body: String| {
            let (next, sender) = (script.lock().unwrap().pop_front(), sender.clone());
            async move {
                let _ = sender.send(Posted { headers, body, taken: next.is_none() });
                let status = match next {
                    None => StatusCode::NO_CONTENT,
                    Some(Does::Fail) => StatusCode::INTERNAL_SERVER_ERROR,
                    Some(Does::Hang) => std::future::pending().await,
                };
                // A connection that is kept would outlive the listener.
                (status, [("connection", "close")])
            }
        };
        let router = Router::new().route("/reaped", post(handler));
        self.serving = Some(tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }));
    }

    async fn die(&mut self) {
        let serving = self.serving.take().unwrap();
        serving.abort();
        let _ = serving.await;
    }

    async fn next(&mut self) -> Posted {
        tokio::time::timeout(Duration::from_secs(60), self.posts.recv()).await.expect("a post").unwrap()
    }

    /// Waits for the next post that is taken.
    async fn taken(&mut self) -> Posted {
        loop {
            let posted = self.next().await;
            if posted.taken {
                return posted;
            }
        }
    }

    fn options(&self) -> HookOptions {
        HookOptions {
            timeout: Duration::from_millis(200),
            retry_min: Duration::from_millis(5),
            retry_max: Duration::from_millis(50),
            poll: Duration::from_millis(10),
            ..HookOptions::new(format!("http://{}/reaped", self.address), HookSecret::new("hush"))
        }
    }
}

/// A hook that runs.
struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    cursor: Name,
}

impl Running {
    /// Starts it, and waits until it has begun to follow the log.
    async fn start(store: &Arc<dyn Store>, options: HookOptions) -> Running {
        let hook = Hook::new(Arc::clone(store), options).unwrap();
        let (stop, stopped) = oneshot::channel();
        let cursor = hook.cursor().clone();
        let task = tokio::spawn(hook.run(async move {
            let _ = stopped.await;
        }));
        while store.cursor(&cursor).await.unwrap().is_none() {
            tokio::task::yield_now().await;
        }
        Running { stop, task, cursor }
    }

    async fn stop(self) {
        let _ = self.stop.send(());
        self.task.await.unwrap();
    }

    /// Waits until the cursor is at the last fact of the log.
    async fn is_through(&self, store: &Arc<dyn Store>) {
        let end = store.feed(0, 1_000).await.unwrap().last().unwrap().position;
        while store.cursor(&self.cursor).await.unwrap() != Some(end) {
            tokio::task::yield_now().await;
        }
    }
}

/// Makes a run that is claimed and never heard of, and reaps it when its time is over.
async fn reap(place: &Place, store: &Arc<dyn Store>, number: u128) -> String {
    let run = run_id(number);
    let spec = Box::new(RunSpec::of_lane(name("watcher")));
    let create = Command::Create { run, spec, claim: Some(claimant("mac-7", "c")) };
    store.execute(vec![create]).await.pop().unwrap().unwrap();
    place.clock.advance(Span::from_seconds(7_201));
    let reap = Command::Reap { run, by: name("sweeper"), by_hand: None };
    store.execute(vec![reap]).await.pop().unwrap().unwrap();
    run.to_string()
}

on_each_backend! {
    super::NOW;
    reaps_are_posted_signed_and_in_order_from_the_end_of_the_log_on,
    a_receiver_that_fails_hangs_and_dies_gets_every_reap_in_the_end,
    a_hook_goes_on_where_another_one_stopped,
}

async fn reaps_are_posted_signed_and_in_order_from_the_end_of_the_log_on(place: Place) {
    let store = place.store("a").await;
    reap(&place, &store, 1).await;
    let mut receiver = Receiver::start(&[]).await;
    let hook = Running::start(&store, receiver.options()).await;
    let runs = [reap(&place, &store, 2).await, reap(&place, &store, 3).await];
    for run in runs {
        let posted = receiver.next().await;
        assert_eq!(posted.run(), run);
        assert_eq!(posted.header("lastbeat-delivery"), format!("{run}:3"));
        assert_eq!(posted.header("content-type"), "application/json");
        let (at, signature) = posted.header("lastbeat-signature").split_once(",v1=").unwrap();
        let mut mac = Hmac::<Sha256>::new_from_slice(b"hush").unwrap();
        mac.update(format!("{}.{}", at.strip_prefix("t=").unwrap(), posted.body).as_bytes());
        let hex: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(signature, hex);
    }
    hook.is_through(&store).await;
    hook.stop().await;
    assert!(receiver.posts.try_recv().is_err());
}

async fn a_receiver_that_fails_hangs_and_dies_gets_every_reap_in_the_end(place: Place) {
    let store = place.store("a").await;
    let mut receiver = Receiver::start(&[Does::Fail, Does::Fail, Does::Hang]).await;
    let hook = Running::start(&store, receiver.options()).await;
    let first = reap(&place, &store, 1).await;
    let second = reap(&place, &store, 2).await;
    // The first is posted four times before the second is at all.
    let tries = [receiver.next().await, receiver.next().await, receiver.next().await, receiver.next().await];
    assert_eq!(tries.each_ref().map(Posted::run), [&first; 4].map(Clone::clone));
    let deliveries = tries.each_ref().map(|posted| posted.header("lastbeat-delivery").to_owned());
    assert!(deliveries.iter().all(|delivery| *delivery == deliveries[0]));
    assert_eq!(receiver.next().await.run(), second);
    receiver.die().await;
    // Nothing else waits for it meanwhile.
    let third = reap(&place, &store, 3).await;
    let fourth = reap(&place, &store, 4).await;
    assert!(receiver.posts.try_recv().is_err());
    receiver.come_back().await;
    assert_eq!([receiver.taken().await.run(), receiver.taken().await.run()], [third, fourth]);
    hook.is_through(&store).await;
    hook.stop().await;
}

async fn a_hook_goes_on_where_another_one_stopped(place: Place) {
    let (store, other) = (place.store("a").await, place.store("a").await);
    let mut receiver = Receiver::start(&[]).await;
    let hook = Running::start(&store, receiver.options()).await;
    let first = reap(&place, &store, 1).await;
    assert_eq!(receiver.next().await.run(), first);
    hook.is_through(&store).await;
    hook.stop().await;
    let second = reap(&place, &store, 2).await;
    let (one, another) =
        (Running::start(&store, receiver.options()).await, Running::start(&other, receiver.options()).await);
    assert_eq!(receiver.next().await.run(), second);
    one.is_through(&store).await;
    let third = reap(&place, &store, 3).await;
    // Both may have posted the second.
    while receiver.next().await.run() != third {}
    one.is_through(&store).await;
    one.stop().await;
    another.stop().await;
}

#[tokio::test]
async fn a_hook_needs_a_url_and_a_secret() {
    let store = Place::on(Backend::Sqlite, NOW).store("a").await;
    let make = |url: &str, secret: &str| Hook::new(Arc::clone(&store), HookOptions::new(url, HookSecret::new(secret)));
    assert!(matches!(make("reaped", "hush"), Err(HookError::Url(_))));
    assert!(matches!(make("ftp://127.0.0.1/", "hush"), Err(HookError::Url(_))));
    assert!(matches!(make("https://127.0.0.1/", ""), Err(HookError::Secret)));
    assert!(make("https://127.0.0.1/", "hush").is_ok());
}
