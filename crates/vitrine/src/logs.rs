//! `-d` and `-D`: what the machine tells as it runs, as plain lines. The items are the targets of `tracing`'s events.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;

use crate::flags::values::LogItems;

/// Where the log goes. Shared, and flushed by whoever ends the process: a log is wanted most when something went wrong.
#[derive(Clone)]
pub struct Log(Arc<Mutex<Box<dyn Write + Send>>>);

impl Log {
    /// Starts logging `items`, to `file` or else to standard error.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn start(items: Option<&LogItems>, file: Option<&Path>) -> Result<Self> {
        let to: Box<dyn Write + Send> = match file {
            Some(path) => {
                let file =
                    File::create(path).with_context(|| format!("the log {} (-D) cannot be written", path.display()))?;
                Box::new(BufWriter::new(file))
            }
            None => Box::new(io::stderr()),
        };
        let log = Self(Arc::new(Mutex::new(to)));
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(log.clone())
            .with_ansi(false)
            .with_target(false)
            .with_level(false)
            .without_time()
            .log_internal_errors(false);
        let items = items.map(|LogItems(items)| items.as_slice()).unwrap_or_default();
        let items = items.iter().map(|item| (*item, LevelFilter::TRACE));
        // What the user should know in any case, such as a guest that crashes and is reset, and what a watch is to log.
        let always = [("machine", LevelFilter::WARN), ("watch", LevelFilter::TRACE)];
        let targets = items.chain(always).collect::<Targets>();
        let subscriber = tracing_subscriber::registry().with(targets).with(layer);
        tracing::subscriber::set_global_default(subscriber).context("logging cannot be started")?;
        Ok(log)
    }

    /// Writes out what is buffered.
    pub fn flush(&self) {
        // A log that has become unwritable was no reason to stop the guest, and is none to fail now.
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).flush();
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        // The layer flushes after each line; the buffer is there to avoid just that.
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
