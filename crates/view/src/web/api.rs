//! What the page asks, and the answers.

use super::live::Live;
use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use control::{Monitor, MonitorError};
use futures_util::stream::{self, Stream};
use machine::{Handle, RunState};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;

/// Questions that may be under way at once; further ones are refused.
const QUESTIONS_MAX: usize = 32;

/// What all answers are made from.
#[derive(Debug)]
pub(super) struct Context {
    handle: Handle,
    live: Live,
    host: String,
    room: Arc<Semaphore>,
}

impl Context {
    pub fn new(handle: &Handle, live: Live, host: &str) -> Self {
        let room = Arc::new(Semaphore::new(QUESTIONS_MAX));
        Self { handle: handle.clone(), live, host: host.to_owned(), room }
    }

    /// The name of this host that the server was told.
    pub fn host(&self) -> &str {
        &self.host
    }
}

/// Has `ask` ask a monitor, on a thread that may wait for the machine.
async fn answer<R: Serialize + Send + 'static>(
    context: &Context,
    ask: impl FnOnce(&mut Monitor) -> Result<R, MonitorError> + Send + 'static,
) -> Response {
    let Ok(place) = context.room.clone().try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many questions at once\n").into_response();
    };
    let handle = context.handle.clone();
    let answered = tokio::task::spawn_blocking(move || {
        let _place = place;
        ask(&mut Monitor::new(handle))
    });
    match answered.await {
        Ok(Ok(answer)) => Json(answer).into_response(),
        Ok(Err(error)) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the question was not answered").into_response(),
    }
}

/// What is asked about.
#[derive(Debug, Default, Deserialize)]
pub(super) struct At {
    #[serde(default)]
    at: String,
}

/// The looks, as server-sent events.
pub(super) async fn live(State(context): State<Arc<Context>>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let looks = stream::unfold(context.live.subscribe(), |mut looks| async move {
        loop {
            match looks.recv().await {
                Ok(look) => return Some((Ok(Event::default().data(look)), looks)),
                // It was too slow, and goes on with what there is.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    Sse::new(looks).keep_alive(KeepAlive::default())
}

/// The way of an address.
pub(super) async fn chain(State(context): State<Arc<Context>>, Query(At { at }): Query<At>) -> Response {
    answer(&context, move |monitor| monitor.chain(&at)).await
}

/// A page table.
pub(super) async fn table(State(context): State<Arc<Context>>, Query(At { at }): Query<At>) -> Response {
    answer(&context, move |monitor| monitor.table(&at)).await
}

/// A page of guest physical memory.
pub(super) async fn page(State(context): State<Arc<Context>>, Query(At { at }): Query<At>) -> Response {
    answer(&context, move |monitor| monitor.page(&at)).await
}

/// A line for the monitor.
#[derive(Debug, Deserialize)]
pub(super) struct Line {
    line: String,
}

/// The monitor's answer to a line.
pub(super) async fn monitor(State(context): State<Arc<Context>>, Json(Line { line }): Json<Line>) -> Response {
    answer(&context, move |monitor| Ok(monitor.execute(&line))).await
}

/// A watch that is to be.
#[derive(Debug, Deserialize)]
pub(super) struct NewWatch {
    watch: String,
    /// The watch in whose place it is.
    instead: Option<u32>,
}

/// Watches something, instead of something else if so asked. A mistake changes nothing.
pub(super) async fn watch(State(context): State<Arc<Context>>, Json(new): Json<NewWatch>) -> Response {
    answer(&context, move |monitor| {
        let id = monitor.watch(&new.watch)?;
        if let Some(old) = new.instead {
            monitor.unwatch(old)?;
        }
        Ok(id)
    })
    .await
}

/// A watch that there is.
#[derive(Debug, Deserialize)]
pub(super) struct OldWatch {
    id: u32,
}

/// Ends a watch.
pub(super) async fn unwatch(State(context): State<Arc<Context>>, Json(OldWatch { id }): Json<OldWatch>) -> Response {
    answer(&context, move |monitor| monitor.unwatch(id)).await
}

/// What the machine is to do.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Action {
    Stop,
    Cont,
}

#[derive(Debug, Deserialize)]
pub(super) struct Run {
    action: Action,
}

/// Stops the machine, or lets it go on.
pub(super) async fn run(State(context): State<Arc<Context>>, Json(Run { action }): Json<Run>) -> Response {
    match action {
        Action::Stop => context.handle.pause(),
        Action::Cont if context.handle.run_state() == RunState::Shutdown => {
            return (StatusCode::CONFLICT, "the guest has powered off").into_response();
        }
        Action::Cont => context.handle.resume(),
    }
    StatusCode::NO_CONTENT.into_response()
}
