//! `-smp`: how many processors, and how they lie in sockets.
//!
//! QEMU's keywords are taken where they come to a machine that Vitrine makes: all processors are there from the start, and
//! a socket has cores of one thread each. Left out: dies, clusters, modules and threads of more than one, and processors
//! that are plugged in later.

/// The most processors that a machine may be given.
pub const MOST: u32 = 64;

/// How many processors there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processors {
    /// All of them.
    pub cpus: u32,
    /// Those in each socket.
    pub cores: u32,
}

/// `4`, or QEMU's topology: `cpus=4,sockets=2,cores=2,threads=1,maxcpus=4`.
pub fn smp(text: &str) -> Result<Processors, String> {
    let right = || format!("1 to {MOST} processors: 4, or cpus=4,sockets=2,cores=2");
    let (mut cpus, mut sockets, mut cores) = (None, None, None);
    for (position, part) in text.split(',').enumerate() {
        let (name, number) = match part.split_once('=') {
            Some(pair) => pair,
            None if position == 0 => ("cpus", part),
            None => return Err(format!("'{part}' lacks a name; right would be {}", right())),
        };
        let wrong = || format!("{name}={number} is not right; right would be {}", right());
        let number = number.parse().ok().filter(|number| (1..=MOST).contains(number)).ok_or_else(wrong)?;
        let place = match name {
            "cpus" | "maxcpus" => &mut cpus,
            "sockets" => &mut sockets,
            "cores" => &mut cores,
            "dies" | "clusters" | "modules" | "threads" if number == 1 => continue,
            "dies" | "clusters" | "modules" | "threads" => {
                return Err(format!("a socket has cores of one thread, nothing between: {name}=1, or leave it out"));
            }
            _ => return Err(format!("there is no '{name}'; right would be {}", right())),
        };
        if place.is_some_and(|before| before != number) {
            return Err(format!(
                "{name}={number} is not what was said before: all processors are there from the start"
            ));
        }
        *place = Some(number);
    }
    let (cpus, cores) = match (cpus, sockets, cores) {
        (Some(cpus), None, None) => (cpus, cpus),
        (Some(cpus), Some(sockets), None) if cpus % sockets == 0 => (cpus, cpus / sockets),
        (Some(cpus), None, Some(cores)) if cpus % cores == 0 => (cpus, cores),
        (Some(cpus), Some(sockets), Some(cores)) if sockets * cores == cpus => (cpus, cores),
        (None, sockets, cores) => (sockets.unwrap_or(1) * cores.unwrap_or(1), cores.unwrap_or(1)),
        _ => {
            return Err(
                "sockets times cores must be the number of processors, as in cpus=4,sockets=2,cores=2".to_owned()
            );
        }
    };
    if cpus > MOST {
        return Err(format!("these are {cpus} processors; there may be {MOST}"));
    }
    // A package's cores are numbered by low bits of the APIC IDs, which are without gaps here.
    if cores < cpus && !cores.is_power_of_two() {
        return Err(format!("each of several sockets has 1, 2, 4, 8, 16 or 32 cores, not {cores}"));
    }
    Ok(Processors { cpus, cores })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topology_that_makes_sense_is_taken() {
        for (text, cpus, cores) in [
            ("1", 1, 1),
            ("64", 64, 64),
            ("cpus=6", 6, 6),
            ("4,sockets=2", 4, 2),
            ("4,cores=2", 4, 2),
            ("cpus=4,maxcpus=4,sockets=1,dies=1,clusters=1,modules=1,cores=4,threads=1", 4, 4),
            ("sockets=2,cores=4", 8, 4),
            ("6,sockets=6", 6, 1),
        ] {
            assert_eq!(smp(text), Ok(Processors { cpus, cores }), "{text}");
        }
    }

    #[test]
    fn one_that_does_not_is_refused_with_what_would() {
        for (text, word) in [
            ("0", "1 to 64"),
            ("65", "1 to 64"),
            ("many", "many"),
            ("", "1 to 64"),
            ("4,4", "lacks a name"),
            ("4,maxcpus=8", "from the start"),
            ("4,threads=2", "one thread"),
            ("4,nodes=2", "nodes"),
            ("4,sockets=3", "times"),
            ("4,sockets=2,cores=4", "times"),
            ("sockets=64,cores=2", "128"),
            ("6,sockets=2", "not 3"),
        ] {
            let message = smp(text).unwrap_err();
            assert!(message.contains(word), "{text}: {message}");
        }
    }
}
