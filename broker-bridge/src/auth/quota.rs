//! How many requests and bytes a second a principal has: a bucket of each, filled steadily up to `auth.quota.burst`.
//!
//! A request finds a token or is refused with the time until there is one. Bytes, of requests and answers, are counted as they pass: who has taken
//! more than there was is refused until it is made up for, and a stream of more is slowed down. Every replica counts for itself.
//! So many principals are kept (`auth.quota.principals_max`); beyond, the one that was quiet longest begins anew when it comes again.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Of one principal; 0: none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limits {
    pub(super) requests: f64,
    pub(super) bytes: f64,
    pub(super) burst: Duration,
}

/// What is used up, and when there is some again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Exhausted {
    pub(super) what: &'static str,
    pub(super) wait: Duration,
}

pub(super) struct Quotas {
    principals_max: usize,
    buckets: Mutex<HashMap<Arc<str>, Buckets>>,
}

struct Buckets {
    requests: Bucket,
    bytes: Bucket,
    used: Instant,
}

struct Bucket {
    /// Below zero: owed.
    left: f64,
    at: Instant,
}

impl Bucket {
    fn full(rate: f64, burst: Duration, now: Instant) -> Self {
        Self { left: room(rate, burst), at: now }
    }

    fn fill(&mut self, rate: f64, burst: Duration, now: Instant) {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + since * rate).min(room(rate, burst));
        self.at = now;
    }
}

/// One request at least fits.
fn room(rate: f64, burst: Duration) -> f64 {
    (rate * burst.as_secs_f64()).max(1.0)
}

fn time_for(amount: f64, rate: f64) -> Duration {
    Duration::try_from_secs_f64(amount.max(0.0) / rate).unwrap_or(Duration::MAX)
}

impl Quotas {
    pub(super) fn new(principals_max: usize) -> Self {
        Self { principals_max, buckets: Mutex::default() }
    }

    fn with<T>(&self, principal: &Arc<str>, limits: Limits, now: Instant, act: impl FnOnce(&mut Buckets) -> T) -> T {
        let mut all = self.buckets.lock();
        if !all.contains_key(principal) {
            if all.len() >= self.principals_max
                && let Some(quiet) = all.iter().min_by_key(|(_, buckets)| buckets.used).map(|(name, _)| Arc::clone(name))
            {
                all.remove(&quiet);
            }
            metrics::gauge!("millrace_bridge_quota_principals").set((all.len() + 1) as f64);
        }
        let buckets = all.entry(Arc::clone(principal)).or_insert_with(|| Buckets {
            requests: Bucket::full(limits.requests, limits.burst, now),
            bytes: Bucket::full(limits.bytes, limits.burst, now),
            used: now,
        });
        buckets.used = now;
        act(buckets)
    }

    /// Takes one request.
    pub(super) fn admit(&self, principal: &Arc<str>, limits: Limits, now: Instant) -> Result<(), Exhausted> {
        if limits.requests <= 0.0 && limits.bytes <= 0.0 {
            return Ok(());
        }
        self.with(principal, limits, now, |buckets| {
            if limits.bytes > 0.0 {
                buckets.bytes.fill(limits.bytes, limits.burst, now);
                if buckets.bytes.left <= 0.0 {
                    return Err(Exhausted { what: "bytes", wait: time_for(1.0 - buckets.bytes.left, limits.bytes) });
                }
            }
            if limits.requests > 0.0 {
                buckets.requests.fill(limits.requests, limits.burst, now);
                if buckets.requests.left < 1.0 {
                    return Err(Exhausted { what: "requests", wait: time_for(1.0 - buckets.requests.left, limits.requests) });
                }
                buckets.requests.left -= 1.0;
            }
            Ok(())
        })
    }

    /// Counts bytes; gives how long until nothing is owed.
    pub(super) fn spend(&self, principal: &Arc<str>, limits: Limits, bytes: usize, now: Instant) -> Duration {
        if limits.bytes <= 0.0 {
            return Duration::ZERO;
        }
        self.with(principal, limits, now, |buckets| {
            buckets.bytes.fill(limits.bytes, limits.burst, now);
            buckets.bytes.left -= bytes as f64;
            time_for(-buckets.bytes.left, limits.bytes)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(requests: f64, bytes: f64) -> Limits {
        Limits { requests, bytes, burst: Duration::from_secs(2) }
    }

    fn name(text: &str) -> Arc<str> {
        text.into()
    }

    #[test]
    fn a_burst_passes_then_the_rate() {
        let (quotas, start, alice) = (Quotas::new(10), Instant::now(), name("alice"));
        let at = |ms: u64| start + Duration::from_millis(ms);
        let asked = |ms: u64| quotas.admit(&alice, limits(5.0, 0.0), at(ms));
        assert!((0..10).all(|_| asked(0).is_ok()), "two seconds' worth at once");
        assert_eq!(asked(0), Err(Exhausted { what: "requests", wait: Duration::from_millis(200) }));
        assert_eq!(asked(100).unwrap_err().wait, Duration::from_millis(100));
        assert!(asked(200).is_ok() && asked(200).is_err());
        // Somebody else has its own; a long rest fills no more than the burst.
        assert!(quotas.admit(&name("bob"), limits(5.0, 0.0), at(200)).is_ok());
        assert_eq!((0..20).filter(|_| asked(60_000).is_ok()).count(), 10);
        assert!((0..1000).all(|_| quotas.admit(&name("free"), limits(0.0, 0.0), start).is_ok()));
    }

    #[test]
    fn bytes_may_be_owed_and_are_made_up_for() {
        let (quotas, start, alice) = (Quotas::new(10), Instant::now(), name("alice"));
        let limits = limits(0.0, 1000.0);
        assert!(quotas.admit(&alice, limits, start).is_ok());
        assert_eq!(quotas.spend(&alice, limits, 1500, start), Duration::ZERO);
        assert_eq!(quotas.spend(&alice, limits, 1500, start), Duration::from_secs(1));
        let refused = quotas.admit(&alice, limits, start).unwrap_err();
        assert_eq!((refused.what, refused.wait), ("bytes", Duration::from_millis(1001)));
        assert!(quotas.admit(&alice, limits, start + Duration::from_millis(1001)).is_ok());
    }

    #[test]
    fn so_many_principals_are_kept_and_the_quiet_one_goes() {
        let (quotas, start) = (Quotas::new(2), Instant::now());
        for (index, principal) in ["a", "b", "a", "c"].iter().enumerate() {
            let at = start + Duration::from_millis(index as u64);
            assert!(quotas.admit(&name(principal), limits(1.0, 0.0), at).is_ok());
        }
        let kept: std::collections::BTreeSet<String> = quotas.buckets.lock().keys().map(ToString::to_string).collect();
        assert_eq!(kept.into_iter().collect::<Vec<_>>(), ["a", "c"]);
    }
}
