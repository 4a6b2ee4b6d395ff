//! Makes a case that fails smaller, as long as it still fails: takes pieces away, puts NOPs in their place, and
//! simplifies the state that it starts with.

use crate::case::{Case, Piece, Use};
use crate::layout::DATA;
use crate::mode::Mode;
use crate::start::Start;
use cpu::state::RSP;
use host::vector::MXCSR_DEFAULT;

/// Makes `case` as small as it can be while `fails` says that it fails.
pub fn minimise(case: Case, fails: &mut dyn FnMut(&Case) -> bool) -> Case {
    let mut case = case;
    remove(&mut case, fails);
    // An address that can be accessed may make what loads another one superfluous.
    let ways = others().map(|n| -> Simplification { Box::new(move |start| start.gpr[n] = start.mode.reach(DATA).1) });
    simplify(&mut case, ways, fails);
    remove(&mut case, fails);
    replace_by_nops(&mut case, fails);
    let ways = simplifications(case.start.mode);
    simplify(&mut case, ways, fails);
    let moved = Case { offset: 0, ..case.clone() };
    if fails(&moved) { moved } else { case }
}

/// Removes what is not needed.
fn remove(case: &mut Case, fails: &mut dyn FnMut(&Case) -> bool) {
    loop {
        let before = case.pieces.len();
        let fails = &mut |pieces: &[Piece]| fails(&Case { pieces: pieces.to_vec(), ..case.clone() });
        case.pieces = shrink(case.pieces.clone(), fails);
        if case.pieces.len() == before {
            break;
        }
    }
}

/// The general registers but RSP.
fn others() -> impl Iterator<Item = usize> {
    (0..16).filter(|&n| n != RSP)
}

/// Removes ever smaller parts of a list as long as `fails` holds for the rest.
pub fn shrink<T: Clone>(list: Vec<T>, fails: &mut dyn FnMut(&[T]) -> bool) -> Vec<T> {
    let mut list = list;
    let mut size = list.len().next_power_of_two();
    while size > 0 {
        let mut at = 0;
        while at < list.len() {
            let mut rest = list.clone();
            rest.drain(at..(at + size).min(list.len()));
            if fails(&rest) {
                list = rest;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    list
}

/// Puts NOPs in the place of instructions whose length matters but which do not.
fn replace_by_nops(case: &mut Case, fails: &mut dyn FnMut(&Case) -> bool) {
    for n in 0..case.pieces.len() {
        let len = match &case.pieces[n] {
            Piece::Bytes { len, .. } => usize::from(*len),
            Piece::Labelled(instruction, Use::Branch, ..) => instruction.len().max(2),
            _ => continue,
        };
        let mut other = case.clone();
        other.pieces[n] = Piece::bytes(&[0x90; 15][..len]);
        if fails(&other) {
            *case = other;
        }
    }
}

/// One way to make a start state simpler.
type Simplification = Box<dyn Fn(&mut Start)>;

/// Ways to make the start state of code in `mode` simpler.
fn simplifications(mode: Mode) -> Vec<Simplification> {
    let plain = Start::plain(mode);
    let mut ways: Vec<Simplification> = vec![
        Box::new(|start| start.storm = 0),
        Box::new(|start| start.interrupts.clear()),
        Box::new(|start| start.interrupts.truncate(1)),
        Box::new(|start| start.cold = 0),
        Box::new(|start| start.pkru = 0),
        Box::new(|start| start.armed = 0),
        Box::new(|start| start.cr0 = 0),
        Box::new(|start| start.cr4 = 0),
        Box::new(|start| start.bases = [0; 2]),
        Box::new(|start| start.vector.ymm = [[0; 4]; 16]),
        Box::new(|start| start.vector.mxcsr = MXCSR_DEFAULT),
        Box::new(move |start| start.vector.x87 = plain.vector.x87),
    ];
    ways.extend(others().map(|n| -> Simplification { Box::new(move |start| start.gpr[n] = 0) }));
    ways.extend((0..16).map(|n| -> Simplification { Box::new(move |start| start.vector.ymm[n] = [0; 4]) }));
    ways.extend(
        (0..22).map(|n| -> Simplification { Box::new(move |start| start.flags = start.flags & !(1 << n) | 2) }),
    );
    ways
}

/// Changes the start state in those ways after which the case still fails.
fn simplify(case: &mut Case, ways: impl IntoIterator<Item = Simplification>, fails: &mut dyn FnMut(&Case) -> bool) {
    for way in ways {
        let mut other = case.clone();
        way(&mut other.start);
        if fails(&other) {
            *case = other;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_shrink_to_what_matters() {
        let mut tries = 0;
        let left = shrink((0..100).collect(), &mut |list| {
            tries += 1;
            list.contains(&17) && list.contains(&63)
        });
        assert_eq!(left, [17, 63]);
        assert!(tries < 80, "{tries} tries");
    }
}
