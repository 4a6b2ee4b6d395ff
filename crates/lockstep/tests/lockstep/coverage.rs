//! That every instruction of the catalogue is really generated, as the instruction that it is meant to be.

use cpu::cpuid::Model;
use iced_x86::{Code, Decoder, DecoderOptions, Encoder, Mnemonic};
use lockstep::catalogue::{CLASSES, Catalogue};
use lockstep::differences::Options;
use lockstep::mode::Mode;
use lockstep::operands::Operands;
use lockstep::random::Random;
use lockstep::start::Start;
use std::collections::BTreeMap;

/// Whether an instruction can be made that decodes as what it is, or as the NOP that it is for who does not know it.
fn can_be_made(code: Code, mode: Mode, model: &Model, random: &mut Random) -> bool {
    let bits = mode.bits();
    let options = DecoderOptions::FORCE_RESERVED_NOP | model.decoder_options();
    (0..500).any(|_| {
        let (_, mut roles) = Start::random(random, mode);
        let Some(instruction) = Operands { random, mode, roles: &mut roles, reserved: 0 }.fill(code) else {
            return false;
        };
        let mut encoder = Encoder::new(bits);
        let encoded = encoder.encode(&instruction, 0).is_ok();
        let decoded = Decoder::with_ip(bits, &encoder.take_buffer(), 0, options).decode();
        encoded && (decoded.code() == code || decoded.mnemonic() == Mnemonic::Reservednop)
    })
}

#[test]
fn every_instruction_of_the_catalogue_can_be_made() {
    let (model, random) = (Model::max(), &mut Random::new(1));
    for mode in [Mode::Long, Mode::Protected, Mode::Real] {
        let bits = mode.bits();
        let catalogue = Catalogue::new(&model, bits, Options { x87_pointers: true, accesses: false });
        let (mut all, mut missing) = (0, BTreeMap::<String, Vec<Code>>::new());
        for class in CLASSES {
            for &code in catalogue.list(class, 3) {
                all += 1;
                if !can_be_made(code, mode, &model, random) {
                    missing.entry(format!("{class:?}")).or_default().push(code);
                }
            }
        }
        println!("{bits}: {all} instructions");
        assert!(missing.is_empty(), "{bits}-bit code: {missing:?}");
        assert!(all > 1500, "{all} instructions");
    }
}
