//! Who calls, and what they may do. Off unless `[auth] policy_file` names a file.
//!
//! | module | question it answers |
//! |---|---|
//! | `access` | what an operation needs: declared beside each route, and for each gRPC method |
//! | `policy` | who may do what: verbs on topics, groups, subjects, the cluster. Nothing is allowed that is not written there |
//! | `credentials` | who shows a password or an API key |
//! | `login`, `offsets` | who logs in to Kafka itself, by which connection; whose offsets it may change |
//! | `jwt`, `jwks` | whose token is good; which keys sign, from a file or a URL |
//! | `quota` | how many requests and bytes a second each principal has |
//! | `hop` | who calls, where another replica hands the request on |
//! | `guard` | stands before every route and every gRPC method |
//!
//! The guard names the caller, asks whether the operation is allowed at all, and leaves the caller with the task ([`caller`]). What only a body
//! names (the topics of records, a subscription) is asked for where it is used, by [`check`], for HTTP and gRPC alike. A task that goes on
//! without its request takes the caller along by a [`Carrier`]; work of the bridge itself has no caller and is not asked.
//!
//! Files are read again when they change, so secrets rotate without a restart; a changed file that is wrong leaves what was before, with an
//! error in the log. Tokens and policies are asked about again with every batch of a stream, so what is taken back ends it.

mod access;
mod credentials;
mod guard;
mod hop;
mod jwks;
mod jwt;
mod login;
mod offsets;
mod policy;
mod quota;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header, request::Parts};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use parking_lot::{Mutex, RwLock};
use ring::digest;
use service_kit::{
    Context, Peer,
    config::ConfigError,
    files::Watched,
    kafka::{KafkaConfig, KafkaError, OutRecord},
};
use tokio::{
    select,
    time::{Instant, sleep},
};

#[cfg(test)]
pub(crate) use self::access::METHODS;
pub(crate) use self::{
    access::{Access, KNOWN, Kind, OPEN, Verb, on_all, on_any, on_cluster, on_group, on_subject, on_topic},
    guard::{guard_grpc, guarded},
    offsets::CheckedOffsets,
};
use self::{credentials::Passwords, hop::Secrets, jwt::Tokens, login::Logins, policy::Policy, quota::Quotas};
use crate::{
    config::{self, Audit, CertificateName},
    connect::Connection,
    error::{BridgeError, Code, Result},
};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Longest name of a scheme that an answer repeats.
const SCHEME_LETTERS_MAX: usize = 16;
/// Longest name of a principal, in bytes.
const PRINCIPAL_BYTES_MAX: usize = 255;

/// What decides. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Auth(Arc<Inner>);

struct Inner {
    config: config::Auth,
    policy: RwLock<Arc<Policy>>,
    passwords: Option<Passwords>,
    /// Kafka's, in place of `passwords`.
    logins: Option<Logins>,
    api_keys: Option<RwLock<credentials::ApiKeys>>,
    /// Of all replicas, for requests that one hands on to another.
    secrets: Option<RwLock<Secrets>>,
    tokens: Option<Tokens>,
    quotas: Quotas,
    files: Mutex<Files>,
}

/// What is read again when it changes.
struct Files {
    policy: Watched,
    users: Watched,
    api_keys: Watched,
    secrets: Watched,
}

/// By what a caller was recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Credential {
    Certificate,
    Password,
    Token,
    ApiKey,
    /// Another replica has recognised the caller.
    Forwarded,
}

impl Credential {
    fn name(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Password => "password",
            Self::Token => "token",
            Self::ApiKey => "api_key",
            Self::Forwarded => "forwarded",
        }
    }
}

/// Who makes a request. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Caller(Arc<Called>);

struct Called {
    auth: Auth,
    principal: Arc<str>,
    /// Roles that a token gives, beside those of the policy.
    roles: Vec<String>,
    by: Credential,
    address: Option<SocketAddr>,
    /// A token's end.
    until: Option<SystemTime>,
    /// Does what it does by a connection of its own.
    logs_in: bool,
    /// That connection. Of a caller that another replica has handed on, it is that of the consumer instance it uses.
    connection: OnceLock<Connection>,
    /// Digest of the body that another replica has handed on.
    body: Option<String>,
    /// What the guard has asked about already.
    asked: Mutex<Option<(Verb, Kind, String)>>,
}

tokio::task_local! {
    static CALLER: Caller;
}

/// The caller of the running request; `None` for work of the bridge itself, and where authentication is off.
pub(crate) fn caller() -> Option<Caller> {
    CALLER.try_with(Caller::clone).ok()
}

/// The caller's own connection to Kafka; `None`: it goes by the bridge's.
pub(crate) fn connection() -> Result<Option<Connection>, KafkaError> {
    let Some(caller) = caller() else { return Ok(None) };
    match caller.0.connection.get() {
        None if caller.0.logs_in => {
            let message =
                format!("{:?} was handed on by another bridge without its login to Kafka; send the request here", caller.0.principal);
            Err(KafkaError::Retryable(message))
        }
        found => Ok(found.cloned()),
    }
}

/// What a caller that was handed on does with a consumer instance is done by the connection of who made it, which is the same caller.
pub(crate) fn lend(connection: Option<&Connection>) {
    if let (Some(connection), Some(caller)) = (connection, caller())
        && caller.0.logs_in
    {
        drop(caller.0.connection.set(connection.clone()));
    }
}

/// An error unless the caller may do this to a thing of that name.
pub(crate) fn check(verb: Verb, kind: Kind, name: &str) -> Result<()> {
    caller().map_or(Ok(()), |caller| caller.check(verb, kind, name))
}

/// The same for the topics of records that are to be written.
pub(crate) fn check_records(records: &[OutRecord]) -> Result<()> {
    let Some(caller) = caller() else { return Ok(()) };
    let mut last: Option<&Arc<str>> = None;
    for topic in records.iter().map(|record| &record.topic) {
        if last.is_none_or(|last| !Arc::ptr_eq(last, topic) && last != topic) {
            caller.check(Verb::Write, Kind::Topic, topic)?;
        }
        last = Some(topic);
    }
    Ok(())
}

/// An error unless the caller may read a group's topics. One that begins with `^` is a pattern: every topic that it could ever mean must be allowed.
pub(crate) fn check_subscription<'a>(group: &str, topics: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let Some(caller) = caller() else { return Ok(()) };
    caller.check(Verb::Read, Kind::Group, group)?;
    for topic in topics {
        match topic.strip_prefix('^') {
            None => caller.check(Verb::Read, Kind::Topic, topic)?,
            Some(pattern) => caller.check_all(Verb::Read, Kind::Topic, policy::literal_prefix(pattern))?,
        }
    }
    Ok(())
}

/// Whether a list shows the caller a thing of that name.
pub(crate) fn sees(verb: Verb, kind: Kind, name: &str) -> bool {
    caller().is_none_or(|caller| caller.policy().allows(&caller.0.principal, &caller.0.roles, verb, kind, name))
}

/// The name under which the caller owns what it makes.
pub(crate) fn owner() -> Option<Arc<str>> {
    caller().map(|caller| Arc::clone(&caller.0.principal))
}

/// An error where `what` belongs to somebody else.
pub(crate) fn check_owner(owner: Option<&str>, what: impl FnOnce() -> String) -> Result<()> {
    match caller() {
        Some(caller) if owner.is_none_or(|owner| *owner != *caller.0.principal) => Err(BridgeError::new(
            Code::Forbidden,
            format!("{:?} may not use {}: it belongs to another principal", caller.0.principal, what()),
        )),
        _ => Ok(()),
    }
}

/// An error where this is not the body that another replica has signed.
pub(crate) fn check_body(body: &[u8]) -> Result<()> {
    match caller().and_then(|caller| caller.0.body.clone()) {
        Some(signed) if signed != hop::body_digest(body) => {
            Err(BridgeError::new(Code::Unauthenticated, "the body is not the one that another bridge handed on"))
        }
        _ => Ok(()),
    }
}

/// What a caller names (an idempotency key, a batch) as nobody else can name it.
pub(crate) fn own_id(id: &str) -> String {
    match caller() {
        // Both parts may have any letters, so their lengths keep them apart.
        Some(caller) if !id.is_empty() => {
            let named = format!("{}:{}{id}", caller.0.principal.len(), caller.0.principal);
            hex(digest::digest(&digest::SHA256, named.as_bytes()).as_ref())
        }
        _ => id.to_owned(),
    }
}

/// Two digits a byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Counts bytes that no body holds, and waits where they are more than the quota gives.
pub(crate) async fn spend(bytes: usize) {
    if let Some(caller) = caller() {
        sleep(caller.count(bytes).min(guard::PAUSE_MAX)).await;
    }
}

/// Takes the caller to work that outlives its request.
#[derive(Clone, Default)]
pub(crate) struct Carrier(Option<Caller>);

pub(crate) fn carrier() -> Carrier {
    Carrier(caller())
}

impl Carrier {
    pub(crate) async fn run<F: Future>(self, work: F) -> F::Output {
        match self.0 {
            Some(caller) => CALLER.scope(caller, work).await,
            None => work.await,
        }
    }

    /// As [`check`], where the request's own task is not at hand.
    pub(crate) fn check(&self, verb: Verb, kind: Kind, name: &str) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |caller| caller.check(verb, kind, name))
    }
}

impl Caller {
    fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.0.auth.0.policy.read())
    }

    fn check(&self, verb: Verb, kind: Kind, name: &str) -> Result<()> {
        self.check_time()?;
        let allowed = self.policy().allows(&self.0.principal, &self.0.roles, verb, kind, name);
        let told = self.0.asked.lock().as_ref().is_some_and(|(asked, of, named)| (*asked, *of, named.as_str()) == (verb, kind, name));
        let resource = if kind == Kind::Cluster { "the cluster".to_owned() } else { format!("{} {name:?}", kind.name()) };
        if !told || !allowed {
            self.audit(verb, &resource, allowed);
        }
        if allowed { Ok(()) } else { Err(self.denied(verb, &resource)) }
    }

    /// Everything of a kind whose name begins so.
    fn check_all(&self, verb: Verb, kind: Kind, prefix: &str) -> Result<()> {
        self.check_time()?;
        let allowed = self.policy().allows_all(&self.0.principal, &self.0.roles, verb, kind, prefix);
        let resource = format!("{} \"{prefix}*\"", kind.name());
        self.audit(verb, &resource, allowed);
        if allowed { Ok(()) } else { Err(self.denied(verb, &resource)) }
    }

    /// Whether there may be something of the kind at all; what it is, the body says.
    fn check_any(&self, verb: Verb, kind: Kind) -> Result<()> {
        if self.policy().allows_any(&self.0.principal, &self.0.roles, verb, kind) {
            return Ok(());
        }
        self.audit(verb, &format!("any {}", kind.name()), false);
        Err(self.denied(verb, &format!("any {}", kind.name())))
    }

    /// A stream may outlive its token.
    fn check_time(&self) -> Result<()> {
        match self.0.until {
            Some(until) if until <= SystemTime::now() => {
                Err(BridgeError::new(Code::Unauthenticated, "the token has expired; ask for a new one, and connect again"))
            }
            _ => Ok(()),
        }
    }

    fn denied(&self, verb: Verb, resource: &str) -> BridgeError {
        metrics::counter!("millrace_bridge_auth_denied_total", "verb" => verb.name()).increment(1);
        BridgeError::new(
            Code::Forbidden,
            format!("{:?} may not {} {resource}; the policy does not allow it", self.0.principal, verb.name()),
        )
    }

    /// A line for those who look after the security: `target` is `audit`.
    fn audit(&self, verb: Verb, resource: &str, allowed: bool) {
        let level = match (allowed, verb) {
            (false, _) => Audit::Denied,
            (true, Verb::Create | Verb::Delete | Verb::Alter | Verb::AlterConfigs) => Audit::Admin,
            (true, Verb::Write) => Audit::Writes,
            (true, Verb::Read | Verb::Describe | Verb::DescribeConfigs) => Audit::All,
        };
        if self.0.auth.0.config.audit >= level {
            let Called { principal, by, address, .. } = &*self.0;
            let (outcome, address) = (if allowed { "allowed" } else { "denied" }, address.map(tracing::field::display));
            tracing::info!(target: "audit", %principal, verb = verb.name(), resource, outcome, credential = by.name(), address, "access");
        }
    }

    /// Counts bytes against the quota; gives how long until nothing is owed.
    fn count(&self, bytes: usize) -> Duration {
        self.0.auth.0.quotas.spend(&self.0.principal, self.0.auth.limits(self), bytes, Instant::now())
    }
}

impl Auth {
    /// `None` where authentication is off. Reads the files; asks nobody. `certificates`: whether a listener asks its clients for one.
    /// `kafka`: how the bridge itself logs in there.
    pub(crate) fn open(config: &config::Auth, certificates: bool, kafka: &KafkaConfig) -> Result<Option<Self>, ConfigError> {
        let wrong = |key: &str, message: String| ConfigError { place: "configuration".to_owned(), key: format!("auth.{key}"), message };
        let set = |path: &Path| !path.as_os_str().is_empty();
        let others = [
            ("users_file", set(&config.users_file)),
            ("api_keys_file", set(&config.api_keys_file)),
            ("jwt.jwks", !config.jwt.jwks.is_empty()),
            ("pass_through.enabled", config.pass_through.enabled),
        ];
        if !set(&config.policy_file) {
            return match others.into_iter().find(|(_, set)| *set) {
                None => Ok(None),
                Some((key, _)) => {
                    Err(wrong("policy_file", format!("is missing, and auth.{key} is set; name the file that says who may do what")))
                }
            };
        }
        if !certificates && others.iter().all(|(_, set)| !set) {
            let message = "is set, and there is nothing by which callers could be known; set auth.users_file, auth.api_keys_file, auth.jwt.jwks, auth.pass_through.enabled, or tls.client_auth of a listener";
            return Err(wrong("policy_file", message.to_owned()));
        }
        let watched = |path: &Path| Watched::new([path.to_owned()]);
        // Before they are read: a change between the two is seen then.
        let files = Files {
            policy: watched(&config.policy_file),
            users: watched(&config.users_file),
            api_keys: watched(&config.api_keys_file),
            secrets: watched(&config.forward_secret_file),
        };
        let secrets = set(&config.forward_secret_file).then(|| Secrets::read(&config.forward_secret_file)).transpose();
        let secrets = secrets.map_err(|message| wrong("forward_secret_file", message))?.map(RwLock::new);
        let policy = Policy::read(&config.policy_file).map_err(|message| wrong("policy_file", message))?;
        if set(&config.users_file) && config.pass_through.enabled {
            return Err(wrong("users_file", "is set, and with auth.pass_through Kafka checks passwords; remove one of them".to_owned()));
        }
        let logins = config.pass_through.enabled.then(|| Logins::open(config, kafka)).transpose();
        let logins = logins
            .map_err(|message| wrong("pass_through.enabled", format!("needs a login by password in [kafka.properties]: {message}")))?;
        let passwords =
            set(&config.users_file).then(|| Passwords::open(config)).transpose().map_err(|message| wrong("users_file", message))?;
        let api_keys = set(&config.api_keys_file).then(|| credentials::ApiKeys::read(&config.api_keys_file)).transpose();
        let api_keys = api_keys.map_err(|message| wrong("api_keys_file", message))?.map(RwLock::new);
        let tokens = (!config.jwt.jwks.is_empty()).then(|| Tokens::open(&config.jwt)).transpose();
        let tokens = tokens.map_err(|(key, message)| wrong(&format!("jwt.{key}"), message))?;
        Ok(Some(Self(Arc::new(Inner {
            policy: RwLock::new(Arc::new(policy)),
            passwords,
            logins,
            api_keys,
            secrets,
            tokens,
            quotas: Quotas::new(config.quota.principals_max),
            files: Mutex::new(files),
            config: config.clone(),
        }))))
    }

    /// Looks after files and keys until the shutdown.
    pub(crate) async fn watch(self, ctx: Context) {
        let keys = ctx.readiness.latch("token keys");
        let mut keys = Some(keys);
        loop {
            if let Some(tokens) = &self.0.tokens {
                tokens.look().await;
            }
            if self.0.tokens.as_ref().is_none_or(Tokens::has_keys)
                && let Some(latch) = keys.take()
            {
                latch.release();
            }
            select! {
                () = ctx.shutdown.cancelled() => return,
                () = sleep(LOOK) => {}
            }
            self.reload();
            if let Some(logins) = &self.0.logins {
                logins.look();
            }
        }
    }

    /// Reads those files again that have changed.
    fn reload(&self) {
        let Inner { config, policy, passwords, api_keys, secrets, files, .. } = &*self.0;
        let mut files = files.lock();
        if files.policy.changed() {
            let read = Policy::read(&config.policy_file).map(|read| *policy.write() = Arc::new(read));
            reloaded("policy", &config.policy_file, read);
        }
        if files.users.changed()
            && let Some(passwords) = passwords
        {
            reloaded("users", &config.users_file, passwords.reload(&config.users_file));
        }
        if files.api_keys.changed()
            && let Some(api_keys) = api_keys
        {
            let read = credentials::ApiKeys::read(&config.api_keys_file).map(|read| *api_keys.write() = read);
            reloaded("api_keys", &config.api_keys_file, read);
        }
        if files.secrets.changed()
            && let Some(secrets) = secrets
        {
            let read = Secrets::read(&config.forward_secret_file).map(|read| *secrets.write() = read);
            reloaded("forward_secret", &config.forward_secret_file, read);
        }
    }

    /// Headers that tell another replica who calls, in place of what the caller showed; `false` where there is no secret to sign them with.
    pub(crate) fn hand_on(&self, method: &Method, uri: &Uri, body: &[u8], headers: &mut HeaderMap) -> bool {
        for credential in [header::AUTHORIZATION, HeaderName::from_static(API_KEY), hop::CALLER] {
            headers.remove(credential);
        }
        let (Some(secrets), Some(caller)) = (&self.0.secrets, caller()) else { return false };
        let signed = secrets.read().sign(&caller.0, method, uri, body, SystemTime::now());
        signed.is_some_and(|signed| headers.insert(hop::CALLER, signed).is_none())
    }

    /// Who another replica says that it is.
    fn handed_on(&self, said: &HeaderValue, parts: &Parts) -> Result<Caller> {
        let address = parts.extensions.get::<Peer>().map(|peer| peer.address);
        let verified = match &self.0.secrets {
            None => Err("is not taken: auth.forward_secret_file is not set here"),
            Some(secrets) => secrets.read().verify(said, &parts.method, &parts.uri, SystemTime::now()),
        };
        let outcome = if verified.is_ok() { "accepted" } else { "refused" };
        metrics::counter!("millrace_bridge_auth_total", "credential" => Credential::Forwarded.name(), "outcome" => outcome).increment(1);
        let handed = verified.map_err(|reason| {
            let message = format!("what another bridge says of the caller {reason}");
            if self.0.config.audit >= Audit::Denied {
                let address = address.map(tracing::field::display);
                tracing::info!(target: "audit", outcome = "unauthenticated", credential = "forwarded", address, reason = message, "access");
            }
            BridgeError::new(Code::Unauthenticated, message)
        })?;
        Ok(Caller(Arc::new(Called {
            auth: self.clone(),
            principal: handed.principal.as_str().into(),
            until: handed.until(),
            logs_in: handed.logs_in,
            connection: OnceLock::new(),
            roles: handed.roles,
            by: Credential::Forwarded,
            address,
            body: Some(handed.body),
            asked: Mutex::new(None),
        })))
    }

    /// Who sends these headers over that connection. The header wins over the certificate: it is the nearer one where a proxy has the certificate.
    async fn authenticate(&self, headers: &HeaderMap, peer: Option<&Peer>) -> Result<Caller> {
        let (by, known) = self.recognise(headers, peer).await;
        let outcome = match &known {
            Ok(_) => "accepted",
            Err(error) if error.code == Code::Unauthenticated => "refused",
            Err(_) => "failed",
        };
        metrics::counter!("millrace_bridge_auth_total", "credential" => by.map_or("none", Credential::name), "outcome" => outcome)
            .increment(1);
        let address = peer.map(|peer| peer.address);
        let (by, known) = match (by, known) {
            (Some(by), Ok(known)) => (by, known),
            (by, Err(error)) => {
                if outcome == "refused" && self.0.config.audit >= Audit::Denied {
                    let (credential, address) = (by.map_or("none", Credential::name), address.map(tracing::field::display));
                    tracing::info!(target: "audit", outcome = "unauthenticated", credential, address, reason = error.message, "access");
                }
                return Err(error);
            }
            (None, Ok(_)) => return Err(self.unauthenticated("no credentials")),
        };
        let Known { principal, roles, until, connection } = known;
        let legal = !principal.is_empty() && principal.len() <= PRINCIPAL_BYTES_MAX && !principal.chars().any(char::is_control);
        if !legal || principal == policy::EVERYONE {
            return Err(self.unauthenticated(&format!("{principal:?} cannot be a principal's name")));
        }
        Ok(Caller(Arc::new(Called {
            auth: self.clone(),
            principal: principal.into(),
            roles,
            by,
            address,
            until,
            logs_in: connection.is_some(),
            connection: connection.map_or_else(OnceLock::new, OnceLock::from),
            body: None,
            asked: Mutex::new(None),
        })))
    }

    async fn recognise(&self, headers: &HeaderMap, peer: Option<&Peer>) -> (Option<Credential>, Result<Known>) {
        let inner = &*self.0;
        // A proxy in front may have looked at another one of them.
        let several = |(name, _): &(&str, &str)| headers.get_all(*name).iter().nth(1).is_some();
        if let Some((_, shown)) = [("authorization", "Authorization"), (API_KEY, "X-API-Key")].into_iter().find(several) {
            return (None, Err(self.unauthenticated(&format!("{shown} is there more than once"))));
        }
        if let Some(value) = headers.get(header::AUTHORIZATION) {
            let Some((scheme, given)) = value.to_str().unwrap_or_default().split_once(' ') else {
                return (None, Err(self.unauthenticated("Authorization has no scheme")));
            };
            let given = given.trim();
            return match (scheme.to_ascii_lowercase().as_str(), &inner.passwords, &inner.tokens) {
                ("basic", ..) if inner.passwords.is_some() || inner.logins.is_some() => {
                    (Some(Credential::Password), self.by_password(given).await)
                }
                ("bearer", _, Some(tokens)) => {
                    let known = tokens.verify(given, SystemTime::now()).await.map_err(|error| match error {
                        jwt::TokenError::Refused(reason) => self.unauthenticated(&reason),
                        jwt::TokenError::NoKeys => {
                            BridgeError::new(Code::Unavailable, "the keys that tokens are checked with are not here yet; try again")
                        }
                    });
                    (Some(Credential::Token), known)
                }
                // What is no name of a scheme may be a secret, which neither the answer nor the log is to show.
                _ if scheme.len() <= SCHEME_LETTERS_MAX && scheme.bytes().all(|letter| letter.is_ascii_alphabetic()) => {
                    (None, Err(self.unauthenticated(&format!("Authorization {scheme:?} is not taken here"))))
                }
                _ => (None, Err(self.unauthenticated("Authorization's scheme is not taken here"))),
            };
        }
        if let (Some(value), Some(keys)) = (headers.get(API_KEY), &inner.api_keys) {
            let found = keys.read().principal(value.as_bytes());
            return (Some(Credential::ApiKey), found.map(Known::principal).ok_or_else(|| self.unauthenticated("the API key is not known")));
        }
        match peer.and_then(|peer| peer.certificate.as_ref()) {
            Some(certificate) => {
                let name = match inner.config.certificate_name {
                    CertificateName::CommonName => certificate.common_name.as_ref(),
                    CertificateName::Dns => certificate.dns_names.first(),
                    CertificateName::Uri => certificate.uris.first(),
                };
                let known = name.cloned().map(Known::principal).ok_or_else(|| {
                    let what = inner.config.certificate_name.words();
                    self.unauthenticated(&format!("the client's certificate has no {what} (auth.certificate_name)"))
                });
                (Some(Credential::Certificate), known)
            }
            None => (None, Err(self.unauthenticated("no credentials"))),
        }
    }

    async fn by_password(&self, given: &str) -> Result<Known> {
        let decoded = STANDARD.decode(given).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
        let (name, password) = pair.ok_or_else(|| self.unauthenticated("Basic credentials are not base64 of name:password"))?;
        if let Some(logins) = &self.0.logins {
            return match logins.connection(name, password).await {
                Ok(connection) => Ok(Known { connection: Some(connection), ..Known::principal(name.to_owned()) }),
                Err(login::Trouble::Refused) => Err(self.unauthenticated("Kafka refuses name or password")),
                Err(login::Trouble::Busy) => {
                    Err(BridgeError::new(Code::Unavailable, "too many log in to Kafka now (auth.pass_through.logins_at_once); try again"))
                }
                Err(login::Trouble::Kafka(error)) => Err(error.into()),
            };
        }
        let checked = match &self.0.passwords {
            Some(passwords) => passwords.verify(name, password).await,
            None => Some(false),
        };
        match checked {
            Some(true) => Ok(Known::principal(name.to_owned())),
            Some(false) => Err(self.unauthenticated("name or password is wrong")),
            None => Err(BridgeError::new(Code::Unavailable, "too many passwords are being checked (auth.hashes_at_once); try again")),
        }
    }

    /// What is wrong, and what would be taken.
    fn unauthenticated(&self, reason: &str) -> BridgeError {
        let inner = &*self.0;
        let mut ways: Vec<&str> = Vec::new();
        ways.extend((inner.passwords.is_some() || inner.logins.is_some()).then_some("Basic"));
        ways.extend(inner.tokens.as_ref().map(|_| "a Bearer token"));
        ways.extend(inner.api_keys.as_ref().map(|_| "an X-API-Key"));
        ways.push("a client certificate");
        BridgeError::new(Code::Unauthenticated, format!("{reason}; send {}", ways.join(" or ")))
    }

    /// For `WWW-Authenticate`.
    fn challenges(&self) -> Vec<&'static str> {
        let inner = &*self.0;
        let basic = (inner.passwords.is_some() || inner.logins.is_some()).then_some("Basic realm=\"millrace\", charset=\"UTF-8\"");
        let bearer = inner.tokens.as_ref().map(|_| "Bearer realm=\"millrace\"");
        let key = inner.api_keys.as_ref().map(|_| "ApiKey realm=\"millrace\"");
        basic.into_iter().chain(bearer).chain(key).collect()
    }

    /// The policy's limits for a principal, else the configured ones.
    fn limits(&self, caller: &Caller) -> quota::Limits {
        let quota = &self.0.config.quota;
        // Counted where the request came in.
        if caller.0.by == Credential::Forwarded {
            return quota::Limits { requests: 0.0, bytes: 0.0, burst: quota.burst };
        }
        let own = caller.policy().limits(&caller.0.principal);
        quota::Limits {
            requests: own.requests.unwrap_or(quota.requests_per_second),
            bytes: own.bytes.unwrap_or(quota.bytes_per_second),
            burst: quota.burst,
        }
    }
}

/// Where API keys are sent.
const API_KEY: &str = "x-api-key";

/// What a credential says of its owner.
#[derive(Debug)]
struct Known {
    principal: String,
    roles: Vec<String>,
    until: Option<SystemTime>,
    connection: Option<Connection>,
}

impl Known {
    fn principal(principal: String) -> Self {
        Self { principal, roles: Vec::new(), until: None, connection: None }
    }
}

fn reloaded(what: &'static str, path: &Path, read: Result<(), String>) {
    let outcome = if read.is_ok() { "read" } else { "refused" };
    metrics::counter!("millrace_bridge_auth_reloads_total", "file" => what, "outcome" => outcome).increment(1);
    match read {
        Ok(()) => tracing::info!(file = %path.display(), "{what} read again"),
        Err(error) => tracing::error!(file = %path.display(), error, "the changed file cannot be used; going on with what was before"),
    }
}
