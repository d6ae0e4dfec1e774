//! From start to exit code.
//!
//! Start: log and traces → control port (health NOT_SERVING) → the service → its HTTP listeners → address file → READY when every latch is released.
//! Stop, within `shutdown.deadline`: health NOT_SERVING, new requests refused → requests in flight answered → `Context::shutdown` cancelled → the
//! service's `done`, its tasks, its connections → control port → traces flushed. The control port answers until the end.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use tokio::{
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    task::JoinError,
    time::{Instant, interval, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic_health::server::HealthReporter;
use tracing::{error, info, warn};

use crate::{
    ConfigErrors, Context, KitConfig, Readiness, Service, admin,
    listen::{self, CONTROL, Ending, ListenError, Listener},
    metrics,
    telemetry::Telemetry,
};

/// The exit codes of every Millrace process.
pub mod exit {
    /// The service failed, or could not deliver everything within the deadline.
    pub const FAILURE: u8 = 1;
    /// Wrong command line.
    pub const USAGE: u8 = 64;
    /// Wrong configuration.
    pub const CONFIG: u8 = 78;
    /// A second signal cut the drain short.
    pub const INTERRUPTED: u8 = 130;
}

/// After the service is done: for the control port's last answers, for the last spans, for threads that block.
const FAREWELL: Duration = Duration::from_secs(1);
const FLUSH_MAX: Duration = Duration::from_secs(3);
/// The same signal again within this time is the first one's echo.
const ONE_SIGNAL: Duration = Duration::from_millis(500);
/// Histograms collect raw values until they are folded.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

pub(crate) fn run<S: Service>(service: S, kit: KitConfig) -> ExitCode {
    let started = runtime::Builder::new_multi_thread().enable_all().thread_name(S::NAME).build().context("cannot start threads").and_then(
        |runtime| {
            let inside = runtime.enter();
            let telemetry = Telemetry::start(S::NAME, &kit.telemetry);
            drop(inside);
            Ok((runtime, telemetry?))
        },
    );
    let (runtime, telemetry) = match started {
        Ok(started) => started,
        Err(error) => return fail_without_log(&error),
    };
    let code = runtime.block_on(Box::pin(live(service, kit))).unwrap_or_else(|error| failure(&error));
    telemetry.flush(FLUSH_MAX);
    runtime.shutdown_timeout(FAREWELL);
    ExitCode::from(code)
}

/// Logs what ends the process and gives the exit code.
fn failure(error: &anyhow::Error) -> u8 {
    error!("{error:#}");
    let config =
        error.is::<ConfigErrors>() || matches!(error.downcast_ref(), Some(ListenError::Plaintext { .. } | ListenError::Tls { .. }));
    if config { exit::CONFIG } else { exit::FAILURE }
}

#[allow(clippy::print_stderr)] // there is no log yet
fn fail_without_log(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(exit::FAILURE)
}

/// The exit code, or an error from before there was anything to drain.
async fn live<S: Service>(service: S, kit: KitConfig) -> anyhow::Result<u8> {
    let stop = CancellationToken::new();
    watch_signals(stop.clone())?;
    let prometheus = metrics::prometheus();
    ::metrics::gauge!("millrace_process_build_info", "service" => S::NAME, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    tokio::spawn(async move {
        let mut tick = interval(METRICS_UPKEEP);
        loop {
            tick.tick().await;
            prometheus.run_upkeep();
        }
    });

    let limits = Arc::new(kit.limits);
    let ctx = Context::default();
    let starting = ctx.readiness.latch("start");
    let ending = Ending::default();
    // The control port takes every step but one with the others: it stops last.
    let control_ending = Ending { stop: CancellationToken::new(), ..ending.clone() };
    let operator = Arc::new(admin::Operator {
        name: S::NAME,
        started: SystemTime::now(),
        readiness: ctx.readiness.clone(),
        draining: ending.drain.clone(),
        drain_deadline: kit.shutdown.deadline,
        service: OnceLock::new(),
    });
    let later = Arc::new(OnceLock::new());
    let guard = service.guard();
    let (router, reporter) = admin::router(operator.clone(), later.clone()).await;
    let router = match guard {
        Some(guard) => guard(router),
        None => router,
    };
    let control = Listener::bind(CONTROL, kit.control.listen, &kit.control.tls, &limits).await?;
    let reflection = control.address.ip().is_loopback();
    let mut addresses = BTreeMap::from([(control.name, control.address)]);
    let control_server = tokio::spawn(control.serve(router, limits.clone(), control_ending.clone()));
    let following = tokio::spawn(follow_readiness(S::NAME, ctx.readiness.clone(), ending.drain.clone(), reporter.clone()));

    let mut start = tokio::spawn(service.start(ctx.clone()));
    let running = tokio::select! {
        running = &mut start => join(running).context("cannot start")?,
        () = stop.cancelled() => {
            info!("stopped while starting");
            start.abort();
            return Ok(0);
        }
    };
    let servers = TaskTracker::new();
    let opened = async {
        let mut listeners = Vec::new();
        for endpoint in running.http {
            let listener = Listener::bind(endpoint.name, endpoint.listen, &endpoint.tls, &limits).await?;
            addresses.insert(listener.name, listener.address);
            listeners.push((listener, endpoint.router));
        }
        // Nobody else sets it.
        drop(ctx.addresses.set(addresses.clone()));
        for (listener, router) in listeners {
            servers.spawn(listener.serve(router, limits.clone(), ending.clone()));
        }
        if operator.service.set(running.control.clone()).is_err()
            || later.set(admin::service_routes(running.grpc, reflection).await?).is_err()
        {
            anyhow::bail!("the service was started twice");
        }
        anyhow::Ok(listen::write_address_file(&addresses)?)
    };
    let mut done = tokio::spawn(running.done);
    let mut done_ended = false;
    // A service that has started may have accepted something: whatever goes wrong from here on, it is drained.
    let outcome = match opened.await {
        Err(error) => Err(error),
        Ok(()) => {
            starting.release();
            tokio::select! {
                ended = &mut done => {
                    done_ended = true;
                    join(ended)
                }
                () = stop.cancelled() => Ok(()),
            }
        }
    };
    servers.close();
    // Logged now, not after the drain: it says why the drain begins.
    let mut code = outcome.map_or_else(|error| failure(&error), |()| 0);

    let deadline = Instant::now() + kit.shutdown.deadline;
    info!(deadline = ?kit.shutdown.deadline, "draining");
    ending.drain.cancel();
    // Whoever watches our health hears of it before the first connection closes.
    following.await.ok();
    admin::report(&reporter, S::NAME, false).await;
    ending.stop.cancel();
    ending.in_flight.close();
    // Requests first, while the service still takes what they bring; but they may not use up the time of what was accepted.
    if timeout(kit.shutdown.deadline / 4, ending.in_flight.wait()).await.is_err() {
        warn!(requests = ending.in_flight.len(), "requests are still unanswered; the service stops nevertheless");
    }
    ctx.shutdown.cancel();
    ctx.tasks.close();
    let finish = async {
        let ended = if done_ended { Ok(()) } else { join((&mut done).await) };
        ctx.tasks.wait().await;
        servers.wait().await;
        ended
    };
    match timeout_at(deadline, finish).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => code = failure(&error),
        Err(_) => {
            let remaining = timeout(FAREWELL, running.control.remaining()).await.ok();
            error!(
                not_delivered = remaining,
                tasks = ctx.tasks.len(),
                open_listeners = servers.len(),
                "not finished within the deadline of {} (shutdown.deadline)",
                humantime::format_duration(kit.shutdown.deadline),
            );
            code = exit::FAILURE;
        }
    }
    control_ending.stop.cancel();
    let closed = timeout(FAREWELL, control_server).await;
    ending.cut.cancel();
    info!(code, control_port_closed = closed.is_ok(), "stopped");
    Ok(code)
}

/// A task's panic is an error like any other; the panic itself has been logged.
fn join<T>(result: Result<anyhow::Result<T>, JoinError>) -> anyhow::Result<T> {
    result.unwrap_or_else(|error| Err(anyhow::anyhow!("a fault of the program: {error}")))
}

/// The first signal begins the drain, the second ends the process at once.
fn watch_signals(stop: CancellationToken) -> anyhow::Result<()> {
    let listen = |kind| signal(kind).context("cannot listen for signals");
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    tokio::spawn(async move {
        let first = either(&mut interrupt, &mut terminate).await;
        info!(signal = first, "stopping; the same again stops at once");
        stop.cancel();
        let begun = Instant::now();
        let second = loop {
            let second = either(&mut interrupt, &mut terminate).await;
            // Who signals a process and its group (`timeout`, a shell) sends one signal twice.
            if second != first || begun.elapsed() >= ONE_SIGNAL {
                break second;
            }
        };
        error!(signal = second, "stopped at once; what was accepted and not delivered may be lost");
        std::process::exit(exit::INTERRUPTED.into());
    });
    Ok(())
}

async fn either(interrupt: &mut Signal, terminate: &mut Signal) -> &'static str {
    tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    }
}

/// Health is SERVING while every latch is released, until the drain.
async fn follow_readiness(name: &'static str, readiness: Readiness, draining: CancellationToken, reporter: HealthReporter) {
    let mut held = readiness.watch();
    let mut was_ready = false;
    loop {
        let ready = held.borrow_and_update().is_empty();
        if ready != was_ready {
            let after = metrics::uptime().as_millis();
            if ready {
                info!("ready after {after} ms");
            } else {
                info!("not ready any more after {after} ms");
            }
            admin::report(&reporter, name, ready).await;
            was_ready = ready;
        }
        tokio::select! {
            changed = held.changed() => if changed.is_err() { return },
            () = draining.cancelled() => return,
        }
    }
}
