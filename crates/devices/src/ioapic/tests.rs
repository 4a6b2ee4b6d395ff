//! Scripts of register accesses.
