//! The beacons of a server: they say that executors can be heard, so they are sent only while that is so.
//!
//! A server that cannot be reached, or that turned heartbeats away, must not let executors be charged for their
//! silence. So before each beacon it asks itself over its own listener whether it lives, and looks whether it shed
//! heartbeats since the last one. If not all is well, no beacon is sent; once every server's promise is broken, the
//! time counts for nobody.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use lastbeat_domain::decide::Command;
use lastbeat_domain::listening::{BeaconRole, Promise, beacon_interval, promise_for};
use lastbeat_domain::{Name, Span};
use lastbeat_store::StoreError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::app::App;

/// How long the listener may take to say that it lives.
const PATIENCE: Duration = Duration::from_secs(2);

/// Beacons until the shutdown begins.
pub(crate) async fn beacon(app: App, process: Name, address: SocketAddr) {
    loop {
        let interval = beacon_interval(app.service().smallest_window());
        let shed = app.take_shed();
        if shed > 0 {
            tracing::warn!(shed, "heartbeats were turned away, so no beacon is sent");
        } else if let Err(error) = answers(address).await {
            tracing::warn!(%error, "the listener does not answer, so no beacon is sent");
        } else if let Err(error) = send(&app, &process, Promise::Within(promise_for(interval))).await {
            tracing::warn!(%error, "no beacon could be written");
        }
        tokio::select! {
            () = app.shutdown.begins() => return,
            () = tokio::time::sleep(interval.to_std()) => {}
        }
    }
}

/// Sends the last beacon of a server that stops cleanly: from now on it is not to be counted on.
pub(crate) async fn last(app: &App, process: &Name) {
    if let Err(error) = send(app, process, Promise::Within(Span::ZERO)).await {
        tracing::warn!(%error, "the last beacon could not be written");
    }
}

async fn send(app: &App, process: &Name, promise: Promise) -> Result<(), StoreError> {
    let beacon = Command::Beacon { process: process.clone(), role: BeaconRole::Serve, promise };
    match app.store().execute(vec![beacon]).await.pop() {
        Some(Err(lastbeat_store::CommandError::Failed(error))) => Err(error),
        _ => Ok(()),
    }
}

/// Asks the listener whether it lives, as a client would.
async fn answers(listening_on: SocketAddr) -> std::io::Result<()> {
    let timed_out = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
    tokio::time::timeout(PATIENCE, ask(reachable(listening_on))).await.map_err(timed_out)?
}

async fn ask(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await?;
    if response.starts_with(b"HTTP/1.1 200") {
        return Ok(());
    }
    Err(std::io::Error::other("it did not say that it lives"))
}

/// An address that means all addresses of the host is reached by loopback.
fn reachable(listening_on: SocketAddr) -> SocketAddr {
    let ip = match listening_on.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listening_on.port())
}
