//! What CPUID answers: the host's features, less what Vitrine does not pass through and what `-cpu` takes away.

/// A CPU model: every CPUID leaf that the guest sees.
#[derive(Clone, Debug)]
pub struct Model {}
