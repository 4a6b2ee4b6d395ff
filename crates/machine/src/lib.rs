//! The board.
mod clock;
mod control;
mod registers;

pub use clock::MachineClock;
pub use control::{Crash, Outcome};
pub use registers::Registers;
