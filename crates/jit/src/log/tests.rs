//! The listing of a small region.

use super::*;
use crate::classify::Mode;
use crate::graph::Graph;
use crate::region::{Explorer, Source};
use crate::segments;
use crate::sites::Sites;
use crate::translate::Translator;
use cpu::cpuid::Model;
use host::code::CodeBuffer;

#[test]
fn guest_code_is_followed_by_its_host_code_and_names() {
    // add [rdi+8], eax; jne over; syscall; over: ret
    let mut page = [0; 4096];
    page[..7].copy_from_slice(&[0x01, 0x47, 0x08, 0x75, 0x02, 0x0f, 0x05]);
    page[7] = 0xc3;
    let source = Source { bytes: &page, model: &Model::max(), mode: Mode::default(), graph: &Graph::default() };
    let region = Explorer::default().region(&source, 0, |_| true).unwrap();
    let mut buffer = CodeBuffer::translated(1 << 20).unwrap();
    let [hot, cold] = segments::parts(0);
    buffer.seek(hot, cold);
    let thunks = Thunks::emit(&mut buffer, false).unwrap();
    let origins = [buffer.used(), buffer.cold()];
    let mut translator = Translator::new(false, true);
    let mut sites = Sites::new(4);
    let made = translator.translate(&region, false, origins, &thunks, &mut sites).unwrap();
    let host = Host { code: made.code, origins, base: 0x7f00_0000_0000, thunks: &thunks };
    let lines = lines(&region, 0xffff_8000_0000_0000, &made.listing.marks, &host);
    let text = lines.join("\n");
    let place = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what} is missing in\n{text}"));
    let order = [
        "region of 4 instructions, 8 bytes",
        "ffff800000000000.door",
        "add [rdi+8],eax",
        "mov r11d,[rsp+slot0]",
        "ja near 000.miss",
        "jne short 0FFFF800000000007h",
        "ffff800000000007           ret",
        "find_write_4",
    ];
    for pair in order.windows(2) {
        assert!(place(pair[0]) < place(pair[1]), "{pair:?} in\n{text}");
    }
    // Every byte of host code is shown.
    let shown = lines.iter().filter(|line| line.starts_with("    7f00")).count();
    let count: usize = made.code.map(|code| Decoder::new(64, code, 0).into_iter().count()).iter().sum();
    assert_eq!(shown, count, "{text}");
}
