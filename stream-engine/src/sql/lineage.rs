//! Where a column of a logical plan comes from: a column of the source, or a window function in FROM.

use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Expr, LogicalPlan};

use super::functions::{WINDOW_END, WINDOW_START, WINDOW_TIME};

/// A window's form, in milliseconds; `slide == size` for tumbling windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) size: i64,
    pub(crate) slide: i64,
    pub(crate) offset: i64,
}

impl Shape {
    pub(crate) fn is_hop(self) -> bool {
        self.slide != self.size
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WindowPart {
    Start,
    End,
    Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Index of a column of the source table.
    Source(usize),
    /// `time` is the source column in DESCRIPTOR, where it is one.
    Window {
        part: WindowPart,
        shape: Shape,
        time: Option<usize>,
    },
    Computed,
}

/// Origin of the plan's output column.
pub(crate) fn origin(plan: &LogicalPlan, index: usize) -> Origin {
    match plan {
        LogicalPlan::Projection(node) => node.expr.get(index).map_or(Origin::Computed, |expr| origin_of(expr, &node.input)),
        LogicalPlan::SubqueryAlias(node) => origin(&node.input, index),
        LogicalPlan::Filter(node) => origin(&node.input, index),
        LogicalPlan::Sort(node) => origin(&node.input, index),
        LogicalPlan::Limit(node) => origin(&node.input, index),
        LogicalPlan::Window(node) if index < node.input.schema().fields().len() => origin(&node.input, index),
        LogicalPlan::Aggregate(node) => match node.group_expr.get(index) {
            Some(expr) => origin_of(expr, &node.input),
            None => Origin::Computed,
        },
        LogicalPlan::TableScan(node) => {
            Origin::Source(node.projection.as_ref().and_then(|columns| columns.get(index).copied()).unwrap_or(index))
        }
        _ => Origin::Computed,
    }
}

/// Origin of an expression over the plan's columns.
pub(crate) fn origin_of(expr: &Expr, input: &LogicalPlan) -> Origin {
    match expr {
        Expr::Alias(alias) => origin_of(&alias.expr, input),
        Expr::Column(column) => match input.schema().maybe_index_of_column(column) {
            Some(index) => origin(input, index),
            None => Origin::Computed,
        },
        Expr::ScalarFunction(function) => {
            let part = match function.name() {
                WINDOW_START => WindowPart::Start,
                WINDOW_END => WindowPart::End,
                WINDOW_TIME => WindowPart::Time,
                _ => return Origin::Computed,
            };
            let number = |index: usize| match function.args.get(index) {
                Some(Expr::Literal(ScalarValue::Int64(Some(number)), _)) => Some(*number),
                _ => None,
            };
            let (Some(size), Some(slide), Some(offset)) = (number(1), number(2), number(3)) else { return Origin::Computed };
            let time = match origin_of(&function.args[0], input) {
                Origin::Source(index) => Some(index),
                _ => None,
            };
            Origin::Window { part, shape: Shape { size, slide, offset }, time }
        }
        _ => Origin::Computed,
    }
}

/// Whether the expression computes with a window column (passing it on as it is does not count).
pub(crate) fn computes_with_window(expr: &Expr, input: &LogicalPlan) -> bool {
    if !matches!(origin_of(expr, input), Origin::Computed) {
        return false;
    }
    let mut found = false;
    // The walk itself cannot fail.
    let _walked = expr.apply(|part| {
        found |= matches!(part, Expr::Column(_)) && matches!(origin_of(part, input), Origin::Window { .. });
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    found
}
