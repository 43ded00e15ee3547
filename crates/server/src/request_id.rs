//! The id of a request: in its log lines, in its response, and in the problem it may have become.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

/// The header that carries it, both ways.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// The most bytes of an id that is taken over from a client.
const BYTES_MAX: usize = 128;

/// Identifies a request.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(String);

impl RequestId {
    /// Takes the client's id over if it is harmless in a log; makes one otherwise.
    pub(crate) fn of(headers: &HeaderMap) -> RequestId {
        let given = headers.get(HEADER).and_then(|value| value.to_str().ok()).filter(|id| is_sane(id));
        RequestId(given.map_or_else(|| Uuid::now_v7().to_string(), ToOwned::to_owned))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.0).ok()
    }
}

fn is_sane(id: &str) -> bool {
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(&byte);
    (1..=BYTES_MAX).contains(&id.len()) && id.bytes().all(harmless)
}
