//! The page in the browser: a server on this host that shows a running machine, and answers what the page asks.
//!
//! One thread serves all (`server`); another looks at the machine while somebody has the page open (`live`), and at
//! nothing otherwise. Neither ever holds up the guest for a client: what a client does not read in time it misses. Other
//! pages in the same browser, and other hosts by way of a name that they point here, are kept out (`guard`). What a
//! client may take is bounded: connections, the size of a request, the time it takes, and what waits to be sent.
//!
//! Assets are in the program. Left out: encryption and passwords. Whoever reaches the address may drive the machine, so it
//! is this host's own unless told otherwise.

mod api;
mod guard;
mod live;
mod server;

pub use server::{PORT, Server, WebError, serve};

#[cfg(test)]
mod tests;
