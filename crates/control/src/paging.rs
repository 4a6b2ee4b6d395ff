//! What is mapped where: `info mem`, `info tlb`, `info mtree`, `gva2gpa`, `gpa2hva`, `gpa2hpa`.

use crate::arguments::Arguments;
use crate::command::lines;
use crate::monitor::{Monitor, MonitorError, Outcome};
use lens::symbols::Table;
use memory::map::{Region, RegionKind};
use memory::pagemap::HostPage;
use memory::walk::Mode;
use memory::walk::spans::{Alike, Span, Spans};
use memory::{Gpa, Gva, Hva, Pagemap, PhysicalMap};
use x86::Pte;

/// Lines that are shown at once.
const LINES_MAX: usize = 20_000;

/// The runs of pages that `alike` makes alike, in the range that the arguments name.
fn spans(monitor: &Monitor, arguments: &mut Arguments<'_>, alike: Alike) -> Result<Option<Spans>, MonitorError> {
    let first = arguments.optional()?;
    let last = arguments.optional()?;
    arguments.end()?;
    let space = &monitor.snapshot()?.space;
    if space.paging().mode() == Mode::Off {
        return Ok(None);
    }
    let (first, last) = (Gva(first.unwrap_or(0)), Gva(last.unwrap_or(u64::MAX)));
    for gva in [first, last] {
        if !space.paging().canonical(gva) {
            return Err(MonitorError::Other(format!("{gva:#x} is not canonical")));
        }
    }
    if last < first {
        return Err(MonitorError::Other("a range goes from its first to its last address".to_owned()));
    }
    Ok(Some(space.spans(alike, first, last, LINES_MAX)))
}

/// The lines of `spans`, and what to do if there are more.
fn listed(spans: &Spans, what: &str, line: impl Fn(&Span) -> String) -> String {
    let mut text = lines(spans.spans.iter().map(line));
    if let Some(rest) = spans.rest {
        text += &format!("... there is more: info {what} {rest:#x} goes on\n");
    }
    text
}

/// The symbol that a span begins in.
fn named(symbols: &Table, span: &Span) -> String {
    symbols.at(span.gva).map(|named| format!("  {named}")).unwrap_or_default()
}

/// `info mem`.
pub(crate) fn mem(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    let Some(spans) = spans(monitor, arguments, Alike::Rights)? else { return Ok("PG disabled\n".to_owned()) };
    let symbols = monitor.symbols(monitor.snapshot()?);
    Ok(listed(&spans, "mem", |span| {
        let flag = |set: bool, letter: char| if set { letter } else { '-' };
        let rights = span.rights;
        let (user, write, execute) =
            (flag(rights.user, 'u'), flag(rights.writable, 'w'), flag(!rights.no_execute, 'x'));
        let end = span.gva.wrapping_add(span.len);
        format!("{:016x}-{end:016x} {:016x} {user}r{write}{execute}{}", span.gva, span.len, named(&symbols, span))
    }))
}

/// `info tlb`: each line begins as QEMU's, and says how many pages it is for.
pub(crate) fn tlb(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    let Some(spans) = spans(monitor, arguments, Alike::Pages)? else { return Ok("PG disabled\n".to_owned()) };
    let symbols = monitor.symbols(monitor.snapshot()?);
    Ok(listed(&spans, "tlb", |span| {
        let entry = Pte::from_bits(span.flags);
        let letters = [
            (entry.no_execute(), 'X'),
            (entry.global(), 'G'),
            (span.shift > x86::PAGE_SHIFT, 'P'),
            (entry.dirty(), 'D'),
            (entry.accessed(), 'A'),
            (entry.cache_disable(), 'C'),
            (entry.write_through(), 'T'),
            (entry.user(), 'U'),
            (entry.writable(), 'W'),
        ];
        let letters: String = letters.map(|(set, letter)| if set { letter } else { '-' }).into_iter().collect();
        // A range may begin or end within a page.
        let pages = span.len.div_ceil(1 << span.shift);
        let (size, named) = (size(1 << span.shift), named(&symbols, span));
        format!("{:016x}: {:016x} {letters} {pages} x {size}{named}", span.gva, span.gpa)
    }))
}

/// A size in the largest unit that divides it.
pub(crate) fn size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(shift, _)| bytes != 0 && bytes.trailing_zeros() >= *shift) {
        Some((shift, unit)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} bytes"),
    }
}

/// What a region is, as `info mtree` writes it.
pub(crate) fn region(region: &Region) -> String {
    let kind = match region.kind {
        RegionKind::Ram(_) => "ram",
        RegionKind::Rom(_) => "rom",
        RegionKind::Mmio => "i/o",
    };
    let (start, last) = (region.range.start, region.range.end.0.wrapping_sub(1));
    let host = match region.kind {
        RegionKind::Ram(hva) | RegionKind::Rom(hva) => format!(" hva {hva:x}"),
        RegionKind::Mmio => String::new(),
    };
    format!("{start:016x}-{last:016x} (prio 0, {kind}): {}{host}", region.name)
}

/// `info mtree`: the physical address space, which is flat.
pub(crate) fn mtree(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    // QEMU's flag for what is always so here.
    arguments.flag('f');
    arguments.end()?;
    let regions = lines(monitor.handle.map().regions().iter().map(|it| format!("  {}", region(it))));
    Ok(format!("address-space: memory\n{regions}"))
}

/// `gva2gpa`.
pub(crate) fn gva2gpa(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    let gva = Gva(arguments.expression()?);
    arguments.end()?;
    Ok(match monitor.snapshot()?.space.translate(gva) {
        Some(gpa) => {
            let symbols = monitor.symbols(monitor.snapshot()?);
            format!("gpa: {gpa:#x}{}\n", symbols.at(gva).map(|named| format!(" ({named})")).unwrap_or_default())
        }
        None => "Unmapped\n".to_owned(),
    })
}

/// The region that holds `gpa`.
pub(crate) fn region_of(map: &PhysicalMap, gpa: Gpa) -> Option<Region> {
    map.regions().into_iter().find(|region| region.range.contains(&gpa))
}

/// The host address of memory, and its region's name.
fn hva(monitor: &Monitor, arguments: &mut Arguments<'_>) -> Result<(Gpa, Hva, String), MonitorError> {
    let gpa = Gpa(arguments.expression()?);
    arguments.end()?;
    let Some(region) = region_of(monitor.handle.map(), gpa) else {
        return Err(MonitorError::Other(format!("No memory is mapped at address {gpa:#x}")));
    };
    match monitor.handle.map().hva_of(gpa) {
        Some(hva) => Ok((gpa, hva, region.name)),
        None => Err(MonitorError::Other(format!("Memory at address {gpa:#x} is not RAM"))),
    }
}

/// `gpa2hva`.
pub(crate) fn gpa2hva(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    let (gpa, hva, name) = hva(monitor, arguments)?;
    Ok(format!("Host virtual address for {gpa:#x} ({name}) is {hva:#x}\n"))
}

/// `gpa2hpa`.
pub(crate) fn gpa2hpa(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    let (gpa, hva, name) = hva(monitor, arguments)?;
    match hpa(monitor.pagemap.as_deref(), hva) {
        Ok(hpa) => Ok(format!("Host physical address for {gpa:#x} ({name}) is {hpa}\n")),
        Err(why) => Err(MonitorError::Other(why)),
    }
}

/// The host physical address as a text, or why there is none.
pub(crate) fn hpa(pagemap: Option<&Pagemap>, hva: Hva) -> Result<String, String> {
    let Some(pagemap) = pagemap else {
        return Err("unknown: the host has no /proc/self/pagemap".to_owned());
    };
    match pagemap.page(hva) {
        Ok(HostPage::Present(hpa)) => Ok(format!("{hpa:#x}")),
        Ok(HostPage::Hidden) => Err("hidden: the host tells it only to processes with CAP_SYS_ADMIN".to_owned()),
        Ok(HostPage::Absent) => Err("none: the page has not been touched, or is swapped out".to_owned()),
        Err(error) => Err(format!("unknown: /proc/self/pagemap cannot be read: {error}")),
    }
}
