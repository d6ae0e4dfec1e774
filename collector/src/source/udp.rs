//! What sources that listen on UDP share: the socket, its buffer, and the count of what the kernel dropped.
//!
//! Datagrams cannot be held back. While the channel is full they wait in the socket's buffer; when that is full too the
//! kernel drops them. Nothing else is dropped, and the kernel's count is a metric, a warning and the source's trouble.

use std::{
    net::SocketAddr,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::net::UdpSocket;

use super::peer::Peers;
use super::server::{Address, is_freed};
use super::{Output, Setup, Stop};
use crate::event::Event;
use crate::flume_conf::{Component, Property};

pub const RECEIVE_BUFFER: Property = Property::integer(
    "receiveBufferBytes",
    4096,
    1_073_741_824,
    Some("8388608"),
    "The socket's buffer, where datagrams wait while the channel is full. The kernel grants at most `net.core.rmem_max`.",
)
.own();

/// The largest datagram there can be.
const DATAGRAM_MAX: usize = 65_536;
/// Bytes of bodies in one put.
const BATCH_BYTES_MAX: usize = 1024 * 1024;
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a drop is shown as the source's trouble.
const TROUBLE_AGE: Duration = Duration::from_secs(60);
/// What is in the socket's buffer at the end is read, but not for longer.
const LAST_READS_MAX: Duration = Duration::from_secs(1);

/// Makes a datagram events.
pub trait Read: Fn(&[u8], SocketAddr, &mut Vec<Event>) + Sync + Send {}

impl<F: Fn(&[u8], SocketAddr, &mut Vec<Event>) + Sync + Send> Read for F {}

pub struct Receiver {
    address: Address,
    buffer_bytes: usize,
    socket: Option<std::net::UdpSocket>,
}

impl Receiver {
    pub fn bind(component: &Component, host: &str, port: u16, setup: &Setup) -> anyhow::Result<Self> {
        let address = Address::of(component, host, port);
        let socket = match bind(&address) {
            // On reload an old source still has the port; it is bound when that one has stopped.
            Err(_) if is_freed(host, port, &setup.freed) => None,
            bound => Some(bound?),
        };
        Ok(Self { address, buffer_bytes: component.count("receiveBufferBytes"), socket })
    }

    /// Gives every datagram to `read` until [`Stop::begin`], and its events to the channels.
    pub async fn run(self, out: &Output, stop: &Stop, peers: &Peers, read: impl Read) -> anyhow::Result<()> {
        let socket = match self.socket {
            Some(socket) => socket,
            None => bind(&self.address)?,
        };
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, self.buffer_bytes).context("receiveBufferBytes")?;
        // The kernel says twice what it grants.
        let granted = rustix::net::sockopt::socket_recv_buffer_size(&socket).map_or(0, |twice| twice / 2);
        let address = socket.local_addr()?;
        out.listens(address);
        if granted < self.buffer_bytes {
            let asked = self.buffer_bytes;
            tracing::info!(
                source = out.name(),
                granted,
                asked,
                "the kernel grants a smaller receive buffer; raise net.core.rmem_max for more"
            );
        }
        tracing::info!(source = out.name(), %address, buffer_bytes = granted, "listening");
        let mut drops = Drops::of(&socket, granted);
        let socket = UdpSocket::from_std(socket)?;
        let receive = async {
            let mut datagram = vec![0; DATAGRAM_MAX];
            loop {
                let received = tokio::select! {
                    received = socket.recv_from(&mut datagram) => received,
                    () = stop.begin.cancelled() => return,
                };
                batch(&socket, received, &mut datagram, out, stop, peers, &read).await;
            }
        };
        tokio::select! {
            () = receive => {}
            () = drops.watch(out) => {}
        }
        // Senders take for sent what lies in the socket's buffer.
        let (mut datagram, until) = (vec![0; DATAGRAM_MAX], Instant::now() + LAST_READS_MAX);
        while let Ok(received) = socket.try_recv_from(&mut datagram)
            && Instant::now() < until
            && !stop.abandon.is_cancelled()
        {
            batch(&socket, Ok(received), &mut datagram, out, stop, peers, &read).await;
        }
        drops.look(out);
        Ok(())
    }
}

/// The datagram that was received and those that wait behind it, put together.
async fn batch(
    socket: &UdpSocket,
    first: std::io::Result<(usize, SocketAddr)>,
    datagram: &mut [u8],
    out: &Output,
    stop: &Stop,
    peers: &Peers,
    read: &impl Read,
) {
    let (mut received, mut events, mut bytes) = (first, Vec::new(), 0);
    let most = out.batch_max();
    loop {
        match received {
            Ok((length, sender)) => {
                bytes += length;
                let before = events.len();
                read(&datagram[..length], sender, &mut events);
                for (name, value) in peers.headers(sender).await {
                    events[before..].iter_mut().for_each(|event| event.set_header(&name, value.clone()));
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(error) => {
                out.counters.read_failures.add(1);
                tracing::debug!(source = out.name(), %error, "cannot receive");
                // Not a busy loop whatever it is.
                tokio::time::sleep(Duration::from_millis(10)).await;
                break;
            }
        }
        if events.len() >= most || bytes >= BATCH_BYTES_MAX {
            break;
        }
        received = socket.try_recv_from(datagram);
    }
    // One datagram may be several events.
    while !events.is_empty() {
        let mut part: Vec<Event> = events.drain(..events.len().min(most)).collect();
        out.trace(&mut part);
        out.hold_back(part, stop).await;
    }
}

fn bind(address: &Address) -> anyhow::Result<std::net::UdpSocket> {
    let bound = std::net::UdpSocket::bind((address.host.as_str(), address.port));
    let socket = bound.map_err(|error| address.refused(&error).context("UDP"))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The kernel's count of datagrams it dropped at a socket.
struct Drops {
    inode: Option<u64>,
    granted: usize,
    seen: u64,
    last: Option<Instant>,
}

impl Drops {
    fn of(socket: &impl AsFd, granted: usize) -> Self {
        Self { inode: rustix::fs::fstat(socket).ok().map(|stat| stat.st_ino), granted, seen: 0, last: None }
    }

    async fn watch(&mut self, out: &Output) {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            self.look(out);
        }
    }

    fn look(&mut self, out: &Output) {
        let Some(inode) = self.inode else { return };
        let count = ["/proc/self/net/udp", "/proc/self/net/udp6"].iter().find_map(|table| {
            let table = std::fs::read_to_string(table).ok()?;
            dropped(&table, inode)
        });
        let new = count.unwrap_or_default().saturating_sub(self.seen);
        if new > 0 {
            self.seen += new;
            out.counters.dropped.add(new);
            if self.last.is_none() {
                let buffer = self.granted;
                tracing::warn!(
                    source = out.name(),
                    datagrams = new,
                    receive_buffer_bytes = buffer,
                    "the kernel dropped datagrams: they come faster than the channel takes them; give the channel more room, or raise receiveBufferBytes and net.core.rmem_max"
                );
            }
            self.last = Some(Instant::now());
            out.trouble(Some(format!("{} datagrams dropped by the kernel, the last ones just now", self.seen)));
        } else if self.last.is_some_and(|last| last.elapsed() >= TROUBLE_AGE) {
            tracing::info!(source = out.name(), datagrams = self.seen, "the kernel drops no more datagrams");
            self.last = None;
            out.trouble(None);
        }
    }
}

/// The last column of the socket's line in `/proc/net/udp`.
fn dropped(table: &str, inode: u64) -> Option<u64> {
    let inode = inode.to_string();
    let columns = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let socket = columns.into_iter().find(|columns| columns.get(9) == Some(&inode.as_str()))?;
    socket.get(12)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_count_is_found() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n \
            1210: 0100007F:1F90 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 81423 2 0000000000000000 17\n \
            1211: 0100007F:1F91 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 81424 2 0000000000000000 0\n";
        assert_eq!((dropped(table, 81423), dropped(table, 81424), dropped(table, 2)), (Some(17), Some(0), None));
    }

    /// The table's columns are as they are taken to be.
    #[test]
    fn the_kernel_counts_what_a_full_buffer_drops() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 4096).unwrap();
        let inode = rustix::fs::fstat(&socket).unwrap().st_ino;
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..100 {
            sender.send_to(&[0; 1000], socket.local_addr().unwrap()).unwrap();
        }
        let table = std::fs::read_to_string("/proc/self/net/udp").unwrap();
        let mut received = 0;
        while socket.recv(&mut [0; 2000]).is_ok() {
            received += 1;
        }
        assert_eq!(dropped(&table, inode).unwrap() + received, 100);
    }
}
