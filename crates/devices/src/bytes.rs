//! Accesses of any size to devices whose registers have one size.

/// Reads `size` bytes from a device of byte-wide ports: each byte from a port of its own, as the ISA bus splits it.
pub(crate) fn read_ports(port: u16, size: usize, mut read: impl FnMut(u16) -> u8) -> u32 {
    let mut bytes = [0; 4];
    for (byte, n) in bytes.iter_mut().zip(0..).take(size) {
        *byte = read(port.wrapping_add(n));
    }
    u32::from_le_bytes(bytes)
}

/// Writes `size` bytes to a device of byte-wide ports, lowest port first.
pub(crate) fn write_ports(port: u16, size: usize, value: u32, mut write: impl FnMut(u16, u8)) {
    for (byte, n) in value.to_le_bytes().into_iter().zip(0..).take(size) {
        write(port.wrapping_add(n), byte);
    }
}

/// A value of `size` bytes (8 at most) with all bits set: what nobody answers reads as.
pub(crate) fn all_ones(size: usize) -> u64 {
    match size {
        0 => 0,
        1..=7 => (1 << (8 * size)) - 1,
        _ => u64::MAX,
    }
}
