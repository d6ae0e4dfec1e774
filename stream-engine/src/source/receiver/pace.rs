//! A receiver's rate: who takes records waits for those that were taken before.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

pub(super) struct Pace(Mutex<State>);

struct State {
    /// Records per second; `None`: as many as come.
    rate: Option<u64>,
    /// When those that were taken are paid for.
    free_at: Instant,
}

/// The rate is looked at again at least this often by who waits.
const LOOK: Duration = Duration::from_millis(500);

impl Pace {
    pub(super) fn new(rate: Option<u64>) -> Self {
        Self(Mutex::new(State { rate, free_at: Instant::now() }))
    }

    /// Counts for what is taken from now on.
    pub(super) fn set(&self, rate: Option<u64>) {
        self.0.lock().rate = rate;
    }

    /// Waits until earlier records are paid for, then takes these: a block may be larger than what a second allows.
    pub(super) async fn take(&self, records: u64) {
        loop {
            let wait = {
                let mut state = self.0.lock();
                let Some(rate) = state.rate else { return };
                let now = Instant::now();
                if state.free_at <= now {
                    // What was not used is not saved up.
                    state.free_at = now + Duration::from_secs_f64(records as f64 / rate.max(1) as f64);
                    return;
                }
                state.free_at.min(now + LOOK)
            };
            sleep_until(wait).await;
        }
    }
}
