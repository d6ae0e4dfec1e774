//! A query → what runs in every batch.
//!
//! A query without aggregation is one plan that rows pass through. A windowed aggregation is cut in two at its GROUP BY:
//!
//! ```text
//! rows of a batch ─▶ filters, window ─▶ partial aggregate ─▶ state (per pane)      each batch, each partition
//! state ─▶ final aggregate ─▶ HAVING, projection, ORDER BY … ─▶ sink               when the watermark passes
//! ```
//! A pane is the part of time that windows do not cut: the window itself for TUMBLE, the slide for HOP. Rows are
//! aggregated once per pane, and a window is put together from its panes when it is emitted.
//! Both halves are planned once.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DataFusionError, Result, ScalarValue};
use datafusion::datasource::provider_as_source;
use datafusion::functions::core::expr_fn::{get_field, named_struct};
use datafusion::functions_aggregate::count::count_udaf;
use datafusion::logical_expr::expr::{AggregateFunction, Case};
use datafusion::logical_expr::{Aggregate, Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, cast, col, lit};
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::{ExecutionPlan, displayable};
use datafusion::sql::parser::Statement as PlannerStatement;
use datafusion::sql::sqlparser::ast;

use super::error::{Place, SqlError, from_planner};
use super::feed::{FeedExec, FeedTable, leaf};
use super::lineage::{Origin, Shape, WindowPart, computes_with_window, origin_of};
use super::parser::ParsedQuery;
use super::session::Session;
use super::types::flink_name;

/// A planned query, without its sink.
#[derive(Debug)]
pub(crate) struct QueryPlan {
    /// Name of the source table.
    pub(crate) source: String,
    /// Columns of the source table that the query reads, in the order of its leaf.
    pub(crate) columns: Vec<usize>,
    /// Has a function that gives something else each time.
    pub(crate) volatile: bool,
    pub(crate) kind: QueryKind,
}

#[derive(Debug)]
pub(crate) enum QueryKind {
    Stateless(Arc<dyn ExecutionPlan>),
    Window(Box<WindowPlan>),
}

#[derive(Debug)]
pub(crate) struct WindowPlan {
    pub(crate) shape: Shape,
    /// Event-time column of the source table.
    pub(crate) time_column: usize,
    /// Rows → partial state; column 0 is the start of the pane.
    pub(crate) partial: Arc<dyn ExecutionPlan>,
    /// State → less state.
    pub(crate) reduce: Arc<dyn ExecutionPlan>,
    /// State of windows → one row per window and key; column 0 is the start of the window.
    pub(crate) finish: Arc<dyn ExecutionPlan>,
    /// Columns that `above` reads, made from those of `finish`.
    pub(crate) output: Vec<OutputColumn>,
    /// What stands above GROUP BY.
    pub(crate) above: Arc<dyn ExecutionPlan>,
    /// `above` looks at several rows at once (ORDER BY, LIMIT, …) and must see one window at a time.
    pub(crate) one_by_one: bool,
    /// For the fingerprint and EXPLAIN.
    pub(crate) keys: Vec<String>,
    pub(crate) aggregates: Vec<String>,
}

/// A column of the aggregate as the query sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputColumn {
    Window(WindowPart),
    /// Index into the columns of `finish`.
    Finish(usize),
}

/// Plans `query` for a sink with these columns (`None`: as they come).
pub(crate) fn plan(
    session: &Session,
    query: &ParsedQuery,
    sink: Option<&Target<'_>>,
    tables: &dyn Tables,
) -> std::result::Result<QueryPlan, SqlError> {
    let planner = Planner { session, at: query.at, tables };
    // The planner would stumble over something else first.
    if joins(&query.query) {
        return Err(planner.no_joins());
    }
    let logical = planner.logical(&query.query)?;
    planner.has_no_clock(&logical)?;
    let logical = match sink {
        Some(target) => planner.fit(logical, target)?,
        None => logical,
    };
    let logical = logical.transform_up(integer_average).map_err(|error| planner.error(&error))?.data;
    let logical = session.analyze(logical).map_err(|error| planner.error(&error))?;
    planner.split(&logical)
}

/// The columns an INSERT writes, in the order in which the query gives them.
pub(crate) struct Target<'a> {
    pub(crate) table: &'a str,
    /// All columns of the sink.
    pub(crate) schema: &'a Schema,
    /// Of these, the ones that are written; others become NULL.
    pub(crate) written: Vec<usize>,
}

/// What the planner must know about the tables behind the names.
pub(crate) trait Tables {
    /// Index of the watermark column; `None` where the table has none.
    fn event_time(&self, table: &str) -> Option<usize>;
    fn column_name(&self, table: &str, index: usize) -> String;
}

struct Planner<'a> {
    session: &'a Session,
    at: Place,
    tables: &'a dyn Tables,
}

impl Planner<'_> {
    fn error(&self, error: &DataFusionError) -> SqlError {
        from_planner(error, self.at)
    }

    fn logical(&self, query: &ast::Query) -> std::result::Result<LogicalPlan, SqlError> {
        let statement = PlannerStatement::Statement(Box::new(ast::Statement::Query(Box::new(query.clone()))));
        let state = self.session.state();
        futures::executor::block_on(state.statement_to_plan(statement)).map_err(|error| self.error(&error))
    }

    /// The planner would replace the time of day by the time of planning, once and for all.
    fn has_no_clock(&self, plan: &LogicalPlan) -> std::result::Result<(), SqlError> {
        const CLOCKS: &[&str] = &["now", "current_timestamp", "current_date", "current_time", "today"];
        let mut found = false;
        // The walk itself cannot fail.
        let _walked = plan.apply(|node| {
            node.apply_expressions(|expr| {
                expr.apply(|part| {
                    found |= matches!(part, Expr::ScalarFunction(function) if CLOCKS.contains(&function.name()));
                    Ok(TreeNodeRecursion::Continue)
                })
            })
        });
        if found {
            return Err(self.at.error(
                "the time of day is not built yet",
                "use the record's time: declare ts TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL in the table",
            ));
        }
        Ok(())
    }

    /// Casts the query's columns to the sink's, by position as in SQL.
    fn fit(&self, plan: LogicalPlan, target: &Target<'_>) -> std::result::Result<LogicalPlan, SqlError> {
        let given: Vec<_> = plan.schema().iter().map(|(relation, field)| (relation.cloned(), field.clone())).collect();
        if given.len() != target.written.len() {
            let names: Vec<_> = given.iter().map(|(_, field)| field.name().as_str()).collect();
            return Err(self.at.error(
                format!("table `{}` takes {} columns, the query gives {}", target.table, target.written.len(), given.len()),
                format!("the query gives: {}", names.join(", ")),
            ));
        }
        let mut columns = Vec::with_capacity(target.schema.fields().len());
        for (index, wanted) in target.schema.fields().iter().enumerate() {
            let source = target.written.iter().position(|written| *written == index).map(|position| &given[position]);
            let expr = match source {
                None => cast(lit(ScalarValue::Null), wanted.data_type().clone()),
                Some((relation, field)) => {
                    let column = Expr::Column(Column::new(relation.clone(), field.name()));
                    if !assignable(field.data_type(), wanted.data_type()) {
                        return Err(self.at.error(
                            format!(
                                "column `{}` of table `{}` is {}, the query gives {} for it",
                                wanted.name(),
                                target.table,
                                flink_name(wanted.data_type()),
                                flink_name(field.data_type())
                            ),
                            format!("CAST it, or declare `{}` as {}", wanted.name(), flink_name(field.data_type())),
                        ));
                    }
                    fitted(column, field.data_type(), wanted.data_type())
                }
            };
            columns.push(expr.alias(wanted.name()));
        }
        LogicalPlanBuilder::from(plan).project(columns).and_then(LogicalPlanBuilder::build).map_err(|error| self.error(&error))
    }

    fn split(&self, plan: &LogicalPlan) -> std::result::Result<QueryPlan, SqlError> {
        let nodes = self.chain(plan)?;
        let lowest = nodes.iter().rposition(|node| matches!(node, LogicalPlan::Aggregate(_)));
        let below = &nodes[lowest.map_or(0, |index| index + 1)..];
        for node in below {
            self.passes_rows(node, lowest.is_some())?;
        }
        let Some(LogicalPlan::TableScan(scan)) = nodes.last() else {
            return Err(self.at.error("the query reads no table", "add FROM table"));
        };
        let source = scan.table_name.table().to_owned();
        let (columns, kind) = match lowest.map(|index| (index, nodes[index])) {
            Some((index, LogicalPlan::Aggregate(aggregate))) => {
                let window = self.window(plan, aggregate, &nodes[..index], below, &source)?;
                let leaf = self.leaf(&window.partial)?;
                (leaf.columns().to_vec(), QueryKind::Window(Box::new(window)))
            }
            _ => {
                if below.iter().any(|node| self.makes_hop(node)) {
                    return Err(self
                        .at
                        .error("HOP without GROUP BY window_start, window_end is not built yet", "group by the window, or use TUMBLE"));
                }
                let physical = self.session.physical(plan.clone()).map_err(|error| self.error(&error))?;
                (self.leaf(&physical)?.columns().to_vec(), QueryKind::Stateless(physical))
            }
        };
        Ok(QueryPlan { source, columns, volatile: draws_lots(plan), kind })
    }

    fn no_joins(&self) -> SqlError {
        self.at.error("joins are not built yet", "read one table per query; see the status table of the README")
    }

    fn leaf<'p>(&self, plan: &'p Arc<dyn ExecutionPlan>) -> std::result::Result<&'p FeedExec, SqlError> {
        leaf(plan).ok_or_else(|| self.at.error("the query never gives a row", "its conditions exclude each other"))
    }

    /// The plan's nodes from the root to the scan.
    fn chain<'p>(&self, plan: &'p LogicalPlan) -> std::result::Result<Vec<&'p LogicalPlan>, SqlError> {
        let mut nodes = vec![plan];
        let mut node = plan;
        loop {
            let mut has_subquery = false;
            let _walked = node.apply_expressions(|expr| {
                expr.apply(|part| {
                    has_subquery |= matches!(part, Expr::InSubquery(_) | Expr::Exists(_) | Expr::ScalarSubquery(_));
                    Ok(TreeNodeRecursion::Continue)
                })
            });
            if has_subquery {
                return Err(self.at.error("subqueries in expressions are not built yet", "join or filter outside of the job"));
            }
            match (node, node.inputs().as_slice()) {
                (LogicalPlan::TableScan(_), _) => return Ok(nodes),
                (LogicalPlan::Join(_), _) => {
                    return Err(self.no_joins());
                }
                (LogicalPlan::Union(_), _) => {
                    return Err(self
                        .at
                        .error("UNION is not built yet", "write one INSERT INTO per branch: they share one read of the source"));
                }
                (_, [input]) => {
                    node = input;
                    nodes.push(node);
                }
                (_, []) => return Err(self.at.error("the query reads no table", "add FROM table")),
                _ => return Err(self.at.error(format!("not supported: {}", node.display()), "")),
            }
        }
    }

    /// Refuses what cannot run on a stream without end, row by row.
    fn passes_rows(&self, node: &LogicalPlan, below_aggregate: bool) -> std::result::Result<(), SqlError> {
        let place = if below_aggregate { "below GROUP BY" } else { "on a stream without windows" };
        let what = match node {
            LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) | LogicalPlan::TableScan(_) => {
                return Ok(());
            }
            LogicalPlan::Sort(_) => "ORDER BY",
            LogicalPlan::Limit(_) => "LIMIT",
            LogicalPlan::Distinct(_) => "SELECT DISTINCT",
            LogicalPlan::Window(_) => "OVER",
            other => return Err(self.at.error(format!("not supported: {}", other.display()), "")),
        };
        Err(self.at.error(
            format!("{what} {place} never comes to an end"),
            "group by window_start and window_end of a TUMBLE or HOP window first; above that it applies to each window",
        ))
    }

    fn makes_hop(&self, node: &LogicalPlan) -> bool {
        let LogicalPlan::Projection(projection) = node else { return false };
        projection.expr.iter().any(|expr| matches!(origin_of(expr, &projection.input), Origin::Window { shape, .. } if shape.is_hop()))
    }

    fn window(
        &self,
        root: &LogicalPlan,
        aggregate: &Aggregate,
        above: &[&LogicalPlan],
        below: &[&LogicalPlan],
        source: &str,
    ) -> std::result::Result<WindowPlan, SqlError> {
        let (shape, time_column, start) = self.shape(aggregate, below, source)?;
        // State is kept per pane and key; window_end and window_time follow from the start.
        let mut groups = vec![start.clone().unalias().alias("__pane")];
        let mut output = Vec::new();
        let mut keys = Vec::new();
        for expr in &aggregate.group_expr {
            match origin_of(expr, &aggregate.input) {
                Origin::Window { part, .. } => output.push(OutputColumn::Window(part)),
                _ => {
                    output.push(OutputColumn::Finish(groups.len()));
                    keys.push(expr.schema_name().to_string());
                    groups.push(expr.clone());
                }
            }
        }
        output.extend((0..aggregate.aggr_expr.len()).map(|index| OutputColumn::Finish(groups.len() + index)));
        let lower = Aggregate::try_new(aggregate.input.clone(), groups, aggregate.aggr_expr.clone()).map_err(|error| self.error(&error))?;
        let single = self.session.physical_aggregate(LogicalPlan::Aggregate(lower)).map_err(|error| self.error(&error))?;
        let Some(single) = single.downcast_ref::<AggregateExec>() else {
            let shown = displayable(single.as_ref()).one_line().to_string();
            return Err(self.at.error(format!("not supported: this aggregation ({})", shown.trim()), ""));
        };
        let (partial, reduce, finish) = phases(single).map_err(|error| self.error(&error))?;
        // The same columns under the same names, so that what stands above does not notice the cut.
        let fields = aggregate.schema.fields().iter().enumerate();
        let plain: Vec<_> = fields.map(|(index, field)| Field::new(format!("c{index}"), field.data_type().clone(), true)).collect();
        let feed = provider_as_source(Arc::new(FeedTable::new("windows", Arc::new(Schema::new(plain)))));
        let columns = aggregate
            .schema
            .iter()
            .enumerate()
            .map(|(index, (relation, field))| col(format!("__windows.c{index}")).alias_qualified(relation.cloned(), field.name()));
        let replacement = LogicalPlanBuilder::scan("__windows", feed, None)
            .and_then(|builder| builder.project(columns.collect::<Vec<_>>()))
            .and_then(LogicalPlanBuilder::build)
            .map_err(|error| self.error(&error))?;
        let upper = replace_lowest_aggregate(root, &replacement).map_err(|error| self.error(&error))?;
        let above_plan = self.session.physical(upper).map_err(|error| self.error(&error))?;
        self.leaf(&above_plan)?;
        let aggregates = aggregate.aggr_expr.iter().map(|expr| expr.schema_name().to_string()).collect();
        let one_by_one = above.iter().any(|node| looks_at_several_rows(node));
        Ok(WindowPlan { shape, time_column, partial, reduce, finish, output, above: above_plan, one_by_one, keys, aggregates })
    }

    /// Shape of the window that is grouped by, the event-time column and the expression of its start.
    fn shape<'e>(
        &self,
        aggregate: &'e Aggregate,
        below: &[&LogicalPlan],
        source: &str,
    ) -> std::result::Result<(Shape, usize, &'e Expr), SqlError> {
        if aggregate.group_expr.iter().any(|expr| matches!(expr, Expr::GroupingSet(_))) {
            return Err(self.at.error("GROUPING SETS, CUBE and ROLLUP are not built yet", "write one INSERT INTO per grouping"));
        }
        let mut start = None;
        let mut has_end = false;
        let mut found = None;
        for expr in &aggregate.group_expr {
            if let Origin::Window { part, shape, time } = origin_of(expr, &aggregate.input) {
                found = Some((shape, time));
                match part {
                    WindowPart::Start => start = Some(expr),
                    WindowPart::End => has_end = true,
                    WindowPart::Time => {}
                }
            }
        }
        let Some((shape, time)) = found else {
            return Err(self.at.error(
                "an unbounded GROUP BY needs an upsert sink (`upsert-kafka`), which is not built yet",
                "group by window_start and window_end of TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' SECOND))",
            ));
        };
        let (Some(start), true) = (start, has_end) else {
            let missing = if start.is_none() { "window_start" } else { "window_end" };
            return Err(self.at.error(format!("GROUP BY lacks `{missing}`"), "group by both window_start and window_end"));
        };
        let event_time = self.tables.event_time(source);
        match (time, event_time) {
            (Some(time), Some(event_time)) if time == event_time => {}
            (_, None) => {
                return Err(self.at.error(
                    format!("table `{source}` has no WATERMARK, so its windows would never be complete"),
                    "add WATERMARK FOR ts AS ts - INTERVAL '5' SECOND to its columns",
                ));
            }
            (_, Some(event_time)) => {
                return Err(self.at.error(
                    "DESCRIPTOR does not name the event-time column",
                    format!("name `{}`, the column with the WATERMARK", self.tables.column_name(source, event_time)),
                ));
            }
        }
        if shape.is_hop() {
            self.hop_columns_pass(aggregate, below)?;
        }
        Ok((shape, time.unwrap_or_default(), start))
    }

    /// Below GROUP BY a row of HOP has no single window yet, so nothing may compute with it there.
    fn hop_columns_pass(&self, aggregate: &Aggregate, below: &[&LogicalPlan]) -> std::result::Result<(), SqlError> {
        let mut wrong = aggregate.group_expr.iter().chain(&aggregate.aggr_expr).any(|expr| computes_with_window(expr, &aggregate.input));
        for node in below {
            if let [input] = node.inputs().as_slice() {
                wrong |= node.expressions().iter().any(|expr| computes_with_window(expr, input));
            }
        }
        if wrong {
            return Err(self.at.error(
                "columns of a HOP window cannot be used in an expression below GROUP BY",
                "group by window_start and window_end as they are, and compute with them in SELECT or HAVING",
            ));
        }
        Ok(())
    }
}

/// Whether some FROM of the query has more than one table.
fn joins(query: &ast::Query) -> bool {
    fn body(set: &ast::SetExpr) -> bool {
        match set {
            ast::SetExpr::Select(select) => {
                select.from.len() > 1
                    || select.from.iter().any(|from| {
                        !from.joins.is_empty() || matches!(&from.relation, ast::TableFactor::Derived { subquery, .. } if joins(subquery))
                    })
            }
            ast::SetExpr::Query(query) => joins(query),
            ast::SetExpr::SetOperation { left, right, .. } => body(left) || body(right),
            _ => false,
        }
    }
    body(&query.body) || query.with.iter().flat_map(|with| &with.cte_tables).any(|table| joins(&table.query))
}

/// Partial, reducing and final form of a planned aggregate.
#[expect(clippy::type_complexity, reason = "three of the same, used once")]
fn phases(single: &AggregateExec) -> Result<(Arc<dyn ExecutionPlan>, Arc<dyn ExecutionPlan>, Arc<dyn ExecutionPlan>)> {
    let aggregates = single.aggr_expr().to_vec();
    let partial = AggregateExec::try_new(
        AggregateMode::Partial,
        single.group_expr().clone(),
        aggregates.clone(),
        single.filter_expr().to_vec(),
        single.input().clone(),
        single.input_schema(),
    )?;
    let state: SchemaRef = partial.schema();
    let over_state = |mode: AggregateMode| -> Result<Arc<dyn ExecutionPlan>> {
        let feed = FeedExec::new("state", &state, (0..state.fields().len()).collect())?;
        // Filters were applied when the state was made.
        let filters = vec![None; aggregates.len()];
        let group = single.group_expr().as_final();
        Ok(Arc::new(AggregateExec::try_new(mode, group, aggregates.clone(), filters, Arc::new(feed), single.input_schema())?))
    };
    Ok((Arc::new(partial), over_state(AggregateMode::PartialReduce)?, over_state(AggregateMode::Final)?))
}

/// Flink's AVG of whole numbers is a whole number: `sum / count` in the type of its argument, cut towards zero.
fn integer_average(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let LogicalPlan::Aggregate(aggregate) = &plan else { return Ok(Transformed::no(plan)) };
    let input = aggregate.input.schema();
    let integer = |expr: &Expr| match expr {
        Expr::AggregateFunction(function) if function.func.name() == "avg" => {
            let data_type = function.params.args.first().and_then(|argument| argument.get_type(input).ok());
            data_type.filter(DataType::is_signed_integer).map(|data_type| (function.clone(), data_type))
        }
        _ => None,
    };
    if !aggregate.aggr_expr.iter().any(|expr| integer(expr).is_some()) {
        return Ok(Transformed::no(plan));
    }
    let mut inner: Vec<Expr> = Vec::new();
    let mut add = |expr: Expr| {
        if !inner.contains(&expr) {
            inner.push(expr.clone());
        }
        Expr::Column(Column::new_unqualified(expr.schema_name().to_string()))
    };
    let groups = aggregate.group_expr.len();
    let mut outer: Vec<Expr> =
        aggregate.schema.iter().take(groups).map(|(relation, field)| Expr::Column(Column::new(relation.cloned(), field.name()))).collect();
    for expr in &aggregate.aggr_expr {
        match integer(expr) {
            None => outer.push(add(expr.clone())),
            Some((average, data_type)) => {
                let with = |func| Expr::AggregateFunction(AggregateFunction { func, params: average.params.clone() });
                let sum = add(with(Arc::new(super::sum::sum())));
                let count = add(with(count_udaf()));
                outer.push(cast(sum / count, data_type).alias(expr.schema_name().to_string()));
            }
        }
    }
    let plan = LogicalPlanBuilder::from(aggregate.input.as_ref().clone())
        .aggregate(aggregate.group_expr.clone(), inner)?
        .project(outer)?
        .build()?;
    Ok(Transformed::yes(plan))
}

fn replace_lowest_aggregate(plan: &LogicalPlan, replacement: &LogicalPlan) -> Result<LogicalPlan> {
    let mut replaced = false;
    let plan = plan.clone().transform_up(|node| {
        if replaced || !matches!(node, LogicalPlan::Aggregate(_)) {
            return Ok(Transformed::no(node));
        }
        replaced = true;
        Ok(Transformed::yes(replacement.clone()))
    })?;
    plan.data.recompute_schema()
}

/// Whether a node above the aggregate mixes rows of different windows.
fn looks_at_several_rows(node: &LogicalPlan) -> bool {
    match node {
        LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) => false,
        LogicalPlan::Window(window) => !window.window_expr.iter().all(|expr| match expr.clone().unalias() {
            Expr::WindowFunction(function) => function
                .params
                .partition_by
                .iter()
                .any(|key| matches!(origin_of(key, &window.input), Origin::Window { part: WindowPart::Start | WindowPart::End, .. })),
            _ => false,
        }),
        _ => true,
    }
}

/// What INSERT converts by itself: between numbers, times, and anything to the same kind. Not text to numbers.
fn assignable(from: &DataType, to: &DataType) -> bool {
    let text = |t: &DataType| matches!(t, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let bytes = |t: &DataType| matches!(t, DataType::Binary | DataType::LargeBinary | DataType::BinaryView);
    from == to
        || from == &DataType::Null
        || (from.is_numeric() && to.is_numeric())
        || (text(from) && text(to))
        || (bytes(from) && bytes(to))
        || (matches!(from, DataType::Timestamp(..) | DataType::Date32) && matches!(to, DataType::Timestamp(..)))
        || (from.is_nested() && to.is_nested() && from.equals_datatype(to))
        || matches!((from, to), (DataType::Struct(from), DataType::Struct(to)) if from.len() == to.len()
            && from.iter().zip(to).all(|(from, to)| assignable(from.data_type(), to.data_type())))
}

fn draws_lots(plan: &LogicalPlan) -> bool {
    let mut found = false;
    // The walk itself cannot fail.
    let _walked = plan.apply(|node| {
        node.apply_expressions(|expr| {
            found |= expr.is_volatile();
            Ok(TreeNodeRecursion::Continue)
        })
    });
    found
}

/// An assignable value as the sink's type. The fields of a ROW are taken by position, as in Flink.
fn fitted(value: Expr, from: &DataType, to: &DataType) -> Expr {
    match (from, to) {
        _ if from == to => value,
        (DataType::Struct(from), DataType::Struct(to)) => {
            let fields = from.iter().zip(to).flat_map(|(from, to)| {
                let field = get_field(value.clone(), from.name().as_str());
                [lit(to.name().as_str()), fitted(field, from.data_type(), to.data_type())]
            });
            let row = named_struct(fields.collect());
            let null = lit(ScalarValue::Null);
            // A NULL row has no fields, not NULLs in them.
            Expr::Case(Case::new(
                None,
                vec![(Box::new(value.clone().is_null()), Box::new(cast(null, DataType::Struct(to.clone()))))],
                Some(Box::new(row)),
            ))
        }
        _ => cast(value, to.clone()),
    }
}
