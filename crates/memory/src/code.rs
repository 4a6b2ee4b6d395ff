//! Which parts of guest memory hold decoded or translated code.
