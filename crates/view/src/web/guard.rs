//! Who may ask: the page itself, not another page that the same browser shows.
//!
//! A page from elsewhere can send requests here, and by a name of its own that it points to this address it could even
//! read the answers (DNS rebinding). Both show in the request: the `Host` is then a name that is not ours, or the
//! `Origin` (`Sec-Fetch-Site`) another one. An address can be in `Host` only if that was asked for.

use super::api::Context;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;
use std::sync::Arc;

/// Lets a request pass, or refuses it.
pub(super) async fn check(State(context): State<Arc<Context>>, request: Request, next: Next) -> Response {
    match refusal(request.headers(), context.host()) {
        None => next.run(request).await,
        Some(why) => (StatusCode::FORBIDDEN, format!("{why}\n")).into_response(),
    }
}

/// Why a request with these headers is refused. `own`: the name that the server was told.
pub(super) fn refusal(headers: &HeaderMap, own: &str) -> Option<&'static str> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let Some(host) = text(header::HOST) else { return Some("a request without a Host") };
    if !is_ours(host, own) {
        return Some("this host goes by localhost, or its address");
    }
    if text(header::ORIGIN).is_some_and(|origin| origin.strip_prefix("http://") != Some(host)) {
        return Some("only the page itself may ask");
    }
    let site = headers.get("sec-fetch-site").map(|value| value.to_str().unwrap_or("?"));
    // "none": the user typed the address. A link from elsewhere may lead to the page, but a page to no question.
    let navigates = headers.get("sec-fetch-mode").is_some_and(|mode| mode == "navigate");
    match site {
        None | Some("same-origin" | "none") => None,
        Some(_) if navigates => None,
        Some(_) => Some("only the page itself may ask"),
    }
}

/// Whether `host`, a name or address with or without a port, is one that nobody else can point here.
fn is_ours(host: &str, own: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case(own)
}
