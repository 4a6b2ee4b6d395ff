//! What the page is shown again and again: figures and touched pages, twice a second while anybody looks.

use control::Monitor;
use control::figures::Figures;
use lens::touched::{Pages, Round, Run};
use machine::{Handle, Heat};
use serde::Serialize;
use std::io;
use std::sync::Arc;
use std::thread::{self, Thread};
use std::time::{Duration, Instant};
use tokio::sync::broadcast::{Receiver, Sender, channel};

/// From one look to the next.
const PERIOD: Duration = Duration::from_millis(500);
/// Looks that wait for a client; one that falls further behind misses some.
const WAITING: usize = 8;

/// The way to the looks.
#[derive(Clone, Debug)]
pub(super) struct Live {
    sender: Sender<Arc<str>>,
    thread: Thread,
}

impl Live {
    /// Every look from now on, as JSON.
    pub fn subscribe(&self) -> Receiver<Arc<str>> {
        let receiver = self.sender.subscribe();
        self.thread.unpark();
        receiver
    }
}

/// One look.
#[derive(Debug, Serialize)]
struct Look {
    /// The machine's figures, or why there are none.
    figures: Option<Figures>,
    error: Option<String>,
    /// What was touched since the look before; nothing at the first.
    heat: Option<Touched>,
}

/// A round for the page: runs as three numbers each, of which the third has bit 0 for reads, 1 for writes, 2 for fetches.
#[derive(Debug, Serialize)]
struct Touched {
    shift: u32,
    runs: Vec<(u64, u64, u8)>,
    read: u64,
    written: u64,
    fetched: u64,
    lost: u64,
}

impl From<Round> for Touched {
    fn from(Round { shift, runs, pages: Pages { read, written, fetched, .. }, lost }: Round) -> Self {
        let run = |Run { first, len, kinds }| {
            (first, len, u8::from(kinds.read) | u8::from(kinds.write) << 1 | u8::from(kinds.fetch) << 2)
        };
        Self { shift, runs: runs.into_iter().map(run).collect(), read, written, fetched, lost }
    }
}

/// Looks at a machine from now on, whenever somebody wants to know.
///
/// # Errors
/// The host gives no thread.
pub(super) fn start(handle: Handle) -> io::Result<Live> {
    let (sender, _) = channel(WAITING);
    let looks = sender.clone();
    let run = move || {
        jail::enter(jail::Role::Control);
        loop {
            while looks.receiver_count() == 0 {
                thread::park();
            }
            Eye::open(&handle).follow(&looks);
        }
    };
    let thread = thread::Builder::new().name("page eye".into()).spawn(run)?;
    Ok(Live { sender, thread: thread.thread().clone() })
}

/// Who looks. Dropped when nobody wants to know: then the machine runs as if nobody ever had.
struct Eye {
    monitor: Monitor,
    handle: Handle,
    heat: Option<Heat>,
}

impl Eye {
    fn open(handle: &Handle) -> Self {
        // A machine that does not answer is asked again for its figures, which tell why.
        Self { monitor: Monitor::new(handle.clone()), handle: handle.clone(), heat: handle.heat().ok() }
    }

    fn look(&mut self) -> Look {
        if self.heat.is_none() {
            self.heat = self.handle.heat().ok();
        }
        let heat = self.heat.as_ref().and_then(|heat| heat.turn().ok()).map(Touched::from);
        match self.monitor.figures(true) {
            Ok(figures) => Look { figures: Some(figures), error: None, heat },
            Err(error) => Look { figures: None, error: Some(error.to_string()), heat },
        }
    }

    fn follow(mut self, looks: &Sender<Arc<str>>) {
        let mut next = Instant::now();
        while looks.receiver_count() > 0 {
            let look = self.look();
            if let Ok(text) = serde_json::to_string(&look) {
                // All may just have left.
                let _ = looks.send(text.into());
            }
            next = (next + PERIOD).max(Instant::now());
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }
}
