//! The server: connections, their bounds, and where each path leads.

use super::api::{self, Context};
use super::{guard, live};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use machine::Handle;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// The usual port.
pub const PORT: u16 = 8086;
/// Connections at once; further ones wait.
const CONNECTIONS: usize = 64;
/// Threads that questions to the machine may take at once.
const QUESTIONS: usize = 4;
/// Bytes of a request's body.
const BODY_MAX: usize = 1 << 14;
/// Bytes of a request's head.
const HEAD_MAX: usize = 1 << 14;
/// How long a client may take to send a request's head, to have it answered, or to read anything of what was sent.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// No socket.
    #[error("the page cannot be served at {address}: {source}{}", advice(.source))]
    Bind {
        /// Where.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// No thread, or no event queue.
    #[error("the page cannot be served: {0}")]
    Thread(#[source] io::Error),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; -view :PORT takes another port, and :0 one that is free",
        io::ErrorKind::AddrNotAvailable => "; it is none of this host's addresses",
        io::ErrorKind::PermissionDenied => "; ports below 1024 are root's",
        _ => "",
    }
}

/// A page that is served while the process lives.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
}

impl Server {
    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv4() {
                [127, 0, 0, 1].into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            });
        }
        format!("http://{address}/")
    }
}

/// Serves the page of a machine at a port of `host`, which is a name or an address of this host. Port 0: one that is free.
///
/// # Errors
/// There is no such address, it is taken, or the host gives no thread.
pub fn serve(host: &str, port: u16, handle: &Handle) -> Result<Server, WebError> {
    let bind = || {
        let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
        let listener = std::net::TcpListener::bind(addresses.as_slice())?;
        listener.set_nonblocking(true)?;
        Ok((listener.local_addr()?, listener))
    };
    let (address, listener) = bind().map_err(|source| WebError::Bind { address: format!("{host}:{port}"), source })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(QUESTIONS)
        .thread_name("page question")
        .build()
        .map_err(WebError::Thread)?;
    let live = live::start(handle.clone()).map_err(WebError::Thread)?;
    let app = router(Arc::new(Context::new(handle, live, host)));
    let run = move || {
        jail::enter(jail::Role::Control);
        // A listener that cannot be polled would have failed above.
        if let Err(error) = runtime.block_on(accept(listener, app)) {
            tracing::warn!(target: "machine", "the page is no longer served: {error}");
        }
    };
    thread::Builder::new().name("page".into()).spawn(run).map_err(WebError::Thread)?;
    Ok(Server { address })
}

/// What there is.
pub(super) fn router(context: Arc<Context>) -> Router {
    let asset =
        |kind: &'static str, text: &'static str| get(move || async move { ([(header::CONTENT_TYPE, kind)], text) });
    const SCRIPT: &str = "text/javascript; charset=utf-8";
    Router::new()
        .route("/", asset("text/html; charset=utf-8", include_str!("../../assets/index.html")))
        .route("/style.css", asset("text/css; charset=utf-8", include_str!("../../assets/style.css")))
        .route("/main.js", asset(SCRIPT, include_str!("../../assets/main.js")))
        .route("/heat.js", asset(SCRIPT, include_str!("../../assets/heat.js")))
        .route("/panels.js", asset(SCRIPT, include_str!("../../assets/panels.js")))
        .route("/watches.js", asset(SCRIPT, include_str!("../../assets/watches.js")))
        .route("/tables.js", asset(SCRIPT, include_str!("../../assets/tables.js")))
        .route("/icon.svg", asset("image/svg+xml", include_str!("../../assets/icon.svg")))
        .route("/api/live", get(api::live))
        .route("/api/chain", get(api::chain))
        .route("/api/table", get(api::table))
        .route("/api/page", get(api::page))
        .route("/api/monitor", post(api::monitor))
        .route("/api/run", post(api::run))
        .route("/api/watch", post(api::watch))
        .route("/api/unwatch", post(api::unwatch))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there is no such page\n") })
        .with_state(context.clone())
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn(in_time))
        .layer(middleware::from_fn_with_state(context, guard::check))
        .layer(middleware::map_response(with_headers))
}

/// Gives up a request that takes too long.
async fn in_time(request: axum::extract::Request, next: middleware::Next) -> Response {
    match tokio::time::timeout(PATIENCE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => (StatusCode::REQUEST_TIMEOUT, "this took too long\n").into_response(),
    }
}

/// What holds for every answer: the page runs its own scripts only, in no other page's frame.
async fn with_headers(mut response: Response) -> Response {
    const HEADERS: [(HeaderName, &str); 5] = [
        (header::CACHE_CONTROL, "no-store"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Takes connections for ever.
async fn accept(listener: std::net::TcpListener, app: Router) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return Ok(()) };
        let Ok((stream, _)) = listener.accept().await else {
            // Such as too many open files.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let app = app.clone();
        tokio::spawn(async move {
            let _place = place;
            // What a client does wrong ends its connection, and nothing else.
            let _ = converse(stream, app).await;
        });
    }
}

async fn converse(stream: TcpStream, app: Router) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    // The kernel ends a connection whose other side takes nothing for so long.
    let patience = u32::try_from(PATIENCE.as_millis())?;
    rustix::net::sockopt::set_tcp_user_timeout(&stream, patience)?;
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app))
        .await?;
    Ok(())
}
