//! Who shows a password or an API key. Both are in files as `name:hash`, a line each; `#` begins a comment.
//!
//! Passwords are stored as bcrypt or argon2 hashes (`htpasswd -nB NAME`), which are slow on purpose: so many are computed at a time
//! (`auth.hashes_at_once`, with a bounded queue before them), and a password that was right is remembered for a while, as a keyed hash. An unknown name costs as much as a wrong
//! password. API keys are long and random, so a plain SHA-512 of them is kept (`printf %s KEY | sha512sum`); what is compared is the hash, of which
//! nobody can choose the first bytes.

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use argon2::{Argon2, PasswordHash, PasswordVerifier as _};
use parking_lot::{Mutex, RwLock};
use ring::{digest, hmac, rand::SystemRandom};
use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{Instant, timeout},
};

use crate::config;

/// How long a request waits for its turn at a password.
const TURN_WAIT_MAX: Duration = Duration::from_secs(5);
/// Requests that may wait for each turn; who guesses passwords is not to have all requests of a listener wait.
const WAITING_PER_TURN: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Hash {
    Bcrypt(String),
    Argon2(String),
}

impl Hash {
    fn parse(text: &str) -> Option<Self> {
        if ["$2a$", "$2b$", "$2y$", "$2x$"].iter().any(|mark| text.starts_with(mark)) {
            text.parse::<bcrypt::HashParts>().ok()?;
            return Some(Self::Bcrypt(text.to_owned()));
        }
        if text.starts_with("$argon2") && PasswordHash::new(text).is_ok_and(|parsed| parsed.hash.is_some()) {
            return Some(Self::Argon2(text.to_owned()));
        }
        None
    }

    fn is_of(&self, password: &str) -> bool {
        match self {
            Self::Bcrypt(hash) => bcrypt::verify(password, hash).unwrap_or(false),
            Self::Argon2(hash) => {
                PasswordHash::new(hash).is_ok_and(|parsed| Argon2::default().verify_password(password.as_bytes(), &parsed).is_ok())
            }
        }
    }
}

/// `name:rest` lines with their numbers.
fn lines(path: &Path) -> Result<Vec<(usize, String, String)>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once(':') {
            Some((name, rest)) if !name.trim().is_empty() => found.push((index + 1, name.trim().to_owned(), rest.trim().to_owned())),
            _ => return Err(format!("{}:{}: is not NAME:HASH", path.display(), index + 1)),
        }
    }
    Ok(found)
}

/// Names and hashes of a file.
fn users(path: &Path) -> Result<HashMap<String, Hash>, String> {
    let mut users = HashMap::new();
    for (line, name, text) in lines(path)? {
        let hash = Hash::parse(&text).ok_or_else(|| {
            format!(
                "{}:{line}: what {name:?} has is no bcrypt ($2y$…) or argon2 ($argon2id$…) hash; make one with `htpasswd -nB {name}`",
                path.display()
            )
        })?;
        if users.insert(name.clone(), hash).is_some() {
            return Err(format!("{}:{line}: {name:?} is there already", path.display()));
        }
    }
    Ok(users)
}

/// What is kept of a name and a password that were right.
pub(super) fn tag(key: &hmac::Key, name: &str, password: &str) -> Vec<u8> {
    let mut tagged = hmac::Context::with_key(key);
    tagged.update(&(name.len() as u64).to_be_bytes());
    tagged.update(name.as_bytes());
    tagged.update(password.as_bytes());
    tagged.sign().as_ref().to_vec()
}

/// The users of a file, and those passwords that were right lately.
pub(super) struct Passwords {
    users: RwLock<HashMap<String, Hash>>,
    /// Keyed hash of name and password → until when.
    right: Mutex<HashMap<Vec<u8>, Instant>>,
    key: hmac::Key,
    turns: Arc<Semaphore>,
    /// Places of those that wait for a turn.
    waiting: Semaphore,
    remember_max: usize,
    remember: Duration,
}

impl Passwords {
    pub(super) fn open(config: &config::Auth) -> Result<Self, String> {
        let key =
            hmac::Key::generate(hmac::HMAC_SHA512, &SystemRandom::new()).map_err(|_| "the system gives no random numbers".to_owned())?;
        Ok(Self {
            users: RwLock::new(users(&config.users_file)?),
            right: Mutex::default(),
            key,
            turns: Arc::new(Semaphore::new(config.hashes_at_once.min(Semaphore::MAX_PERMITS))),
            waiting: Semaphore::new(config.hashes_at_once.saturating_mul(WAITING_PER_TURN).min(Semaphore::MAX_PERMITS)),
            remember_max: config.remembered_max,
            remember: config.remembered,
        })
    }

    pub(super) fn reload(&self, path: &Path) -> Result<(), String> {
        let read = users(path)?;
        *self.users.write() = read;
        self.right.lock().clear();
        Ok(())
    }

    /// `None`: too many are being checked.
    pub(super) async fn verify(&self, name: &str, password: &str) -> Option<bool> {
        let tag = tag(&self.key, name, password);
        if self.right.lock().get(&tag).is_some_and(|until| *until > Instant::now()) {
            return Some(true);
        }
        let (hash, known) = {
            let users = self.users.read();
            let own = users.get(name).cloned();
            // Somebody else's: an unknown name must not be told by its quick answer.
            (own.clone().or_else(|| users.values().next().cloned()), own.is_some())
        };
        let Some(hash) = hash else { return Some(false) };
        let waiting = self.waiting.try_acquire().ok()?;
        let turn = timeout(TURN_WAIT_MAX, Arc::clone(&self.turns).acquire_owned()).await.ok()?.ok()?;
        drop(waiting);
        let (of, password) = (hash.clone(), password.to_owned());
        // The turn is held until the work is done, whether or not somebody still waits for it.
        let right = spawn_blocking(move || {
            let right = of.is_of(&password);
            drop(turn);
            right
        });
        let right = right.await.unwrap_or(false) && known;
        if right {
            self.keep(name, &hash, tag);
        }
        Some(right)
    }

    fn keep(&self, name: &str, hash: &Hash, tag: Vec<u8>) {
        let (mut kept, now) = (self.right.lock(), Instant::now());
        // The file may have changed while this was computed. One that changes now waits for the lock, and forgets.
        if self.users.read().get(name) != Some(hash) {
            return;
        }
        if kept.len() >= self.remember_max {
            kept.retain(|_, until| *until > now);
        }
        if kept.len() < self.remember_max {
            kept.insert(tag, now + self.remember);
        }
        metrics::gauge!("millrace_bridge_auth_passwords_remembered").set(kept.len() as f64);
    }
}

/// Hashes of keys → whose they are. One name may have several, so that a key can be replaced without a gap.
pub(super) struct ApiKeys(HashMap<Vec<u8>, String>);

impl ApiKeys {
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let mut keys = HashMap::new();
        for (line, name, text) in lines(path)? {
            let hash = unhex(text.split_whitespace().next().unwrap_or_default())
                .filter(|hash| hash.len() == digest::SHA512_OUTPUT_LEN)
                .ok_or_else(|| {
                    format!(
                        "{}:{line}: what {name:?} has is no SHA-512 in 128 hex digits; make one with `printf %s KEY | sha512sum`",
                        path.display()
                    )
                })?;
            if let Some(other) = keys.insert(hash, name) {
                return Err(format!("{}:{line}: the same key is {other:?}'s already", path.display()));
            }
        }
        Ok(Self(keys))
    }

    pub(super) fn principal(&self, key: &[u8]) -> Option<String> {
        self.0.get(digest::digest(&digest::SHA512, key).as_ref()).cloned()
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    Some(digits.chunks(2).map(|pair| (pair[0] << 4) | pair[1]).collect())
}

#[cfg(test)]
mod tests {

    use std::fs;

    use super::*;

    fn config(users: &Path) -> config::Auth {
        config::Auth { users_file: users.to_owned(), remembered_max: 2, ..config::Auth::default() }
    }

    /// As cheap as bcrypt can be.
    fn line(name: &str, password: &str) -> String {
        format!("{name}:{}\n", bcrypt::hash(password, 4).unwrap())
    }

    #[tokio::test]
    async fn only_the_right_password_of_a_known_name_is_right() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users");
        // Of the password "secret", by the argon2 program with its smallest memory.
        let argon = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$";
        let hash = {
            let mut out = [0; 16];
            let cheap = argon2::Params::new(8, 1, 1, Some(16)).unwrap();
            Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, cheap)
                .hash_password_into(b"secret", b"somesalt", &mut out)
                .unwrap();
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD_NO_PAD, out)
        };
        fs::write(&path, format!("# people\n\n{}anna:{argon}{hash}\n", line("alice", "wonder:land"))).unwrap();
        let passwords = Passwords::open(&config(&path)).unwrap();
        for (name, password, right) in [
            ("alice", "wonder:land", true),
            ("alice", "wonder:land", true),
            ("alice", "wonder:lan", false),
            ("alice", "", false),
            ("anna", "secret", true),
            ("anna", "wonder:land", false),
            ("nobody", "wonder:land", false),
            // Name and password cannot run into each other.
            ("alic", "ewonder:land", false),
        ] {
            assert_eq!(passwords.verify(name, password).await, Some(right), "{name} {password}");
        }
        assert_eq!(passwords.right.lock().len(), 2, "what is wrong is not remembered");

        fs::write(&path, line("alice", "other")).unwrap();
        passwords.reload(&path).unwrap();
        assert_eq!(passwords.verify("alice", "wonder:land").await, Some(false), "what was remembered is forgotten");
        assert_eq!(passwords.verify("alice", "other").await, Some(true));
        fs::write(&path, "alice:plain").unwrap();
        assert!(passwords.reload(&path).unwrap_err().contains("users:1: what \"alice\" has is no bcrypt"));
        assert_eq!(passwords.verify("alice", "other").await, Some(true), "a wrong file changes nothing");
    }

    #[tokio::test]
    async fn a_password_that_is_taken_back_while_it_is_checked_is_not_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users");
        fs::write(&path, line("alice", "old")).unwrap();
        let passwords = Passwords::open(&config(&path)).unwrap();
        let turns = Arc::clone(&passwords.turns).acquire_many_owned(config(&path).hashes_at_once as u32).await.unwrap();
        let mut asked = Box::pin(passwords.verify("alice", "old"));
        assert!(futures::poll!(asked.as_mut()).is_pending(), "it knows the hash and waits for its turn");
        fs::write(&path, line("alice", "new")).unwrap();
        passwords.reload(&path).unwrap();
        drop(turns);
        asked.await;
        assert_eq!(passwords.verify("alice", "old").await, Some(false));
    }

    #[tokio::test]
    async fn so_many_wait_for_their_turn_and_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users");
        fs::write(&path, line("alice", "right")).unwrap();
        let passwords = Passwords::open(&config(&path)).unwrap();
        assert_eq!(passwords.verify("alice", "right").await, Some(true));
        let turns = Arc::clone(&passwords.turns).acquire_many_owned(config(&path).hashes_at_once as u32).await.unwrap();
        let mut waiting: Vec<_> = (0..100).map(|_| Box::pin(passwords.verify("alice", "wrong"))).collect();
        let mut refused = 0;
        for asked in &mut waiting {
            refused += usize::from(futures::poll!(asked.as_mut()) == std::task::Poll::Ready(None));
        }
        assert_eq!(refused, 100 - 32);
        // Who is known already waits for nobody.
        assert_eq!(passwords.verify("alice", "right").await, Some(true));
        drop((turns, waiting));
        assert_eq!(passwords.verify("alice", "wrong").await, Some(false));
    }

    #[tokio::test]
    async fn an_unknown_name_costs_a_hash_and_memory_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users");
        fs::write(&path, (0..4).map(|user| line(&format!("u{user}"), "p")).collect::<String>()).unwrap();
        let passwords = Passwords::open(&config(&path)).unwrap();
        for user in 0..4 {
            assert_eq!(passwords.verify(&format!("u{user}"), "p").await, Some(true));
        }
        assert_eq!(passwords.right.lock().len(), 2);
        // Without a turn, neither a wrong password nor an unknown name has an answer: both compute.
        passwords.turns.close();
        assert_eq!(passwords.verify("u1", "wrong").await, None);
        assert_eq!(passwords.verify("nobody", "p").await, None);
    }

    #[test]
    fn an_api_key_is_known_by_its_hash_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        let hash = |key: &str| crate::auth::hex(digest::digest(&digest::SHA512, key.as_bytes()).as_ref());
        fs::write(&path, format!("etl:{}\netl:{}\nweb:{}\n", hash("k1"), hash("k2").to_uppercase(), hash("k3"))).unwrap();
        let keys = ApiKeys::read(&path).unwrap();
        let found = ["k1", "k2", "k3", "k4", "", &hash("k1")].map(|key| keys.principal(key.as_bytes()));
        assert_eq!(found, [Some("etl".to_owned()), Some("etl".to_owned()), Some("web".to_owned()), None, None, None]);
        for (text, expected) in [
            (format!("a:{}", &hash("k")[1..]), "keys:1: what \"a\" has is no SHA-512"),
            (format!("a:{0}\nb:{0}", hash("k")), "keys:2: the same key is \"a\"'s already"),
            ("nothing".to_owned(), "keys:1: is not NAME:HASH"),
        ] {
            fs::write(&path, text).unwrap();
            assert!(ApiKeys::read(&path).err().unwrap().contains(expected));
        }
    }
}
