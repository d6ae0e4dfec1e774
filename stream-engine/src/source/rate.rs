//! A source of so many rows a second, for trying things out and for load: row `n` since the job's first start, due at
//! `start + n / rate`. Rows that were due while the job was away come when it is back.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use futures::{StreamExt as _, stream, stream::BoxStream};
use service_kit::kafka::{Bounds, KafkaError, Record};

use super::local::{LocalLog, Place, Resume};
use crate::batch::clock::Clock;

/// Rows that are made at once.
const CHUNK_ROWS: usize = 4096;

/// Row `n` has offset `n`; its value is `n` as 8 bytes, most significant first, and its timestamp when it was due.
pub(crate) struct RateLog {
    rows_per_second: u32,
    clock: OnceLock<Arc<dyn Clock>>,
    started_at_ms: OnceLock<i64>,
}

impl RateLog {
    pub(crate) fn new(rows_per_second: u32) -> Self {
        Self { rows_per_second, clock: OnceLock::new(), started_at_ms: OnceLock::new() }
    }
}

#[async_trait]
impl LocalLog for RateLog {
    async fn open(&self, place: Place) -> anyhow::Result<()> {
        self.clock.get_or_init(|| place.clock);
        Ok(())
    }

    fn begin(&self, resume: &Resume) {
        self.started_at_ms.get_or_init(|| resume.started_at_ms);
    }

    async fn bounds(&self) -> Result<Bounds, KafkaError> {
        let (Some(clock), Some(started_at_ms)) = (self.clock.get(), self.started_at_ms.get()) else {
            return Ok(Bounds { earliest: 0, latest: 0 });
        };
        // A clock that was set back makes no row unmade: the cutter never goes back.
        let since_ms = i128::from((clock.now_ms() - started_at_ms).max(0));
        let due = since_ms * i128::from(self.rows_per_second) / 1000;
        Ok(Bounds { earliest: 0, latest: i64::try_from(due).unwrap_or(i64::MAX) })
    }

    fn read(&self, from: i64, until: i64) -> BoxStream<'static, Result<Vec<Record>, KafkaError>> {
        let started_at_ms = self.started_at_ms.get().copied().unwrap_or_default();
        let rate = i128::from(self.rows_per_second.max(1));
        let row = move |n: i64| Record {
            offset: n,
            timestamp_ms: started_at_ms + i64::try_from(i128::from(n) * 1000 / rate).unwrap_or(i64::MAX),
            key: None,
            value: Some(n.to_be_bytes().to_vec().into()),
            headers: Vec::new(),
        };
        let starts = (from..until).step_by(CHUNK_ROWS);
        let chunk = move |begin: i64| (begin..until.min(begin + CHUNK_ROWS as i64)).map(row).collect();
        stream::iter(starts).map(move |begin| Ok(chunk(begin))).boxed()
    }
}
