//! Statements → a job: tables by name, settings, and one planned query per INSERT.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use datafusion::common::{DFSchema, DataFusionError};
use datafusion::datasource::ViewTable;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlanBuilder, cast};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_plan::displayable;
use datafusion::sql::sqlparser::ast::{self, ExprWithAlias};

use super::CompileOptions;
use super::error::{Place, SqlError, from_planner, nearest_or_all};
use super::feed::FeedTable;
use super::kafka::KafkaTable;
use super::malformed::Sampler;
use super::options::Options;
use super::parser::{ColumnKind, Explained, Insert, Name, ParsedQuery, Statement, TableDef, parse};
use super::plan::{self, QueryKind, QueryPlan, Tables, Target};
use super::program::{Emit, Half, Output, Query, Source, SqlProgram, State};
use super::session::Session;
use super::settings::{EMIT, Settings, entries};
use super::source::{ColumnOrigin, METADATA, Reader, SourceColumn, SourceTable, Watermark, metadata_types};
use super::types::flink_name;
use crate::batch::{Startup, clock::interval_ms};
use crate::job::JobSettings;
use crate::sink::{Guarantee, SINKS, Sink, SinkKind, SinkTable};

/// A [`super::CompiledJob`] whose program is not yet behind its trait.
pub(super) struct Compiled {
    pub(super) settings: JobSettings,
    pub(super) program: SqlProgram,
    pub(super) notes: Vec<String>,
    pub(super) plan: String,
    pub(super) explain_only: bool,
    pub(super) exactly_once: Vec<String>,
}

pub(super) fn compile(text: &str, options: &CompileOptions) -> Result<Compiled, SqlError> {
    let statements = parse(text, &*options.environment)?;
    let mut settings = Settings::default();
    for entry in entries(&options.defaults) {
        settings.set(&entry)?;
    }
    for statement in &statements {
        if let Statement::Set { entry } = statement
            && Settings::is_memory(entry)
        {
            settings.set(entry)?;
        }
    }
    let session = Session::new(settings.memory_bytes).map_err(|error| from_planner(&error, Place::default()))?;
    let mut job = Job {
        session,
        tables: BTreeMap::new(),
        views: BTreeSet::new(),
        settings,
        inserts: Vec::new(),
        explained: Vec::new(),
        exactly_once: Vec::new(),
    };
    for statement in statements {
        job.statement(statement)?;
    }
    job.finish()
}

struct Job {
    session: Session,
    tables: BTreeMap<String, Table>,
    views: BTreeSet<String>,
    settings: Settings,
    inserts: Vec<Planned>,
    explained: Vec<String>,
    exactly_once: Vec<String>,
}

struct Planned {
    output: String,
    table: String,
    plan: QueryPlan,
    sink: Box<dyn Sink>,
    emit: Emit,
}

struct Table {
    def: TableDef,
    connector: String,
    /// What it takes to read it; only `kafka` tables can be read.
    source: Option<SourceTable>,
    /// Columns that INSERT writes.
    sink_schema: SchemaRef,
    inserts: usize,
}

impl Tables for BTreeMap<String, Table> {
    fn event_time(&self, table: &str) -> Option<usize> {
        self.get(table)?.source.as_ref()?.watermark.map(|watermark| watermark.column)
    }

    fn column_name(&self, table: &str, index: usize) -> String {
        self.get(table).and_then(|table| table.def.columns.get(index)).map(|column| column.name.text.clone()).unwrap_or_default()
    }
}

impl Job {
    fn statement(&mut self, statement: Statement) -> Result<(), SqlError> {
        match statement {
            Statement::Set { entry } => self.settings.set(&entry),
            Statement::Table(def) => self.table(def),
            Statement::View { name, columns, query } => self.view(&name, &columns, &query),
            Statement::Insert(insert) => self.insert(&insert),
            Statement::Explain(Explained::Query(query)) => {
                self.known_tables(&query)?;
                let plan = plan::plan(&self.session, &query, None, &self.tables)?;
                self.readable(&plan, query.at)?;
                self.explained.push(describe("EXPLAIN", &plan));
                Ok(())
            }
            Statement::Explain(Explained::Insert(insert)) => {
                let (plan, _) = self.plan_insert(&insert)?;
                self.explained.push(describe(&format!("EXPLAIN INSERT INTO {}", insert.table.text), &plan));
                Ok(())
            }
        }
    }

    fn table(&mut self, def: TableDef) -> Result<(), SqlError> {
        self.unused(&def.name)?;
        let at = def.options_at;
        let options = Options::new(&def.name.text, at, &def.options);
        let connector = options.required("connector", "kafka")?;
        let Some(kind) = SINKS.iter().find(|kind| kind.name == connector) else {
            let names: Vec<&str> = SINKS.iter().map(|kind| kind.name).collect();
            return Err(options.error(
                "connector",
                format!("unknown connector `{connector}`"),
                nearest_or_all("connectors", &connector, &names),
            ));
        };
        let columns = self.columns(&def)?;
        let physical: Vec<FieldRef> = def
            .columns
            .iter()
            .filter_map(|column| if let ColumnKind::Physical(field) = &column.kind { Some(field.clone()) } else { None })
            .collect();
        for name in &def.primary_key {
            if !physical.iter().any(|field| field.name() == &name.text) {
                let names: Vec<&str> = physical.iter().map(|field| field.name().as_str()).collect();
                return Err(name.at.error(format!("unknown column `{}`", name.text), nearest_or_all("columns", &name.text, &names)));
            }
        }
        let schema = Arc::new(Schema::new(columns.iter().map(|column| column.field.clone()).collect::<Vec<_>>()));
        let sink_schema =
            Arc::new(Schema::new(physical.iter().map(|field| field.as_ref().clone().with_nullable(true)).collect::<Vec<_>>()));
        let source = if connector == "kafka" {
            let watermark = watermark(&def, &schema)?;
            let mut options = options;
            let mut columns = columns;
            let kafka = KafkaTable::read(&mut options, &physical)?;
            for column in &mut columns {
                if matches!(column.origin, ColumnOrigin::Value) && kafka.key_fields.contains(column.field.name()) && !kafka.value_has_key {
                    column.origin = ColumnOrigin::Key;
                }
            }
            for note in kafka.config.notes() {
                self.settings.notes.push(format!("table `{}`: {note}", def.name.text));
            }
            options.finish("connector `kafka`", &KafkaTable::known_options())?;
            Some(SourceTable { name: def.name.text.clone(), kafka, columns, schema: schema.clone(), watermark })
        } else {
            if let Some(column) = def.columns.iter().find(|column| !matches!(column.kind, ColumnKind::Physical(_))) {
                return Err(column.name.at.error(
                    format!("connector `{connector}` only writes, so `{}` cannot be a metadata or computed column", column.name.text),
                    "declare plain columns",
                ));
            }
            self.sink(kind, &def, &sink_schema, 0)?;
            None
        };
        // A name that is only written is known to the planner too, so that reading it gets the right error.
        self.register(&def.name, Arc::new(FeedTable::new(&def.name.text, schema)))?;
        self.tables.insert(def.name.text.clone(), Table { def, connector, source, sink_schema, inserts: 0 });
        Ok(())
    }

    fn register(&self, name: &Name, table: Arc<dyn datafusion::catalog::TableProvider>) -> Result<(), SqlError> {
        let reference = datafusion::common::TableReference::bare(name.text.as_str());
        self.session.context.register_table(reference, table).map_err(|error| from_planner(&error, name.at))?;
        Ok(())
    }

    fn unused(&self, name: &Name) -> Result<(), SqlError> {
        if self.tables.contains_key(&name.text) || self.views.contains(&name.text) {
            return Err(name.at.error(format!("`{}` is defined already", name.text), "choose another name"));
        }
        Ok(())
    }

    /// All columns of a table with their origin.
    fn columns(&self, def: &TableDef) -> Result<Vec<SourceColumn>, SqlError> {
        let base: Vec<Field> = def
            .columns
            .iter()
            .filter_map(|column| match &column.kind {
                ColumnKind::Physical(field) | ColumnKind::Metadata { field, .. } => Some(field.as_ref().clone().with_nullable(true)),
                ColumnKind::Computed(_) => None,
            })
            .collect();
        let base = DFSchema::try_from_qualified_schema(def.name.text.as_str(), &Schema::new(base))
            .map_err(|error| from_planner(&error, def.name.at))?;
        let mut columns = Vec::with_capacity(def.columns.len());
        for column in &def.columns {
            columns.push(match &column.kind {
                ColumnKind::Physical(field) => SourceColumn { field: field.clone(), origin: ColumnOrigin::Value },
                ColumnKind::Metadata { field, key, .. } => self.metadata(&column.name, field, key)?,
                ColumnKind::Computed(expr) => {
                    let is_event_time = def.watermark.as_ref().is_some_and(|watermark| watermark.column.text == column.name.text);
                    self.computed(&column.name, expr, &base, is_event_time).map_err(|error| from_planner(&error, column.name.at))?
                }
            });
        }
        Ok(columns)
    }

    fn metadata(&self, name: &Name, field: &FieldRef, key: &str) -> Result<SourceColumn, SqlError> {
        let Some(key) = METADATA.iter().copied().find(|known| *known == key) else {
            return Err(name.at.error(format!("unknown metadata `{key}`"), nearest_or_all("metadata", key, METADATA)));
        };
        let types = metadata_types(key);
        if !types.contains(field.data_type()) {
            return Err(name.at.error(
                format!("metadata `{key}` cannot be {}", flink_name(field.data_type())),
                format!("declare it {}", flink_name(&types[0])),
            ));
        }
        // A record may be without time or key.
        let field = Arc::new(field.as_ref().clone().with_nullable(true));
        Ok(SourceColumn { field, origin: ColumnOrigin::Metadata(key) })
    }

    fn computed(&self, name: &Name, expr: &ast::Expr, base: &DFSchema, is_event_time: bool) -> Result<SourceColumn, DataFusionError> {
        let state = self.session.state();
        let expr = ExprWithAlias { expr: expr.clone(), alias: None };
        let mut expr: Expr = state.create_logical_expr_from_sql_expr(expr, base)?;
        let data_type = expr.get_type(base)?;
        if is_event_time
            && let DataType::Timestamp(unit, zone) = &data_type
            && *unit != TimeUnit::Millisecond
        {
            expr = cast(expr, DataType::Timestamp(TimeUnit::Millisecond, zone.clone()));
        }
        // Some functions (COALESCE) exist for the planner only, until they are simplified.
        let context =
            SimplifyContext::builder().with_schema(Arc::new(base.clone())).with_config_options(state.config_options().clone()).build();
        let simplifier = ExprSimplifier::new(context);
        let expr = simplifier.simplify(simplifier.coerce(expr, base)?)?;
        let physical = state.create_physical_expr(expr, base)?;
        let data_type = physical.data_type(base.as_arrow())?;
        Ok(SourceColumn { field: Arc::new(Field::new(&name.text, data_type, true)), origin: ColumnOrigin::Computed(physical) })
    }

    fn sink(&self, kind: &SinkKind, def: &TableDef, schema: &SchemaRef, ordinal: usize) -> Result<Box<dyn Sink>, SqlError> {
        let name = &def.name.text;
        let table = SinkTable {
            output: if ordinal == 0 { name.clone() } else { format!("{name}-{}", ordinal + 1) },
            ordinal,
            schema: schema.clone(),
            fields: schema.fields().iter().cloned().collect(),
            primary_key: def.primary_key.iter().map(|name| name.text.clone()).collect(),
        };
        let mut entries = def.options.clone();
        entries.extend(self.settings.guarantee.clone().filter(|_| !says_guarantee(def)));
        let mut options = Options::new(name, def.options_at, &entries);
        options.required("connector", kind.name)?;
        let sink = (kind.build)(&mut options, &table)?;
        options.finish(&format!("connector `{}`", kind.name), &(kind.options)())?;
        Ok(sink)
    }

    fn view(&mut self, name: &Name, columns: &[Name], query: &ParsedQuery) -> Result<(), SqlError> {
        self.unused(name)?;
        self.known_tables(query)?;
        let error = |error: &DataFusionError| from_planner(error, query.at);
        let statement = datafusion::sql::parser::Statement::Statement(Box::new(ast::Statement::Query(query.query.clone())));
        let mut plan = futures::executor::block_on(self.session.state().statement_to_plan(statement)).map_err(|e| error(&e))?;
        if !columns.is_empty() {
            let given: Vec<_> = plan.schema().columns();
            if given.len() != columns.len() {
                return Err(name.at.error(
                    format!("view `{}` names {} columns, its query gives {}", name.text, columns.len(), given.len()),
                    "name as many, or none",
                ));
            }
            let renamed = given.into_iter().zip(columns).map(|(from, to)| Expr::Column(from).alias(&to.text));
            plan = LogicalPlanBuilder::from(plan)
                .project(renamed.collect::<Vec<_>>())
                .and_then(LogicalPlanBuilder::build)
                .map_err(|e| error(&e))?;
        }
        self.register(name, Arc::new(ViewTable::new(plan, None)))?;
        self.views.insert(name.text.clone());
        Ok(())
    }

    /// The planner's own message for an unknown table has no suggestion.
    fn known_tables(&self, query: &ParsedQuery) -> Result<(), SqlError> {
        let mut unknown = None;
        let mut common: BTreeSet<String> = BTreeSet::new();
        if let Some(with) = &query.query.with {
            common.extend(with.cte_tables.iter().map(|table| table.alias.name.value.clone()));
        }
        let _walked = ast::visit_relations(&query.query, |relation| {
            let name = relation.to_string().replace(['`', '"'], "");
            if !self.tables.contains_key(&name) && !self.views.contains(&name) && !common.contains(&name) {
                let span = relation.0.first().and_then(|part| part.as_ident()).map(|ident| ident.span.start);
                let place = span.filter(|start| start.line > 0).map_or(query.at, Place::from);
                unknown.get_or_insert((name, place));
            }
            std::ops::ControlFlow::<()>::Continue(())
        });
        match unknown {
            None => Ok(()),
            Some((name, place)) => {
                let names: Vec<&str> = self.tables.keys().chain(&self.views).map(String::as_str).collect();
                Err(place.error(format!("unknown table `{name}`"), nearest_or_all("tables", &name, &names)))
            }
        }
    }

    fn plan_insert(&self, insert: &Insert) -> Result<(QueryPlan, &Table), SqlError> {
        let Some(table) = self.tables.get(&insert.table.text) else {
            let names: Vec<&str> = self.tables.keys().map(String::as_str).collect();
            let name = &insert.table.text;
            return Err(insert.table.at.error(format!("unknown table `{name}`"), nearest_or_all("tables", name, &names)));
        };
        if let Some(column) = table.def.columns.iter().find(|c| matches!(c.kind, ColumnKind::Metadata { is_virtual: false, .. })) {
            return Err(insert.table.at.error(
                format!("table `{}` has the metadata column `{}`, which cannot be written", insert.table.text, column.name.text),
                "declare it VIRTUAL",
            ));
        }
        let schema = &table.sink_schema;
        let mut written: Vec<usize> = (0..schema.fields().len()).collect();
        if !insert.columns.is_empty() {
            let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
            written = insert
                .columns
                .iter()
                .map(|name| {
                    let found = schema.index_of(&name.text).ok();
                    found.ok_or_else(|| {
                        name.at.error(format!("unknown column `{}`", name.text), nearest_or_all("columns", &name.text, &names))
                    })
                })
                .collect::<Result<_, _>>()?;
        }
        self.known_tables(&insert.query)?;
        let target = Target { table: &insert.table.text, schema, written };
        let plan = plan::plan(&self.session, &insert.query, Some(&target), &self.tables)?;
        self.readable(&plan, insert.query.at)?;
        Ok((plan, table))
    }

    fn readable(&self, plan: &QueryPlan, at: Place) -> Result<(), SqlError> {
        match self.tables.get(&plan.source) {
            Some(Table { source: Some(source), .. }) => {
                if source.kafka.startup == Startup::GroupOffsets && source.kafka.group.is_none() {
                    return Err(at.error(
                        format!("table `{}` does not say where reading begins", plan.source),
                        "add 'scan.startup.mode' = 'earliest-offset' (or 'latest-offset'), or 'properties.group.id' = 'name' to its options",
                    ));
                }
                Ok(())
            }
            Some(table) => Err(at.error(
                format!("table `{}` cannot be read: connector `{}` only writes", plan.source, table.connector),
                "read a `kafka` table",
            )),
            None => Err(at.error(format!("unknown table `{}`", plan.source), "")),
        }
    }

    fn insert(&mut self, insert: &Insert) -> Result<(), SqlError> {
        let (plan, table) = self.plan_insert(insert)?;
        let Some(kind) = SINKS.iter().find(|kind| kind.name == table.connector) else {
            return Err(insert.table.at.error(format!("unknown connector `{}`", table.connector), ""));
        };
        let is_windowed = matches!(plan.kind, QueryKind::Window(_));
        if self.settings.emit == Emit::EveryBatch && is_windowed && !kind.upsert {
            return Err(insert.table.at.error(
                format!("`{EMIT}` = `every-batch` needs a sink that replaces rows; connector `{}` appends", kind.name),
                format!("put SET '{EMIT}' = 'on-watermark' in front of this INSERT, or write to `redis` or `hbase`"),
            ));
        }
        let ordinal = table.inserts;
        let sink = self.sink(kind, &table.def, &table.sink_schema, ordinal)?;
        let name = &insert.table.text;
        let exactly_once = sink.guarantee() == Guarantee::ExactlyOnce;
        // A transaction that is not committed takes its rows back, and files that are not listed do not count; elsewhere those of the first run stay.
        if exactly_once && plan.volatile && !matches!(kind.name, "kafka" | "filesystem") {
            return Err(insert.table.at.error(
                format!(
                    "table `{name}` cannot be exactly-once: the query draws lots (RANDOM, UUID), so a batch that comes again has other rows"
                ),
                format!("make the value of the row's own columns, or say '{}' = 'at-least-once'", Guarantee::OPTION),
            ));
        }
        if exactly_once && (says_guarantee(&table.def) || self.settings.guarantee.is_some()) && !self.exactly_once.contains(name) {
            self.exactly_once.push(name.clone());
        }
        let output = if ordinal == 0 { name.clone() } else { format!("{name}-{}", ordinal + 1) };
        self.inserts.push(Planned { output, table: name.clone(), plan, sink, emit: self.settings.emit });
        if let Some(table) = self.tables.get_mut(name) {
            table.inserts += 1;
        }
        Ok(())
    }

    fn finish(self) -> Result<Compiled, SqlError> {
        self.prefixes_differ()?;
        let explain_only = self.inserts.is_empty() && !self.explained.is_empty();
        if self.inserts.is_empty() && !explain_only {
            return Err(Place { line: 1, column: 1 }.error("the job writes nothing", "add INSERT INTO table SELECT …"));
        }
        let mut texts = self.explained;
        texts.extend(self.inserts.iter().map(|insert| describe(&format!("INSERT INTO {}", insert.output), &insert.plan)));
        let plan = texts.join("\n\n");

        let mut names: Vec<String> = Vec::new();
        let mut needed: Vec<BTreeSet<usize>> = Vec::new();
        for insert in &self.inserts {
            let index = names.iter().position(|name| *name == insert.plan.source).unwrap_or_else(|| {
                names.push(insert.plan.source.clone());
                needed.push(BTreeSet::new());
                names.len() - 1
            });
            needed[index].extend(&insert.plan.columns);
        }
        let mut sources = Vec::with_capacity(names.len());
        for (name, needed) in names.iter().zip(needed) {
            let Some(Table { source: Some(table), def, .. }) = self.tables.get(name) else { continue };
            let reader = Reader::new(table, needed).map_err(|error| def.name.at.error(error.to_string(), ""))?;
            sources.push(Source { reader: Arc::new(reader), sampler: Arc::new(Sampler::default()), dead_letters: None });
        }
        let mut outputs = Vec::with_capacity(self.inserts.len());
        for insert in self.inserts {
            let source = names.iter().position(|name| *name == insert.plan.source).unwrap_or_default();
            let reader = &sources[source].reader;
            outputs.push(Output {
                name: insert.output,
                table: insert.table,
                source,
                positions: insert.plan.columns.iter().filter_map(|column| reader.position(*column)).collect(),
                query: match insert.plan.kind {
                    QueryKind::Stateless(plan) => Query::Stateless(plan),
                    QueryKind::Window(plan) => Query::Window(Arc::from(plan), insert.emit),
                },
                sink: insert.sink,
            });
        }
        let mut settings = self.settings;
        if let (Some(table), false) = (self.exactly_once.first(), settings.job.fail_on_data_loss) {
            settings.notes.push(format!(
                "table `{table}` is exactly-once for the records that can still be read: `failOnDataLoss` = `false` goes on without those that Kafka has removed"
            ));
        }
        let program = SqlProgram {
            state: State::fresh(&sources, &outputs),
            sources,
            outputs,
            context: self.session.context.task_ctx(),
            idle_after: settings.idle_after,
            interval_ms: interval_ms(settings.job.batch_interval),
            queue_items_max: settings.queue_items,
            plan: plan.clone(),
            half: Half::Both,
        };
        Ok(Compiled { settings: settings.job, program, notes: settings.notes, plan, explain_only, exactly_once: self.exactly_once })
    }

    /// Two tables with one prefix would fence each other; a source that reads in the group of a sink's marks would write over them.
    fn prefixes_differ(&self) -> Result<(), SqlError> {
        let mut prefixes: BTreeMap<&str, &str> = BTreeMap::new();
        for (name, table) in self.tables.iter().filter(|(_, table)| table.inserts > 0) {
            let Some(prefix) = table.source.as_ref().and_then(|source| source.kafka.transactional_prefix.as_deref()) else { continue };
            if let Some(other) = prefixes.insert(prefix, name) {
                return Err(table.def.options_at.error(
                    format!("tables `{other}` and `{name}` have the same `sink.transactional-id-prefix`, `{prefix}`"),
                    "give each its own",
                ));
            }
            let groups = self.tables.iter().filter_map(|(name, table)| Some((name, table.source.as_ref()?.kafka.group.as_deref()?)));
            if let Some((reader, group)) = groups.into_iter().find(|(_, group)| is_id_of(prefix, group)) {
                return Err(table.def.options_at.error(
                    format!(
                        "table `{reader}` has the `properties.group.id` `{group}`, in which exactly-once keeps what table `{name}` has written \
                         (`sink.transactional-id-prefix`): one would write over the other"
                    ),
                    "give one of the two another name",
                ));
            }
        }
        Ok(())
    }
}

/// The prefix, or `PREFIX-2`, `PREFIX-3`, … of further INSERTs.
fn is_id_of(prefix: &str, group: &str) -> bool {
    let further = group.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-'));
    group == prefix || further.is_some_and(|nth| nth.parse::<usize>().is_ok())
}

fn says_guarantee(def: &TableDef) -> bool {
    def.options.iter().any(|option| option.key == Guarantee::OPTION)
}

fn watermark(def: &TableDef, schema: &Schema) -> Result<Option<Watermark>, SqlError> {
    let Some(watermark) = &def.watermark else { return Ok(None) };
    let at = watermark.column.at;
    let name = &watermark.column.text;
    let Ok(column) = schema.index_of(name) else {
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        return Err(at.error(format!("unknown column `{name}`"), nearest_or_all("columns", name, &names)));
    };
    match schema.field(column).data_type() {
        DataType::Timestamp(TimeUnit::Millisecond, _) => Ok(Some(Watermark { column, delay_ms: watermark.delay_ms })),
        other => Err(at.error(
            format!("the event-time column `{name}` is {}", flink_name(other)),
            "it must be TIMESTAMP(3) or TIMESTAMP_LTZ(3); from epoch milliseconds: ts AS TO_TIMESTAMP_LTZ(ms, 3)",
        )),
    }
}

/// A query for people.
fn describe(title: &str, plan: &QueryPlan) -> String {
    let indent = |plan: &Arc<dyn datafusion::physical_plan::ExecutionPlan>| {
        displayable(plan.as_ref()).indent(false).to_string().lines().map(|line| format!("    {line}\n")).collect::<String>()
    };
    let text = match &plan.kind {
        QueryKind::Stateless(physical) => format!("{title}\n  each batch, rows of `{}`:\n{}", plan.source, indent(physical)),
        QueryKind::Window(window) => {
            let shape = window.shape;
            let form = if shape.is_hop() {
                format!("HOP, slide {} ms, size {} ms", shape.slide, shape.size)
            } else {
                format!("TUMBLE, size {} ms", shape.size)
            };
            format!(
                "{title}\n  window: {form}\n  each batch, rows of `{}` to state:\n{}  each complete window, state to rows:\n{}{}",
                plan.source,
                indent(&window.partial),
                indent(&window.finish),
                indent(&window.above),
            )
        }
    };
    text.trim_end().to_owned()
}
