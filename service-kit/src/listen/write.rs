//! What is sent to a client that does not take it.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::AsyncWrite,
    time::{Sleep, sleep},
};

use super::{request::reject, serve::Slot};

/// In the extensions of an answer that its client takes at its own pace: it may take nothing for this long, where that is longer than
/// `limits.write_idle_timeout`.
#[derive(Clone, Copy, Debug)]
pub struct Unhurried(pub Duration);

/// How long a connection's client may take nothing now. Cheap to clone.
#[derive(Clone)]
pub(super) struct Patience {
    usual: Duration,
    now_ms: Arc<AtomicU64>,
}

impl Patience {
    pub(super) fn new(usual: Duration) -> Self {
        Self { now_ms: Arc::new(AtomicU64::new(millis(usual))), usual }
    }

    /// For the answer that is about to be sent; HTTP/2 sends others beside it, for which it holds too.
    pub(super) fn set(&self, asked: Option<Unhurried>, http2: bool) {
        let wanted = millis(asked.map_or(self.usual, |Unhurried(asked)| asked.max(self.usual)));
        match http2 {
            true => drop(self.now_ms.fetch_max(wanted, Ordering::Relaxed)),
            false => self.now_ms.store(wanted, Ordering::Relaxed),
        }
    }

    fn now(&self) -> Duration {
        Duration::from_millis(self.now_ms.load(Ordering::Relaxed))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A connection's way out: an error once its client has taken nothing for as long as it may. Holds the connection's place, also when it is no
/// longer HTTP.
pub(super) struct TimedWriter<W> {
    inner: W,
    patience: Patience,
    /// Set while the client is waited for.
    timer: Option<Pin<Box<Sleep>>>,
    listener: &'static str,
    _slot: Slot,
}

impl<W> TimedWriter<W> {
    pub(super) fn new(inner: W, patience: Patience, listener: &'static str, slot: Slot) -> Self {
        Self { inner, patience, timer: None, listener, _slot: slot }
    }

    fn in_time<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.timer = None;
            return polled;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(self.patience.now())));
        ready!(timer.as_mut().poll(cx));
        self.timer = None;
        reject(self.listener, "write_idle_timeout");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing of what is sent to it")))
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for TimedWriter<W> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_write(cx, bytes);
        this.in_time(cx, polled)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, pieces: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_write_vectored(cx, pieces);
        this.in_time(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_flush(cx);
        this.in_time(cx, polled)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_shutdown(cx);
        this.in_time(cx, polled)
    }
}
