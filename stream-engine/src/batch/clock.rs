//! Time for batches. Ticks are multiples of the interval since the epoch, so that batches of different workers line up.
//!
//! What decides or is shown asks a [`Clock`], and nothing else in this crate asks the machine (`clippy.toml` sees to it);
//! waits for others (a broker's answer, the pause before another attempt) are real ones.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::watch;

/// Where the runner takes time from; tests bring their own and need no sleep.
#[async_trait]
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since the epoch.
    fn now_ms(&self) -> i64;
    /// Since some moment of the past; for how long something takes. Unlike [`Self::now_ms`] nobody sets it back or forth.
    fn monotonic(&self) -> Duration;
    /// Returns when `now_ms() >= time_ms`.
    async fn sleep_until(&self, time_ms: i64);
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl SystemClock {
    /// Microseconds since the epoch; 0 on a machine that is set to before it.
    pub(crate) fn now_us() -> u64 {
        u64::try_from(machine::utc().timestamp_micros()).unwrap_or(0)
    }
}

#[allow(clippy::disallowed_methods)] // this is where the machine is asked
mod machine {
    use std::{
        sync::LazyLock,
        time::{Duration, Instant},
    };

    pub(super) fn utc() -> chrono::DateTime<chrono::Utc> {
        chrono::Utc::now()
    }

    /// Since it was first asked.
    pub(super) fn monotonic() -> Duration {
        static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
        BEGAN.elapsed()
    }
}

#[async_trait]
impl Clock for SystemClock {
    fn now_ms(&self) -> i64 {
        machine::utc().timestamp_millis()
    }

    fn monotonic(&self) -> Duration {
        machine::monotonic()
    }

    async fn sleep_until(&self, time_ms: i64) {
        // The wall clock may be set back or forth while we sleep, so sleep in pieces.
        loop {
            let wait = time_ms - self.now_ms();
            let Ok(wait @ 1..) = u64::try_from(wait) else { return };
            tokio::time::sleep(Duration::from_millis(wait.min(1000))).await;
        }
    }
}

/// A clock that stands still until it is moved. Cheap to clone; all clones are the same clock.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<watch::Sender<i64>>);

impl ManualClock {
    /// `now_ms`: milliseconds since the epoch.
    pub fn at(now_ms: i64) -> Self {
        Self(Arc::new(watch::Sender::new(now_ms)))
    }

    /// In whole milliseconds, at least one.
    pub fn advance(&self, by: Duration) {
        self.0.send_modify(|now| *now += interval_ms(by));
    }

    /// How many sleepers wait for the clock to move.
    pub fn sleepers(&self) -> usize {
        self.0.receiver_count()
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn now_ms(&self) -> i64 {
        *self.0.borrow()
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.now_ms()).unwrap_or(0))
    }

    async fn sleep_until(&self, time_ms: i64) {
        let mut now = self.0.subscribe();
        // An error means that the clock is gone; then nobody waits for us either.
        now.wait_for(|now| *now >= time_ms).await.ok();
    }
}

/// The last tick at or before `now_ms`.
pub fn tick_at(now_ms: i64, interval: Duration) -> i64 {
    let interval = interval_ms(interval);
    now_ms.div_euclid(interval) * interval
}

/// The first tick after `now_ms`.
pub fn tick_after(now_ms: i64, interval: Duration) -> i64 {
    tick_at(now_ms, interval) + interval_ms(interval)
}

/// At least 1; the settings hold intervals within 10 ms and 1 h.
pub fn interval_ms(interval: Duration) -> i64 {
    i64::try_from(interval.as_millis()).unwrap_or(i64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_multiples_of_the_interval_since_the_epoch() {
        let five = Duration::from_secs(5);
        for (now, at, after) in [(0, 0, 5000), (1, 0, 5000), (4999, 0, 5000), (5000, 5000, 10_000), (-1, -5000, 0)] {
            assert_eq!((tick_at(now, five), tick_after(now, five)), (at, after), "{now}");
        }
        assert_eq!(tick_after(25, Duration::from_millis(10)), 30);
    }
}
