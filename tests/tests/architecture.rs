//! The rules of the house that a machine can hold: which room may use which, where unsafe code may live, how long a
//! file may be and how it opens. The order of the rooms is that of the root `Cargo.toml` and ARCHITECTURE.md.

use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Bottom up: a room may use those before it.
const ROOMS: [&str; 15] = [
    "x86", "host", "jail", "memory", "cpu", "jit", "lockstep", "devices", "boot", "lens", "machine", "control", "view",
    "vitrine", "guests",
];
/// Rooms where unsafe code may live.
const UNSAFE_ROOMS: [&str; 3] = ["host", "memory", "jit"];
/// The longest that a source file may be.
const LINES: usize = 650;

fn root() -> PathBuf {
    guests::find::workspace()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() && !path.ends_with("target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every Rust source of the workspace, relative to its root.
fn all_sources() -> Vec<(PathBuf, String)> {
    let mut paths = Vec::new();
    for folder in ["crates", "tests", "fuzz", "xtask", "benches"] {
        sources(&root().join(folder), &mut paths);
    }
    paths.sort();
    assert!(paths.len() > 10, "sources are found: {paths:?}");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (path.strip_prefix(root()).map(Path::to_path_buf).unwrap_or(path), text)
    };
    paths.into_iter().map(read).collect()
}

#[test]
fn rooms_use_only_the_rooms_above_them() {
    let metadata = MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .other_options(vec!["--offline".to_owned()])
        .exec()
        .expect("cargo describes the workspace");
    let place = |name: &str| ROOMS.iter().position(|room| *room == name);
    let packages = metadata.workspace_packages();
    let members: Vec<&str> = packages.iter().map(|package| package.name.as_ref()).collect();
    for package in &packages {
        let name: &str = package.name.as_ref();
        let Some(at) = place(name) else { panic!("{name} has no place in the list of rooms") };
        for dependency in &package.dependencies {
            let used = dependency.name.as_str();
            let is_test_helper = used == "guests" && dependency.kind == DependencyKind::Development;
            if !members.contains(&used) || is_test_helper {
                continue;
            }
            assert!(place(used).is_some_and(|it| it < at), "{name} may not use {used}: it is not above it");
        }
    }
}

#[test]
fn unsafe_code_stays_in_its_rooms() {
    let allowed = |path: &Path| UNSAFE_ROOMS.iter().any(|room| path.starts_with(Path::new("crates").join(room)));
    for (path, text) in all_sources().iter().filter(|(path, _)| !allowed(path)) {
        for (number, line) in text.lines().enumerate() {
            assert!(!has_unsafe(line), "{}:{}: unsafe code: {line}", path.display(), number + 1);
        }
    }
}

/// Whether a line of code, without its comment, has the keyword before what it may qualify.
fn has_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let keyword = concat!("un", "safe");
    code.match_indices(keyword).any(|(at, _)| {
        let (before, after) = (&code[..at], &code[at + keyword.len()..]);
        let starts_word = !before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '"');
        let qualifies =
            ["{", "fn ", "impl", "extern ", "trait "].iter().any(|what| after.trim_start().starts_with(what));
        starts_word
            && ((qualifies && after.starts_with([' ', '{'])) || (after.starts_with('(') && before.ends_with("#[")))
    })
}

#[test]
fn the_scan_for_unsafe_code_sees_it() {
    let word = concat!("un", "safe");
    for code in ["{} { f() }", "    pub {} fn f()", "{} impl Send for X", "let x = {}{ 1 };", "#[{}(no_mangle)]"] {
        let line = code.replacen("{}", word, 1);
        assert!(has_unsafe(&line), "{line}");
    }
    for code in ["// {} { }", "un{}_code", "#![deny({}_code)]", "let {}ty = 1;", "//! where {} fn may live"] {
        let line = code.replacen("{}", word, 1);
        assert!(!has_unsafe(&line), "{line}");
    }
}

#[test]
fn files_are_short_and_say_what_they_are() {
    for (path, text) in all_sources() {
        let lines = text.lines().count();
        assert!(lines <= LINES, "{} has {lines} lines; {LINES} at most", path.display());
        assert!(text.starts_with("//!"), "{} does not open with `//!`: what is it?", path.display());
    }
}
