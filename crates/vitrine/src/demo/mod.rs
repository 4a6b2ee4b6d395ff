//! The demo.
mod cpio;
mod guest;
