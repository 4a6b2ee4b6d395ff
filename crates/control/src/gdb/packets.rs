//! Packets of gdb's protocol, whole and with the right checksum, out of a stream of bytes.
//!
//! The library that answers packets takes a wrong checksum for the end of the conversation; the protocol wants the
//! packet again. What is not a packet, an acknowledgement or an interrupt is passed over.

/// The longest packet that is taken, with its frame.
pub(crate) const PACKET_MAX: usize = 4096;

/// What has arrived.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrived<'a> {
    /// A packet as it came, frame and all, and what is in it.
    Packet(&'a [u8], &'a [u8]),
    /// One with a wrong checksum, or that is too long.
    Broken,
    /// A single byte that is no packet.
    Byte(u8),
}

/// A packet on its way.
#[derive(Debug, Default)]
pub(crate) struct Packets {
    packet: Vec<u8>,
    /// Bytes of the checksum that are still to come, once the packet has ended.
    checksum: Option<usize>,
}

impl Packets {
    /// Takes a byte. Something has arrived with it, or not.
    pub fn push(&mut self, byte: u8) -> Option<Arrived<'_>> {
        if self.checksum == Some(0) {
            self.packet.clear();
            self.checksum = None;
        }
        if self.packet.is_empty() && byte != b'$' {
            return matches!(byte, b'+' | b'-' | 0x03).then_some(Arrived::Byte(byte));
        }
        // Not part of a packet, but the start of the next one: this one was cut short.
        if byte == b'$' && self.checksum.is_none() {
            self.packet.clear();
        }
        if self.packet.len() < PACKET_MAX {
            self.packet.push(byte);
        }
        let left = match self.checksum {
            None if byte == b'#' => 2,
            None => return None,
            Some(left) => left - 1,
        };
        self.checksum = Some(left);
        if left > 0 {
            return None;
        }
        let inside = self.packet.get(1..self.packet.len().saturating_sub(3)).unwrap_or_default();
        let sum = inside.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        let told = self.packet.get(self.packet.len().saturating_sub(3)..).unwrap_or_default();
        let right = told.eq_ignore_ascii_case(format!("#{sum:02x}").as_bytes());
        Some(if right { Arrived::Packet(&self.packet, inside) } else { Arrived::Broken })
    }
}

/// A packet with this in it.
pub(crate) fn packet(inside: &str) -> String {
    let sum = inside.bytes().fold(0_u8, u8::wrapping_add);
    format!("${inside}#{sum:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What arrives, packets by what is in them.
    fn arrived(bytes: &[u8]) -> Vec<String> {
        let mut packets = Packets::default();
        let mut all = Vec::new();
        for byte in bytes {
            all.extend(packets.push(*byte).map(|arrived| match arrived {
                Arrived::Packet(whole, inside) => {
                    assert_eq!(whole.len(), inside.len() + 4);
                    String::from_utf8_lossy(inside).into_owned()
                }
                Arrived::Broken => "broken".to_owned(),
                Arrived::Byte(byte) => format!("{byte:x}"),
            }));
        }
        all
    }

    #[test]
    fn only_what_is_whole_arrives() {
        assert_eq!(arrived(b"+$qC#b4\x03-"), ["2b", "qC", "3", "2d"]);
        assert_eq!(arrived(b"$qC#B4$#00"), ["qC", ""]);
        assert_eq!(arrived(b"rubbish\x00$qC#b5$g#67"), ["broken", "g"]);
        assert_eq!(arrived(b"$cut sh$g#67"), ["g"]);
        assert_eq!(arrived(b"$g#6"), [""; 0]);
        let long = [&b"$"[..], &[b'a'; 2 * PACKET_MAX], b"#00$g#67"].concat();
        assert_eq!(arrived(&long), ["broken", "g"]);
        assert_eq!(arrived(packet("Z0,1000,1").as_bytes()), ["Z0,1000,1"]);
    }
}
