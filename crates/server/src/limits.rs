//! What a server puts up with: every size, time and number that a client could otherwise choose.

use std::time::Duration;

/// The limits of a server.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// The most bytes of a request's body.
    pub body_bytes: usize,
    /// The most bytes of the body of a batch of heartbeats.
    pub batch_bytes: usize,
    /// The most bytes of a request's line and headers.
    pub head_bytes: usize,
    /// How long a client may take to send the head of a request, from its first byte on, or from the opening of the
    /// connection.
    pub head_time: Duration,
    /// How long a connection may rest between two requests; longer than executors wait between two heartbeats.
    pub idle_time: Duration,
    /// How long a client may take to send the body of a request.
    pub body_time: Duration,
    /// How long a client may take none of the answer that is ready for it, before the connection is cut off.
    pub write_time: Duration,
    /// How long an answer may take, waiting for work aside.
    pub answer_time: Duration,
    /// How many connections are open at once. When there are more, those that wait longest without a request go.
    pub connections: usize,
    /// How many requests, heartbeats aside, are answered at once.
    pub requests: usize,
    /// How many requests with heartbeats are answered at once.
    pub beats: usize,
    /// How many requests a second each token may make, heartbeats aside, over time.
    pub rate: f64,
    /// How many it may make at once after a pause.
    pub burst: f64,
    /// How many feeds and followed runs are open at once.
    pub streams: usize,
    /// How many claims wait for work at once.
    pub waiting_claims: usize,
    /// How long requests in flight may go on after a shutdown began.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            body_bytes: 1 << 20,
            batch_bytes: 1 << 20,
            head_bytes: 16 << 10,
            head_time: Duration::from_secs(10),
            idle_time: Duration::from_secs(180),
            body_time: Duration::from_secs(30),
            write_time: Duration::from_secs(30),
            answer_time: Duration::from_secs(30),
            connections: 10_000,
            requests: 64,
            beats: 8_192,
            rate: 200.0,
            burst: 1_000.0,
            streams: 256,
            waiting_claims: 4_096,
            grace: Duration::from_secs(10),
        }
    }
}
