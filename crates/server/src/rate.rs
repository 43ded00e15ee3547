//! How often each token may ask: a bucket that fills at a steady rate, and empties by one for each request.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lastbeat_domain::Name;
use tokio::time::Instant;

/// How many buckets are kept. Full ones are forgotten when there are more: a new one is full too.
const BUCKETS_MAX: usize = 10_000;

/// The buckets of all tokens.
pub(crate) struct Rates {
    rate: f64,
    burst: f64,
    buckets: Mutex<HashMap<Name, Bucket>>,
}

#[derive(Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Rates {
    /// Makes buckets that hold `burst` and fill by `rate` a second.
    pub(crate) fn new(rate: f64, burst: f64) -> Rates {
        Rates { rate, burst, buckets: Mutex::default() }
    }

    /// Takes one from a token's bucket.
    ///
    /// # Errors
    /// If it is empty: after what time there is one in it again.
    pub(crate) fn take(&self, token: &Name, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= BUCKETS_MAX && !buckets.contains_key(token) {
            buckets.retain(|_, bucket| self.left(*bucket, now) < self.burst);
        }
        let bucket = buckets.entry(token.clone()).or_insert(Bucket { left: self.burst, at: now });
        *bucket = Bucket { left: self.left(*bucket, now), at: now };
        if bucket.left >= 1.0 {
            bucket.left -= 1.0;
            return Ok(());
        }
        Err(Duration::try_from_secs_f64((1.0 - bucket.left) / self.rate).unwrap_or(Duration::from_secs(60)))
    }

    fn left(&self, bucket: Bucket, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        (bucket.left + passed * self.rate).min(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_empties_at_once_and_fills_steadily_and_each_token_has_its_own() {
        let rates = Rates::new(10.0, 2.0);
        let (a, b, start) = (Name::new("a").unwrap(), Name::new("b").unwrap(), Instant::now());
        assert_eq!((rates.take(&a, start), rates.take(&a, start)), (Ok(()), Ok(())));
        assert_eq!(rates.take(&a, start), Err(Duration::from_millis(100)));
        assert_eq!(rates.take(&b, start), Ok(()));
        assert_eq!(rates.take(&a, start + Duration::from_millis(100)), Ok(()));
        assert!(rates.take(&a, start + Duration::from_millis(150)).is_err());
        let later = start + Duration::from_secs(3_600);
        assert_eq!((rates.take(&a, later), rates.take(&a, later)), (Ok(()), Ok(())));
        assert!(rates.take(&a, later).is_err());
    }
}
