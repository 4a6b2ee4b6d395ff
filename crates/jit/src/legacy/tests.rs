//! Which instructions of 32- and 16-bit code are translated, and as what.

use super::{Legacy, classify, rewrite};
use crate::classify::Class;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction};
use std::collections::HashSet;

const WIDE: Legacy = Legacy { wide: true, flat: true, wide_stack: true };
const SHORT: Legacy = Legacy { wide: false, flat: false, wide_stack: false };

fn decoded(bytes: &[u8], legacy: Legacy) -> Instruction {
    Decoder::new(if legacy.wide { 32 } else { 16 }, bytes, DecoderOptions::NONE).decode()
}

#[test]
fn modes_have_different_numbers() {
    let flags = [false, true];
    let all = flags.iter().flat_map(|&wide| flags.map(|flat| (wide, flat)));
    let all = all.flat_map(|(wide, flat)| flags.map(|wide_stack| Legacy { wide, flat, wide_stack }));
    let numbers: HashSet<u64> = all.map(Legacy::bits).collect();
    assert_eq!(numbers.len(), 8);
    assert!(numbers.iter().all(|bits| *bits < 8), "three bits hold them");
}

#[test]
fn encodings_that_64_bit_code_lacks_are_replaced() {
    for (bytes, legacy, code) in [
        (&[0x40][..], WIDE, Code::Inc_rm32),
        (&[0x66, 0x4f], WIDE, Code::Dec_rm16),
        (&[0x40], SHORT, Code::Inc_rm16),
        (&[0xa1, 1, 2, 3, 4], WIDE, Code::Mov_r32_rm32),
        (&[0xa2, 1, 2], SHORT, Code::Mov_rm8_r8),
        (&[0x82, 0xc0, 5], WIDE, Code::Add_rm8_imm8),
        (&[0x01, 0xc8], WIDE, Code::Add_rm32_r32),
    ] {
        let mut i = decoded(bytes, legacy);
        rewrite(&mut i);
        assert_eq!(i.code(), code, "{bytes:x?}");
        assert!(i.op_code().mode64(), "{bytes:x?}");
    }
}

#[test]
fn what_differs_from_64_bit_code_has_its_class() {
    for (bytes, legacy, class) in [
        (&[0x50][..], WIDE, Some(Class::Push)),
        (&[0x6a, 5], SHORT, Some(Class::Push)),
        (&[0x5c], WIDE, Some(Class::Pop)),
        // POP SP keeps the rest of ESP.
        (&[0x5c], SHORT, None),
        (&[0xc9], WIDE, Some(Class::Leave)),
        (&[0xc2, 8, 0], SHORT, Some(Class::Ret)),
        (&[0xff, 0xe0], WIDE, Some(Class::JmpIndirect)),
        (&[0xe8, 1, 0, 0, 0], WIDE, Some(Class::Call)),
        (&[0x74, 1], SHORT, Some(Class::Jcc)),
        (&[0xe2, 1], SHORT, Some(Class::Loop)),
        // A jump whose size is not the code's.
        (&[0x66, 0xe9, 1, 0], WIDE, None),
        (&[0xc5, 0xf8, 0x77], WIDE, Some(Class::Interpret)),
        (&[0x01, 0xc8], WIDE, None),
    ] {
        assert_eq!(classify(&decoded(bytes, legacy), legacy, false), class, "{bytes:x?}");
    }
    let pushf = decoded(&[0x9c], SHORT);
    assert_eq!(classify(&pushf, SHORT, false), Some(Class::System));
    assert_eq!(classify(&pushf, SHORT, true), None, "in virtual-8086 mode IOPL decides");
}
