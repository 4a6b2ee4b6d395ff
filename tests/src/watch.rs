//! Reading what the guest says of an access, and what the lens says of the same one.

/// What the seed kernel prints of its own command line when `/proc/cmdline` is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestView {
    /// Guest virtual address of the command line.
    pub gva: u64,
    /// Guest physical address of it.
    pub gpa: u64,
    /// Its first four bytes, little-endian.
    pub value: u64,
}

impl GuestView {
    /// Finds the line `GVA: x, GPA: x, Val: x` (hexadecimal) in a guest's output.
    #[must_use]
    pub fn find(output: &str) -> Option<Self> {
        let line = output.lines().find_map(|line| line.find("GVA: ").map(|at| &line[at..]))?;
        Some(Self { gva: field(line, "GVA:")?, gpa: field(line, "GPA:")?, value: field(line, "Val:")? })
    }
}

/// The hexadecimal number that follows `name` in `line`, with or without `0x`.
#[must_use]
pub fn field(line: &str, name: &str) -> Option<u64> {
    let mut words = line.split_whitespace();
    words.find(|word| *word == name)?;
    let digits = words.next()?.trim_end_matches(',').trim_start_matches("0x");
    u64::from_str_radix(digits, 16).ok()
}

/// A line of the lens: `watch r4 cpu0 rip … gva … gpa … hva … hpa … val … by …`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// `r4`: what was done and to how many bytes.
    pub access: String,
    /// Linear address of the instruction.
    pub rip: u64,
    /// Guest virtual address; none for an access by physical address.
    pub gva: Option<u64>,
    /// Guest physical address.
    pub gpa: u64,
    /// Host virtual address.
    pub hva: u64,
    /// Host physical address; none where the kernel hides it.
    pub hpa: Option<u64>,
    /// The value read or written.
    pub value: u64,
    /// The function that the instruction is in, where symbols are known, with the distance from its beginning.
    pub function: Option<String>,
}

impl Line {
    /// Reads one line, if it is one of the lens's.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let access = line.strip_prefix("watch ")?.split_whitespace().next()?.to_owned();
        Some(Self {
            access,
            rip: field(line, "rip")?,
            gva: field(line, "gva"),
            gpa: field(line, "gpa")?,
            hva: field(line, "hva")?,
            hpa: field(line, "hpa"),
            value: field(line, "val")?,
            function: line.split_whitespace().skip_while(|word| *word != "by").nth(1).map(str::to_owned),
        })
    }

    /// All such lines of a text.
    #[must_use]
    pub fn all(text: &str) -> Vec<Self> {
        text.lines().filter_map(Self::parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_views() {
        let guest = GuestView::find("[1.0] x\nGVA: ffff888007edec80, GPA: 7edec80, Val: 736e6f63\nconsole=ttyS0\n");
        let expected = GuestView { gva: 0xffff_8880_07ed_ec80, gpa: 0x7ed_ec80, value: 0x736e_6f63 };
        assert_eq!(guest, Some(expected));
        let line =
            "watch r4 cpu0 rip ffffffff8116a801 gva ffff888007edec80 gpa 7edec80 hva 7f084311ec80 hpa ? val 736e6f63";
        let line = Line::parse(line).expect("a line of the lens");
        assert_eq!(
            (line.gva, line.gpa, line.value, line.hpa),
            (Some(expected.gva), expected.gpa, expected.value, None)
        );
        assert_eq!(line.access, "r4");
        assert_eq!(Line::parse("watchdog: r4"), None);
    }
}
