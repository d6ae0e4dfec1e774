//! A receiver's rate: who takes records waits for those that were taken before.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;

use crate::batch::clock::{Clock, interval_ms};

pub(super) struct Pace {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

struct State {
    /// Records per second; `None`: as many as come.
    rate: Option<u64>,
    /// When those that were taken are paid for; [`Clock::monotonic`].
    free_at: Duration,
}

/// The rate is looked at again at least this often by who waits.
const LOOK: Duration = Duration::from_millis(500);

impl Pace {
    pub(super) fn new(rate: Option<u64>, clock: Arc<dyn Clock>) -> Self {
        let free_at = clock.monotonic();
        Self { clock, state: Mutex::new(State { rate, free_at }) }
    }

    /// Counts for what is taken from now on.
    pub(super) fn set(&self, rate: Option<u64>) {
        self.state.lock().rate = rate;
    }

    /// Waits until earlier records are paid for, then takes these: a block may be larger than what a second allows.
    pub(super) async fn take(&self, records: u64) {
        loop {
            let wait = {
                let mut state = self.state.lock();
                let Some(rate) = state.rate else { return };
                let now = self.clock.monotonic();
                if state.free_at <= now {
                    // What was not used is not saved up.
                    state.free_at = now + Duration::from_secs_f64(records as f64 / rate.max(1) as f64);
                    return;
                }
                (state.free_at - now).min(LOOK)
            };
            self.clock.sleep_until(self.clock.now_ms() + interval_ms(wait)).await;
        }
    }
}
