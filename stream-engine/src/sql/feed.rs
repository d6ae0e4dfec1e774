//! The leaf of every plan: rows that are handed in when the plan is executed.
//!
//! A query is planned once. Each execution brings its rows in the task context, so the same plan runs for many
//! partitions at once and for every batch, and nothing is replanned.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, reset_plan_states};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use futures::Stream;
use parking_lot::Mutex;

/// A table of which only the columns are known while planning.
#[derive(Debug)]
pub(crate) struct FeedTable {
    name: String,
    schema: SchemaRef,
}

impl FeedTable {
    pub(crate) fn new(name: impl Into<String>, schema: SchemaRef) -> Self {
        Self { name: name.into(), schema }
    }
}

#[async_trait]
impl TableProvider for FeedTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let columns = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        Ok(Arc::new(FeedExec::new(&self.name, &self.schema, columns)?))
    }
}

/// Gives the rows of the [`Feed`] in its task context.
#[derive(Debug)]
pub(crate) struct FeedExec {
    name: String,
    /// Of the table, those that are wanted.
    columns: Vec<usize>,
    properties: Arc<PlanProperties>,
}

impl FeedExec {
    pub(crate) fn new(name: &str, schema: &Schema, columns: Vec<usize>) -> Result<Self> {
        let schema = Arc::new(schema.project(&columns)?);
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(Self { name: name.to_owned(), columns, properties: Arc::new(properties) })
    }

    /// Indices into the table's columns.
    pub(crate) fn columns(&self) -> &[usize] {
        &self.columns
    }
}

impl DisplayAs for FeedExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.schema().fields().iter().map(|field| field.name().clone()).collect();
        write!(f, "FeedExec: {}, columns=[{}]", self.name, names.join(", "))
    }
}

impl ExecutionPlan for FeedExec {
    fn name(&self) -> &str {
        "FeedExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(&self, _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, _children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        match context.session_config().get_extension::<Feed>().and_then(|feed| feed.0.lock().take()) {
            Some(rows) => Ok(rows),
            None => internal_err!("no rows were handed in for `{}`", self.name),
        }
    }
}

/// The rows of one execution; taken once.
struct Feed(Mutex<Option<SendableRecordBatchStream>>);

/// Executes a plan over rows that fit its leaf.
pub(crate) fn execute(
    plan: &Arc<dyn ExecutionPlan>,
    context: &TaskContext,
    rows: impl Stream<Item = Result<RecordBatch>> + Send + 'static,
) -> Result<SendableRecordBatchStream> {
    let Some(leaf) = leaf(plan) else { return internal_err!("a plan without a feed") };
    let rows = RecordBatchStreamAdapter::new(leaf.schema(), rows);
    let feed = Arc::new(Feed(Mutex::new(Some(Box::pin(rows)))));
    let context = TaskContext::new(
        None,
        context.session_id(),
        context.session_config().clone().with_extension(feed),
        // Functions are looked up while planning only.
        HashMap::new(),
        HashMap::new(),
        HashMap::new(),
        HashMap::new(),
        context.runtime_env(),
    );
    // Without the reset every execution would add its metrics to the plan for good.
    reset_plan_states(plan.clone())?.execute(0, Arc::new(context))
}

/// The only feed of a plan.
pub(crate) fn leaf(plan: &Arc<dyn ExecutionPlan>) -> Option<&FeedExec> {
    if let Some(feed) = plan.downcast_ref::<FeedExec>() {
        return Some(feed);
    }
    match plan.children().as_slice() {
        [only] => leaf(only),
        _ => None,
    }
}

/// A reason that travels through a plan's streams.
pub(crate) fn external(error: impl fmt::Display) -> DataFusionError {
    DataFusionError::Execution(error.to_string())
}
