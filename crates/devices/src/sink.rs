//! Where a device's bytes go: a serial port's, the debug console's.

use std::fmt::Debug;

/// Takes bytes that the guest writes.
///
/// `write` is called on a vCPU's thread. It must come back soon and must not panic, whatever becomes of the other end:
/// a guest that is held up in it does not even stop when the machine is told to quit.
pub trait Sink: Send + Debug {
    /// Takes all of `bytes`. What cannot be delivered is dropped.
    fn write(&mut self, bytes: &[u8]);
}

/// A sink that drops everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Null;

impl Sink for Null {
    fn write(&mut self, _bytes: &[u8]) {}
}

/// A sink that keeps everything, for tests: clones share the bytes.
#[cfg(test)]
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

#[cfg(test)]
impl Kept {
    /// What has been written since the last call.
    pub(crate) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *crate::sync::lock(&self.0))
    }
}

#[cfg(test)]
impl Sink for Kept {
    fn write(&mut self, bytes: &[u8]) {
        crate::sync::lock(&self.0).extend_from_slice(bytes);
    }
}
