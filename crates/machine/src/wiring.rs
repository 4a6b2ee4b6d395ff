//! Interrupt wires that the board adds between devices and controllers.

use devices::sync::lock;
use devices::{IrqLine, Pin};
use std::sync::{Arc, Mutex};

/// A wire that several outputs drive: high while any of them is.
#[derive(Debug)]
struct Shared {
    /// Who drives it high, by bit. Held while the far end is driven, so that changes arrive in their order. Lock order:
    /// after the devices', before the controllers'.
    high: Mutex<u32>,
    to: Pin,
}

/// One of the outputs.
#[derive(Debug)]
struct Output {
    wire: Arc<Shared>,
    bit: u32,
}

impl IrqLine for Output {
    fn set(&self, high: bool) {
        let mut all = lock(&self.wire.high);
        *all = if high { *all | self.bit } else { *all & !self.bit };
        self.wire.to.set(*all != 0);
    }
}

/// `N` (up to 32) outputs on one wire to `to`.
pub(crate) fn share<const N: usize>(to: Pin) -> [Pin; N] {
    const { assert!(N <= 32) };
    let wire = Arc::new(Shared { high: Mutex::new(0), to });
    let mut bit = 1u32;
    std::array::from_fn(|_| {
        let output = Output { wire: wire.clone(), bit };
        bit = bit.wrapping_shl(1);
        Arc::new(output) as Pin
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Debug, Default)]
    struct Far(AtomicBool);

    impl IrqLine for Far {
        fn set(&self, high: bool) {
            self.0.store(high, Ordering::SeqCst);
        }
    }

    #[test]
    fn the_wire_is_high_while_any_output_is() {
        let far = Arc::new(Far::default());
        let [a, b] = share(far.clone());
        for (from, high, want) in
            [(&a, true, true), (&b, false, true), (&b, true, true), (&a, false, true), (&b, false, false)]
        {
            from.set(high);
            assert_eq!(far.0.load(Ordering::SeqCst), want);
        }
    }
}
