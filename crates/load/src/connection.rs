//! A connection that speaks as much HTTP/1.1 as it takes, so that the cores are the server's.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A connection that is kept between requests.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(address: &str) -> Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, buffer: Vec::with_capacity(16 * 1024) })
    }

    /// Sends a request and returns the body of the answer, which must be a good one.
    pub(crate) async fn send(&mut self, request: &[u8]) -> Result<&[u8]> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let (mut head, mut end) = (None, usize::MAX);
        while self.buffer.len() < end {
            ensure!(self.stream.read_buf(&mut self.buffer).await? > 0, "the server closed the connection");
            if head.is_none()
                && let Some(at) = self.buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n")
            {
                head = Some(at + 4);
                end = at + 4 + content_length(&self.buffer[..at])?;
            }
        }
        let body = &self.buffer[head.unwrap_or_default()..];
        let good = self.buffer.starts_with(b"HTTP/1.1 2");
        ensure!(good, "the server answered {}", String::from_utf8_lossy(&self.buffer));
        Ok(body)
    }

    /// Posts a document and returns the one that comes back.
    pub(crate) async fn post(&mut self, path: &str, body: &Value) -> Result<Value> {
        let request = post(path, &body.to_string());
        Ok(serde_json::from_slice(self.send(&request).await?)?)
    }

    /// Gets a document.
    pub(crate) async fn get(&mut self, path: &str) -> Result<Value> {
        Ok(serde_json::from_slice(self.send(&get(path)).await?)?)
    }
}

/// Makes a request for what is there.
pub(crate) fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").into_bytes()
}

/// Makes a request.
pub(crate) fn post(path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

fn content_length(head: &[u8]) -> Result<usize> {
    let head = std::str::from_utf8(head)?.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    Ok(length.context("an answer without a length")?.trim().parse()?)
}
