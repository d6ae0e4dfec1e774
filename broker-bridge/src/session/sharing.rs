//! Sessions that any replica answers: created in the directory, taken over from a replica that is gone, given up to one that took them.
//!
//! **Whose a session is.** The replica that the directory names holds it: it is the member of the Kafka group, and the others hand requests on to it
//! (`http/forward.rs`). One that is gone is replaced: whoever was asked claims the session in the directory, joins the group, and goes on.
//!
//! **The member is a static one** (`group.instance.id`, made of the session's name). A second one of the same id takes the first one's place with its
//! partitions, at once, and fences it: there is no rebalance and no waiting for a session timeout. So such a member stays in its group when
//! its replica stops, for as long as Kafka's session timeout (10 s); the deletion, the expiry and the end of a subscription leave the group.
//!
//! **What the new owner goes by**: the settings as the client gave them; the subscription or assignment; the offsets in the store. A seek that no
//! commit has followed is done again: the entry has what was committed when it was made, and it is void when that has changed.
//! What the client was given and has not acknowledged comes again. So "acknowledge what I was given" (a commit without offsets)
//! cannot be answered by an owner that has not given it: the first one after a takeover is refused, and the client told.
//!
//! **Every operation on an instance can be done twice**, which the hand-over relies on: the answer of an owner that dies may be lost after the work was
//! done. Subscription, assignment and positions say what is to be, not how it changes; a commit of offsets that are stored already is
//! none; records that nobody got are given again, since nothing acknowledged them; to delete what is gone is to find it gone.
//!
//! **Who may use it**: its creator, whose name the entry has, at every replica; before it is forwarded, taken over or deleted.
//!
//! Streams (gRPC, SSE, WebSocket) are not shared: they end with their connection, and their client connects again with its position.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt as _, future::join_all, stream};
use parking_lot::Mutex;
use serde_json::Value;
use service_kit::{kafka::TopicPartition, offsets::GroupOffsets};
use tokio::{net::TcpStream, time::timeout};

use super::{
    Session, Sessions, Settings,
    directory::{Directory, Entry, Key, Known, Reads, Sought},
    pattern,
    state::{Source, State},
};
use crate::{
    auth,
    error::{BridgeError, Code, Result},
    lag::now_ms,
};

/// Entries written at a time when many are to be renewed.
const RENEWALS: usize = 16;
/// Later than its idle time by so much, an entry is nobody's: owners renew theirs after a third of that time.
const LATE: Duration = Duration::from_secs(2);

/// What a session has that every replica knows.
#[derive(Default)]
pub(crate) struct Sharing {
    /// Its settings, as the client gave them.
    fields: BTreeMap<String, Value>,
    /// Seeks that no commit has followed, as far as it is known.
    sought: Mutex<BTreeMap<TopicPartition, Sought>>,
    /// Another replica, or this one before it was started again, may have given records that the client has not acknowledged.
    revived: AtomicBool,
}

/// Where a session is.
pub(crate) enum Place {
    Here(Arc<Session>),
    /// In the hands of its entry's owner, which may be this replica before it was started again.
    There(u64, Arc<Entry>),
    Nowhere,
}

/// Why an entry is written again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// The client changed what it reads.
    Changed,
    /// Some time has passed.
    Renewal,
}

impl Session {
    /// Every replica knows it.
    pub(crate) fn is_shared(&self) -> bool {
        self.sharing.is_some()
    }

    /// Whether the directory, as it is now, says that this process has it. An error where that cannot be told yet.
    pub(super) async fn is_ours(&self) -> Result<bool> {
        let Some(directory) = self.deps.directory.as_ref().filter(|_| self.is_shared()) else { return Ok(false) };
        directory.sync().await?;
        Ok(directory.known(&self.key()).and_then(|known| known.entry).is_some_and(|entry| entry.owner == directory.me()))
    }

    /// Of its member, where it is a static one.
    pub(super) fn instance_id(&self) -> Option<String> {
        self.sharing.is_some().then(|| format!("millrace.{}", self.name))
    }

    /// Goes on as the entry says.
    async fn revive(&self, entry: &Entry) -> Result<()> {
        match &entry.reads {
            Reads::Nothing => Ok(()),
            Reads::Topics(topics) => {
                // Whether the topics are there was asked when the client subscribed.
                let member = self.deps.clients.member(&self.group, topics, &self.settings, self.instance_id().as_deref()).await?;
                self.reads.lock().clone_from(topics);
                self.state.lock().await.source = Some(Source { member, subscription: Some(topics.clone()) });
                Ok(())
            }
            Reads::Partitions(partitions) => {
                let partitions: Vec<_> =
                    partitions.iter().map(|(topic, partition)| TopicPartition::new(topic.as_str(), *partition)).collect();
                // Whether they are there was asked when the client named them.
                self.state.lock().await.source = Some(self.direct(&partitions).await?);
                Ok(())
            }
        }
    }

    /// Does a seek again that was not followed by a commit, when its partition is given to this session.
    pub(super) async fn seek_again(&self, state: &mut State, partition: &TopicPartition, stored: &GroupOffsets) -> Result<()> {
        let Some(sought) = self.sharing.as_ref().and_then(|sharing| sharing.sought.lock().get(partition).cloned()) else { return Ok(()) };
        let committed = stored.offsets.get(partition).map(|stored| stored.offset);
        if (sought.committed, sought.epoch) != (committed, stored.epoch) {
            return Ok(());
        }
        self.seek_one(state, partition, sought.offset).await?;
        if let Some(progress) = state.partitions.get_mut(partition) {
            progress.rewound = committed.is_some_and(|committed| sought.offset < committed);
        }
        Ok(())
    }

    /// What it reads, and the seeks that no commit has followed; those of `moved` are new.
    async fn standing(&self, sharing: &Sharing, moved: &[TopicPartition]) -> (Reads, Vec<Sought>) {
        let state = self.state.lock().await;
        let reads = match &state.source {
            None => Reads::Nothing,
            Some(Source { subscription: Some(topics), .. }) => Reads::Topics(topics.clone()),
            Some(Source { member, .. }) => {
                let assigned = member.assignment().await;
                Reads::Partitions(assigned.into_iter().map(|partition| (partition.topic.to_string(), partition.partition)).collect())
            }
        };
        let mut sought = sharing.sought.lock();
        if reads == Reads::Nothing {
            sought.clear();
        }
        // Of a partition that is elsewhere now nothing is known; who gets it looks.
        sought.retain(|partition, sought| {
            state.partitions.get(partition).is_none_or(|progress| (sought.committed, sought.epoch) == (progress.committed, state.epoch))
        });
        for partition in moved {
            let Some(progress) = state.partitions.get(partition) else { continue };
            let (topic, committed, epoch) = (partition.topic.to_string(), progress.committed, state.epoch);
            sought.insert(partition.clone(), Sought { topic, partition: partition.partition, offset: progress.floor, committed, epoch });
        }
        (reads, sought.values().cloned().collect())
    }

    /// Refuses, once, to acknowledge what the owner before may have given.
    pub(crate) fn knows_what_it_gave(&self) -> Result<()> {
        if !self.sharing.as_ref().is_some_and(|sharing| sharing.revived.swap(false, Ordering::AcqRel)) {
            return Ok(());
        }
        Err(self.illegal(
            "was taken over by this bridge, which does not know what you were given before: none of that is acknowledged, and it comes again; go on with GET …/records, or commit with the offsets that you mean",
        ))
    }

    /// Ends here and goes on elsewhere: leaves nothing, acknowledges nothing.
    pub(super) async fn release(&self) {
        let mut state = self.state.lock().await;
        state.closed = true;
        if let Some(source) = state.source.take() {
            source.member.release().await;
        }
        state.clear();
        self.measure(&state);
    }

    fn key(&self) -> Key {
        (self.group.clone(), self.name.clone())
    }
}

impl Sessions {
    /// `None`: sessions are this process's alone.
    pub(crate) fn directory(&self) -> Option<&Directory> {
        self.inner.deps.directory.as_ref()
    }

    /// A session that every replica knows. `fields` are its settings as the client gave them.
    pub(crate) async fn create_shared(
        &self,
        group: &str,
        name: Option<String>,
        settings: Settings,
        fields: BTreeMap<String, Value>,
    ) -> Result<Arc<Session>> {
        let Some(directory) = self.directory() else { return self.create(group, name, settings) };
        self.inner.deps.gate.broker()?;
        let is_named = name.is_some();
        let sharing = Sharing { fields: fields.clone(), ..Sharing::default() };
        let session = self.insert(group, name, settings, Some(sharing))?;
        let key = session.key();
        let created = async {
            let _alone = directory.lock(&key).await?;
            // A name of our own is nobody else's.
            if is_named {
                directory.sync().await?;
            }
            directory.has_room()?;
            let known = directory.known(&key);
            let exists = || {
                BridgeError::new(
                    Code::InstanceExists,
                    format!("group {group:?} has an instance {:?} already; go on with it, delete it, or take another name", session.name),
                )
            };
            if known.as_ref().is_some_and(|known| known.entry.is_some()) {
                return Err(exists());
            }
            let entry = self.entry(directory, session.owner.as_deref(), fields, Reads::Nothing, Vec::new());
            match directory.change(&key, known.map_or(0, |known| known.turn), Some(&entry)).await? {
                true => Ok(()),
                false => Err(exists()),
            }
        };
        if let Err(error) = created.await {
            self.forget(&session);
            return Err(error);
        }
        Ok(session)
    }

    fn entry(
        &self,
        directory: &Directory,
        principal: Option<&str>,
        fields: BTreeMap<String, Value>,
        reads: Reads,
        sought: Vec<Sought>,
    ) -> Entry {
        let idle_ms = u64::try_from(self.inner.deps.config.session_idle.as_millis()).unwrap_or(u64::MAX);
        let (owner, store, principal) = (directory.me().to_owned(), directory.store().to_owned(), principal.map(str::to_owned));
        Entry { owner, principal, store, idle_ms, fields, reads, sought }
    }

    /// `anew`: what is known is not enough.
    pub(crate) async fn find(&self, group: &str, name: &str, anew: bool) -> Result<Place> {
        match self.get(group, name) {
            Ok(session) => return Ok(Place::Here(session)),
            Err(error) if error.code == Code::InstanceNotFound => {}
            // It is somebody else's.
            Err(error) => return Err(error),
        }
        let Some(directory) = self.directory() else { return Ok(Place::Nowhere) };
        let key = (group.to_owned(), name.to_owned());
        let of = |known: Option<Known>| known.and_then(|known| Some((known.turn, known.entry?)));
        let mut found = of(directory.known(&key));
        if anew || found.is_none() {
            self.inner.deps.gate.broker()?;
            directory.sync().await?;
            found = of(directory.known(&key));
        }
        Ok(match found {
            Some((turn, entry)) => {
                auth::check_owner(entry.principal.as_deref(), || format!("instance {name:?} of group {group:?}"))?;
                Place::There(turn, entry)
            }
            None => Place::Nowhere,
        })
    }

    /// Lets the other replicas know that a transaction is here. Its entry stands for as long as it can be open, and goes as those of sessions do.
    pub(crate) async fn announce(&self, transaction: &str, longest: Duration) -> Result<()> {
        let Some(directory) = self.directory() else { return Ok(()) };
        let mut entry = self.entry(directory, auth::owner().as_deref(), BTreeMap::new(), Reads::Nothing, Vec::new());
        entry.idle_ms = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
        directory.has_room()?;
        // Its name is its own: nobody else writes under it.
        directory.change(&of_transaction(transaction), 0, Some(&entry)).await.map(drop)
    }

    /// A transaction that has ended, or was never begun.
    pub(crate) async fn withdraw(&self, transaction: &str) {
        let Some(directory) = self.directory() else { return };
        let key = of_transaction(transaction);
        let Some(Known { turn, entry: Some(_), .. }) = directory.known(&key) else { return };
        if let Err(error) = directory.change(&key, turn, None).await {
            tracing::debug!(%error, transaction, "its entry goes later");
        }
    }

    /// Which replica has a transaction; `None`: none.
    pub(crate) async fn transaction(&self, id: &str) -> Result<Option<Arc<Entry>>> {
        let Some(directory) = self.directory() else { return Ok(None) };
        let key = of_transaction(id);
        if directory.known(&key).is_none() {
            self.inner.deps.gate.broker()?;
            directory.sync().await?;
        }
        let entry = directory.known(&key).and_then(|known| known.entry);
        if let Some(entry) = &entry {
            auth::check_owner(entry.principal.as_deref(), || format!("transaction {id:?}"))?;
        }
        Ok(entry)
    }

    /// Takes a session from an owner that is gone; `None` where somebody else did.
    pub(crate) async fn take_over(
        &self,
        group: &str,
        name: &str,
        turn: u64,
        entry: &Entry,
        settings: Settings,
    ) -> Result<Option<Arc<Session>>> {
        let Some(directory) = self.directory() else { return Ok(None) };
        if entry.store != directory.store() {
            return Err(BridgeError::new(
                Code::Unavailable,
                format!(
                    "instance {name:?} of group {group:?} is held by {}, which does not answer and keeps its offsets in {}, while this bridge keeps them in {}: start that one again; or delete the instance and create it again, it goes on at the offsets that are known here; bridges that go on for each other have the same [offsets] store (kafka, redis, zookeeper, hbase)",
                    entry.owner,
                    entry.store,
                    directory.store()
                ),
            ));
        }
        let key = (group.to_owned(), name.to_owned());
        let _alone = directory.lock(&key).await?;
        if let Ok(session) = self.get(group, name) {
            return Ok(Some(session));
        }
        self.has_room()?;
        let reads = usable(entry.reads.clone(), group, name);
        let taken = self.entry(directory, entry.principal.as_deref(), entry.fields.clone(), reads, entry.sought.clone());
        if !directory.change(&key, turn, Some(&taken)).await? {
            return Ok(None);
        }
        let sharing = Sharing {
            fields: taken.fields.clone(),
            sought: Mutex::new(taken.sought.iter().cloned().map(|sought| (sought.partition(), sought)).collect()),
            revived: AtomicBool::new(true),
        };
        let mut session = Session::new(group.to_owned(), name.to_owned(), settings, Arc::clone(&self.inner.deps), Some(sharing));
        session.owner = entry.principal.as_deref().map(Arc::from);
        // Where this fails the entry is ours nevertheless, and the next request tries again.
        session.revive(&taken).await?;
        metrics::counter!("millrace_bridge_sessions_claimed_total").increment(1);
        tracing::info!(group, instance = name, from = entry.owner, "consumer taken over");
        Ok(Some(self.hold(Arc::new(session))))
    }

    /// Ends what cannot be taken over; its member's place is free when its session times out. False: somebody has changed it.
    pub(crate) async fn strike_out(&self, group: &str, name: &str, turn: u64) -> Result<bool> {
        let Some(directory) = self.directory() else { return Ok(false) };
        let key = (group.to_owned(), name.to_owned());
        let _alone = directory.lock(&key).await?;
        directory.change(&key, turn, None).await
    }

    /// Has the directory know what the session reads now; `moved` are partitions that were sought in.
    pub(crate) async fn note(&self, session: &Session, moved: &[TopicPartition]) -> Result<()> {
        self.write(session, moved, Why::Changed).await
    }

    async fn write(&self, session: &Session, moved: &[TopicPartition], why: Why) -> Result<()> {
        let (Some(directory), Some(sharing)) = (self.directory(), &session.sharing) else { return Ok(()) };
        let key = session.key();
        let _alone = directory.lock(&key).await?;
        let known = directory.known(&key);
        let (reads, sought) = session.standing(sharing, moved).await;
        let entry = self.entry(directory, session.owner.as_deref(), sharing.fields.clone(), reads, sought);
        let before = known.as_ref().map(|known| known.entry.as_deref());
        if why == Why::Changed && before == Some(Some(&entry)) {
            return Ok(());
        }
        // Where nothing is known at all, the topic was made anew.
        let is_ours = before.is_none_or(|before| before.is_some_and(|before| before.owner == entry.owner));
        if is_ours && directory.change(&key, known.map_or(0, |known| known.turn), Some(&entry)).await? {
            return Ok(());
        }
        self.give_up(session).await;
        Err(moved_away(session))
    }

    /// Whether another replica has taken the session, which ends here then.
    pub(crate) async fn lost(&self, session: &Session) -> bool {
        let Some(directory) = self.directory().filter(|_| session.sharing.is_some() && self.inner.deps.gate.broker().is_ok()) else {
            return false;
        };
        if directory.sync().await.is_err() {
            return false;
        }
        // Where nothing is known at all, the topic was made anew, and nobody has taken it.
        let is_lost = directory.known(&session.key()).is_some_and(|known| known.entry.is_none_or(|entry| entry.owner != directory.me()));
        if is_lost {
            self.give_up(session).await;
        }
        is_lost
    }

    async fn give_up(&self, session: &Session) {
        tracing::info!(group = session.group, instance = session.name, "another bridge has the consumer now");
        self.forget(session);
        session.release().await;
    }

    /// Leaves the group and the directory, for good.
    pub(crate) async fn delete(&self, session: &Session, acknowledge: bool) -> Result<()> {
        let Some(directory) = self.directory().filter(|_| session.sharing.is_some()) else {
            self.remove(session, acknowledge).await;
            return Ok(());
        };
        let key = session.key();
        let _alone = directory.lock(&key).await?;
        // First this, then the word: who dies in between has not answered.
        self.remove(session, acknowledge).await;
        match directory.known(&key) {
            Some(Known { turn, entry: Some(entry), .. }) => {
                let is_ours = entry.owner == directory.me() && directory.change(&key, turn, None).await?;
                if is_ours { Ok(()) } else { Err(moved_away(session)) }
            }
            _ => Ok(()),
        }
    }

    /// About once a second: gives up what others have taken, and keeps the entries of what is used from growing old.
    pub(crate) async fn look_after(&self) {
        let Some(directory) = self.directory() else { return };
        let held: Vec<Arc<Session>> = self.all().into_iter().filter(|session| session.sharing.is_some()).collect();
        if held.is_empty() || self.inner.deps.gate.broker().is_err() {
            return;
        }
        if let Err(error) = directory.sync().await {
            tracing::debug!(%error, "cannot see whether consumers were taken over");
            return;
        }
        let renew = self.inner.deps.config.session_idle / 3;
        let mut late = Vec::new();
        for session in held {
            match directory.known(&session.key()) {
                Some(Known { entry: Some(entry), .. }) if entry.owner != directory.me() => self.give_up(&session).await,
                Some(known) if known.entry.is_some() => {
                    let age = Duration::from_millis(u64::try_from(now_ms().saturating_sub(known.written_ms)).unwrap_or(0));
                    if known.is_covered() || (age >= renew && session.used.lock().elapsed() < renew) {
                        late.push(session);
                    }
                }
                Some(_) => {
                    let key = session.key();
                    let Ok(_alone) = directory.lock(&key).await else { continue };
                    // Somebody ended it; unless it was just about to begin.
                    if directory.known(&key).is_some_and(|known| known.entry.is_none()) {
                        self.forget(&session);
                        session.close(false).await;
                    }
                }
                // The topic was made anew, or it is about to begin.
                None => late.push(session),
            }
        }
        let renew = |session: Arc<Session>| async move { self.write(&session, &[], Why::Renewal).await.err() };
        let failures: Vec<Option<BridgeError>> = stream::iter(late).map(renew).buffer_unordered(RENEWALS).collect().await;
        let failures: Vec<BridgeError> = failures.into_iter().flatten().collect();
        if let Some(error) = failures.first() {
            tracing::debug!(%error, failures = failures.len(), "entries of consumers were not renewed");
        }
    }

    /// Now and then: ends the sessions of owners that are gone, which nobody has asked for.
    pub(crate) async fn expire_abandoned(&self) {
        let Some(directory) = self.directory() else { return };
        if self.inner.deps.gate.broker().is_err() || directory.sync().await.is_err() {
            return;
        }
        let mut answers: BTreeMap<String, bool> = BTreeMap::new();
        for (key, known) in directory.stale(now_ms(), LATE) {
            let Some(entry) = &known.entry else { continue };
            if self.holds(&key) {
                continue;
            }
            // An owner that lives ends its sessions itself: clocks may differ. At its address there may be somebody else, though.
            let is_very_late =
                || directory.stale(now_ms(), LATE + Duration::from_millis(entry.idle_ms) * 2).iter().any(|(of, _)| *of == key);
            if entry.owner != directory.me() && !is_very_late() {
                let lives = match answers.get(&entry.owner) {
                    Some(lives) => *lives,
                    None => {
                        let lives = answers_at(&entry.owner, self.inner.deps.config.forward_connect_timeout).await;
                        answers.insert(entry.owner.clone(), lives);
                        lives
                    }
                };
                if lives {
                    continue;
                }
            }
            let Ok(_alone) = directory.lock(&key).await else { continue };
            match directory.change(&key, known.turn, None).await {
                Ok(true) => {
                    metrics::counter!("millrace_bridge_sessions_expired_total").increment(1);
                    tracing::info!(
                        group = key.0,
                        instance = key.1,
                        owner = entry.owner,
                        "idle consumer of a bridge that is gone has ended"
                    );
                }
                Ok(false) => {}
                Err(error) => return tracing::debug!(%error, "consumers of bridges that are gone are ended later"),
            }
        }
    }

    /// The process ends. Shared sessions go on elsewhere, or here after a restart.
    pub(crate) async fn close(&self) {
        let end = |session: Arc<Session>| async move {
            if session.is_shared() {
                self.forget(&session);
                session.release().await;
            } else {
                self.remove(&session, false).await;
            }
        };
        join_all(self.all().into_iter().map(end)).await;
    }
}

/// No group is called so.
fn of_transaction(id: &str) -> Key {
    (String::new(), id.to_owned())
}

/// Nothing in place of a subscription that would be refused today: an earlier version kept it, or somebody else wrote it.
fn usable(reads: Reads, group: &str, name: &str) -> Reads {
    if let Reads::Topics(topics) = &reads
        && let Err(error) = pattern::check(topics)
    {
        tracing::warn!(group, instance = name, %error, "the consumer's kept subscription is dropped; it has to subscribe again");
        return Reads::Nothing;
    }
    reads
}

fn moved_away(session: &Session) -> BridgeError {
    let (group, name) = (&session.group, &session.name);
    BridgeError::new(Code::Unavailable, format!("instance {name:?} of group {group:?} has moved to another bridge; try again"))
}

/// Whether somebody takes connections there.
pub(crate) async fn answers_at(address: &str, bound: Duration) -> bool {
    let Some(address) = address.strip_prefix("http://").or_else(|| address.strip_prefix("https://")) else { return false };
    matches!(timeout(bound, TcpStream::connect(address)).await, Ok(Ok(_)))
}

#[cfg(test)]
mod tests;
