//! Backpressure: Spark's PID rate estimator, digit for digit.
//!
//! After each batch: `rate` is what it processed per second, `error` how far the limit was above that, `hist` the part
//! of the rate that waits because batches start late. The next limit is `limit − P·error − I·hist − D·Δerror`, never
//! below the minimum. The first batch only sets the start.

use crate::job::PidConfig;

/// One estimator per source.
#[derive(Clone, Debug)]
pub struct PidRate {
    interval_ms: f64,
    config: PidConfig,
    first: bool,
    latest_time_ms: i64,
    latest_rate: f64,
    latest_error: f64,
}

impl PidRate {
    pub fn new(interval_ms: i64, config: PidConfig) -> Self {
        Self { interval_ms: interval_ms as f64, config, first: true, latest_time_ms: -1, latest_rate: -1.0, latest_error: -1.0 }
    }

    /// Takes one completed batch and gives the new limit in records per second; `None` where the batch says nothing.
    pub fn compute(&mut self, time_ms: i64, elements: u64, processing_delay_ms: i64, scheduling_delay_ms: i64) -> Option<f64> {
        if time_ms <= self.latest_time_ms || elements == 0 || processing_delay_ms <= 0 {
            return None;
        }
        let delay_since_update = (time_ms - self.latest_time_ms) as f64 / 1000.0;
        let processing_rate = elements as f64 / processing_delay_ms as f64 * 1000.0;
        let error = self.latest_rate - processing_rate;
        let historical_error = scheduling_delay_ms as f64 * processing_rate / self.interval_ms;
        let error_change = (error - self.latest_error) / delay_since_update;
        let new_rate = (self.latest_rate
            - self.config.proportional * error
            - self.config.integral * historical_error
            - self.config.derived * error_change)
            .max(self.config.min_rate);
        self.latest_time_ms = time_ms;
        if self.first {
            self.first = false;
            self.latest_rate = processing_rate;
            self.latest_error = 0.0;
            None
        } else {
            self.latest_rate = new_rate;
            self.latest_error = error;
            Some(new_rate)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pid(interval_ms: i64, p: f64, i: f64, d: f64, min_rate: f64) -> PidRate {
        PidRate::new(interval_ms, PidConfig { enabled: true, initial_rate: None, proportional: p, integral: i, derived: d, min_rate })
    }

    #[test]
    fn the_first_batch_only_seeds() {
        let mut estimator = pid(20, 1.0, 0.2, 0.0, 10.0);
        assert_eq!(estimator.compute(0, 10, 10, 0), None);
        assert_eq!(estimator.latest_rate, 1000.0);
        assert_eq!(estimator.latest_error, 0.0);
    }

    #[test]
    fn batches_that_say_nothing_are_skipped() {
        let mut estimator = pid(20, 1.0, 0.0, 0.0, 10.0);
        assert_eq!(estimator.compute(0, 10, 10, 0), None); // seeds
        for (time, elements, processing) in [(0, 10, 10), (10, 0, 10), (10, 10, 0), (10, 10, -1), (-1, 10, 10)] {
            assert_eq!(estimator.compute(time, elements, processing, 0), None);
        }
        assert!(estimator.compute(10, 10, 10, 0).is_some());
    }

    #[test]
    fn with_p_alone_the_limit_is_the_last_processing_rate() {
        let mut estimator = pid(20, 1.0, 0.0, 0.0, 10.0);
        assert_eq!(estimator.compute(0, 5, 100, 7), None); // 50/s
        for n in 1..=10_i64 {
            // n·10 records in 20 ms are n·500 per second; scheduling delay has no weight.
            assert_eq!(estimator.compute(n * 20, n as u64 * 10, 20, 7), Some(n as f64 * 500.0));
        }
    }

    #[test]
    fn the_limit_stays_at_the_minimum() {
        let mut estimator = pid(20, 1.0, 0.0, 0.0, 10.0);
        assert_eq!(estimator.compute(0, 1, 100_000, 0), None);
        assert_eq!(estimator.compute(20, 1, 100_000, 0), Some(10.0));
    }

    #[test]
    fn hand_computed_with_all_three_terms() {
        // interval 1 s, P 1.0, I 0.2, D 0.5
        let mut estimator = pid(1000, 1.0, 0.2, 0.5, 100.0);
        // seed: 2000 records in 1000 ms = 2000/s
        assert_eq!(estimator.compute(1000, 2000, 1000, 0), None);
        // 3000 in 2000 ms = 1500/s; error 500; hist 500·1500/1000 = 750; dErr (500−0)/1 = 500
        // 2000 − 500 − 150 − 250 = 1100
        assert_eq!(estimator.compute(2000, 3000, 2000, 500), Some(1100.0));
        // 1100 in 500 ms = 2200/s; error −1100; hist 1000·2200/1000 = 2200; dErr (−1100−500)/2 = −800
        // 1100 + 1100 − 440 + 400 = 2160
        assert_eq!(estimator.compute(4000, 1100, 500, 1000), Some(2160.0));
    }

    #[test]
    fn sparks_defaults_lower_the_limit_while_batches_wait() {
        // interval 5 s, P 1.0, I 0.2, D 0
        let mut estimator = pid(5000, 1.0, 0.2, 0.0, 100.0);
        assert_eq!(estimator.compute(5000, 50_000, 5000, 0), None); // 10,000/s
        // 40,000 in 8 s = 5000/s; error 5000; hist 3000·5000/5000 = 3000; 10000 − 5000 − 600
        assert_eq!(estimator.compute(13_000, 40_000, 8000, 3000), Some(4400.0));
    }
}
