//! The tiers against each other.

use crate::{interpreted, stepped, translated};
use lockstep::differences::Options;
use lockstep::sequence::Generator;
use lockstep::session::check;
use lockstep::tier::{Tier, Translated};

/// The interpreter's tiers agree on this too.
const WITH_X87_POINTERS: Options = Options { x87_pointers: true };

/// A translator that translates what has become warm.
fn translated_late() -> Box<dyn Tier> {
    Box::new(Translated::new(4 << 20, 3).expect("the host has memory"))
}

#[test]
fn sequences_in_blocks_and_in_steps_agree() {
    let name = "sequences_in_blocks_and_in_steps_agree";
    check(name, [interpreted, stepped], Generator::new(WITH_X87_POINTERS), Generator::sequence, 20_000);
}

#[test]
fn programs_in_blocks_and_in_steps_agree() {
    let name = "programs_in_blocks_and_in_steps_agree";
    let statistics = check(name, [interpreted, stepped], Generator::new(WITH_X87_POINTERS), Generator::program, 4_000);
    // Programs are worth their name.
    assert!(statistics.instructions > 200 * statistics.compared, "{statistics:?}");
    assert!(statistics.events > statistics.compared, "{statistics:?}");
    assert!(statistics.interrupts > statistics.compared / 2, "{statistics:?}");
}

#[test]
fn sequences_interpreted_and_translated_agree() {
    let name = "sequences_interpreted_and_translated_agree";
    check(name, [interpreted, translated], Generator::new(Options::default()), Generator::sequence, 50_000);
}

#[test]
fn programs_interpreted_and_translated_agree() {
    let name = "programs_interpreted_and_translated_agree";
    check(name, [interpreted, translated], Generator::new(Options::default()), Generator::program, 8_000);
}

#[test]
fn programs_interpreted_and_translated_late_agree() {
    let name = "programs_interpreted_and_translated_late_agree";
    check(name, [interpreted, translated_late], Generator::new(Options::default()), Generator::program, 4_000);
}
