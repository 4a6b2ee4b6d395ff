//! Helpers for tests that boot guests end to end.
