//! `trace` and `info trace`: turning the trace on and off while the guest runs.

use crate::arguments::Arguments;
use crate::monitor::{Monitor, MonitorError, Outcome};
use lens::trace::State;

/// `trace on`, `trace off`; without either as `info trace`.
pub(crate) fn trace(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    let on = match arguments.text() {
        "" => return Ok(state(monitor)),
        "on" => true,
        "off" => false,
        _ => return Err(MonitorError::Expression("a trace is turned on or off".to_owned())),
    };
    if monitor.handle.trace(on)? {
        return Ok(String::new());
    }
    Err(MonitorError::Other(state(monitor).trim_end().to_owned()))
}

/// `info trace`.
pub(crate) fn info(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    arguments.end()?;
    Ok(state(monitor))
}

fn state(monitor: &Monitor) -> String {
    let Some(State { on, over, accesses, dropped, next }) = monitor.handle.lens().trace().map(|trace| trace.state())
    else {
        return "there is no trace: -trace FILE makes one, and -trace FILE,off one that is off at first\n".to_owned();
    };
    let now = match (over, on) {
        (true, _) => "over",
        (false, true) => "on",
        (false, false) => "off",
    };
    let lost = if dropped == 0 { String::new() } else { format!(", {dropped} lost") };
    let next = next
        .filter(|_| !over)
        .map_or(String::new(), |(at, on)| format!(", {} after {at} instructions", if on { "on" } else { "off" }));
    format!("trace is {now}: {accesses} accesses{lost}{next}\n")
}
