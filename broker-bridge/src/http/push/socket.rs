//! The WebSocket: batches down, acknowledgements and credit up.
//!
//! Up go `{"ack":"POSITION"}`, which moves the group's offsets, and `{"credit":N}`, the records that may still be sent. Who never gives credit
//! has all there is (`consume.credit_records_max` bounds what is given).

use std::sync::Arc;

use axum::{
    extract::{
        WebSocketUpgrade,
        ws::{CloseFrame, Message, Utf8Bytes, WebSocket, close_code},
    },
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use tokio::{select, time::timeout};
use tokio_tungstenite::tungstenite::{Error as WireError, error::ProtocolError};

use super::{End, HEARTBEAT, Stream, error_text};
use crate::{
    auth::{carrier, spend},
    error::{BridgeError, Code},
};

/// What a client says is short.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
enum Said {
    Ack(String),
    Credit(u32),
}

pub(super) fn upgrade(upgrade: WebSocketUpgrade, stream: Stream) -> Response {
    let sessions = stream.app.sessions.clone();
    let (session, tasks) = (Arc::clone(&stream.session), sessions.tasks());
    let refused = (sessions, Arc::clone(&session));
    let carrier = carrier();
    upgrade
        .max_message_size(MESSAGE_BYTES_MAX)
        .on_failed_upgrade(move |error| {
            tracing::debug!(%error, "a WebSocket did not come about");
            let (sessions, session) = refused;
            tokio::spawn(async move { sessions.remove(&session, false).await });
        })
        .on_upgrade(move |socket| async move {
            // A task of the service: its end waits for it.
            drop(tasks.spawn(carrier.run(serve(stream, socket))).await);
        })
        .into_response()
}

async fn serve(mut stream: Stream, mut socket: WebSocket) {
    let end = run(&mut stream, &mut socket).await;
    let session = Arc::clone(&stream.session);
    let (code, reason) = match &end {
        End::Cut => return stream.app.sessions.remove(&session, false).await,
        End::Client => (close_code::NORMAL, ""),
        End::Shutdown => (close_code::AWAY, "the bridge is shutting down; connect again"),
        End::Error(error) | End::Refused(_, error) => {
            let text = String::from_utf8_lossy(&error_text(stream.form, error)).into_owned();
            drop(timeout(HEARTBEAT, socket.send(Message::text(text))).await);
            let code = if let End::Refused(code, _) = &end { *code } else { close_code::ERROR };
            (code, "see the message before")
        }
    };
    drop(timeout(HEARTBEAT, socket.send(Message::Close(Some(CloseFrame { code, reason: reason.into() })))).await);
    stream.app.sessions.remove(&session, false).await;
}

async fn run(stream: &mut Stream, socket: &mut WebSocket) -> End {
    let (shutdown, ended) = (stream.shutdown(), stream.session.ended());
    let max = u64::from(stream.app.config.consume.credit_records_max);
    // Without limit until the client gives some.
    let mut credit: Option<u64> = None;
    // Kept across rounds: what a client says does not interrupt a fetch.
    let mut fetch = None;
    loop {
        let allowed = credit.map_or(usize::MAX, |credit| usize::try_from(credit).unwrap_or(usize::MAX));
        if allowed > 0 && fetch.is_none() {
            fetch = Some(Box::pin(stream.fetch(allowed)));
        }
        let fetched = async {
            match &mut fetch {
                Some(fetch) => fetch.await,
                None => std::future::pending().await,
            }
        };
        let fetched = select! {
            () = shutdown.cancelled() => return End::Shutdown,
            // It has given no credit, and said nothing.
            () = ended.cancelled() => return stream.cut_off(true),
            heard = socket.recv() => match heard {
                None | Some(Ok(Message::Close(_))) => return End::Client,
                Some(Err(error)) => return unreadable(error),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                Some(Ok(message)) => match hear(stream, &message, &mut credit, max).await {
                    Ok(()) => continue,
                    Err(end) => return end,
                },
            },
            fetched = fetched => fetched,
        };
        fetch = None;
        let batch = match fetched {
            Err(error) => return End::Error(error),
            Ok(batch) => batch,
        };
        credit = credit.map(|credit| credit.saturating_sub(batch.count as u64));
        // No body of HTTP that would be counted.
        let bytes = batch.text.len();
        let message = match stream.wrap(batch).await.map(Utf8Bytes::try_from) {
            None => Message::Ping(Default::default()),
            Some(Ok(text)) => Message::Text(text),
            Some(Err(_)) => return End::Error(BridgeError::new(Code::Internal, "a batch is not UTF-8")),
        };
        let sent = select! {
            () = shutdown.cancelled() => return End::Shutdown,
            () = ended.cancelled() => return stream.cut_off(false),
            sent = socket.send(message) => sent,
        };
        if sent.is_err() {
            return End::Client;
        }
        spend(bytes).await;
    }
}

fn refused(code: u16, error: &dyn std::fmt::Display) -> End {
    let message = format!("the message is not understood: {error}; send {{\"ack\":\"POSITION\"}} or {{\"credit\":100}}");
    End::Refused(code, BridgeError::new(Code::Unprocessable, message))
}

/// How a stream ends whose client sent what is no message.
fn unreadable(error: axum::Error) -> End {
    let Ok(error) = error.into_inner().downcast::<WireError>() else { return End::Client };
    match *error {
        WireError::Capacity(_) => refused(close_code::SIZE, &error),
        WireError::Utf8(_) => refused(close_code::INVALID, &error),
        WireError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => End::Client,
        WireError::Protocol(_) => refused(close_code::PROTOCOL, &error),
        _ => End::Client,
    }
}

async fn hear(stream: &Stream, message: &Message, credit: &mut Option<u64>, max: u64) -> Result<(), End> {
    let text = message.to_text().map_err(|error| refused(close_code::INVALID, &error))?;
    let said = serde_json::from_str(text).map_err(|error| refused(close_code::POLICY, &error))?;
    // An idle stream whose client still speaks is in use.
    stream.app.sessions.get(&stream.session.group, &stream.session.name).map_err(End::Error)?;
    match said {
        Said::Credit(more) => *credit = Some(credit.unwrap_or(0).saturating_add(u64::from(more)).min(max)),
        Said::Ack(position) => {
            let position = position.parse().map_err(|error| End::Refused(close_code::POLICY, error))?;
            stream.session.acknowledge_position(&position).await.map_err(End::Error)?;
        }
    }
    Ok(())
}
