//! Those who send lines and remember which of them were answered `OK`.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    task::JoinHandle,
};

pub(crate) struct Senders {
    acknowledged: Arc<Mutex<BTreeSet<String>>>,
    refused: Arc<AtomicU32>,
    done: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Senders {
    /// Four of them; each connects again when the other side goes away.
    pub(crate) fn start(port: u16) -> Self {
        let (acknowledged, next) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(AtomicU32::new(0)));
        let (refused, done) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let tasks = (0..4)
            .map(|_| {
                let (acknowledged, next, refused, done) = (acknowledged.clone(), next.clone(), refused.clone(), done.clone());
                tokio::spawn(async move {
                    while !done.load(SeqCst) {
                        let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await else {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                            continue;
                        };
                        let (read, mut write) = stream.into_split();
                        let mut answers = BufReader::new(read).lines();
                        while !done.load(SeqCst) {
                            let id = next.fetch_add(1, SeqCst);
                            let line = format!("{id:08} {}", "x".repeat(id as usize * 31 % 900));
                            if write.write_all(format!("{line}\n").as_bytes()).await.is_err() {
                                break;
                            }
                            match answers.next_line().await {
                                Ok(Some(answer)) if answer == "OK" => {
                                    acknowledged.lock().expect("a sender panicked").insert(line);
                                }
                                Ok(Some(_)) => {
                                    refused.fetch_add(1, SeqCst);
                                    tokio::time::sleep(Duration::from_millis(20)).await;
                                }
                                _ => break,
                            }
                            // Now and then the channel runs empty.
                            if id % 100 > 90 {
                                tokio::time::sleep(Duration::from_millis(20)).await;
                            }
                        }
                    }
                })
            })
            .collect();
        Self { acknowledged, refused, done, tasks }
    }

    /// Lines that were answered `OK` so far.
    pub(crate) fn acknowledged(&self) -> BTreeSet<String> {
        self.acknowledged.lock().expect("a sender panicked").clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.acknowledged.lock().expect("a sender panicked").len()
    }

    /// Lines that were answered otherwise.
    pub(crate) fn refused(&self) -> u32 {
        self.refused.load(SeqCst)
    }

    pub(crate) async fn stop(mut self) -> BTreeSet<String> {
        self.done.store(true, SeqCst);
        for task in self.tasks.drain(..) {
            task.await.expect("a sender");
        }
        self.acknowledged()
    }
}

impl Drop for Senders {
    fn drop(&mut self) {
        self.done.store(true, SeqCst);
    }
}
