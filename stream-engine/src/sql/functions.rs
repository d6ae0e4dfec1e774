//! Functions that DataFusion lacks or reads differently from Flink.
//!
//! - `TO_TIMESTAMP_LTZ(number[, 0 | 3])`: epoch seconds (0) or milliseconds (3, the default) as TIMESTAMP_LTZ(3).
//! - `TO_TIMESTAMP(text)`: TIMESTAMP(3); NULL where the text is no time.
//! - `PERCENTILE(x, 0.95)`: approximate (t-digest); another name of `approx_percentile_cont`.
//! - `ROW(a, b)`: a ROW of these fields; in an INSERT they go to the fields of the table's ROW column by position.
//! - Three internal ones that assign rows to windows; see `tvf.rs`.

use std::hash::Hash;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Int64Type, TimeUnit, TimestampMillisecondType};
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::functions_aggregate::approx_percentile_cont::approx_percentile_cont_udaf;
use datafusion::logical_expr::{
    AggregateUDF, ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};

use super::types::UTC;
use crate::format::time;

pub(crate) const WINDOW_START: &str = "millrace_window_start";
pub(crate) const WINDOW_END: &str = "millrace_window_end";
pub(crate) const WINDOW_TIME: &str = "millrace_window_time";

pub(crate) fn scalar_functions() -> Vec<Arc<ScalarUDF>> {
    let assign = |name, part| Arc::new(ScalarUDF::from(Assign { name, part, signature: Signature::any(4, Volatility::Immutable) }));
    let numbers = [vec![DataType::Int64], vec![DataType::Int64, DataType::Int64]];
    vec![
        Arc::new(datafusion::functions::core::r#struct().as_ref().clone().with_aliases(["row"])),
        assign(WINDOW_START, Part::Start),
        assign(WINDOW_END, Part::End),
        assign(WINDOW_TIME, Part::Time),
        Arc::new(ScalarUDF::from(ToTimestampLtz {
            signature: Signature::one_of(numbers.map(TypeSignature::Exact).into(), Volatility::Immutable),
        })),
        Arc::new(ScalarUDF::from(ToTimestamp { signature: Signature::exact(vec![DataType::Utf8], Volatility::Immutable) })),
    ]
}

pub(crate) fn aggregate_functions() -> Vec<Arc<AggregateUDF>> {
    let percentile = approx_percentile_cont_udaf().as_ref().clone();
    vec![Arc::new(percentile.with_aliases(["percentile", "approx_percentile"])), Arc::new(super::sum::sum())]
}

/// Begin of the pane (length `slide`) that holds the time.
pub(crate) fn pane_start(time_ms: i64, slide: i64, offset: i64) -> i64 {
    (time_ms - offset).div_euclid(slide) * slide + offset
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Part {
    Start,
    End,
    Time,
}

/// `(event time, size, slide, offset)` → the pane of the row, or for tumbling windows the same thing, its window.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Assign {
    name: &'static str,
    part: Part,
    signature: Signature,
}

impl ScalarUDFImpl for Assign {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        match (&arguments[0], self.part) {
            (time @ DataType::Timestamp(TimeUnit::Millisecond, _), Part::Time) => Ok(time.clone()),
            (DataType::Timestamp(TimeUnit::Millisecond, _), _) => Ok(DataType::Timestamp(TimeUnit::Millisecond, None)),
            (other, _) => {
                plan_err!("DESCRIPTOR must name a TIMESTAMP(3) or TIMESTAMP_LTZ(3) column, not {}", super::types::flink_name(other))
            }
        }
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let number = |index: usize| match &arguments.args[index] {
            ColumnarValue::Scalar(ScalarValue::Int64(Some(number))) => Ok(*number),
            _ => exec_err!("{} takes whole numbers", self.name),
        };
        let (size, slide, offset) = (number(1)?, number(2)?, number(3)?);
        let add = match self.part {
            Part::Start => 0,
            Part::End => size,
            Part::Time => size - 1,
        };
        let times = arguments.args[0].to_array(arguments.number_rows)?;
        let times = times.as_primitive::<TimestampMillisecondType>();
        let zone = match (self.part, times.data_type()) {
            (Part::Time, DataType::Timestamp(_, zone)) => zone.clone(),
            _ => None,
        };
        // Neighbours mostly share their pane, and a division costs more than a comparison.
        let mut pane = pane_start(0, slide, offset);
        let mut starts = Vec::with_capacity(times.len());
        for time in times.values() {
            if *time < pane || *time - pane >= slide {
                pane = pane_start(*time, slide, offset);
            }
            starts.push(pane + add);
        }
        let starts = TimestampMillisecondArray::new(starts.into(), times.nulls().cloned());
        Ok(ColumnarValue::Array(Arc::new(starts.with_timezone_opt(zone))))
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct ToTimestampLtz {
    signature: Signature,
}

impl ScalarUDFImpl for ToTimestampLtz {
    fn name(&self) -> &str {
        "to_timestamp_ltz"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Timestamp(TimeUnit::Millisecond, Some(UTC.into())))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let factor = match arguments.args.get(1) {
            None | Some(ColumnarValue::Scalar(ScalarValue::Int64(Some(3)))) => 1,
            Some(ColumnarValue::Scalar(ScalarValue::Int64(Some(0)))) => 1000,
            Some(_) => return exec_err!("TO_TIMESTAMP_LTZ's precision is 0 (seconds) or 3 (milliseconds)"),
        };
        let numbers = arguments.args[0].to_array(arguments.number_rows)?;
        let numbers = numbers.as_primitive::<Int64Type>();
        let times: TimestampMillisecondArray = numbers.unary(|number| number.saturating_mul(factor));
        Ok(ColumnarValue::Array(Arc::new(times.with_timezone(UTC))))
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct ToTimestamp {
    signature: Signature,
}

impl ScalarUDFImpl for ToTimestamp {
    fn name(&self) -> &str {
        "to_timestamp"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Timestamp(TimeUnit::Millisecond, None))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let texts: ArrayRef = arguments.args[0].to_array(arguments.number_rows)?;
        let milliseconds =
            |text: &str| time::parse(text.trim().as_bytes()).map(|instant| instant.seconds * 1000 + i64::from(instant.nanos / 1_000_000));
        let times: TimestampMillisecondArray = texts.as_string::<i32>().iter().map(|text| text.and_then(milliseconds)).collect();
        Ok(ColumnarValue::Array(Arc::new(times)))
    }
}
