//! The layers, and every error in them at once.
//!
//! The serialised defaults say which keys exist: an object is a section, an empty object takes any names (Kafka's properties), all else is a value.
//! Each given value is tried alone on top of the defaults, so that one error does not hide the next.

use std::{env, fmt, fs, path::Path, process::ExitCode};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use toml::de::{DeTable, DeValue};

/// Variables that begin with `MILLRACE_` and are not configuration: the file of bound addresses, the file to read, where a program of the engine keeps its
/// checkpoint, where `millrace` finds the services and by what it is known,
/// and what the tests and the scripts of this repository use.
pub const NOT_CONFIGURATION: &[&str] = &[
    "MILLRACE_ADDRESS_FILE",
    "MILLRACE_CONFIG",
    "MILLRACE_CHECKPOINT",
    "MILLRACE_COLLECTOR",
    "MILLRACE_BRIDGE",
    "MILLRACE_ENGINE",
    "MILLRACE_CA_FILE",
    "MILLRACE_CERT_FILE",
    "MILLRACE_KEY_FILE",
    "MILLRACE_BEARER_TOKEN",
    "MILLRACE_API_KEY",
    "MILLRACE_USER",
    "MILLRACE_BLESS",
    "MILLRACE_CACHE",
    #[cfg(debug_assertions)]
    crate::fault::VARIABLE,
];

const PREFIX: &str = "MILLRACE_";
pub(super) const MASK: &str = "***";

/// One thing that is wrong, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// `collector.toml:12`, `environment variable MILLRACE_CONTROL__LISTEN`, `command line`.
    pub place: String,
    /// `control.listen`; empty where the file itself is wrong.
    pub key: String,
    pub message: String,
}

/// Where a value was given: in words, and in the order in which errors are shown.
#[derive(Clone)]
struct Place {
    words: String,
    order: (Layer, usize),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    File,
    Environment,
    CommandLine,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ConfigError::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

impl ConfigErrors {
    /// Prints every error to standard error and gives the exit code of a wrong configuration.
    #[allow(clippy::print_stderr)] // the log does not exist yet: the configuration says how to log
    pub fn report(&self) -> ExitCode {
        for error in &self.0 {
            eprintln!("error: {error}");
        }
        ExitCode::from(crate::exit::CONFIG)
    }
}

/// Reads the layers. `flags` is a nested object of what was given on the command line; null is not given.
pub fn load<C: DeserializeOwned + Serialize + Default>(file: Option<&Path>, flags: Value) -> Result<C, ConfigErrors> {
    let variables = env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        Some((name, value.to_string_lossy().into_owned()))
    });
    load_from(file, variables, flags)
}

fn load_from<C: DeserializeOwned + Serialize + Default>(
    file: Option<&Path>,
    variables: impl Iterator<Item = (String, String)>,
    flags: Value,
) -> Result<C, ConfigErrors> {
    let defaults = serde_json::to_value(C::default()).map_err(|error| internal("the defaults cannot be written", &error))?;
    serde_json::from_value::<C>(defaults.clone()).map_err(|error| internal("the defaults cannot be read", &error))?;
    let mut layers = Layers { defaults: &defaults, settings: Vec::new(), errors: Vec::new() };
    if let Some(path) = file {
        layers.file(path);
    }
    let mut variables: Vec<_> =
        variables.filter(|(name, _)| name.starts_with(PREFIX) && !NOT_CONFIGURATION.contains(&name.as_str())).collect();
    variables.sort();
    for (nth, (name, text)) in variables.into_iter().enumerate() {
        layers.variable(&name, &text, Place { words: format!("environment variable {name}"), order: (Layer::Environment, nth) });
    }
    layers.object(&flags, &mut Vec::new(), &|_| Place { words: "command line".into(), order: (Layer::CommandLine, 0) });

    let Layers { settings, mut errors, .. } = layers;
    let mut merged = defaults.clone();
    for Setting { place, path, candidates } in settings {
        let mut first_error = None;
        let fits = candidates.into_iter().find(|value| {
            let mut alone = defaults.clone();
            put(&mut alone, &path, value.clone());
            match serde_json::from_value::<C>(alone) {
                Ok(_) => true,
                Err(error) => {
                    first_error.get_or_insert(error);
                    false
                }
            }
        });
        match (fits, first_error) {
            (Some(value), _) => put(&mut merged, &path, value),
            (None, Some(error)) => errors.push((place, path.join("."), error.to_string())),
            (None, None) => {}
        }
    }
    if !errors.is_empty() {
        errors.sort_by_key(|(place, _, _)| place.order);
        return Err(ConfigErrors(
            errors.into_iter().map(|(place, key, message)| ConfigError { place: place.words, key, message }).collect(),
        ));
    }
    // Each value is right alone; only a rule between several can fail here.
    serde_json::from_value(merged).map_err(|error| internal("these values do not go together", &error))
}

fn internal(what: &str, error: &serde_json::Error) -> ConfigErrors {
    ConfigErrors(vec![ConfigError { place: "configuration".into(), key: String::new(), message: format!("{what}: {error}") }])
}

struct Setting {
    place: Place,
    path: Vec<String>,
    /// What the text may mean; the first that the configuration accepts is taken.
    candidates: Vec<Value>,
}

struct Layers<'a> {
    defaults: &'a Value,
    settings: Vec<Setting>,
    errors: Vec<(Place, String, String)>,
}

impl Layers<'_> {
    fn file(&mut self, path: &Path) {
        let name = path.display().to_string();
        let whole = Place { words: name.clone(), order: (Layer::File, 0) };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => return self.error(whole, String::new(), format!("cannot be read: {error}")),
        };
        let at = |offset: usize| {
            let line = text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1;
            Place { words: format!("{name}:{line}"), order: (Layer::File, line) }
        };
        let (table, errors) = DeTable::parse_recoverable(&text);
        if !errors.is_empty() {
            for error in errors {
                self.error(at(error.span().map_or(0, |span| span.start)), String::new(), error.message().to_owned());
            }
            return;
        }
        match toml::from_str::<Value>(&text) {
            Ok(value) => self.object(&value, &mut Vec::new(), &|path| offset_of(table.get_ref(), path).map_or_else(|| whole.clone(), at)),
            Err(error) => self.error(whole, String::new(), error.message().to_owned()),
        }
    }

    /// Takes every value of `given`, which stands at `path`.
    fn object(&mut self, given: &Value, path: &mut Vec<String>, place: &dyn Fn(&[String]) -> Place) {
        let Value::Object(entries) = given else { return };
        for (key, value) in entries.iter().filter(|(_, value)| !value.is_null()) {
            path.push(key.clone());
            match (find(self.defaults, path), value) {
                (Found::Section(_), Value::Object(_)) => self.object(value, path, place),
                (Found::Unknown, _) => self.unknown(path, place(path)),
                (Found::AnyName, Value::Object(_)) if path.len() > 1 => {
                    // `bootstrap.servers = "…"` is a table to TOML and one name to Kafka.
                    let place = place(path);
                    self.settings.push(Setting { place, path: path[..path.len() - 1].to_vec(), candidates: either(key, value) });
                }
                _ => {
                    let place = place(path);
                    self.settings.push(Setting { place, path: path.clone(), candidates: vec![value.clone()] });
                }
            }
            path.pop();
        }
    }

    fn variable(&mut self, name: &str, text: &str, place: Place) {
        let mut path: Vec<String> = name[PREFIX.len()..].split("__").map(str::to_lowercase).collect();
        // Among free names `_` stands for `.`, which a shell does not allow in a variable: MILLRACE_KAFKA__BOOTSTRAP_SERVERS.
        if let Some(depth) =
            (1..path.len()).find(|depth| matches!(find(self.defaults, &path[..*depth]), Found::Section(entries) if entries.is_empty()))
        {
            let free = path.split_off(depth).join(".").replace('_', ".");
            path.push(free);
        }
        let candidates = match find(self.defaults, &path) {
            Found::Unknown => return self.unknown(&path, place),
            Found::Section(_) => return self.error(place, path.join("."), "is a section, not a value".into()),
            Found::Value(Value::String(_)) => vec![Value::from(text)],
            Found::Value(Value::Array(_)) => {
                let items: Vec<&str> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
                typed(text).into_iter().chain([Value::from(items)]).collect()
            }
            Found::Value(_) | Found::AnyName => typed(text).into_iter().chain([Value::from(text)]).collect(),
        };
        self.settings.push(Setting { place, path, candidates });
    }

    fn unknown(&mut self, path: &[String], place: Place) {
        let message = match nearest(self.defaults, path) {
            Some(near) => format!("unknown key; did you mean `{near}`?"),
            None => {
                let (parent, siblings) = siblings(self.defaults, path);
                format!("unknown key; known {parent} are {}", siblings.join(", "))
            }
        };
        self.error(place, path.join("."), message);
    }

    fn error(&mut self, place: Place, key: String, message: String) {
        self.errors.push((place, key, message));
    }
}

enum Found<'a> {
    Section(&'a Map<String, Value>),
    Value(&'a Value),
    /// Below a section without names of its own.
    AnyName,
    Unknown,
}

fn find<'a>(mut at: &'a Value, path: &[String]) -> Found<'a> {
    for key in path {
        match at {
            Value::Object(entries) if entries.is_empty() => return Found::AnyName,
            // An optional struct is null by default: only reading it tells its fields.
            Value::Null => return Found::AnyName,
            Value::Object(entries) => match entries.get(key) {
                Some(value) => at = value,
                None => return Found::Unknown,
            },
            _ => return Found::Unknown,
        }
    }
    match at {
        Value::Object(entries) => Found::Section(entries),
        value => Found::Value(value),
    }
}

/// A table under a free name: as it is, or with its names joined by dots.
fn either(key: &str, value: &Value) -> Vec<Value> {
    fn flatten(name: String, value: &Value, into: &mut Map<String, Value>) {
        match value {
            Value::Object(entries) => entries.iter().for_each(|(key, value)| flatten(format!("{name}.{key}"), value, into)),
            _ => {
                into.insert(name, value.clone());
            }
        }
    }
    let nested = Map::from_iter([(key.to_owned(), value.clone())]);
    let mut flat = Map::new();
    flatten(key.to_owned(), value, &mut flat);
    vec![Value::Object(nested), Value::Object(flat)]
}

/// The text as a TOML value: `5`, `true`, `["a", "b"]`.
fn typed(text: &str) -> Option<Value> {
    toml::from_str::<Map<String, Value>>(&format!("value = {text}")).ok().filter(|table| table.len() == 1)?.remove("value")
}

/// Objects are merged, all else replaced.
fn put(into: &mut Value, path: &[String], value: Value) {
    match path.split_first() {
        Some((key, rest)) => {
            if !into.is_object() {
                *into = Value::Object(Map::new());
            }
            if let Value::Object(entries) = into {
                put(entries.entry(key).or_insert(Value::Null), rest, value);
            }
        }
        None => match (into, value) {
            (Value::Object(into), Value::Object(entries)) => into.extend(entries),
            (into, value) => *into = value,
        },
    }
}

fn offset_of(table: &DeTable<'_>, path: &[String]) -> Option<usize> {
    let (key, rest) = path.split_first()?;
    let (name, value) = table.get_key_value(key.as_str())?;
    match value.get_ref() {
        DeValue::Table(inner) if !rest.is_empty() => offset_of(inner, rest),
        _ => Some(name.span().start),
    }
}

/// The deepest section on the way to `path`, and its keys.
fn siblings<'a>(defaults: &'a Value, path: &[String]) -> (String, Vec<&'a str>) {
    for depth in (0..path.len()).rev() {
        if let Found::Section(entries) = find(defaults, &path[..depth]) {
            let name = if depth == 0 { "at the top level".into() } else { format!("in [{}]", path[..depth].join(".")) };
            return (name, entries.keys().map(String::as_str).collect());
        }
    }
    (String::new(), Vec::new())
}

/// The known key that was probably meant: a similar one beside it, or the same name in another section.
fn nearest(defaults: &Value, path: &[String]) -> Option<String> {
    fn keys(at: &Value, path: String, into: &mut Vec<String>) {
        if let Value::Object(entries) = at {
            for (key, value) in entries {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                into.push(path.clone());
                keys(value, path, into);
            }
        }
    }
    let mut known = Vec::new();
    keys(defaults, String::new(), &mut known);
    let wanted = path.join(".");
    let last = path.last()?;
    let same_name = known.iter().find(|key| key.rsplit('.').next() == Some(last));
    let similar = known
        .iter()
        .filter(|key| key.matches('.').count() + 1 == path.len())
        .map(|key| (strsim::damerau_levenshtein(key, &wanted), key))
        .min()
        .filter(|(distance, _)| *distance <= (last.len() / 3).max(2));
    similar.map(|(_, key)| key).or(same_name).cloned()
}

/// The configuration as TOML. Secrets are masked: [`Secret`](super::Secret)s, values of keys that name one, and passwords in URLs.
pub fn render<C: Serialize>(config: &C) -> String {
    let text = serde_json::to_value(config).map_err(|error| error.to_string()).and_then(|mut value| {
        mask(&mut value);
        toml::to_string_pretty(&value).map_err(|error| error.to_string())
    });
    text.unwrap_or_else(|error| format!("# cannot be written as TOML: {error}\n"))
}

/// Whether a setting of this name must not be shown: its value lets somebody in.
pub fn is_secret(key: &str) -> bool {
    const WORDS: &[&str] =
        &["password", "passphrase", "secret", "credential", "token", "jaas", "keystore.key", "key.pem", "private.key", "api.key", "apikey"];
    // Addresses and file names tell nothing; `token.endpoint.url` is one.
    const PUBLIC: &[&str] = &[".url", ".location", ".file", ".path", ".class"];
    let key = key.to_ascii_lowercase().replace(['_', '-'], ".");
    WORDS.iter().any(|word| key.contains(word)) && !PUBLIC.iter().any(|end| key.ends_with(end))
}

fn mask(value: &mut Value) {
    match value {
        Value::Object(entries) => {
            // TOML has no null: an unset key is left out.
            entries.retain(|_, value| !value.is_null());
            for (key, value) in entries {
                match value {
                    Value::String(text) if !text.is_empty() && is_secret(key) => *text = MASK.into(),
                    other => mask(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(mask),
        Value::String(text) => {
            if let Some(masked) = mask_url(text) {
                *text = masked;
            }
        }
        _ => {}
    }
}

/// `redis://user:secret@host` → `redis://user:***@host`.
fn mask_url(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (user, host) = authority.rsplit_once('@')?;
    let (name, _) = user.split_once(':')?;
    Some(format!("{scheme}://{name}:{MASK}@{host}{path}"))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Write as _};

    use serde::Deserialize;
    use serde_json::json;

    use super::*;
    use crate::config::{ControlConfig, KitConfig, Secret, TelemetryConfig};

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        name: String,
        topics: Vec<String>,
        token: Option<Secret>,
        batch_records_max: Option<u32>,
        kafka: BTreeMap<String, String>,
        control: ControlConfig,
        telemetry: TelemetryConfig,
    }

    fn try_load(file: &str, variables: &[(&str, &str)], flags: Value) -> Result<Config, Vec<String>> {
        let mut on_disk = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        on_disk.write_all(file.as_bytes()).unwrap();
        let variables = variables.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        load_from::<Config>(Some(on_disk.path()), variables, flags).map_err(|errors| {
            let path = on_disk.path().display().to_string();
            errors.0.iter().map(|error| error.to_string().replace(&path, "c.toml")).collect()
        })
    }

    #[test]
    fn a_flag_beats_a_variable_beats_the_file_beats_the_default() {
        let file = "name = 'file'\nbatch_records_max = 1\n[control]\nlisten = '127.0.0.1:1'\n[telemetry]\nlog = 'warn'";
        let variables = [
            ("MILLRACE_CONTROL__LISTEN", "localhost:2"),
            ("MILLRACE_BATCH_RECORDS_MAX", "2"),
            ("MILLRACE_ADDRESS_FILE", "/a"),
            ("HOME", "/h"),
        ];
        let config = try_load(file, &variables, json!({"control": {"listen": "127.0.0.1:3"}, "telemetry": {"log": null}})).unwrap();
        assert_eq!(config.control.listen.to_string(), "127.0.0.1:3");
        assert_eq!((config.batch_records_max, config.name.as_str(), config.telemetry.log.as_str()), (Some(2), "file", "warn"));
        assert_eq!(config.telemetry.trace_sample, 1.0);
    }

    #[test]
    fn every_error_is_reported_at_once_with_its_place_and_remedy() {
        let file = "nme = 'x'\n\n[control]\nlisten = 'everywhere'\nlog = 'info'\n[telemetry]\nlog_format = 'xml'\ntrace_sample = 7\n[nothing]\nx = 1";
        let variables = [("MILLRACE_CONTROL__LISTN", "x"), ("MILLRACE_TELEMETRY__LOG", "loud"), ("MILLRACE_CONTROL", "x")];
        let errors = try_load(file, &variables, json!({"telemetry": {"otlp_endpoint": "localhost"}})).unwrap_err();
        let expected = [
            "c.toml:1: nme: unknown key; did you mean `name`?",
            "c.toml:4: control.listen: `everywhere` is not an address to listen on; write an IP address and a port, e.g. 127.0.0.1:7101",
            "c.toml:5: control.log: unknown key; did you mean `telemetry.log`?",
            "c.toml:7: telemetry.log_format: unknown variant `xml`, expected `text` or `json`",
            "c.toml:8: telemetry.trace_sample: 7 is not between 0 and 1",
            "c.toml:9: nothing: unknown key; known at the top level are batch_records_max, control, kafka, name, telemetry, token, topics",
            "environment variable MILLRACE_CONTROL: control: is a section, not a value",
            "environment variable MILLRACE_CONTROL__LISTN: control.listn: unknown key; did you mean `control.listen`?",
            "environment variable MILLRACE_TELEMETRY__LOG: telemetry.log: `loud` is neither a level (error, warn, info, debug, trace, off) nor `target=level`",
            "command line: telemetry.otlp_endpoint: `localhost` is not a URL; write http://127.0.0.1:4317",
        ];
        assert_eq!(errors, expected);
    }

    #[test]
    fn a_file_that_is_not_toml_or_not_there_is_named_with_the_line() {
        let errors = try_load("name = 'x'\n[control\nlisten", &[], Value::Null).unwrap_err();
        assert!(errors[0].starts_with("c.toml:2: "), "{errors:?}");
        let errors = load_from::<Config>(Some(Path::new("/nowhere/c.toml")), std::iter::empty(), Value::Null).unwrap_err();
        assert_eq!(errors.to_string(), "/nowhere/c.toml: cannot be read: No such file or directory (os error 2)");
    }

    #[test]
    fn kafkas_dotted_names_are_understood_from_every_layer() {
        let file = "[kafka]\nbootstrap.servers = 'file:9092'\n\"linger.ms\" = '5'\n";
        let config =
            try_load(file, &[("MILLRACE_KAFKA__SECURITY_PROTOCOL", "PLAINTEXT"), ("MILLRACE_KAFKA__RETRIES", "3")], Value::Null).unwrap();
        let kafka: Vec<String> = config.kafka.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(kafka, ["bootstrap.servers=file:9092", "linger.ms=5", "retries=3", "security.protocol=PLAINTEXT"]);
    }

    #[test]
    fn a_variable_takes_the_type_of_its_key() {
        let variables =
            [("MILLRACE_NAME", "5"), ("MILLRACE_TOPICS", "a, b"), ("MILLRACE_TELEMETRY__TRACE_SAMPLE", "0.5"), ("MILLRACE_TOKEN", "5")];
        let config = try_load("", &variables, Value::Null).unwrap();
        assert_eq!((config.name.as_str(), config.topics, config.telemetry.trace_sample), ("5", vec!["a".into(), "b".into()], 0.5));
        assert_eq!(config.token.unwrap().expose(), "5");
        assert_eq!(try_load("", &[("MILLRACE_TOPICS", "['a,b']")], Value::Null).unwrap().topics, ["a,b"]);
    }

    #[test]
    fn values_that_no_service_can_work_with_are_refused() {
        let check = |key: &str, value: &str, expected: &str| {
            let variable = (format!("MILLRACE_{}", key.to_uppercase().replace('.', "__")), value.to_owned());
            let errors = load_from::<KitConfig>(None, std::iter::once(variable), Value::Null).map(|_| ()).unwrap_err();
            assert!(errors.to_string().ends_with(&format!("{key}: {expected}")), "{errors}");
        };
        check("limits.header_timeout", "0s", "must be longer than 0");
        check("limits.request_timeout", "2years", "`2years` is longer than a year");
        check("shutdown.deadline", "20", "invalid value: string \"20\", expected a duration such as 500ms, 20s or 1m 30s");
        check("limits.header_bytes_max", "4096", "4096 is less than 8192");
        check("limits.headers_max", "101", "101 is not between 1 and 100");
        check("limits.connections_max", "0", "invalid value: integer `0`, expected a nonzero u32");
        check(
            "telemetry.otlp_endpoint",
            "https://x:4317",
            "`https://x:4317`: traces leave without TLS; send them to a collector on this host, http://127.0.0.1:4317",
        );
    }

    #[test]
    fn what_lets_somebody_in_is_secret_wherever_it_stands() {
        for key in [
            "sasl.oauthbearer.assertion.private.key.passphrase",
            "sasl.oauthbearer.client.credentials.client.secret",
            "sasl.oauthbearer.client.credentials",
            "sasl.jaas.config",
            "ssl.keystore.key",
            "ssl.key.pem",
            "SSL.KEY.PASSWORD",
            "auth_token",
            "api-key",
        ] {
            assert!(is_secret(key), "{key}");
        }
        for key in ["bootstrap.servers", "key.serializer", "ssl.keystore.location", "sasl.oauthbearer.token.endpoint.url", "sasl.mechanism"]
        {
            assert!(!is_secret(key), "{key}");
        }
    }

    #[test]
    fn the_effective_configuration_shows_no_secret() {
        let file =
            "name = 'redis://app:hunter2@host:6379/0'\ntoken = 'hunter2'\n[kafka]\nsasl.password = 'hunter2'\nbootstrap.servers = 'k:9092'";
        let text = render(&try_load(file, &[], Value::Null).unwrap());
        assert!(!text.contains("hunter2"), "{text}");
        for line in [
            "name = \"redis://app:***@host:6379/0\"",
            "token = \"***\"",
            "\"sasl.password\" = \"***\"",
            "\"bootstrap.servers\" = \"k:9092\"",
            "listen = \"127.0.0.1:0\"",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
