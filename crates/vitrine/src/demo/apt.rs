//! Packages by apt's own tools, without root and without touching the system's state.
//!
//! apt's lists, caches and package status are private folders; sources, keys and proxies are the system's. So it works
//! as any user, and where the system's lists are empty, as in a fresh container image. The configuration is given by
//! `APT_CONFIG` and, since `/etc/apt/apt.conf.d` is read after that, by `Dir::Etc::main`, which is read last.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// The private folder and its configuration.
#[derive(Debug)]
pub struct Apt {
    folder: PathBuf,
}

/// A package that could be downloaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Bytes to download.
    pub size: u64,
    /// Names of the packages that it depends on; of alternatives the first.
    pub depends: Vec<String>,
}

impl Apt {
    /// apt with its state in `folder`. `None` where there is no apt.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(folder: PathBuf) -> Result<Option<Self>> {
        match Command::new("apt-get").arg("--version").stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => {}
            _ => return Ok(None),
        }
        let apt = Self { folder };
        for name in ["lists/partial", "cache/archives/partial", "state"] {
            let folder = apt.folder.join(name);
            fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        }
        let folder = apt.folder.to_str().context("the cache folder's name is not UTF-8")?;
        if folder.contains('"') {
            bail!("apt cannot work in a folder that has a quotation mark in its name: {folder}");
        }
        let write = |name: &str, text: String| {
            let file = apt.folder.join(name);
            fs::write(&file, text).with_context(|| format!("{} cannot be written", file.display()))
        };
        write("status", String::new())?;
        write("first.conf", format!("Dir::Etc::main \"{folder}/last.conf\";\n"))?;
        write("last.conf", last(folder))?;
        Ok(Some(apt))
    }

    /// Fetches the lists of packages.
    ///
    /// # Errors
    /// With apt's reason. Some lists may have come nevertheless.
    pub fn update(&self) -> Result<()> {
        let output = self.command("apt-get").args(["-q", "update"]).output().context("apt-get cannot be started")?;
        checked(&output, "apt-get update")
    }

    /// The version of `name` that apt would install.
    pub fn candidate(&self, name: &str) -> Option<Package> {
        let output = self.command("apt-cache").args(["show", "--no-all-versions", name]).output().ok()?;
        output.status.success().then(|| described(&String::from_utf8_lossy(&output.stdout)))?
    }

    /// Downloads `package` and gives the file. `progress` is told how many bytes are there.
    ///
    /// # Errors
    /// With apt's reason.
    pub fn download(&self, package: &Package, progress: impl Fn(u64)) -> Result<PathBuf> {
        let into = self.folder.join("packages").join(&package.name);
        fs::create_dir_all(&into).with_context(|| format!("{} cannot be made", into.display()))?;
        let wanted = format!("{}={}", package.name, package.version);
        let mut child = self
            .command("apt-get")
            .args(["-q", "download", &wanted])
            .current_dir(&into)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("apt-get cannot be started")?;
        let partial = self.folder.join("cache/archives/partial");
        // apt's errors are few lines: they fit into the pipe while nobody reads it.
        while child.try_wait()?.is_none() {
            progress(size_of(&partial) + size_of(&into));
            thread::sleep(Duration::from_millis(100));
        }
        checked(&child.wait_with_output()?, "apt-get download")?;
        let files = fs::read_dir(&into)?.collect::<io::Result<Vec<_>>>()?;
        let deb = files.into_iter().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "deb"));
        deb.with_context(|| format!("apt-get downloaded no package for {}", package.name))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.folder.join("first.conf")).env("LC_ALL", "C").stdin(Stdio::null());
        command
    }
}

/// Hooks for after an update belong to the system's lists, and many want root. Foreign architectures would only be more
/// that can fail.
fn last(folder: &str) -> String {
    let include = if Path::new("/etc/apt/apt.conf").exists() { "#include \"/etc/apt/apt.conf\";\n" } else { "" };
    format!(
        "{include}\
         #clear APT::Update::Pre-Invoke;\n\
         #clear APT::Update::Post-Invoke;\n\
         #clear APT::Update::Post-Invoke-Success;\n\
         #clear Acquire::IndexTargets::deb::DEP-11;\n\
         #clear Acquire::IndexTargets::deb::CNF;\n\
         Acquire::Languages \"none\";\n\
         Acquire::Retries \"2\";\n\
         APT::Update::Error-Mode \"any\";\n\
         #clear APT::Architectures;\n\
         APT::Architectures {{ \"amd64\"; }};\n\
         APT::Architecture \"amd64\";\n\
         APT::Sandbox::User \"root\";\n\
         Debug::NoLocking \"true\";\n\
         Dir::State \"{folder}/state\";\n\
         Dir::State::status \"{folder}/status\";\n\
         Dir::State::lists \"{folder}/lists\";\n\
         Dir::Cache \"{folder}/cache\";\n"
    )
}

/// The first package of an answer of `apt-cache show`.
fn described(text: &str) -> Option<Package> {
    let mut package = Package::default();
    for line in text.lines().take_while(|line| !line.is_empty()) {
        let Some((field, value)) = line.split_once(": ") else { continue };
        match field {
            "Package" => value.clone_into(&mut package.name),
            "Version" => value.clone_into(&mut package.version),
            "Size" => package.size = value.parse().ok()?,
            "Depends" => {
                let names = value.split(", ").filter_map(|one| one.split([' ', ':', '|']).next());
                package.depends = names.map(str::to_owned).collect();
            }
            _ => {}
        }
    }
    (!package.name.is_empty() && !package.version.is_empty()).then_some(package)
}

/// Takes one file out of a package: the largest of those whose path matches `pattern`.
///
/// # Errors
/// When the tools fail or nothing matches.
pub fn unpack(deb: &Path, pattern: &str, into: &Path) -> Result<PathBuf> {
    fs::create_dir_all(into).with_context(|| format!("{} cannot be made", into.display()))?;
    let mut package = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("dpkg-deb cannot be started")?;
    let archive = package.stdout.take().map_or_else(Stdio::null, Stdio::from);
    let output = Command::new("tar")
        .args(["--extract", "--file=-", "--no-same-owner", "--directory"])
        .arg(into)
        .args(["--wildcards", pattern])
        .stdin(archive)
        .output()
        .context("tar cannot be started")?;
    package.wait()?;
    checked(&output, "tar")?;
    let found = largest(into)?.map(|(_, path)| path);
    found.with_context(|| format!("there is no {pattern} in {}", deb.display()))
}

fn largest(folder: &Path) -> io::Result<Option<(u64, PathBuf)>> {
    let mut best = None;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // Of the link itself: a package's links point into the system.
        let metadata = entry.metadata()?;
        let found = match metadata {
            m if m.is_dir() => largest(&entry.path())?,
            m if m.is_file() => Some((m.len(), entry.path())),
            _ => None,
        };
        best = best.max(found);
    }
    Ok(best)
}

fn size_of(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries.filter_map(|entry| entry.ok()?.metadata().ok()).filter(|m| m.is_file()).map(|m| m.len()).sum()
}

fn checked(output: &Output, what: &str) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let reason = text.lines().find(|line| line.starts_with("E:")).or_else(|| text.lines().last()).unwrap_or_default();
    bail!("{what} failed ({}): {}", output.status, reason.trim_start_matches("E:").trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_description_counts() {
        let text = "Package: linux-image-cloud-amd64\nVersion: 6.1.192-2\nInstalled-Size: 13\n\
            Depends: linux-image-6.1.0-51-cloud-amd64 (= 6.1.192-2), a:any | b, c\nDescription: for\n more\nSize: 1504\n\n\
            Package: other\nVersion: 2\n";
        let package = described(text).unwrap();
        assert_eq!((&*package.name, &*package.version, package.size), ("linux-image-cloud-amd64", "6.1.192-2", 1504));
        assert_eq!(package.depends, ["linux-image-6.1.0-51-cloud-amd64", "a", "c"]);
        assert_eq!(described("N: Unable to locate package x\n"), None);
    }

    #[test]
    fn the_reason_is_the_first_line_marked_as_error() {
        let failed = Command::new("sh").args(["-c", "echo 'W: x' >&2; echo 'E: no network' >&2; exit 100"]).output();
        let error = checked(&failed.unwrap(), "apt-get update").unwrap_err().to_string();
        assert_eq!(error, "apt-get update failed (exit status: 100): no network");
    }
}
