//! Connections: accepted, bounded in number and in patience, and let finish at a shutdown.
//!
//! A connection that has sent no whole request costs a slot and a descriptor, and nobody can tell a slow client from
//! one that means harm. So there is a time for the head of a request, and when all slots are taken, the connection that
//! has waited longest without a request makes room for the next: five hundred of them stop nobody who has something to
//! say. A connection that has had a request and sends nothing is another matter: executors keep theirs from one heartbeat
//! to the next, so it may rest for longer than a head may take.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};
use tower::ServiceExt;

use crate::app::App;
use crate::limits::Limits;
use crate::shutdown::Shutdown;

/// How long to wait after the system gave no connection, for example for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A connection as the others see it.
struct Slot {
    /// How many of its requests are being answered.
    busy: AtomicUsize,
    /// Tells it to go.
    evicted: Notify,
    /// Since when the head of a request is awaited that has begun, if one has.
    head_since: Mutex<Option<Instant>>,
    /// Tells that one has.
    head_begun: Notify,
}

impl Slot {
    /// The first head is awaited from the start.
    fn new() -> Slot {
        let head_since = Mutex::new(Some(Instant::now()));
        Slot { busy: AtomicUsize::new(0), evicted: Notify::new(), head_since, head_begun: Notify::new() }
    }

    fn head(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.head_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that bytes came. Between requests they are the beginning of a head.
    fn received(&self) {
        if self.busy.load(Ordering::Acquire) > 0 {
            return;
        }
        let mut head = self.head();
        if head.is_none() {
            *head = Some(Instant::now());
            self.head_begun.notify_one();
        }
    }

    /// Completes when a head has taken longer than `patience`.
    async fn head_overdue(&self, patience: Duration) {
        loop {
            let since = *self.head();
            match since {
                None => self.head_begun.notified().await,
                Some(since) => {
                    tokio::time::sleep_until(since + patience).await;
                    if *self.head() == Some(since) {
                        return;
                    }
                }
            }
        }
    }
}

/// A stream that notes when bytes come, and fails when none can be sent for too long: who asks and never reads the answer
/// would keep a connection busy for ever, and busy ones make room for nobody.
struct Watched {
    stream: TcpStream,
    slot: Arc<Slot>,
    write_time: Duration,
    /// When patience ends with a client that takes nothing, while it takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    fn wrote(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let write_time = self.write_time;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(write_time)));
        stalled.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        if into.filled().len() > before {
            self.slot.received();
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.wrote(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// The connections that are open, by when they last had a request.
#[derive(Default)]
struct Slots {
    by_age: Mutex<(u64, BTreeMap<u64, Arc<Slot>>)>,
}

impl Slots {
    fn lock(&self) -> std::sync::MutexGuard<'_, (u64, BTreeMap<u64, Arc<Slot>>)> {
        self.by_age.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, slot: &Arc<Slot>) -> u64 {
        let mut slots = self.lock();
        slots.0 += 1;
        let age = slots.0;
        slots.1.insert(age, Arc::clone(slot));
        age
    }

    fn leave(&self, age: u64) {
        self.lock().1.remove(&age);
    }

    /// Tells the connection that has waited longest without a request to go; false if all of them have one.
    fn evict(&self) -> bool {
        let mut slots = self.lock();
        let idle = slots.1.iter().find(|(_, slot)| slot.busy.load(Ordering::Acquire) == 0).map(|(age, _)| *age);
        let Some(slot) = idle.and_then(|age| slots.1.remove(&age)) else { return false };
        slot.evicted.notify_one();
        true
    }

    fn len(&self) -> usize {
        self.lock().1.len()
    }
}

/// Accepts connections until the shutdown begins; then lets the requests that are in flight be finished, for at most the grace.
pub(crate) async fn accept(listener: TcpListener, router: Router, app: App) {
    let (limits, shutdown) = (&app.limits, &app.shutdown);
    let slots = Arc::new(Slots::default());
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.begins() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                if !is_of_one_connection(&error) {
                    tracing::warn!(%error, "no connection can be accepted");
                    slots.evict();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        if slots.len() >= limits.connections && !slots.evict() {
            tracing::warn!("all connections are busy; a new one is turned away");
            // It may have come with a heartbeat.
            app.note_shed(1);
            continue;
        }
        connections.spawn(converse(stream, router.clone(), limits.clone(), Arc::clone(&slots), shutdown.clone()));
    }
    drop(listener);
    let finished = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.grace, finished).await.is_err() {
        tracing::warn!(open = connections.len(), "connections are cut off: their requests took too long");
        connections.shutdown().await;
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Serves one connection to its end.
async fn converse(stream: TcpStream, router: Router, limits: Limits, slots: Arc<Slots>, shutdown: Shutdown) {
    // Answers are small and wanted at once.
    let _ = stream.set_nodelay(true);
    let slot = Arc::new(Slot::new());
    let age = Arc::new(Mutex::new(slots.enter(&slot)));
    let service = {
        let (slots, slot, age) = (Arc::clone(&slots), Arc::clone(&slot), Arc::clone(&age));
        hyper::service::service_fn(move |request: Request<Incoming>| {
            let (router, slots) = (router.clone(), Arc::clone(&slots));
            let (busy, age) = (Busy::begin(&slot), Arc::clone(&age));
            async move {
                let Ok(response) = router.oneshot(request.map(Body::new)).await;
                let mut age = age.lock().unwrap_or_else(PoisonError::into_inner);
                slots.leave(*age);
                *age = slots.enter(&busy.0);
                // The body of the answer keeps the connection busy until it is sent.
                Ok::<_, Infallible>(response.map(|body| Body::new(Sending { body, _busy: busy })))
            }
        })
    };
    let mut builder = http1::Builder::new();
    // Heads over our own limit, up to this one, are answered by a problem document; larger ones by hyper.
    let buffer = limits.head_bytes.saturating_mul(2).max(32 << 10);
    builder.timer(TokioTimer::new()).header_read_timeout(limits.idle_time.max(limits.head_time)).max_buf_size(buffer);
    let stream = Watched { stream, slot: Arc::clone(&slot), write_time: limits.write_time, stalled: None };
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = slot.head_overdue(limits.head_time) => Ok(()),
        () = async {
            tokio::select! { () = slot.evicted.notified() => {}, () = shutdown.begins() => {} }
        } => {
            // hyper would let a connection that never had a request wait for its first one.
            if slot.busy.load(Ordering::Acquire) == 0 {
                Ok(())
            } else {
                connection.as_mut().graceful_shutdown();
                connection.as_mut().await
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
    let age = *age.lock().unwrap_or_else(PoisonError::into_inner);
    slots.leave(age);
}

/// Marks a connection as busy for as long as it lives.
struct Busy(Arc<Slot>);

impl Busy {
    fn begin(slot: &Arc<Slot>) -> Busy {
        slot.busy.fetch_add(1, Ordering::AcqRel);
        *slot.head() = None;
        Busy(Arc::clone(slot))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The body of an answer, on its way.
struct Sending {
    body: Body,
    _busy: Busy,
}

impl hyper::body::Body for Sending {
    type Data = axum::body::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}
