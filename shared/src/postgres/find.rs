//! Looks for PostgreSQL's programs: where the user says, on PATH, where distributions put them, in
//! our cache; and has them fetched when there are none. The first that runs, is new enough and fits
//! an existing cluster is taken.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::folder::{self, User};
use super::{Error, Settings, fetch};

/// The oldest major version that Tandem is tested with.
pub(super) const OLDEST: u32 = 15;

/// Parent folder, what the name in it begins with before the major version, where the programs are.
const PLACES: [(&str, &str, &str); 8] = [
    ("usr/lib/postgresql", "", "bin"),          // Debian, Ubuntu
    ("usr", "pgsql-", "bin"),                   // Fedora, RHEL
    ("usr/libexec", "postgresql", ""),          // Alpine
    ("usr/local", "pgsql", "bin"),              // built from source
    ("opt/homebrew/opt", "postgresql@", "bin"), // Homebrew on Apple silicon
    ("usr/local/opt", "postgresql@", "bin"),    // Homebrew on Intel
    ("Applications/Postgres.app/Contents/Versions", "", "bin"),
    ("Library/PostgreSQL", "", "bin"), // EDB's installer
];

/// Programs that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// The folder with `postgres` and `initdb`.
    pub(super) bin: PathBuf,
    pub(super) version: Version,
}

/// As the program prints it; only the major number decides anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    major: u32,
    text: String,
}

impl Version {
    /// Reads the likes of `postgres (PostgreSQL) 15.18 (Debian 15.18-0)` and `... 19beta1`.
    fn parse(line: &str) -> Option<Self> {
        let starts_with_digit = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit());
        let text = line.split_whitespace().find(starts_with_digit)?;
        let major = text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
        Some(Self { major, text: text.to_owned() })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The programs for `settings.folder`, fetched if need be.
pub(super) fn find(settings: &Settings, user: Option<User>, log: &dyn Fn(&str)) -> Result<Found, Error> {
    let cluster = folder::cluster_major(&settings.folder);
    let fits = |found: &Found| {
        found.version.major >= OLDEST && cluster.is_none_or(|major| found.version.major == major)
    };
    let places = if let Some(bin) = &settings.bin {
        vec![bin.clone()]
    } else {
        candidates(settings.path.as_deref(), Path::new("/"), &settings.cache)
    };
    let mut unfit = Vec::new();
    for bin in places {
        match probe(&bin, user) {
            Some(found) if fits(&found) => return Ok(found),
            Some(found) => unfit.push(found),
            None => {}
        }
    }
    if let (Some(bin), true) = (&settings.bin, unfit.is_empty()) {
        return Err(Error::NoPrograms(bin.clone()));
    }
    let mut failures = Vec::new();
    if settings.fetch && settings.bin.is_none() && cluster.is_none_or(|major| major == fetch::MAJOR) {
        let _lock = fetch::lock_cache(&settings.cache, user)?;
        for way in fetch::WAYS {
            // Another process may have fetched it while we waited for the lock.
            if let Some(found) = probe(&way.bin(&settings.cache), user) {
                return Ok(found);
            }
            match way.fetch(settings, log).map(|bin| probe(&bin, user)) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => failures.push(format!("what {} fetched does not run here", way.tool())),
                Err(e) => failures.push(e.to_string()),
            }
        }
    }
    Err(nothing_fits(settings, cluster, &unfit, &failures))
}

fn nothing_fits(settings: &Settings, cluster: Option<u32>, unfit: &[Found], failures: &[String]) -> Error {
    let fetch = if settings.bin.is_some() {
        "name another folder in TANDEM_PG_BIN"
    } else if settings.fetch {
        "make `python3 -m pip` or `npm` work, with either of which it is fetched"
    } else {
        "allow it to be fetched (drop --no-fetch)"
    };
    if let Some(major) = cluster {
        return Error::OtherMajor { folder: settings.folder.clone(), major };
    }
    if !unfit.is_empty() {
        let name = |found: &Found| format!("PostgreSQL {} at {}", found.version, found.bin.display());
        let found = unfit.iter().map(name).collect::<Vec<_>>().join(", ");
        return Error::TooOld { found, fetch };
    }
    let tried = if failures.is_empty() { String::new() } else { format!(" ({})", failures.join("; ")) };
    Error::Missing { tried, fetch }
}

/// Every folder worth a look, best first.
///
/// A script named `postgres` on PATH often becomes another user or another process than the one that
/// we would watch and signal, so the programs that it stands for are preferred.
fn candidates(path: Option<&OsStr>, root: &Path, cache: &Path) -> Vec<PathBuf> {
    let on_path = path.map(std::env::split_paths).into_iter().flatten();
    let on_path = on_path.filter(|dir| dir.join("postgres").is_file());
    let (scripts, mut all): (Vec<_>, Vec<_>) = on_path.partition(|dir| is_script(&dir.join("postgres")));
    for (parent, prefix, bin) in PLACES {
        all.extend(newest_first(&root.join(parent), prefix).into_iter().map(|dir| dir.join(bin)));
    }
    all.extend(scripts);
    all.extend(fetch::WAYS.iter().map(|way| way.bin(cache)));
    all
}

fn is_script(program: &Path) -> bool {
    let mut start = [0; 2];
    File::open(program).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == *b"#!"
}

/// The folders in `parent` named `prefix` and a major version, or `prefix` alone, which comes last.
fn newest_first(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let rest = name.to_str()?.strip_prefix(prefix)?;
            let major = if rest.is_empty() { 0 } else { rest.parse().ok()? };
            Some((major, entry.path()))
        })
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, path)| path).collect()
}

/// Asks a folder's programs, as the user that is to run them, for their version.
///
/// Links are followed, because the programs look for their files from the folder that they are in.
fn probe(bin: &Path, user: Option<User>) -> Option<Found> {
    let postgres = fs::canonicalize(bin.join("postgres")).ok()?;
    let bin = if postgres.file_name() == Some(OsStr::new("postgres")) && !is_script(&postgres) {
        postgres.parent()?
    } else {
        bin
    };
    let answer = |program: &str| {
        let mut command = Command::new(bin.join(program));
        command.arg("--version").stdin(Stdio::null()).current_dir("/");
        folder::run_as(&mut command, user);
        let output = command.output().ok().filter(|output| output.status.success())?;
        Version::parse(&String::from_utf8_lossy(&output.stdout))
    };
    let version = answer("postgres")?;
    (answer("initdb")?.major == version.major).then(|| Found { bin: bin.to_owned(), version })
}

#[cfg(test)]
pub(super) mod tests {
    use std::ffi::OsString;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A folder of its own for one test.
    pub(crate) struct Scratch(pub(crate) PathBuf);

    impl Scratch {
        pub(crate) fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("tandem-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(fs::canonicalize(path).unwrap())
        }

        /// Programs that print `version`. They are scripts, as everything that a test can make.
        fn programs(&self, dir: &str, version: &str) -> PathBuf {
            let dir = self.0.join(dir);
            fs::create_dir_all(&dir).unwrap();
            for name in ["postgres", "initdb"] {
                let text = format!("#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n");
                fs::write(dir.join(name), text).unwrap();
                fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o755)).unwrap();
            }
            dir
        }

        pub(crate) fn settings(&self, path: &[&Path]) -> Settings {
            Settings {
                folder: self.0.join("cluster"),
                durable: false,
                temporary: true,
                bin: None,
                path: Some(std::env::join_paths(path).unwrap()),
                fetch: false,
                cache: self.0.join("cache"),
            }
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    #[test]
    fn version_is_read_from_every_build() {
        for (line, major, text) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", 15, "15.18"),
            ("postgres (PostgreSQL) 18.4\n", 18, "18.4"),
            ("postgres (PostgreSQL) 19beta1", 19, "19beta1"),
            ("postgres (PostgreSQL) 9.6.24", 9, "9.6.24"),
        ] {
            assert_eq!(Version::parse(line), Some(Version { major, text: text.to_owned() }), "{line}");
        }
        assert_eq!(Version::parse("postgres: not found"), None);
    }

    #[test]
    fn places_are_looked_at_in_order_and_scripts_on_path_after_real_programs() {
        let scratch = Scratch::new("order");
        let at = |dir: &str| scratch.programs(dir, "16.1");
        let script = at("path-script");
        let program = at("path-program");
        fs::write(program.join("postgres"), b"\x7fELF").unwrap();
        let old = at("usr/lib/postgresql/9/bin");
        let new = at("usr/lib/postgresql/16/bin");
        let fedora = at("usr/pgsql-17/bin");
        let source = at("usr/local/pgsql/bin");
        let brew = at("usr/local/opt/postgresql@18/bin");
        at("usr/local/opt/postgresql@main/bin");
        let path = std::env::join_paths([&script, &program]).unwrap();
        let cache = scratch.0.join("cache");
        let mut expected = vec![program, new, old, fedora, source, brew, script];
        expected.extend(fetch::WAYS.iter().map(|way| way.bin(&cache)));
        assert_eq!(candidates(Some(&path), &scratch.0, &cache), expected);
    }

    #[test]
    fn folder_named_by_the_user_is_the_only_one_looked_at() {
        let scratch = Scratch::new("named");
        let good = scratch.programs("good", "16.1");
        let mut settings = scratch.settings(&[&good]);
        settings.bin = Some(scratch.programs("named", "17.2"));
        assert_eq!(find(&settings, None, &|_| {}).unwrap().version.text, "17.2");

        settings.bin = Some(scratch.0.join("nowhere"));
        assert!(matches!(find(&settings, None, &|_| {}), Err(Error::NoPrograms(_))));

        settings.bin = Some(scratch.programs("old", "14.9"));
        let message = find(&settings, None, &|_| {}).unwrap_err().to_string();
        assert!(message.starts_with("PostgreSQL 14.9 at "), "{message}");
    }

    #[test]
    fn older_one_is_passed_over_and_a_cluster_asks_for_its_own_version() {
        let scratch = Scratch::new("passed-over");
        // Versions that no machine has, as the distributions' folders are looked at, too.
        let older = scratch.programs("older", "14.9");
        let newer = scratch.programs("newer", "98.1");
        let newest = scratch.programs("newest", "99.1");
        let settings = scratch.settings(&[&older, &newest, &newer]);
        fs::create_dir_all(settings.folder.join("data")).unwrap();
        let version_file = settings.folder.join("data/PG_VERSION");

        fs::write(&version_file, "98\n").unwrap();
        assert_eq!(find(&settings, None, &|_| {}).unwrap().bin, newer);
        fs::write(&version_file, "97\n").unwrap();
        assert!(matches!(find(&settings, None, &|_| {}), Err(Error::OtherMajor { major: 97, .. })));
    }

    #[test]
    fn message_names_the_remedies() {
        let scratch = Scratch::new("message");
        let settings = scratch.settings(&[]);
        assert_eq!(settings.path, Some(OsString::new()));
        let message = nothing_fits(&settings, None, &[], &[]).to_string();
        for remedy in ["apt-get install postgresql", "--no-fetch", "DATABASE_URL"] {
            assert!(message.contains(remedy), "{message}");
        }
    }
}
