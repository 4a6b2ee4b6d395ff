//! The commands that are Vitrine's own: what the monitor tells people, for programs.
//!
//! Addresses are given as the monitor's expressions (`0xffff888000000000`, `$rsp`, `jiffies+4`) and come back as
//! hexadecimal texts, since JSON's numbers hold 53 bits for many a reader.

use super::{Answer, Argument, Arguments, Failure, Kind, Session, failure};
use crate::arguments::Arguments as Line;
use crate::monitor::{Monitor, MonitorError};
use crate::paging::{hpa, region_of};
use lens::symbols::by_cr3;
use memory::{Gpa, Gva};
use serde_json::{Value, json};
use std::fmt::Write;

pub(super) const ADDRESS: Argument = ("address", Kind::Text, false);
pub(super) const CPU: Argument = ("cpu-index", Kind::Number, true);
pub(super) const READ: &[Argument] = &[ADDRESS, ("size", Kind::Number, false), ("physical", Kind::Truth, true), CPU];

/// Bytes that are read at once.
const READ_MAX: u64 = 1 << 20;

impl From<MonitorError> for Failure {
    fn from(error: MonitorError) -> Self {
        failure(error.to_string())
    }
}

fn hex(number: u64) -> String {
    format!("{number:016x}")
}

/// The text that an argument is.
pub(super) fn text<'a>(arguments: &'a Arguments, name: &str) -> Result<&'a str, Failure> {
    match arguments.get(name) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(failure(format!("Invalid parameter type for '{name}', expected: string"))),
        None => Err(failure(format!("Parameter '{name}' is missing"))),
    }
}

/// The number that an argument is, if it is there.
fn number(arguments: &Arguments, name: &str) -> Result<Option<u64>, Failure> {
    let wrong = || failure(format!("Invalid parameter type for '{name}', expected: integer"));
    arguments.get(name).map(|value| value.as_u64().ok_or_else(wrong)).transpose()
}

/// Makes the vCPU that is asked for the current one.
pub(super) fn choose(session: &mut Session, arguments: &Arguments) -> Result<(), Failure> {
    if let Some(index) = number(arguments, "cpu-index")? {
        session.monitor.set_cpu(usize::try_from(index).unwrap_or(usize::MAX))?;
    }
    Ok(())
}

/// Has the monitor answer about the address that is asked for.
fn about(
    session: &mut Session,
    arguments: &Arguments,
    answer: impl FnOnce(&Monitor, u64) -> Result<Value, MonitorError>,
) -> Answer {
    choose(session, arguments)?;
    let value = session.monitor.with(text(arguments, "address")?, |monitor, line: &mut Line<'_>| {
        let address = line.expression()?;
        line.end()?;
        answer(monitor, address)
    });
    session.monitor.forget();
    Ok(value?)
}

/// The monitor's `explain`.
pub(super) fn explain(session: &mut Session, arguments: &Arguments) -> Answer {
    choose(session, arguments)?;
    let chain = session.monitor.chain(text(arguments, "address")?)?;
    serde_json::to_value(chain).map_err(|error| failure(error.to_string()))
}

/// The four addresses. What there is not is null; of the last one, the text says why.
pub(super) fn translate(session: &mut Session, arguments: &Arguments) -> Answer {
    about(session, arguments, |monitor, gva| {
        let gpa = monitor.snapshot()?.space.translate(Gva(gva));
        let hva = gpa.and_then(|gpa| monitor.handle.map().hva_of(gpa));
        Ok(json!({
            "gva": hex(gva),
            "gpa": gpa.map(|gpa| hex(gpa.0)),
            "region": gpa.and_then(|gpa| region_of(monitor.handle.map(), gpa)).map(|region| region.name),
            "hva": hva.map(|hva| hex(hva.0)),
            "hpa": hva.map(|hva| hpa(monitor.pagemap.as_deref(), hva).unwrap_or_else(|why| why)),
        }))
    })
}

/// Bytes of memory, never of a device.
pub(super) fn read_memory(session: &mut Session, arguments: &Arguments) -> Answer {
    let size = number(arguments, "size")?.ok_or_else(|| failure("Parameter 'size' is missing"))?;
    if size > READ_MAX {
        return Err(failure(format!("Parameter 'size' is too large: {READ_MAX} bytes at most")));
    }
    let physical = match arguments.get("physical") {
        None => false,
        Some(Value::Bool(physical)) => *physical,
        Some(_) => return Err(failure("Invalid parameter type for 'physical', expected: boolean")),
    };
    about(session, arguments, |monitor, address| {
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        let read = if physical {
            monitor.handle.map().read(Gpa(address), &mut bytes).is_ok()
        } else {
            monitor.snapshot()?.space.read(Gva(address), &mut bytes).is_ok()
        };
        if !read {
            return Err(MonitorError::Other(format!("not all of {size} bytes at {address:#x} are memory")));
        }
        let text = bytes.iter().fold(String::new(), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        });
        Ok(json!({ "address": hex(address), "bytes": text }))
    })
}

/// The symbol that an address lies in, and its line of source if that is known.
pub(super) fn symbol(session: &mut Session, arguments: &Arguments) -> Answer {
    about(session, arguments, |monitor, address| {
        let symbols = monitor.symbols(monitor.snapshot()?);
        let named = symbols.at(Gva(address));
        Ok(json!({
            "address": hex(address),
            "symbol": named.map(|named| named.name),
            "offset": named.map(|named| named.offset),
            "line": monitor.handle.lens().kernel().line(Gva(address)),
        }))
    })
}

/// The processes of a Linux guest, and which of them the vCPU runs.
pub(super) fn processes(session: &mut Session, arguments: &Arguments) -> Answer {
    choose(session, arguments)?;
    let monitor = &mut session.monitor;
    let snapshot = monitor.inspect(crate::registers::Snapshot::take)?;
    let all = monitor.processes(&snapshot).map_err(|why| failure(why.to_string()))?;
    let current = by_cr3(&all, snapshot.registers.cr[2]);
    let process = all.iter().map(|process| {
        json!({
            "pid": process.pid,
            "name": process.name,
            "table": process.table.map(|gpa| hex(gpa.0)),
            "task": hex(process.task.0),
            "current": current == Some(process),
        })
    });
    Ok(process.collect())
}
