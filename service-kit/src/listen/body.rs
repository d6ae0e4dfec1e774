//! Bodies with bounds: bytes as sent, bytes after decompression, time; and streams that end when the service drains.

use std::{
    io::{self, Write},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use http::{HeaderMap, HeaderValue};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::task_tracker::TaskTrackerToken,
};

use super::request::Refusal;
use crate::config::LimitsConfig;

/// A small body may grow by more than the ratio: its header alone is a good part of it.
const RATIO_FREE_BYTES: u64 = 64 * 1024;
/// What counts as the next piece of a body: less at a time does not keep it going.
const PIECE_BYTES: u64 = 1024;

/// In the extensions of a request whose body has not arrived yet: lets a handler read it for as long as it comes.
#[derive(Clone)]
pub struct StreamedBody(Arc<Progress>);

impl StreamedBody {
    pub(super) fn new(progress: &Arc<Progress>) -> Self {
        Self(Arc::clone(progress))
    }

    /// `limits.body_bytes_max`, `bodies_bytes_max` and `body_timeout` bound the body no more: whoever calls this bounds what is held of
    /// it. The time for each piece (`body_idle_timeout`) and the ratio of a compressed body stay.
    pub fn lift(&self) {
        self.0.streamed.store(true, Ordering::Relaxed);
        self.0.release();
    }
}

/// What the request's reader and its handler know of the body.
pub(super) struct Progress {
    /// Cancelled when the body has been read, refused or dropped.
    pub(super) complete: CancellationToken,
    refusal: OnceLock<Refusal>,
    /// Bytes of this body, until the handler has answered.
    held: AtomicU64,
    /// Those of all bodies in the process.
    all_held: Arc<AtomicU64>,
    /// Not bounded as a whole.
    streamed: AtomicBool,
}

impl Progress {
    pub(super) fn new(all_held: Arc<AtomicU64>) -> Self {
        Self {
            complete: CancellationToken::new(),
            refusal: OnceLock::new(),
            held: AtomicU64::new(0),
            all_held,
            streamed: AtomicBool::new(false),
        }
    }

    fn streamed(&self) -> bool {
        self.streamed.load(Ordering::Relaxed)
    }

    fn release(&self) {
        let held = self.held.swap(0, Ordering::Relaxed);
        if held > 0 {
            let before = self.all_held.fetch_sub(held, Ordering::Relaxed);
            metrics::gauge!("millrace_listen_body_bytes").set(before.saturating_sub(held) as f64);
        }
    }

    /// False when all bodies together would be too much.
    fn hold(&self, bytes: u64, max: u64) -> bool {
        if self.streamed() {
            return true;
        }
        let room = self.all_held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| Some(held + bytes).filter(|sum| *sum <= max));
        if let Ok(before) = room {
            self.held.fetch_add(bytes, Ordering::Relaxed);
            metrics::gauge!("millrace_listen_body_bytes").set((before + bytes) as f64);
        }
        room.is_ok()
    }

    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.refusal.get().copied()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.release();
    }
}

/// An HTTP request's body.
pub(super) struct RequestBody {
    inner: Incoming,
    limits: Arc<LimitsConfig>,
    progress: Arc<Progress>,
    gzip: Option<MultiGzDecoder<Bounded>>,
    sent: u64,
    plain: u64,
    deadline: Instant,
    /// Since when a piece is waited for, and what has come of it.
    piece: (Instant, u64),
    /// Set while the client is waited for.
    timer: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("the request's body was refused: {0:?}")]
struct Refused(Refusal);

impl RequestBody {
    pub(super) fn new(inner: Incoming, gzip: bool, limits: Arc<LimitsConfig>, progress: Arc<Progress>) -> Self {
        Self {
            inner,
            deadline: Instant::now() + limits.body_timeout,
            piece: (Instant::now(), 0),
            limits,
            progress,
            gzip: gzip.then(|| MultiGzDecoder::new(Bounded::default())),
            sent: 0,
            plain: 0,
            timer: None,
            ended: false,
        }
    }

    fn refuse(&mut self, refusal: Refusal) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.ended = true;
        self.progress.refusal.get_or_init(|| refusal);
        self.progress.complete.cancel();
        Poll::Ready(Some(Err(axum::Error::new(Refused(refusal)))))
    }

    /// The chunk as the handler sees it.
    fn take(&mut self, chunk: Bytes) -> Result<Bytes, Refusal> {
        self.sent += chunk.len() as u64;
        self.piece.1 += chunk.len() as u64;
        if self.piece.1 >= PIECE_BYTES {
            self.piece = (Instant::now(), 0);
        }
        if self.sent > self.limits.body_bytes_max && !self.progress.streamed() {
            return Err(Refusal::BodyBytes);
        }
        self.unpack(chunk, |gzip, chunk| gzip.write_all(chunk).and_then(|()| gzip.flush()))
    }

    /// What the decoder still holds, once everything was sent.
    fn finish(&mut self) -> Result<Bytes, Refusal> {
        self.unpack(Bytes::new(), |gzip, _| gzip.try_finish())
    }

    fn unpack(&mut self, chunk: Bytes, step: impl FnOnce(&mut MultiGzDecoder<Bounded>, &[u8]) -> io::Result<()>) -> Result<Bytes, Refusal> {
        let Some(gzip) = &mut self.gzip else { return Ok(chunk) };
        let by_ratio = self.sent.saturating_mul(u64::from(self.limits.body_ratio_max.get())).saturating_add(RATIO_FREE_BYTES);
        let plain_max = if self.progress.streamed() { by_ratio } else { self.limits.body_bytes_max.min(by_ratio) };
        gzip.get_mut().room = plain_max.saturating_sub(self.plain);
        let result = step(gzip, &chunk);
        if gzip.get_ref().overflowed {
            return Err(if plain_max == by_ratio { Refusal::BodyRatio } else { Refusal::BodyBytes });
        }
        result.map_err(|_| Refusal::Gzip)?;
        let plain = std::mem::take(&mut gzip.get_mut().bytes);
        self.plain += plain.len() as u64;
        Ok(Bytes::from(plain))
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.progress.complete.cancel();
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        loop {
            if this.ended {
                return Poll::Ready(None);
            }
            let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) else {
                let idle = this.limits.body_idle_timeout;
                // A stream's records may be small and far between.
                let until = match this.progress.streamed() {
                    true => Instant::now() + idle,
                    false => this.deadline.min(this.piece.0 + idle),
                };
                ready!(this.timer.get_or_insert_with(|| Box::pin(sleep_until(until))).as_mut().poll(cx));
                return this.refuse(Refusal::BodyTimeout);
            };
            this.timer = None;
            if Instant::now() >= this.deadline && !this.progress.streamed() {
                return this.refuse(Refusal::BodyTimeout);
            }
            let data = match frame.transpose() {
                Err(error) => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(axum::Error::new(error))));
                }
                Ok(None) => {
                    this.ended = true;
                    this.progress.complete.cancel();
                    this.finish()
                }
                Ok(Some(frame)) => match frame.into_data() {
                    Ok(data) => this.take(data),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
            };
            match data {
                Ok(data) if data.is_empty() => {} // the decoder needs more
                Ok(data) if !this.progress.hold(data.len() as u64, this.limits.bodies_bytes_max) => return this.refuse(Refusal::Bodies),
                Ok(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Err(refusal) => return this.refuse(refusal),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || (self.gzip.is_none() && self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        if self.gzip.is_some() { SizeHint::default() } else { self.inner.size_hint() }
    }
}

/// Takes what a decoder writes, up to `room` bytes: a kilobyte may unpack to a megabyte at once.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    room: u64,
    overflowed: bool,
}

impl Write for Bounded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if (self.bytes.len() + data.len()) as u64 > self.room {
            self.overflowed = true;
            return Err(io::Error::other("more than the limit allows"));
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A response's body. A stream (gRPC, server-sent events) ends by itself when the service drains and it has nothing to send.
pub(super) struct ResponseBody {
    inner: Body,
    end: End,
    grpc: bool,
    /// Held while the request is in flight.
    _in_flight: Option<TaskTrackerToken>,
}

enum End {
    /// The handler decides.
    Own,
    At(CancellationToken),
    Waiting(Pin<Box<WaitForCancellationFutureOwned>>),
    Ended,
}

impl ResponseBody {
    pub(super) fn new(inner: Body, stream_end: Option<CancellationToken>, grpc: bool, in_flight: Option<TaskTrackerToken>) -> Self {
        Self { inner, end: stream_end.map_or(End::Own, End::At), grpc, _in_flight: in_flight }
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if matches!(this.end, End::Ended) {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        // Registered only by a stream that waits: most answers are there at once.
        if let End::At(token) = &this.end {
            this.end = End::Waiting(Box::pin(token.clone().cancelled_owned()));
        }
        let End::Waiting(cancelled) = &mut this.end else { return Poll::Pending };
        ready!(cancelled.as_mut().poll(cx));
        this.end = End::Ended;
        if !this.grpc {
            return Poll::Ready(None);
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("14")); // UNAVAILABLE: try again, elsewhere
        trailers.insert("grpc-message", HeaderValue::from_static("the stream was ended by the server; open it again"));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.end, End::Ended) || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
