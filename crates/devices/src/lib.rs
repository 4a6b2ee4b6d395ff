//! The devices of the machine, a folder each, and what wires them: ports, interrupt lines, deadlines.

pub mod bus;
pub mod line;
pub mod sync;
pub mod timer;
