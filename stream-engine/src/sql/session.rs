//! The planner's session: Flink's spelling on DataFusion's planner, one partition per plan, bounded memory.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::context::SessionContext;
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::logical_expr::planner::TypePlanner;
use datafusion::optimizer::Optimizer;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionConfig;
use datafusion::sql::sqlparser::ast;

use super::functions;
use super::types;

/// Rules that would take a windowed aggregate apart or reorder its keys.
const NOT_FOR_AGGREGATES: &[&str] =
    &["single_distinct_aggregation_to_group_by", "eliminate_group_by_constant", "common_sub_expression_eliminate"];

pub(crate) struct Session {
    pub(crate) context: SessionContext,
    aggregates: SessionState,
}

impl Session {
    /// `memory_max`: bytes that the hash tables of all running plans may take together.
    pub(crate) fn new(memory_max: usize) -> Result<Self> {
        let mut config = SessionConfig::new().with_target_partitions(1).with_information_schema(false);
        let options = config.options_mut();
        // Names are case-sensitive, as in Flink.
        options.sql_parser.enable_ident_normalization = false;
        options.sql_parser.map_string_types_to_utf8view = false;
        options.sql_parser.collect_spans = true;
        options.optimizer.enable_dynamic_filter_pushdown = false;
        // Rows that are not combined before they become state would make the state as large as the input.
        options.execution.skip_partial_aggregation_probe_rows_threshold = usize::MAX;
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(GreedyMemoryPool::new(memory_max))).build_arc()?;
        let state = SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(runtime)
            .with_default_features()
            .with_type_planner(Arc::new(FlinkTypes))
            .build();
        let context = SessionContext::new_with_state(state);
        for function in functions::scalar_functions() {
            context.register_udf(function.as_ref().clone());
        }
        for function in functions::aggregate_functions() {
            context.register_udaf(function.as_ref().clone());
        }
        let state = context.state();
        let rules = Optimizer::new().rules.into_iter().filter(|rule| !NOT_FOR_AGGREGATES.contains(&rule.name())).collect();
        let aggregates = SessionStateBuilder::new_from_existing(state).with_optimizer_rules(rules).build();
        Ok(Self { context, aggregates })
    }

    pub(crate) fn state(&self) -> SessionState {
        self.context.state()
    }

    /// Types resolved, wildcards and aliases spelled out; not yet optimised.
    pub(crate) fn analyze(&self, plan: LogicalPlan) -> Result<LogicalPlan> {
        let state = self.state();
        state.analyzer().execute_and_check(plan, state.config_options(), |_, _| {})
    }

    pub(crate) fn physical(&self, plan: LogicalPlan) -> Result<Arc<dyn ExecutionPlan>> {
        physical(&self.state(), plan)
    }

    /// For a plan whose root is the aggregate of windows.
    pub(crate) fn physical_aggregate(&self, plan: LogicalPlan) -> Result<Arc<dyn ExecutionPlan>> {
        physical(&self.aggregates, plan)
    }
}

fn physical(state: &SessionState, plan: LogicalPlan) -> Result<Arc<dyn ExecutionPlan>> {
    let plan = state.optimizer().optimize(plan, state, |_, _| {})?;
    // No table of ours waits for anything while it is planned.
    futures::executor::block_on(state.query_planner().create_physical_plan(&plan, state))
}

/// `CAST(x AS …)` with Flink's type names.
#[derive(Debug)]
struct FlinkTypes;

impl TypePlanner for FlinkTypes {
    fn plan_type_field(&self, sql_type: &ast::DataType) -> Result<Option<FieldRef>> {
        let data_type = match sql_type {
            ast::DataType::Bytes(_) => Some(DataType::Binary),
            ast::DataType::Timestamp(precision, zone) => {
                let name = match zone {
                    ast::TimezoneInfo::None | ast::TimezoneInfo::WithoutTimeZone => "TIMESTAMP",
                    ast::TimezoneInfo::WithTimeZone | ast::TimezoneInfo::Tz => "TIMESTAMP_LTZ",
                };
                let arguments: Vec<u64> = precision.iter().copied().collect();
                types::scalar(name, &arguments).transpose().map_err(DataFusionError::Plan)?
            }
            ast::DataType::Custom(name, arguments) => {
                let arguments: Option<Vec<u64>> = arguments.iter().map(|argument| argument.parse().ok()).collect();
                let name = name.to_string().to_ascii_uppercase();
                arguments.and_then(|arguments| types::scalar(&name, &arguments)).transpose().map_err(DataFusionError::Plan)?
            }
            _ => None,
        };
        Ok(data_type.map(|data_type| Arc::new(Field::new("", data_type, true))))
    }
}
