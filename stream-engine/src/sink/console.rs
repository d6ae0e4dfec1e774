//! `'connector' = 'console'` (or Flink's name `print`): rows on standard output, for trying things.
//!
//! | option | default | |
//! |---|---|---|
//! | `format` | table | `table` or `json` (one object per line) |
//! | `rows.max` | 20 | rows of a batch that a table shows; JSON shows all |
//! | `print-identifier` | | text in front of each batch |
//! | `sink.delivery-guarantee` | at-least-once | `at-most-once`: a batch that comes again is not printed |

use std::io::{self, Write as _};

use arrow::array::RecordBatch;
use arrow::util::pretty::pretty_format_batches;
use async_trait::async_trait;
use futures::StreamExt;

use super::{Guarantee, RowStream, Sink, SinkKind, SinkTable};
use crate::batch::BatchContext;
use crate::format::{JsonEncoder, TimestampStyle};
use crate::sql::SqlError;
use crate::sql::options::Options;
use crate::terminal::aside;

pub(super) const KIND: SinkKind = SinkKind { name: "console", upsert: true, options, build };
/// Flink's name for it.
pub(super) const PRINT: SinkKind = SinkKind { name: "print", upsert: true, options, build };

fn options() -> Vec<&'static str> {
    vec!["connector", "format", "rows.max", "print-identifier", "sink.delivery-guarantee"]
}

fn build(options: &mut Options, _table: &SinkTable) -> Result<Box<dyn Sink>, SqlError> {
    Ok(Box::new(Console {
        json: options.choice("format", &["table", "json"], "table")? == "json",
        rows_max: options.number("rows.max", 1, 1_000_000, 20)? as usize,
        identifier: options.optional("print-identifier"),
        guarantee: options.guarantee(
            Guarantee::AtLeastOnce,
            &[(
                Guarantee::ExactlyOnce,
                "a terminal takes nothing back, so a batch that comes again is printed again",
                "write to `kafka`, `redis` or `hbase`",
            )],
        )?,
    }))
}

struct Console {
    json: bool,
    rows_max: usize,
    identifier: Option<String>,
    guarantee: Guarantee,
}

#[async_trait]
impl Sink for Console {
    fn guarantee(&self) -> Guarantee {
        self.guarantee
    }

    async fn write(&mut self, batch: &BatchContext, mut rows: RowStream) -> anyhow::Result<u64> {
        let mut shown: Vec<RecordBatch> = Vec::new();
        let mut count = 0;
        let mut left = self.rows_max;
        while let Some(next) = rows.next().await {
            let next = next?;
            count += next.num_rows();
            if self.json {
                let encoder = JsonEncoder { timestamps: TimestampStyle::Sql, without_nulls: false };
                let prefix = self.identifier.as_ref().map(|text| format!("{text}> ")).unwrap_or_default();
                let mut text = Vec::new();
                for line in encoder.encode(&next)? {
                    text.extend_from_slice(prefix.as_bytes());
                    text.extend_from_slice(&line);
                    text.push(b'\n');
                }
                print(text).await?;
            } else {
                let taken = next.slice(0, next.num_rows().min(left));
                left -= taken.num_rows();
                shown.push(taken);
            }
        }
        if !self.json && count > 0 {
            let name = self.identifier.as_ref().map(|text| format!("{text}, ")).unwrap_or_default();
            let more = count.saturating_sub(self.rows_max);
            let rest = if more > 0 { format!("… and {more} more rows\n") } else { String::new() };
            let text = format!("{name}batch {}\n{}\n{rest}", batch.definition.id, pretty_format_batches(&shown)?);
            print(text.into_bytes()).await?;
        }
        Ok(count as u64)
    }
}

/// The job's progress may be on the same terminal.
async fn print(text: Vec<u8>) -> anyhow::Result<()> {
    let write = move || {
        let mut out = io::stdout().lock();
        out.write_all(&text).and_then(|()| out.flush())
    };
    Ok(tokio::task::spawn_blocking(move || aside(write)).await??)
}
