//! Collecting what vCPUs touch and count while somebody looks.
//!
//! Both cost something: touched pages a miss each ([`memory::touched`]), and counting instructions a third of the time
//! that translated code takes. So vCPUs do either only while it is asked for, and count for moments only.

use crate::handle::{Handle, InspectError};
use crate::vcpu::Vcpu;
use devices::sync::lock;
use lens::touched::{Round, WorkingSet};
use std::time::Duration;

/// When a vCPU that only counts stops: never.
pub(crate) const NEVER: u64 = u64::MAX;

/// Has touched pages noted in rounds, while it lives.
#[derive(Debug)]
pub struct Heat(Handle);

impl Heat {
    /// Ends a round on every vCPU and gives it.
    ///
    /// # Errors
    /// A vCPU cannot be looked at.
    pub fn turn(&self) -> Result<Round, InspectError> {
        self.0.collect_touched(true)?;
        Ok(self.0.book().turn())
    }
}

impl Drop for Heat {
    fn drop(&mut self) {
        self.0.book().unwatch();
        // A vCPU that does not answer goes on noting; what it notes is bounded.
        let _ = self.0.collect_touched(false);
    }
}

impl Handle {
    fn on_each<R: Send + 'static>(
        &self,
        act: impl Fn(&mut Vcpu) -> R + Clone + Send + 'static,
    ) -> Result<Vec<R>, InspectError> {
        (0..self.vcpus()).map(|index| self.inspect(index, act.clone())).collect()
    }

    /// Takes what every vCPU has noted; they go on if anybody wants to know. `anew`: pages that are still touched are
    /// noted again.
    fn collect_touched(&self, anew: bool) -> Result<(), InspectError> {
        let wanted = self.book().wanted();
        (0..self.vcpus()).try_for_each(|index| {
            let touched = self.inspect(index, move |vcpu| {
                let touched = vcpu.cpu.mmu.take_touched(anew);
                vcpu.cpu.mmu.note_touched(wanted);
                touched
            })?;
            self.book().add(touched);
            Ok(())
        })
    }

    /// Begins a working set; the one before is forgotten.
    ///
    /// # Errors
    /// A vCPU cannot be looked at.
    pub fn mark_working_set(&self) -> Result<(), InspectError> {
        // What was touched before belongs to no set, or to the one before.
        self.collect_touched(true)?;
        self.book().mark(self.stats().time);
        self.collect_touched(false)
    }

    /// Ends the working set: nothing is noted for it any more.
    ///
    /// # Errors
    /// A vCPU cannot be looked at.
    pub fn forget_working_set(&self) -> Result<(), InspectError> {
        self.book().unmark();
        self.collect_touched(false)
    }

    /// The pages touched since the mark; `None` if there is none.
    ///
    /// # Errors
    /// A vCPU cannot be looked at.
    pub fn working_set(&self) -> Result<Option<WorkingSet>, InspectError> {
        if !self.book().is_marked() {
            return Ok(None);
        }
        self.collect_touched(false)?;
        Ok(self.book().working_set())
    }

    /// Has touched pages noted in rounds, the first of which begins now.
    ///
    /// # Errors
    /// A vCPU cannot be looked at.
    pub fn heat(&self) -> Result<Heat, InspectError> {
        self.book().watch();
        let heat = Heat(self.clone());
        self.collect_touched(true)?;
        Ok(heat)
    }

    /// How many instructions a second each vCPU executes: it counts them for `window`.
    ///
    /// # Errors
    /// A vCPU cannot be looked at.
    pub fn measure(&self, window: Duration) -> Result<Vec<f64>, InspectError> {
        // Of two who measure at once the first to end would end it for both.
        let _alone = lock(self.measuring());
        let begun: Vec<_> = self.on_each(|vcpu| {
            vcpu.cpu.stop_at.get_or_insert(NEVER);
            (vcpu.cpu.clock.now(), vcpu.cpu.instructions)
        })?;
        std::thread::sleep(window);
        let ended = self.on_each(|vcpu| {
            if vcpu.cpu.stop_at == Some(NEVER) {
                vcpu.cpu.stop_at = None;
            }
            (vcpu.cpu.clock.now(), vcpu.cpu.instructions)
        })?;
        let rate = |(before, now): ((u64, u64), (u64, u64))| {
            let seconds = now.0.saturating_sub(before.0) as f64 / 1e9;
            // The clock of a machine that stands does so, too.
            if seconds > 0.0 { now.1.saturating_sub(before.1) as f64 / seconds } else { 0.0 }
        };
        Ok(begun.into_iter().zip(ended).map(rate).collect())
    }
}
