//! What is allowed on a page: the rules of R/W, U/S, NX, SMEP, SMAP and protection keys, each with its name.

use super::{Mode, Paging, Rights, Want};
use crate::mmu::{PagingRegisters, Space};
use std::fmt;

/// The rule by which a page that is there refuses an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// A user's access, and U/S is clear at some level.
    Supervisor,
    /// A write, R/W is clear at some level, and it is a user's or CR0.WP is set.
    ReadOnly,
    /// A fetch, and NX is set at some level.
    NoExecute,
    /// A supervisor's data access to a user page, CR4.SMAP is set and RFLAGS.AC clear.
    Smap,
    /// A supervisor's fetch from a user page, and CR4.SMEP is set.
    Smep,
    /// Access-disable is set for this protection key.
    KeyAccess(u8),
    /// A write, and write-disable is set for this protection key.
    KeyWrite(u8),
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Supervisor => f.write_str("U/S is clear: the page is the supervisor's"),
            Self::ReadOnly => f.write_str("R/W is clear: the page is read-only"),
            Self::NoExecute => f.write_str("NX is set"),
            Self::Smap => f.write_str("SMAP: a supervisor's access to a user page"),
            Self::Smep => f.write_str("SMEP: a supervisor's fetch from a user page"),
            Self::KeyAccess(key) => write!(f, "protection key {key} disables access"),
            Self::KeyWrite(key) => write!(f, "protection key {key} disables writes"),
        }
    }
}

impl Paging {
    /// Why `want` is not allowed in `space` on a page with these rights; `None` if it is.
    #[inline]
    #[must_use]
    pub fn denial(&self, rights: Rights, space: Space, want: Want) -> Option<Denial> {
        if self.mode == Mode::Off {
            return None;
        }
        self.page_denial(rights, space, want).or_else(|| self.key_denial(rights, space, want))
    }

    /// Whether the tables' R/W, U/S and NX are against it, protection keys aside (SDM vol. 3A, 4.6.1).
    #[inline]
    fn page_denial(&self, rights: Rights, space: Space, want: Want) -> Option<Denial> {
        let PagingRegisters { cr0, cr4, .. } = self.registers;
        let user = space == Space::User;
        // SMAP binds supervisor data accesses to user pages unless AC is set; SMEP binds fetches from them.
        let shielded = rights.user && space == Space::Kernel && cr4.smap();
        match want {
            _ if user && !rights.user => Some(Denial::Supervisor),
            Want::Read | Want::Write if shielded => Some(Denial::Smap),
            Want::Write if !rights.writable && (user || cr0.write_protect()) => Some(Denial::ReadOnly),
            Want::Execute if rights.no_execute => Some(Denial::NoExecute),
            Want::Execute if !user && rights.user && cr4.smep() => Some(Denial::Smep),
            _ => None,
        }
    }

    /// Whether the protection key is against it (SDM vol. 3A, 4.6.2): user pages by PKRU, supervisor pages by PKRS,
    /// data accesses only, write-disable binding a supervisor only with CR0.WP.
    #[inline]
    pub(super) fn key_denial(&self, rights: Rights, space: Space, want: Want) -> Option<Denial> {
        let PagingRegisters { cr0, cr4, pkru, pkrs, .. } = self.registers;
        let (enabled, keys) = if rights.user { (cr4.protection_keys(), pkru) } else { (cr4.supervisor_keys(), pkrs) };
        if !enabled || want == Want::Execute || !matches!(self.mode, Mode::Level4 | Mode::Level5) {
            return None;
        }
        let key = keys >> (2 * u32::from(rights.key & 15));
        let (access_disable, write_disable) = (key & 1 != 0, key & 2 != 0);
        let bound = space == Space::User || cr0.write_protect();
        if access_disable {
            Some(Denial::KeyAccess(rights.key))
        } else if write_disable && want == Want::Write && bound {
            Some(Denial::KeyWrite(rights.key))
        } else {
            None
        }
    }
}
