//! Why a guest cannot be booted.

/// Why a guest cannot be booted. Every message is one line and names the file that is to blame.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be read.
    #[error("cannot read {file}")]
    Read {
        /// The file.
        file: String,
        /// The host's reason.
        source: std::io::Error,
    },
    /// The kernel is none of the kinds that can be booted.
    #[error(
        "{file} is not a kernel that can be booted: {found}; \
        -kernel takes a Linux bzImage, an ELF file with a PVH note, or a multiboot 1 image"
    )]
    Unknown {
        /// The file.
        file: String,
        /// What the file looks like.
        found: String,
    },
    /// The file is of a known kind and damaged, or lacks something that is needed.
    #[error("{file}: {what}")]
    Bad {
        /// The file.
        file: String,
        /// What is wrong with it.
        what: String,
    },
    /// Something does not fit into guest memory.
    #[error("{what} does not fit into the guest's memory: {detail}")]
    TooLarge {
        /// What does not fit, by name.
        what: String,
        /// The sizes, and which `-m` would do.
        detail: String,
    },
    /// The command line is longer than the kernel takes.
    #[error("the command line (-append) has {length} bytes, and {file} takes at most {limit}")]
    CommandLine {
        /// The kernel.
        file: String,
        /// Bytes in the command line.
        length: usize,
        /// Bytes that the kernel takes.
        limit: usize,
    },
}
