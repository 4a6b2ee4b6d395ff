//! The page in a browser: what it shows of a guest that works, on a desk and on a phone; pictures of it are kept in
//! `target/page`.

use std::path::PathBuf;
use std::time::Duration;

use guests::browser::{self, Browser};
use guests::session::{Session, argument};
use guests::{PATIENCE, find, image, initramfs, skipped};

const VITRINE: &str = env!("CARGO_BIN_EXE_vitrine");
const SOON: Duration = Duration::from_secs(60);

/// A user space that has something to do.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox echo GUEST-READY
while true; do
    /bin/busybox md5sum /bin/busybox
    /bin/busybox cat /proc/cmdline
    /bin/busybox dd if=/dev/zero of=/tmp/zeros bs=1M count=8
    /bin/busybox sleep 0.2
done > /dev/null 2>&1
";

/// Where pictures are kept.
fn pictures() -> PathBuf {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    target.parent().map(|target| target.join("page")).unwrap_or(target)
}

/// The page's address, as the command says it.
fn page_of(session: &Session) -> String {
    let said_where = session.stderr.wait(SOON, |said| said.contains("the page is at http://") && said.ends_with('\n'));
    let said = session.stderr.text();
    assert!(said_where, "{said}");
    let (_, url) = said.split_once("the page is at ").expect("it is said");
    url.lines().next().expect("a line").to_owned()
}

#[test]
fn it_shows_a_guest_at_work() {
    let Some(chromium) = browser::find() else { return skipped("the page", "no Chromium (package chromium)") };
    let Some(initrd) = initramfs::build(INIT) else { return skipped("the page", "no static busybox") };
    let kernel = find::debian_kernels().pop().or_else(find::seed_kernel);
    let Some(kernel) = kernel else { return skipped("the page", "no kernel at hand") };
    let session = Session::start(
        VITRINE,
        &[
            "-kernel",
            argument(&kernel),
            "-initrd",
            argument(initrd.path()),
            "-append",
            "console=ttyS0 quiet",
            "-nographic",
            "-m",
            "128M",
            "-view",
            "127.0.0.1:0",
        ],
    );
    let url = page_of(&session);
    session.expect("GUEST-READY", PATIENCE);
    let mut browser = Browser::start(&chromium);

    browser.open(&url, (1360, 900), false, false);
    browser.wait("document.getElementById('status')?.dataset.state === 'running'", SOON);
    browser.wait("Number(document.getElementById('mips').textContent) > 0", SOON);
    browser.wait("/read, .* written/.test(document.getElementById('heat-what').textContent)", SOON);
    // All four addresses of a place that the kernel knows by name.
    browser.evaluate(
        "document.getElementById('chain-at').value = 'saved_command_line';
         document.getElementById('chain-form').requestSubmit()",
    );
    let stops = "[...document.querySelectorAll('#chain .stop')]";
    browser.wait(&format!("{stops}.length === 5 && {stops}[0].innerText.includes('saved_command_line')"), SOON);
    assert_eq!(browser.evaluate(&format!("{stops}.filter(stop => stop.classList.contains('none')).length <= 1")), true);
    // A watch is made, reports, is edited in place and ends.
    browser.evaluate(
        "document.getElementById('watch-new').value = 'r:*saved_command_line';
         document.getElementById('watch-form').requestSubmit()",
    );
    browser.wait("/^[1-9]/.test(document.querySelector('#watches .hits')?.innerText)", SOON);
    browser.evaluate("document.getElementById('chain-watched').click()");
    browser.wait(&format!("{stops}.length === 5 && {stops}[4].innerText.includes('read')"), SOON);
    let what = browser.evaluate("document.getElementById('chain-what').innerText");
    assert!(what.as_str().is_some_and(|what| what.starts_with("read of ") && what.contains(" by ")), "{what}");
    let edit = |text: &str| {
        format!(
            "(() => {{
                const input = document.querySelector('#watches input');
                input.value = '{text}';
                input.dispatchEvent(new Event('change'));
            }})()"
        )
    };
    browser.evaluate(&edit("q:nonsense"));
    browser.wait("document.getElementById('watch-error').innerText.includes('not a kind')", SOON);
    browser.evaluate(&edit("w:jiffies+8"));
    browser.wait("document.querySelector('#watches .id')?.innerText === '2'", SOON);
    assert_eq!(browser.evaluate("document.querySelectorAll('#watches li').length"), 1);
    browser.wait("/^[1-9]/.test(document.querySelector('#watches .hits')?.innerText)", SOON);
    browser.picture(&pictures().join("watch.png"));
    browser.evaluate("document.querySelector('#watches button').click()");
    browser.wait("document.querySelectorAll('#watches li').length === 0", SOON);
    // The tree unfolds.
    let rows = "document.querySelectorAll('#tables .row').length";
    browser.wait(&format!("{rows} > 3"), SOON);
    let before = browser.evaluate(rows).as_u64().unwrap();
    browser.evaluate("document.querySelector('#tables button.row').click()");
    browser.wait(&format!("{rows} > {before}"), SOON);
    // The guest's work shows.
    let text = |id: &str| format!("document.getElementById('{id}').innerText");
    browser.wait(&format!("{}.includes('#PF page fault')", text("faults")), SOON);
    browser.wait(&format!("{}.includes('serial (ports)')", text("devices")), SOON);
    browser.wait(&format!("{}.includes('page walks')", text("tlb")), SOON);
    let coloured = "(() => {
        const canvas = document.getElementById('waterfall');
        const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, 2);
        const colours = new Set();
        for (let at = 0; at < data.length; at += 4) colours.add(data.slice(at, at + 3).join());
        return colours.size;
    })()";
    browser.wait(&format!("{coloured} > 3"), SOON);
    // A page of the map tells what it is.
    browser.evaluate(
        "(() => {
            const canvas = document.getElementById('waterfall'), box = canvas.getBoundingClientRect();
            for (const name of ['pointerdown', 'pointerup']) canvas.dispatchEvent(new PointerEvent(name,
                { pointerId: 1, clientX: box.left + box.width / 2, clientY: box.top + 4, bubbles: true }));
        })()",
    );
    browser.wait(&format!("{}.includes('belongs to')", text("page-card")), SOON);
    browser.evaluate(
        "document.getElementById('monitor-line').value = 'info mtree';
         document.getElementById('monitor-form').requestSubmit()",
    );
    browser.wait(&format!("{}.includes('ioapic')", text("monitor-out")), SOON);
    browser.evaluate("document.getElementById('set-mark').click()");
    browser.wait("document.querySelectorAll('#set tbody tr').length > 1", SOON);
    browser.picture(&pictures().join("desk.png"));
    browser.evaluate("document.getElementById('set-off').click()");
    browser.wait("document.getElementById('set').hidden", SOON);

    browser.evaluate("document.getElementById('stop').click()");
    browser.wait("document.getElementById('status').dataset.state === 'paused'", SOON);
    browser.evaluate("document.getElementById('cont').click()");
    browser.wait("document.getElementById('status').dataset.state === 'running'", SOON);

    for (name, dark) in [("phone.png", false), ("phone-dark.png", true)] {
        browser.open(&url, (390, 844), true, dark);
        browser.wait("Number(document.getElementById('mips')?.textContent) > 0", SOON);
        browser.wait(&format!("{stops}.length === 5"), SOON);
        let fits = "document.documentElement.scrollWidth <= innerWidth";
        assert_eq!(browser.evaluate(fits), true, "nothing sticks out of a phone's screen");
        std::thread::sleep(Duration::from_secs(2));
        browser.picture(&pictures().join(name));
    }
    browser.open(&url, (1360, 900), false, true);
    browser.wait("Number(document.getElementById('mips')?.textContent) > 0", SOON);
    std::thread::sleep(Duration::from_secs(2));
    browser.picture(&pictures().join("desk-dark.png"));
    // The wrong expression was refused.
    let complaints: Vec<_> = browser.complaints().iter().filter(|told| !told.contains("/api/watch")).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn the_word_view_and_the_flag_serve_it() {
    let kernel = initramfs::file_of(&image::waits());
    for arguments in [&["view"][..], &["-view", ":0"]] {
        let arguments = [arguments, &["-kernel", argument(kernel.path()), "-monitor", "stdio"]].concat();
        let mut session = Session::start(VITRINE, &arguments);
        let url = page_of(&session);
        assert!(url.starts_with("http://127.0.0.1:"), "{url}");
        session.send("quit\n");
        assert_eq!(session.end(SOON).status.code(), Some(0));
    }
}

#[test]
fn an_address_that_cannot_be_had_is_refused() {
    let kernel = initramfs::file_of(&image::waits());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let refused = |view: &str| {
        let ended =
            Session::start(VITRINE, &["-kernel", argument(kernel.path()), "-nographic", "-view", view]).end(SOON);
        (ended.status.code(), ended.refusal().to_owned())
    };
    let (status, line) = refused(&format!(":{port}"));
    assert!(status == Some(1) && line.contains(&port.to_string()) && line.contains("-view :PORT"), "{line}");
    for wrong in ["8086", ":", ":http", ":70000", "unix:/tmp/x"] {
        let (status, line) = refused(wrong);
        assert!(status == Some(2) && line.contains("-view") && line.to_lowercase().contains("port"), "{wrong}: {line}");
    }
}
