//! `SUM` of whole numbers that says when the total does not fit, instead of going on below zero.

use std::mem::size_of;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, FieldRef, Int64Type};
use datafusion::common::{DataFusionError, Result};
use datafusion::functions_aggregate::sum::Sum;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature};

/// A total that is no BIGINT. Running the batch again would only give it again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the total of {aggregate} is beyond BIGINT; sum it as DECIMAL: SUM(CAST(x AS DECIMAL(38, 0)))")]
pub struct Overflow {
    aggregate: String,
}

pub(super) fn sum() -> AggregateUDF {
    AggregateUDF::from(CheckedSum::default())
}

/// DataFusion's own, but for the totals of BIGINT.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
struct CheckedSum {
    inner: Sum,
}

impl AggregateUDFImpl for CheckedSum {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn state_fields(&self, arguments: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        self.inner.state_fields(arguments)
    }

    fn accumulator(&self, arguments: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        self.inner.accumulator(arguments)
    }

    fn groups_accumulator_supported(&self, arguments: AccumulatorArgs<'_>) -> bool {
        self.inner.groups_accumulator_supported(arguments)
    }

    fn create_groups_accumulator(&self, arguments: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        if arguments.return_field.data_type() == &DataType::Int64 {
            return Ok(Box::new(Totals { aggregate: arguments.name.to_owned(), totals: Vec::new(), seen: Vec::new() }));
        }
        self.inner.create_groups_accumulator(arguments)
    }
}

struct Totals {
    aggregate: String,
    totals: Vec<i64>,
    /// The group had a value; without one the total is NULL.
    seen: Vec<bool>,
}

impl Totals {
    fn add(&mut self, group: usize, value: i64) -> Result<()> {
        let Some(total) = self.totals[group].checked_add(value) else {
            return Err(DataFusionError::External(Box::new(Overflow { aggregate: self.aggregate.clone() })));
        };
        self.totals[group] = total;
        self.seen[group] = true;
        Ok(())
    }
}

impl GroupsAccumulator for Totals {
    fn update_batch(&mut self, values: &[ArrayRef], groups: &[usize], filter: Option<&BooleanArray>, total: usize) -> Result<()> {
        let values = values[0].as_primitive::<Int64Type>();
        self.totals.resize(total, 0);
        self.seen.resize(total, false);
        if filter.is_none() && values.null_count() == 0 {
            return groups.iter().zip(values.values()).try_for_each(|(group, value)| self.add(*group, *value));
        }
        for (row, group) in groups.iter().enumerate() {
            let passes = filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
            if passes && values.is_valid(row) {
                self.add(*group, values.value(row))?;
            }
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.update_batch(states, groups, None, total)
    }

    fn evaluate(&mut self, emit: EmitTo) -> Result<ArrayRef> {
        let totals = emit.take_needed(&mut self.totals);
        let seen = emit.take_needed(&mut self.seen);
        Ok(Arc::new(Int64Array::new(totals.into(), Some(NullBuffer::from(seen)))))
    }

    fn state(&mut self, emit: EmitTo) -> Result<Vec<ArrayRef>> {
        self.evaluate(emit).map(|state| vec![state])
    }

    /// Every row as a group of its own.
    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let values = values[0].as_primitive::<Int64Type>();
        let passes = |row: usize| filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
        let state: Int64Array = values.iter().enumerate().map(|(row, value)| value.filter(|_| passes(row))).collect();
        Ok(vec![Arc::new(state)])
    }

    fn size(&self) -> usize {
        self.totals.capacity() * size_of::<i64>() + self.seen.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_know_nulls_filters_and_their_limits() {
        let mut totals = Totals { aggregate: "sum(t.bytes)".into(), totals: vec![], seen: vec![] };
        let values = |values: &[Option<i64>]| -> Vec<ArrayRef> { vec![Arc::new(Int64Array::from(values.to_vec()))] };
        totals.update_batch(&values(&[Some(i64::MAX), None, Some(-5)]), &[0, 1, 2], None, 3).unwrap();
        let filter = BooleanArray::from(vec![Some(true), Some(false), None]);
        totals.update_batch(&values(&[Some(-7), Some(1), Some(1)]), &[2, 2, 2], Some(&filter), 3).unwrap();
        let error = totals.update_batch(&values(&[Some(1)]), &[0], None, 3).unwrap_err();
        assert!(error.to_string().contains("sum(t.bytes)"), "{error}");
        let state = totals.state(EmitTo::All).unwrap();
        assert_eq!(state[0].as_primitive::<Int64Type>(), &Int64Array::from(vec![Some(i64::MAX), None, Some(-12)]));
    }
}
