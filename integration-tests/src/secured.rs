//! A secured broker (`deploy/dev/kafka/kafka start DIR --secured`), who may do what there, and how a client logs in.
//!
//! Its plaintext listener is the tests' own way in: who comes by it is a super user.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use crate::servers::script;

/// Of the broker's listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// `SASL_SSL` with SCRAM-SHA-512.
    Scram,
    /// `SASL_SSL` with PLAIN.
    Plain,
    /// `SSL` with a client certificate.
    Certificate,
}

pub struct Secured {
    dir: tempfile::TempDir,
    /// The tests' own listener.
    pub bootstrap: String,
    listeners: BTreeMap<String, String>,
}

static RUNNING: Mutex<Weak<Secured>> = Mutex::new(Weak::new());

impl Secured {
    /// The broker of the tests that run now; the last one to be done stops it.
    pub fn shared() -> Arc<Self> {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        running.upgrade().unwrap_or_else(|| {
            let started = Arc::new(Self::start());
            *running = Arc::downgrade(&started);
            started
        })
    }

    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let bootstrap = script("kafka/kafka", &["start", &dir.path().to_string_lossy(), "--secured"]);
        let listeners = fs::read_to_string(dir.path().join("secured/listeners")).expect("the listeners");
        let listeners = listeners.lines().filter_map(|line| line.split_once('=')).map(|(name, at)| (name.into(), at.into())).collect();
        Self { dir, bootstrap, listeners }
    }

    /// `host:port` of `SASL_SSL`, `SSL`, `EXPIRED` or `WRONGHOST`.
    pub fn listener(&self, name: &str) -> &str {
        self.listeners.get(name).unwrap_or_else(|| panic!("no listener {name}: {:?}", self.listeners))
    }

    pub fn at(&self, by: By) -> &str {
        self.listener(if by == By::Certificate { "SSL" } else { "SASL_SSL" })
    }

    /// A file of the broker's certificates.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("secured").join(name)
    }

    /// A client's settings in Kafka's own names.
    pub fn settings(&self, by: By, user: &str) -> Vec<(String, String)> {
        let file = |name: &str| self.file(name).to_string_lossy().into_owned();
        let mut settings = vec![("ssl.truststore.type", "PEM".to_owned()), ("ssl.truststore.location", file("ca.pem"))];
        let sasl = |mechanism: &str, module: &str| {
            let jaas = format!("org.apache.kafka.common.security.{module} required username=\"{user}\" password=\"{user}-secret\";");
            vec![("security.protocol", "SASL_SSL".to_owned()), ("sasl.mechanism", mechanism.to_owned()), ("sasl.jaas.config", jaas)]
        };
        settings.extend(match by {
            By::Scram => sasl("SCRAM-SHA-512", "scram.ScramLoginModule"),
            By::Plain => sasl("PLAIN", "plain.PlainLoginModule"),
            By::Certificate => vec![
                ("security.protocol", "SSL".to_owned()),
                ("ssl.keystore.type", "PEM".to_owned()),
                ("ssl.keystore.location", file(&format!("{user}.pem"))),
            ],
        });
        settings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// As access control lists name the user.
    pub fn principal(by: By, user: &str) -> String {
        if by == By::Certificate { format!("User:CN={user},O=Millrace") } else { format!("User:{user}") }
    }

    pub fn grant(&self, principal: &str, acl: &Acl) {
        let body = [&1i32.to_be_bytes()[..], &acl.entry(principal)].concat();
        let answer = self.ask(CREATE_ACLS, &body);
        // Behind the throttle time and the count.
        assert_eq!(answer.get(8..10), Some(&[0u8, 0][..]), "{principal} is not granted {acl:?}: {answer:?}");
        self.until(principal, acl, true);
    }

    pub fn revoke(&self, principal: &str, acl: &Acl) {
        let body = [&1i32.to_be_bytes()[..], &acl.entry(principal)].concat();
        let answer = self.ask(DELETE_ACLS, &body);
        assert_eq!(answer.get(8..10), Some(&[0u8, 0][..]), "{acl:?} is not taken from {principal}: {answer:?}");
        // Behind the filter's error and its message, which is null: how many there were.
        assert_eq!(answer.get(12..16), Some(&1i32.to_be_bytes()[..]), "{principal} had no {acl:?}: {answer:?}");
        self.until(principal, acl, false);
    }

    /// The controller answers before the broker acts on it: waits until it does.
    fn until(&self, principal: &str, acl: &Acl, there: bool) {
        let body = acl.entry(principal);
        for _ in 0..200 {
            let answer = self.ask(DESCRIBE_ACLS, &body);
            // Behind throttle time, error and its message, which is null: how many resources there are.
            assert_eq!(answer.get(4..6), Some(&[0u8, 0][..]), "{answer:?}");
            if (answer.get(8..12) != Some(&[0u8; 4][..])) == there {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("{acl:?} of {principal} is not seen by the broker");
    }

    /// One request of the protocol, by the tests' own listener.
    fn ask(&self, (key, version): (i16, i16), body: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        for number in [key, version] {
            message.extend(number.to_be_bytes());
        }
        message.extend(1i32.to_be_bytes());
        string(&mut message, "tests");
        message.extend(body);
        let exchange = || {
            let mut stream = TcpStream::connect(&self.bootstrap)?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            stream.write_all(&i32::try_from(message.len()).unwrap_or_default().to_be_bytes())?;
            stream.write_all(&message)?;
            let mut length = [0; 4];
            stream.read_exact(&mut length)?;
            let mut answer = vec![0; usize::try_from(i32::from_be_bytes(length)).unwrap_or_default()];
            stream.read_exact(&mut answer)?;
            Ok::<_, std::io::Error>(answer.split_off(4))
        };
        exchange().unwrap_or_else(|error| panic!("access control lists: {error}"))
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        script("kafka/kafka", &["stop", &self.dir.path().to_string_lossy()]);
    }
}

const DESCRIBE_ACLS: (i16, i16) = (29, 1);
const CREATE_ACLS: (i16, i16) = (30, 1);
const DELETE_ACLS: (i16, i16) = (31, 1);
const LITERAL: u8 = 3;
const PREFIXED: u8 = 4;
const ALLOW: u8 = 3;

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend(i16::try_from(text.len()).unwrap_or_default().to_be_bytes());
    out.extend(text.as_bytes());
}

/// What one entry of an access control list allows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Acl {
    /// `topic`, `group`, `cluster` or `transactional id`.
    pub resource: String,
    /// With `*` at its end: of all whose names begin so.
    pub name: String,
    /// As `WRITE`.
    pub operation: String,
}

impl Acl {
    pub fn new(resource: &str, name: &str, operation: &str) -> Self {
        Self { resource: resource.to_owned(), name: name.to_owned(), operation: operation.to_owned() }
    }

    /// As the protocol has an entry to create, and a filter that finds it.
    fn entry(&self, principal: &str) -> Vec<u8> {
        let [resource, operation] = self.codes();
        let mut entry = vec![resource];
        string(&mut entry, self.name.trim_end_matches('*'));
        entry.push(if self.name.ends_with('*') { PREFIXED } else { LITERAL });
        string(&mut entry, principal);
        string(&mut entry, "*");
        entry.extend([operation, ALLOW]);
        entry
    }

    /// The protocol's numbers of resource and operation.
    fn codes(&self) -> [u8; 2] {
        let resource = match self.resource.as_str() {
            "topic" => 2,
            "group" => 3,
            "cluster" => 4,
            "transactional id" => 5,
            other => panic!("{other:?} is no resource"),
        };
        let operations = [
            "READ",
            "WRITE",
            "CREATE",
            "DELETE",
            "ALTER",
            "DESCRIBE",
            "CLUSTER_ACTION",
            "DESCRIBE_CONFIGS",
            "ALTER_CONFIGS",
            "IDEMPOTENT_WRITE",
        ];
        let at = operations.iter().position(|name| *name == self.operation);
        [resource, at.and_then(|at| u8::try_from(at + 3).ok()).unwrap_or_else(|| panic!("{:?} is no operation", self.operation))]
    }
}
