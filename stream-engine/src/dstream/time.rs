//! `Time`: the moment that a batch stands for.

use std::{
    fmt,
    ops::{Add, Sub},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::batch::clock::interval_ms;

/// The time of a batch. Prints as Spark's does: `1500000000000 ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Time(pub(super) i64);

impl Time {
    /// Milliseconds since the epoch.
    pub fn new(milliseconds: i64) -> Self {
        Self(milliseconds)
    }

    /// Since the epoch.
    pub fn milliseconds(self) -> i64 {
        self.0
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0 + interval_ms(duration))
    }
}

impl Sub<Duration> for Time {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0 - interval_ms(duration))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}
