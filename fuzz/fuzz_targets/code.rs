//! Any bytes as code, in each mode of the processor, by the interpreter and by the translator: both must end the same. The
//! first byte says the mode, the second the privilege and where in the page the code begins, and eight more the registers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockstep::case::{Case, Piece};
use lockstep::differences::Options;
use lockstep::mode::Mode;
use lockstep::random::Random;
use lockstep::sequence::Generator;
use lockstep::session::Session;
use lockstep::start::Start;
use lockstep::tier::{Interpreted, Tier, Translated};
use std::cell::RefCell;

/// The most bytes of code: it also has to fit into its pages with what ends it.
const LONGEST: usize = 2000;
/// The longest piece.
const PIECE: usize = 15;

thread_local! {
    static SESSION: RefCell<Session> =
        RefCell::new(Session::new([interpreted, translated], Generator::new(Options::default())));
}

fn interpreted() -> Box<dyn Tier> {
    Box::<Interpreted>::default()
}

fn translated() -> Box<dyn Tier> {
    Box::new(Translated::new(1 << 20, 1).expect("the host has memory"))
}

/// The case that an input is.
fn case(data: &[u8]) -> Option<Case> {
    let ([mode, level, seed @ ..], code) = data.split_first_chunk::<10>()?;
    let mode = Mode::ALL[usize::from(*mode) % Mode::ALL.len()];
    let seed = u64::from_le_bytes(*seed);
    let mut start = if seed == 0 { Start::plain(mode) } else { Start::random(&mut Random::new(seed), mode).0 };
    // Interrupts that come at any time differ from run to run.
    start.storm = 0;
    let pieces = code.get(..code.len().min(LONGEST))?.chunks(PIECE).map(Piece::bytes).collect();
    Some(Case { seed, offset: usize::from(*level) * 16, start, pieces })
}

fuzz_target!(|data: &[u8]| {
    let Some(case) = case(data) else { return };
    SESSION.with_borrow_mut(|session| {
        if let Some(differences) = session.run(&case)
            && !differences.0.is_empty()
        {
            let differences: Vec<_> = differences.0.iter().map(ToString::to_string).collect();
            panic!("interpreted / translated, {:?}:\n{}", case.start.mode, differences.join("\n"));
        }
    });
});
