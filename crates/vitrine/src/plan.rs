//! What the flags amount to together: defaults, and what goes with what, as QEMU has it (`qemu_create_default_devices`
//! and `-nographic` in its `system/vl.c`).

use view::Mode;

use crate::flags::values::{Monitor, Serial};
use crate::flags::{Flags, UsageError};

/// Serial ports of a PC.
const PORTS: usize = 4;

/// The guest's serial ports and the host's terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Console {
    /// COM1 to COM4.
    pub serial: Vec<Serial>,
    /// How the terminal is held, if a port or the monitor is there: [`Mode::Raw`] comes with the Ctrl-A keys.
    pub terminal: Option<Mode>,
    /// The port that gets what is typed; `None`: the monitor does.
    pub input: Option<usize>,
    /// Nothing said where the console is to be; it is on the terminal for want of a window.
    pub assumed: bool,
}

impl Console {
    /// Which ports lead where.
    ///
    /// # Errors
    /// More ports than a PC has, or several that want the terminal's input.
    pub fn of(flags: &Flags) -> Result<Self, UsageError> {
        let mut serial = flags.serial.clone();
        let assumed = serial.is_empty()
            && !flags.nodefaults
            && !flags.nographic
            && flags.display.is_none()
            && flags.monitor != Some(Monitor::Stdio);
        if serial.is_empty() && !flags.nodefaults {
            let multiplexed = flags.monitor.is_none();
            serial.push(match (flags.nographic || assumed, multiplexed) {
                (true, true) => Serial::MonStdio,
                (true, false) => Serial::Stdio,
                (false, _) => Serial::Null,
            });
        }
        if serial.len() > PORTS {
            return Err(UsageError(format!("-serial is given {} times; a PC has {PORTS} serial ports", serial.len())));
        }
        let mut terminal = (flags.monitor == Some(Monitor::Stdio)).then_some(Mode::RawWithSignals);
        let mut input = None;
        for (port, to) in serial.iter().enumerate() {
            let mode = match to {
                Serial::MonStdio => Mode::Raw,
                Serial::Stdio if flags.nographic && flags.monitor.is_none() => Mode::Raw,
                Serial::Stdio => Mode::RawWithSignals,
                _ => continue,
            };
            if terminal.replace(mode).is_some() {
                return Err(UsageError(if input.is_none() {
                    "-monitor stdio and a serial port both want the terminal; -serial mon:stdio has both on it"
                        .to_owned()
                } else {
                    "two serial ports want the terminal; give the others file:PATH, null or none".to_owned()
                }));
            }
            input = Some(port);
        }
        Ok(Self { serial, terminal, input, assumed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::{Request, parse};

    fn console(line: &str) -> Result<Console, UsageError> {
        match parse(line.split_whitespace().map(Into::into)) {
            Ok(Request::Boot(flags)) => Console::of(&flags),
            other => panic!("{line} gave {other:?}"),
        }
    }

    #[test]
    fn ports_and_terminal_are_as_qemu_has_them() {
        use Serial::{MonStdio, None as NoPort, Null, Stdio};
        let file = || Serial::File("x".into());
        let cases = [
            ("-nographic", vec![MonStdio], Some(Mode::Raw), Some(0)),
            ("-nographic -monitor none", vec![Stdio], Some(Mode::RawWithSignals), Some(0)),
            ("-nographic -serial mon:stdio", vec![MonStdio], Some(Mode::Raw), Some(0)),
            ("-nographic -serial stdio", vec![Stdio], Some(Mode::Raw), Some(0)),
            ("-nographic -serial file:x", vec![file()], None, None),
            ("-nographic -nodefaults", vec![], None, None),
            ("-display none", vec![Null], None, None),
            ("-display none -serial stdio", vec![Stdio], Some(Mode::RawWithSignals), Some(0)),
            ("-serial none -serial mon:stdio", vec![NoPort, MonStdio], Some(Mode::Raw), Some(1)),
            ("-monitor stdio", vec![Null], Some(Mode::RawWithSignals), None),
            ("-display none -monitor stdio", vec![Null], Some(Mode::RawWithSignals), None),
            ("-display none -monitor unix:x", vec![Null], None, None),
            ("-kernel x", vec![MonStdio], Some(Mode::Raw), Some(0)),
        ];
        for (line, serial, terminal, input) in cases {
            let want = Console { serial, terminal, input, assumed: line == "-kernel x" };
            assert_eq!(console(line), Ok(want), "{line}");
        }
    }

    #[test]
    fn too_much_is_refused() {
        assert!(console(&"-serial null ".repeat(4)).is_ok());
        assert!(console(&"-serial null ".repeat(5)).is_err());
        assert!(console("-serial stdio -serial mon:stdio").is_err());
        assert!(console("-serial stdio -monitor stdio").is_err());
        assert!(console("-nographic -monitor stdio").is_err());
    }
}
