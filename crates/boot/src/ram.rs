//! What loaders need of guest memory.
