//! A crowd of executors that beat as fast as they are answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinSet;

/// Takes heartbeats of runs, which it knows by their place in the fleet.
pub(crate) trait Hears: Send + Sync + 'static {
    /// Returns once the heartbeat is durable.
    fn heartbeat(&self, place: usize) -> impl Future<Output = Result<()>> + Send;
}

/// A crowd: the first `runs` of the fleet, shared out among `in_flight` executors, each of which has one heartbeat on
/// its way at any time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crowd {
    pub(crate) runs: usize,
    pub(crate) in_flight: usize,
}

/// What a crowd did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    pub(crate) heartbeats: u64,
    pub(crate) took: Duration,
}

impl Heard {
    /// Returns the heartbeats a second.
    pub(crate) fn rate(self) -> f64 {
        self.heartbeats as f64 / self.took.as_secs_f64()
    }
}

impl Crowd {
    /// Lets the crowd beat for some time.
    pub(crate) async fn beat_for<H: Hears>(self, hears: &Arc<H>, span: Duration) -> Result<Heard> {
        let started = Instant::now();
        let stop = Arc::new(AtomicBool::new(false));
        let mut executors = JoinSet::new();
        for first in 0..self.in_flight {
            let (hears, stop) = (Arc::clone(hears), Arc::clone(&stop));
            executors.spawn(async move {
                let mut heartbeats = 0;
                for place in self.endless_places(first) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    hears.heartbeat(place).await?;
                    heartbeats += 1;
                }
                anyhow::Ok(heartbeats)
            });
        }
        tokio::time::sleep(span).await;
        stop.store(true, Ordering::Relaxed);
        // What is still on its way counts, and so does the time until it is answered.
        let heartbeats = total(executors).await?;
        Ok(Heard { heartbeats, took: started.elapsed() })
    }

    /// Lets the runs beat between one time and `laps` times, so that they are at different points of whatever happens
    /// after so and so many heartbeats, and every page that they touch has been touched.
    pub(crate) async fn warm_up<H: Hears>(self, hears: &Arc<H>, laps: usize) -> Result<u64> {
        let mut executors = JoinSet::new();
        for first in 0..self.in_flight {
            let hears = Arc::clone(hears);
            executors.spawn(async move {
                let mut heartbeats = 0;
                for lap in 0..laps {
                    for place in self.places(first).filter(|place| place % laps >= lap) {
                        hears.heartbeat(place).await?;
                        heartbeats += 1;
                    }
                }
                anyhow::Ok(heartbeats)
            });
        }
        total(executors).await
    }

    /// The runs of one executor, again and again. Each begins at another point: if all went through the table side by side,
    /// what waits at a time would be rows beside each other, as no fleet's are.
    fn endless_places(self, first: usize) -> impl Iterator<Item = usize> {
        let places = self.places(first);
        let begin = first % places.clone().count().max(1);
        places.cycle().skip(begin)
    }

    /// The runs of one executor.
    fn places(self, first: usize) -> impl Iterator<Item = usize> + Clone {
        (first..self.runs).step_by(self.in_flight)
    }
}

async fn total(mut executors: JoinSet<Result<u64>>) -> Result<u64> {
    let mut total = 0;
    while let Some(executor) = executors.join_next().await {
        total += executor??;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    struct Counts(Mutex<Vec<u64>>);

    impl Hears for Counts {
        async fn heartbeat(&self, place: usize) -> Result<()> {
            self.0.lock().unwrap()[place] += 1;
            tokio::task::yield_now().await;
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_warm_up_touches_every_run_and_spreads_them_over_the_laps() {
        let counts = Arc::new(Counts(Mutex::new(vec![0; 12])));
        let heartbeats = Crowd { runs: 12, in_flight: 5 }.warm_up(&counts, 4).await.unwrap();
        assert_eq!(*counts.0.lock().unwrap(), [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4]);
        assert_eq!(heartbeats, 30);
    }

    #[test]
    fn what_beats_at_a_time_is_spread_over_all_runs() {
        let crowd = Crowd { runs: 12, in_flight: 4 };
        let at_first: Vec<usize> = (0..4).map(|first| crowd.endless_places(first).next().unwrap()).collect();
        assert_eq!(at_first, [0, 5, 10, 3]);
        assert_eq!(crowd.endless_places(1).take(4).collect::<Vec<_>>(), [5, 9, 1, 5]);
    }

    #[tokio::test]
    async fn what_is_counted_was_heard() {
        let counts = Arc::new(Counts(Mutex::new(vec![0; 12])));
        let heard = Crowd { runs: 12, in_flight: 5 }.beat_for(&counts, Duration::from_millis(5)).await.unwrap();
        assert_eq!(counts.0.lock().unwrap().iter().sum::<u64>(), heard.heartbeats);
    }
}
