//! The tiers against each other.

use crate::{interpreted, stepped, translated};
use lockstep::differences::Options;
use lockstep::sequence::Generator;
use lockstep::session::check;
use lockstep::tier::{Tier, Translated};

/// The interpreter's tiers agree on this too.
const WITH_X87_POINTERS: Options = Options { x87_pointers: true, accesses: false };

/// All accesses are seen.
const OBSERVED: Options = Options { x87_pointers: false, accesses: true };

/// A translator that translates what has become warm.
fn translated_late() -> Box<dyn Tier> {
    Box::new(Translated::new(4 << 20, 3).expect("the host has memory"))
}

/// One that has room for little, so that it drops everything again and again.
fn translated_in_little_room() -> Box<dyn Tier> {
    Box::new(Translated::new(0, 1).expect("the host has memory"))
}

#[test]
fn sequences_in_blocks_and_in_steps_agree() {
    let name = "sequences_in_blocks_and_in_steps_agree";
    check(name, [interpreted, stepped], WITH_X87_POINTERS, Generator::sequence, 2_500);
}

#[test]
fn programs_in_blocks_and_in_steps_agree() {
    let name = "programs_in_blocks_and_in_steps_agree";
    let statistics = check(name, [interpreted, stepped], WITH_X87_POINTERS, Generator::program, 500);
    // Programs are worth their name.
    assert!(statistics.instructions > 200 * statistics.compared, "{statistics:?}");
    assert!(statistics.events > statistics.compared, "{statistics:?}");
    assert!(statistics.interrupts > statistics.compared / 2, "{statistics:?}");
}

#[test]
fn sequences_interpreted_and_translated_agree() {
    let name = "sequences_interpreted_and_translated_agree";
    check(name, [interpreted, translated], Options::default(), Generator::sequence, 37_500);
}

#[test]
fn programs_interpreted_and_translated_agree() {
    let name = "programs_interpreted_and_translated_agree";
    check(name, [interpreted, translated], Options::default(), Generator::program, 1_500);
}

#[test]
fn programs_interpreted_and_translated_late_agree() {
    let name = "programs_interpreted_and_translated_late_agree";
    check(name, [interpreted, translated_late], Options::default(), Generator::program, 1_000);
}

#[test]
fn programs_interpreted_and_translated_in_little_room_agree() {
    let name = "programs_interpreted_and_translated_in_little_room_agree";
    check(name, [interpreted, translated_in_little_room], Options::default(), Generator::program, 500);
}

#[test]
fn accesses_of_sequences_are_recorded_as_they_are_seen() {
    let name = "accesses_of_sequences_are_recorded_as_they_are_seen";
    check(name, [interpreted, translated], OBSERVED, Generator::sequence, 10_000);
}

#[test]
fn accesses_of_programs_are_recorded_as_they_are_seen() {
    let name = "accesses_of_programs_are_recorded_as_they_are_seen";
    check(name, [interpreted, translated], OBSERVED, Generator::program, 500);
}
