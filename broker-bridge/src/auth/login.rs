//! Callers that log in to Kafka themselves: Kafka knows their passwords, and its access control lists hold for what they do.
//!
//! Each has a [`Connection`] of its own, found again by a keyed hash of name and password; so many are kept, and for so long after their last use.
//! A login that Kafka has taken is not asked for again for `auth.remembered`; one that it has refused, for [`REFUSED_FOR`].

use std::{collections::HashMap, hash::Hash, time::Duration};

use parking_lot::Mutex;
use ring::{hmac, rand::SystemRandom};
use service_kit::kafka::{KafkaConfig, KafkaError};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::credentials::tag;
use crate::{config, connect::Connection};

/// How long a request waits for its turn to log in.
const TURN_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a refused login is refused without asking Kafka.
const REFUSED_FOR: Duration = Duration::from_secs(5);
/// Refused logins remembered.
const REFUSED_MAX: usize = 10_000;

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum Trouble {
    /// By Kafka.
    Refused,
    /// Too many are logging in.
    Busy,
    Kafka(KafkaError),
}

type Tag = Vec<u8>;

pub(super) struct Logins {
    /// With the bridge's own login.
    kafka: KafkaConfig,
    config: config::PassThrough,
    remembered: Duration,
    key: hmac::Key,
    known: Mutex<HashMap<Tag, Known>>,
    /// Until when.
    refused: Mutex<HashMap<Tag, Instant>>,
    turns: Semaphore,
}

struct Known {
    connection: Connection,
    /// When Kafka has taken the login, and when it was used last.
    taken: Instant,
    used: Instant,
}

impl Logins {
    /// An error where the bridge's own way to Kafka has no logins by password.
    pub(super) fn open(config: &config::Auth, kafka: &KafkaConfig) -> Result<Self, String> {
        kafka.with_login("anybody", "anything").map_err(|error| error.to_string())?;
        let key =
            hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).map_err(|_| "the system gives no random numbers".to_owned())?;
        Ok(Self {
            kafka: kafka.clone(),
            config: config.pass_through.clone(),
            remembered: config.remembered,
            key,
            known: Mutex::default(),
            refused: Mutex::default(),
            turns: Semaphore::new(config.pass_through.logins_at_once.min(Semaphore::MAX_PERMITS)),
        })
    }

    /// The connection of who logs in so.
    pub(super) async fn connection(&self, name: &str, password: &str) -> Result<Connection, Trouble> {
        let tag = tag(&self.key, name, password);
        if let Some(settled) = self.settled(&tag) {
            return settled;
        }
        // Who was known is not to wait for those who guess.
        let is_known = self.known.lock().contains_key(&tag);
        let _turn = match is_known {
            true => None,
            false => Some(timeout(TURN_WAIT_MAX, self.turns.acquire()).await.map_err(|_| Trouble::Busy)?),
        };
        // Another request of the same caller may have been faster.
        if let Some(settled) = self.settled(&tag) {
            return settled;
        }
        let config = match self.kafka.with_login(name, password) {
            Ok(config) => config,
            Err(KafkaError::Auth(_)) => return Err(Trouble::Refused),
            Err(error) => return Err(Trouble::Kafka(error)),
        };
        let connection = Connection::new(config);
        match connection.manage().log_in().await {
            Ok(()) => Ok(self.keep(tag, connection)),
            Err(KafkaError::Auth(reason)) => {
                tracing::debug!(reason, "login passed through");
                self.known.lock().remove(&tag);
                make_room(&mut self.refused.lock(), REFUSED_MAX, |until| *until).insert(tag, Instant::now() + REFUSED_FOR);
                Err(Trouble::Refused)
            }
            Err(error) => Err(Trouble::Kafka(error)),
        }
    }

    /// What is known without asking Kafka.
    fn settled(&self, tag: &Tag) -> Option<Result<Connection, Trouble>> {
        let now = Instant::now();
        if self.refused.lock().get(tag).is_some_and(|until| *until > now) {
            return Some(Err(Trouble::Refused));
        }
        let mut known = self.known.lock();
        let found = known.get_mut(tag).filter(|found| now - found.taken < self.remembered)?;
        found.used = now;
        Some(Ok(found.connection.clone()))
    }

    fn keep(&self, tag: Tag, made: Connection) -> Connection {
        let now = Instant::now();
        let mut known = self.known.lock();
        let taken = known.remove(&tag).map_or(made, |known| known.connection);
        make_room(&mut known, self.config.principals_max, |known| known.used)
            .insert(tag, Known { connection: taken.clone(), taken: now, used: now });
        gauge(known.len());
        taken
    }

    /// Lets those go that were not used for a while.
    pub(super) fn look(&self) {
        let now = Instant::now();
        self.refused.lock().retain(|_, until| *until > now);
        let mut known = self.known.lock();
        known.retain(|_, known| now - known.used < self.config.idle);
        gauge(known.len());
    }
}

fn gauge(count: usize) {
    metrics::gauge!("millrace_bridge_auth_kafka_logins").set(count as f64);
}

/// Takes out the one that was first, where there is no room for another.
fn make_room<K: Clone + Eq + Hash, V>(map: &mut HashMap<K, V>, max: usize, at: impl Fn(&V) -> Instant) -> &mut HashMap<K, V> {
    if map.len() >= max
        && let Some(first) = map.iter().min_by_key(|(_, value)| at(value)).map(|(key, _)| key.clone())
    {
        map.remove(&first);
    }
    map
}
