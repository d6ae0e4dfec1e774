//! The registry's paths. Translates and calls; decides nothing.

use std::collections::{BTreeSet, HashMap};

use axum::{
    body::Bytes,
    extract::{Path, Query, Request, State as Extracted},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::{delete, get, post, put},
};
use http::{HeaderMap, header};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{
    CONTENT_TYPE, Registry,
    decide::{self, Registering, Submitted},
    error::{RegistryError, Result},
    schema::Kind,
    state::{Filter, LEVEL, State, Stored},
    subject,
};
use crate::{
    auth::{
        KNOWN,
        Kind::Subject,
        Verb::{AlterConfigs, Delete, DescribeConfigs, Read, Write},
        carrier, on_all, on_any, on_subject, sees,
    },
    http::{App, Route},
};

/// Everything that the registry serves.
#[rustfmt::skip] // a table: one line an operation
pub(crate) fn routes() -> Vec<Route> {
    macro_rules! route {
        (GET $path:expr, $access:expr, $handler:expr) => { Route { method: "GET", path: $path, access: $access, handler: get($handler) } };
        (POST $path:expr, $access:expr, $handler:expr) => { Route { method: "POST", path: $path, access: $access, handler: post($handler).layer(from_fn(understood)) } };
        (PUT $path:expr, $access:expr, $handler:expr) => { Route { method: "PUT", path: $path, access: $access, handler: put($handler).layer(from_fn(understood)) } };
        (DELETE $path:expr, $access:expr, $handler:expr) => { Route { method: "DELETE", path: $path, access: $access, handler: delete($handler) } };
    }
    vec![
        route!(GET "/subjects", on_any(Read, Subject), subjects),
        route!(POST "/subjects/{subject}", on_subject(Read), look_up),
        route!(DELETE "/subjects/{subject}", on_subject(Delete), delete_subject),
        route!(GET "/subjects/{subject}/metadata", on_subject(Read), with_metadata),
        route!(GET "/subjects/{subject}/versions", on_subject(Read), versions),
        route!(POST "/subjects/{subject}/versions", on_subject(Write), register),
        route!(GET "/subjects/{subject}/versions/{version}", on_subject(Read), version),
        route!(DELETE "/subjects/{subject}/versions/{version}", on_subject(Delete), delete_version),
        route!(GET "/subjects/{subject}/versions/{version}/schema", on_subject(Read), version_text),
        route!(GET "/subjects/{subject}/versions/{version}/referencedby", on_subject(Read), referenced_by),

        route!(GET "/schemas", on_any(Read, Subject), schemas),
        route!(GET "/schemas/types", KNOWN, types),
        route!(GET "/schemas/ids/{id}", on_any(Read, Subject), by_id),
        route!(GET "/schemas/ids/{id}/schema", on_any(Read, Subject), by_id_text),
        route!(GET "/schemas/ids/{id}/subjects", on_any(Read, Subject), by_id_subjects),
        route!(GET "/schemas/ids/{id}/versions", on_any(Read, Subject), by_id_versions),
        route!(GET "/schemas/guids/{guid}", on_any(Read, Subject), by_guid),
        route!(GET "/schemas/guids/{guid}/ids", on_any(Read, Subject), by_guid_ids),

        route!(POST "/compatibility/subjects/{subject}/versions", on_subject(Read), compatible_with_subject),
        route!(POST "/compatibility/subjects/{subject}/versions/{version}", on_subject(Read), compatible_with_version),

        route!(GET "/config", on_all(DescribeConfigs, Subject), async |app, query| config(app, Path(String::new()), query).await),
        route!(PUT "/config", on_all(AlterConfigs, Subject), async |app, body| set_config(app, Path(String::new()), body).await),
        route!(DELETE "/config", on_all(AlterConfigs, Subject), async |app| delete_config(app, Path(String::new())).await),
        route!(GET "/config/{subject}", on_subject(DescribeConfigs), config),
        route!(PUT "/config/{subject}", on_subject(AlterConfigs), set_config),
        route!(DELETE "/config/{subject}", on_subject(AlterConfigs), delete_config),
        route!(GET "/mode", on_all(DescribeConfigs, Subject), async |app, query| mode(app, Path(String::new()), query).await),
        route!(PUT "/mode", on_all(AlterConfigs, Subject), async |app, query, body| set_mode(app, Path(String::new()), query, body).await),
        route!(DELETE "/mode", on_all(AlterConfigs, Subject), async |app, query| delete_mode(app, Path(String::new()), query).await),
        route!(GET "/mode/{subject}", on_subject(DescribeConfigs), mode),
        route!(PUT "/mode/{subject}", on_subject(AlterConfigs), set_mode),
        route!(DELETE "/mode/{subject}", on_subject(AlterConfigs), delete_mode),

        route!(GET "/contexts", on_any(Read, Subject), contexts),
        route!(DELETE "/contexts/{context}", on_all(Delete, Subject), delete_context),
        route!(GET "/v1/metadata/id", KNOWN, metadata_id),
        route!(GET "/v1/metadata/version", KNOWN, metadata_version),
    ]
}

type Asked = Query<HashMap<String, String>>;
type AppState = Extracted<App>;

/// An answer that is there.
fn answer(body: &Value) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], body.to_string()).into_response()
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|error| {
        let (code, what) = if error.is_data() { (422, "the body is not as expected") } else { (400, "the body is not JSON") };
        RegistryError::new(code, format!("{what}: {error}; GET /openapi at [http] listen shows what is expected"))
    })
}

/// Those that a body may have; without one it is taken for the last.
const UNDERSTOOD: [&str; 4] = [CONTENT_TYPE, "application/vnd.schemaregistry+json", "application/json", "application/octet-stream"];

async fn understood(request: Request, next: Next) -> Response {
    let given = request.headers().get(header::CONTENT_TYPE).map_or("", |value| value.to_str().unwrap_or("?"));
    let kind = given.split(';').next().unwrap_or_default().trim();
    if kind.is_empty() || UNDERSTOOD.iter().any(|known| known.eq_ignore_ascii_case(kind)) {
        return next.run(request).await;
    }
    let message = format!("HTTP 415 Unsupported Media Type: {kind} is not understood here; send one of {}", UNDERSTOOD.join(", "));
    RegistryError::new(415, message).into_response()
}

/// By which a client says that it may send more than is known here.
const ACCEPT_UNKNOWN: &str = "confluent-accept-unknown-properties";

fn submitted(headers: &HeaderMap, bytes: &[u8]) -> Result<Submitted> {
    let submitted: Submitted = parse(bytes)?;
    let lenient = headers.get(ACCEPT_UNKNOWN).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true"));
    if let Some((name, _)) = submitted.others.iter().next().filter(|_| !lenient) {
        let known = "schema, schemaType, references, metadata, ruleSet, id, version";
        return Err(RegistryError::new(422, format!("Unrecognized field: {name}; what a schema can bring: {known}")));
    }
    Ok(Submitted { others: Map::new(), caller: carrier(), ..submitted })
}

/// As Confluent's registry takes it: everything that is not `true` is not.
fn flag(query: &Asked, name: &str) -> bool {
    query.get(name).is_some_and(|text| text.eq_ignore_ascii_case("true"))
}

fn text<'a>(query: &'a Asked, name: &str) -> &'a str {
    query.get(name).map_or("", String::as_str)
}

fn number(query: &Asked, name: &str) -> Result<Option<i64>> {
    let wrong = |text: &String| RegistryError::new(400, format!("?{name}={text} is not a number"));
    query.get(name).map(|text| text.parse().map_err(|_| wrong(text))).transpose()
}

/// The part of a list that `offset` and `limit` ask for; `most` where the limit is absent, negative or above it.
fn page<T>(query: &Asked, most: usize, all: impl Iterator<Item = T>) -> Result<Vec<T>> {
    let offset = usize::try_from(number(query, "offset")?.unwrap_or(0)).unwrap_or(0);
    let limit = number(query, "limit")?.and_then(|limit| usize::try_from(limit).ok()).filter(|limit| (1..=most).contains(limit));
    Ok(all.skip(offset).take(limit.unwrap_or(most)).collect())
}

/// Entries of one answer.
const SUBJECTS_MAX: usize = 20_000;
const SCHEMAS_MAX: usize = 1_000;

fn filter(query: &Asked) -> Filter {
    match (flag(query, "deletedOnly"), flag(query, "deleted")) {
        (true, _) => Filter::OnlyDeleted,
        (false, true) => Filter::WithDeleted,
        (false, false) => Filter::Live,
    }
}

/// `latest`, -1 or a number from 1.
fn version_number(text: &str) -> Result<i32> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("latest") {
        return Ok(-1);
    }
    text.parse().ok().filter(|version| *version == -1 || *version > 0).ok_or_else(|| RegistryError::invalid_version(text))
}

fn schema_id(text: &str) -> Result<i32> {
    text.parse().map_err(|_| RegistryError::no_schema(Some(text)))
}

/// Whether a subject is meant by `?subjectPrefix`: `:*:` stands for every context.
fn has_prefix(subject: &str, prefix: &str) -> bool {
    match prefix.strip_prefix(subject::WILDCARD) {
        Some(prefix) => subject::split(subject).1.starts_with(prefix),
        None => {
            let ((of_subject, name), (context, prefix)) = (subject::split(subject), subject::split(prefix));
            of_subject == context && name.starts_with(prefix)
        }
    }
}

/// The text in a format that the request names; as it was registered, where the format would write out what the caller may not read.
fn formatted(state: &State, stored: &Stored, format: &str) -> String {
    if format.is_empty() || state.resolve_for(&carrier(), &stored.subject, &stored.references).is_err() {
        return stored.schema.clone();
    }
    state.parse(stored).map_or_else(|_| stored.schema.clone(), |parsed| parsed.formatted(format))
}

/// What a schema is, whoever has it.
fn body(state: &State, stored: &Stored, query: &Asked) -> Map<String, Value> {
    let mut body = Map::new();
    body.insert("guid".to_owned(), stored.guid.to_string().into());
    // Clients older than the other types do not know the member.
    if stored.kind != Kind::Avro.name() {
        body.insert("schemaType".to_owned(), stored.kind.clone().into());
    }
    if !stored.references.is_empty() {
        let mut references = stored.references.clone();
        if text(query, "referenceFormat") == "qualified" {
            references.iter_mut().for_each(|one| one.subject = subject::beside(&stored.subject, &one.subject));
        }
        body.insert("references".to_owned(), json!(references));
    }
    for (key, value) in [("metadata", &stored.metadata), ("ruleSet", &stored.rule_set)] {
        if let Some(value) = value {
            body.insert(key.to_owned(), value.clone());
        }
    }
    body.insert("schema".to_owned(), formatted(state, stored, text(query, "format")).into());
    body
}

/// With who has it.
fn full(state: &State, stored: &Stored, query: &Asked) -> Value {
    let mut body = body(state, stored, query);
    body.insert("subject".to_owned(), stored.subject.clone().into());
    body.insert("version".to_owned(), stored.version.into());
    body.insert("id".to_owned(), stored.id.into());
    if stored.timestamp_ms > 0 {
        body.insert("ts".to_owned(), stored.timestamp_ms.into());
    }
    if stored.deleted {
        body.insert("deleted".to_owned(), true.into());
    }
    Value::Object(body)
}

async fn subjects(Extracted(app): AppState, query: Asked) -> Result<Response> {
    let prefix = query.get("subjectPrefix").map_or(subject::WILDCARD, String::as_str);
    app.registry
        .read(|state| {
            let having = state.subjects.iter().filter(|(subject, versions)| {
                let takes = match filter(&query) {
                    // A subject is deleted when all its versions are.
                    Filter::OnlyDeleted => versions.values().all(|stored| stored.deleted),
                    other => versions.values().any(|stored| other.takes(stored.deleted)),
                };
                takes && has_prefix(subject, prefix) && sees(Read, Subject, subject)
            });
            Ok(answer(&json!(page(&query, SUBJECTS_MAX, having.map(|(subject, _)| subject))?)))
        })
        .await
}

async fn look_up(
    Extracted(app): AppState,
    Path(subject): Path<String>,
    query: Asked,
    headers: HeaderMap,
    bytes: Bytes,
) -> Result<Response> {
    let (subject, submitted) = (subject::normal(&subject), submitted(&headers, &bytes)?);
    let filter = if flag(&query, "deleted") { Filter::WithDeleted } else { Filter::Live };
    app.registry
        .read_aside(move |state| {
            let stored = decide::look_up(state, &subject, &submitted, flag(&query, "normalize"), filter)?;
            Ok(answer(&full(state, stored, &query)))
        })
        .await
}

async fn delete_subject(Extracted(app): AppState, Path(subject): Path<String>, query: Asked) -> Result<Response> {
    let (subject, permanent) = (subject::normal(&subject), flag(&query, "permanent"));
    let versions = app.registry.write(move |state| decide::delete_subject(state, &subject, permanent)).await?;
    Ok(answer(&json!(versions)))
}

async fn with_metadata(Extracted(app): AppState, Path(subject): Path<String>, query: Asked) -> Result<Response> {
    let subject = subject::normal(&subject);
    let filter = if flag(&query, "deleted") { Filter::WithDeleted } else { Filter::Live };
    app.registry
        .read(|state| {
            let has = |stored: &&Stored| {
                let of = |key: &str| stored.metadata.as_ref()?.get("properties")?.get(key)?.as_str();
                query.get("key").is_none_or(|key| of(key) == Some(text(&query, "value")))
            };
            match state.versions(&subject).rev().filter(|stored| filter.takes(stored.deleted)).find(has) {
                Some(stored) => Ok(answer(&full(state, stored, &query))),
                None if !state.has(&subject, filter) => Err(RegistryError::no_subject(&subject)),
                None => Err(RegistryError::no_schema(None)),
            }
        })
        .await
}

async fn versions(Extracted(app): AppState, Path(subject): Path<String>, query: Asked) -> Result<Response> {
    let subject = subject::normal(&subject);
    let negative = flag(&query, "deletedAsNegative");
    let filter = filter(&query);
    app.registry
        .read(|state| {
            let known = if filter == Filter::Live { Filter::Live } else { Filter::WithDeleted };
            if !state.has(&subject, known) {
                return Err(RegistryError::no_subject(&subject));
            }
            let all = state.versions(&subject).filter(|stored| negative || filter.takes(stored.deleted));
            let numbers = all.map(|stored| if negative && stored.deleted { -stored.version } else { stored.version });
            Ok(answer(&json!(page(&query, SUBJECTS_MAX, numbers)?)))
        })
        .await
}

async fn register(
    Extracted(app): AppState,
    Path(subject): Path<String>,
    query: Asked,
    headers: HeaderMap,
    bytes: Bytes,
) -> Result<Response> {
    let (subject, submitted) = (subject::normal(&subject), submitted(&headers, &bytes)?);
    let how = Registering { normalize: flag(&query, "normalize"), force: flag(&query, "force") };
    // Most registrations are of what is there already: those need no turn at writing.
    let (of, sent) = (subject.clone(), submitted.clone());
    let decided = app.registry.read_aside(move |state| decide::register(state, &of, &sent, how)).await?;
    let stored = if decided.records.is_empty() {
        decided.answer
    } else {
        app.registry.write(move |state| decide::register(state, &subject, &submitted, how)).await?
    };
    app.registry
        .read(|state| {
            let mut body = body(state, &stored, &query);
            body.insert("id".to_owned(), stored.id.into());
            body.insert("version".to_owned(), stored.version.into());
            Ok(answer(&Value::Object(body)))
        })
        .await
}

/// The version that a path names. Where an unqualified subject is not there, the contexts are looked through for it.
fn find<'a>(state: &'a State, subject: &str, version: &str, filter: Filter) -> Result<&'a Stored> {
    let version = version_number(version)?;
    let own = state.version(subject, version, filter);
    let elsewhere = || {
        let (context, name) = subject::split(subject);
        let contexts = state.contexts().into_iter().filter(|_| context == subject::DEFAULT);
        let mut found = contexts.filter_map(|context| state.version(&subject::join(context, name), version, filter));
        found.find(|stored| sees(Read, Subject, &stored.subject))
    };
    own.or_else(elsewhere).ok_or_else(|| {
        if state.has(subject, filter) {
            RegistryError::no_version(if version == -1 { "latest".to_owned() } else { version.to_string() })
        } else {
            RegistryError::no_subject(subject)
        }
    })
}

async fn version(Extracted(app): AppState, Path((subject, version)): Path<(String, String)>, query: Asked) -> Result<Response> {
    let subject = subject::normal(&subject);
    app.registry.read(|state| Ok(answer(&full(state, find(state, &subject, &version, filter(&query))?, &query)))).await
}

async fn version_text(Extracted(app): AppState, Path((subject, version)): Path<(String, String)>, query: Asked) -> Result<Response> {
    let subject = subject::normal(&subject);
    app.registry.read(|state| Ok(plain(formatted(state, find(state, &subject, &version, filter(&query))?, text(&query, "format"))))).await
}

/// The schema itself, which is not always JSON.
fn plain(schema: String) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], schema).into_response()
}

async fn delete_version(Extracted(app): AppState, Path((subject, version)): Path<(String, String)>, query: Asked) -> Result<Response> {
    let (subject, version, permanent) = (subject::normal(&subject), version_number(&version)?, flag(&query, "permanent"));
    let deleted = app.registry.write(move |state| decide::delete_version(state, &subject, version, permanent)).await?;
    Ok(answer(&json!(deleted)))
}

async fn referenced_by(Extracted(app): AppState, Path((subject, version)): Path<(String, String)>, query: Asked) -> Result<Response> {
    let subject = subject::normal(&subject);
    app.registry
        .read(|state| {
            let stored = find(state, &subject, &version, Filter::WithDeleted)?;
            let referring =
                state.referring(&stored.subject, stored.version, filter(&query)).filter(|one| sees(Read, Subject, &one.subject));
            let ids: BTreeSet<i32> = referring.map(|one| one.id).collect();
            Ok(answer(&json!(page(&query, SCHEMAS_MAX, ids.into_iter())?)))
        })
        .await
}

async fn schemas(Extracted(app): AppState, query: Asked) -> Result<Response> {
    let prefix = query.get("subjectPrefix").map_or(subject::WILDCARD, String::as_str);
    let filter = filter(&query);
    app.registry
        .read(|state| {
            let having = state.subjects.iter().filter(|(subject, _)| has_prefix(subject, prefix) && sees(Read, Subject, subject));
            let all = having.flat_map(|(_, versions)| {
                let mut taken: Vec<&Stored> = versions.values().filter(|stored| filter.takes(stored.deleted)).collect();
                if flag(&query, "latestOnly") {
                    taken.drain(..taken.len().saturating_sub(1));
                }
                taken
            });
            let page: Vec<&Stored> = page(&query, SCHEMAS_MAX, all)?;
            Ok(answer(&page.into_iter().map(|stored| full(state, stored, &query)).collect()))
        })
        .await
}

async fn types() -> Response {
    answer(&json!(Kind::ALL.map(|(_, name)| name)))
}

/// Every version that has an id: in the context of `?subject`, and of that subject alone where it is named.
fn having<'a>(state: &'a State, id: i32, query: &Asked) -> Vec<&'a Stored> {
    let (context, name) = subject::split(text(query, "subject"));
    let in_context = |context: &str| {
        let of = state.having(context, id).filter(|stored| name.is_empty() || subject::split(&stored.subject).1 == name);
        let of = of.filter(|stored| sees(Read, Subject, &stored.subject));
        of.collect::<Vec<_>>()
    };
    let own = in_context(context);
    if own.is_empty() && context == subject::DEFAULT && !name.is_empty() {
        return state.contexts().into_iter().map(in_context).find(|found| !found.is_empty()).unwrap_or_default();
    }
    own
}

/// Whether a subject that has the id may be read.
fn sees_id(state: &State, context: &str, id: i32) -> bool {
    state.having(context, id).any(|stored| sees(Read, Subject, &stored.subject))
}

/// The schema of an id; a subject that does not have it only says the context.
fn of_id<'a>(state: &'a State, id: &str, query: &Asked) -> Result<&'a Stored> {
    let number = schema_id(id)?;
    let found = having(state, number, query);
    let best = found.iter().find(|stored| !stored.deleted).or(found.first()).copied();
    let by_id = || {
        state
            .by_id(subject::split(text(query, "subject")).0, number)
            .filter(|_| sees_id(state, subject::split(text(query, "subject")).0, number))
    };
    best.or_else(by_id).ok_or_else(|| RegistryError::no_schema(Some(id)))
}

async fn by_id(Extracted(app): AppState, Path(id): Path<String>, query: Asked) -> Result<Response> {
    app.registry
        .read(|state| {
            let stored = of_id(state, &id, &query)?;
            let mut body = body(state, stored, &query);
            if flag(&query, "fetchMaxId") {
                body.insert("maxId".to_owned(), state.last_id(subject::split(&stored.subject).0).into());
            }
            Ok(answer(&Value::Object(body)))
        })
        .await
}

async fn by_id_text(Extracted(app): AppState, Path(id): Path<String>, query: Asked) -> Result<Response> {
    app.registry.read(|state| Ok(plain(formatted(state, of_id(state, &id, &query)?, text(&query, "format"))))).await
}

/// Subjects and versions that have an id; the schema must be there.
fn having_live<'a>(state: &'a State, id: &str, query: &Asked) -> Result<Vec<&'a Stored>> {
    of_id(state, id, query)?;
    let mut found = having(state, schema_id(id)?, query);
    found.retain(|stored| filter(query).takes(stored.deleted));
    Ok(found)
}

async fn by_id_subjects(Extracted(app): AppState, Path(id): Path<String>, query: Asked) -> Result<Response> {
    app.registry
        .read(|state| {
            let subjects: BTreeSet<&str> = having_live(state, &id, &query)?.into_iter().map(|stored| stored.subject.as_str()).collect();
            Ok(answer(&json!(page(&query, SUBJECTS_MAX, subjects.into_iter())?)))
        })
        .await
}

async fn by_id_versions(Extracted(app): AppState, Path(id): Path<String>, query: Asked) -> Result<Response> {
    app.registry
        .read(|state| {
            let found = having_live(state, &id, &query)?.into_iter();
            let pairs = found.map(|stored| json!({"subject": stored.subject, "version": stored.version}));
            Ok(answer(&json!(page(&query, SUBJECTS_MAX, pairs)?)))
        })
        .await
}

fn of_guid(text: &str) -> Result<Uuid> {
    Uuid::parse_str(text).map_err(|_| RegistryError::no_schema(Some(text)))
}

async fn by_guid(Extracted(app): AppState, Path(guid): Path<String>, query: Asked) -> Result<Response> {
    app.registry
        .read(|state| {
            let ids = state.ids_of(of_guid(&guid)?).into_iter().filter(|(context, id)| sees_id(state, context, *id));
            let found = ids.into_iter().find_map(|(context, id)| state.by_id(context, id));
            let stored = found.ok_or_else(|| RegistryError::no_schema(Some(&guid)))?;
            Ok(answer(&Value::Object(body(state, stored, &query))))
        })
        .await
}

async fn by_guid_ids(Extracted(app): AppState, Path(guid): Path<String>) -> Result<Response> {
    app.registry
        .read(|state| {
            let all = state.ids_of(of_guid(&guid)?).into_iter().filter(|(context, id)| sees_id(state, context, *id));
            Ok(answer(&all.map(|(context, id)| json!({"context": context, "id": id})).collect()))
        })
        .await
}

async fn compatible_with_subject(
    app: AppState,
    Path(subject): Path<String>,
    query: Asked,
    headers: HeaderMap,
    bytes: Bytes,
) -> Result<Response> {
    compatible(app, &subject, None, query, submitted(&headers, &bytes)?).await
}

async fn compatible_with_version(
    app: AppState,
    Path((subject, version)): Path<(String, String)>,
    query: Asked,
    headers: HeaderMap,
    bytes: Bytes,
) -> Result<Response> {
    let version = version_number(&version)?;
    compatible(app, &subject, Some(version), query, submitted(&headers, &bytes)?).await
}

async fn compatible(Extracted(app): AppState, subject: &str, version: Option<i32>, query: Asked, submitted: Submitted) -> Result<Response> {
    let subject = subject::normal(subject);
    let verbose = flag(&query, "verbose");
    app.registry
        .read_aside(move |state| {
            let messages = match decide::check(state, &subject, version, &submitted, flag(&query, "normalize")) {
                // What cannot be read is not compatible either, and with the reasons comes this one.
                Err(error) if verbose && error.code == 42201 => vec![error.message],
                other => other?,
            };
            let mut body = Map::from_iter([("is_compatible".to_owned(), messages.is_empty().into())]);
            if verbose && !messages.is_empty() {
                body.insert("messages".to_owned(), messages.into());
            }
            Ok(answer(&Value::Object(body)))
        })
        .await
}

/// A subject, a context, or (empty) all.
fn scope(text: &str) -> Result<Option<String>> {
    if !subject::is_valid(text, true) {
        return Err(RegistryError::invalid_subject(text));
    }
    Ok(subject::scope(text))
}

async fn config(Extracted(app): AppState, Path(subject): Path<String>, query: Asked) -> Result<Response> {
    let scope = scope(&subject)?;
    app.registry
        .read(|state| match (state.config(scope.as_deref()), &scope) {
            (Some(config), _) if !flag(&query, "defaultToGlobal") => {
                let mut config = config.clone();
                config.entry(LEVEL).or_insert_with(|| state.config_in_scope(scope.as_deref())[LEVEL].clone());
                Ok(answer(&Value::Object(config)))
            }
            (None, Some(subject)) if !flag(&query, "defaultToGlobal") => Err(RegistryError::new(
                40408,
                format!("'{subject}' has no compatibility level of its own; ?defaultToGlobal=true tells the one that holds"),
            )),
            _ => Ok(answer(&Value::Object(state.config_in_scope(scope.as_deref())))),
        })
        .await
}

async fn set_config(Extracted(app): AppState, Path(subject): Path<String>, bytes: Bytes) -> Result<Response> {
    let (scope, request) = (scope(&subject)?, parse::<Map<String, Value>>(&bytes)?);
    let mut set = app.registry.write(move |state| decide::set_config(state, scope.as_deref(), &request)).await?;
    // The request's word for it.
    if let Some(level) = set.remove(LEVEL) {
        set.insert("compatibility".to_owned(), level);
    }
    Ok(answer(&Value::Object(set)))
}

async fn delete_config(Extracted(app): AppState, Path(subject): Path<String>) -> Result<Response> {
    let scope = scope(&subject)?;
    let old = app.registry.write(move |state| decide::delete_config(state, scope.as_deref())).await?;
    Ok(answer(&Value::Object(old)))
}

async fn mode(Extracted(app): AppState, Path(subject): Path<String>, query: Asked) -> Result<Response> {
    let scope = scope(&subject)?;
    app.registry
        .read(|state| {
            let mode = match (state.mode(scope.as_deref()), &scope) {
                (Some(mode), _) if !flag(&query, "defaultToGlobal") => mode,
                (None, Some(subject)) if !flag(&query, "defaultToGlobal") => {
                    return Err(RegistryError::new(
                        40409,
                        format!("'{subject}' has no mode of its own; ?defaultToGlobal=true tells the one that holds"),
                    ));
                }
                _ => state.mode_in_scope(scope.as_deref()),
            };
            Ok(answer(&json!({"mode": mode.name()})))
        })
        .await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModeRequest {
    mode: String,
}

async fn set_mode(Extracted(app): AppState, Path(subject): Path<String>, query: Asked, bytes: Bytes) -> Result<Response> {
    let (scope, request, force) = (scope(&subject)?, parse::<ModeRequest>(&bytes)?, flag(&query, "force"));
    let mode = app.registry.write(move |state| decide::set_mode(state, scope.as_deref(), &request.mode, force)).await?;
    Ok(answer(&json!({"mode": mode.name()})))
}

async fn delete_mode(Extracted(app): AppState, Path(subject): Path<String>, query: Asked) -> Result<Response> {
    let (scope, recursive) = (scope(&subject)?, flag(&query, "recursive"));
    let old = app.registry.write(move |state| decide::delete_mode(state, scope.as_deref(), recursive)).await?;
    Ok(answer(&json!({"mode": old.name()})))
}

async fn contexts(Extracted(app): AppState, query: Asked) -> Result<Response> {
    app.registry.read(|state| Ok(answer(&json!(page(&query, SUBJECTS_MAX, state.contexts().into_iter())?)))).await
}

async fn delete_context(Extracted(app): AppState, Path(context): Path<String>) -> Result<Response> {
    let context = subject::context(&context).ok_or_else(|| RegistryError::invalid_subject(&context))?;
    app.registry.write(move |state| decide::delete_context(state, &context)).await?;
    Ok(http::StatusCode::NO_CONTENT.into_response())
}

async fn metadata_id(Extracted(app): AppState) -> Result<Response> {
    let cluster = app.registry.cluster_id().await?;
    Ok(answer(
        &json!({"scope": {"path": [], "clusters": {"kafka-cluster": cluster, "schema-registry-cluster": "schema-registry"}}, "id": ""}),
    ))
}

async fn metadata_version() -> Response {
    answer(&json!({"version": env!("CARGO_PKG_VERSION"), "commitId": ""}))
}

impl Registry {
    async fn read<T>(&self, answer: impl FnOnce(&State) -> Result<T>) -> Result<T> {
        self.0.read(answer).await
    }

    async fn read_aside<T: Send + 'static>(&self, answer: impl FnOnce(&State) -> Result<T> + Send + 'static) -> Result<T> {
        self.0.read_aside(answer).await
    }

    async fn write<T, D>(&self, decide: D) -> Result<T>
    where
        T: Send + 'static,
        D: Fn(&State) -> Result<decide::Decision<T>> + Send + Sync + 'static,
    {
        self.0.write(decide).await
    }

    async fn cluster_id(&self) -> Result<String> {
        self.0.gate.broker()?;
        let cluster = self.0.connection.admin().await?.cluster().await?;
        Ok(cluster.id.unwrap_or_default())
    }
}
