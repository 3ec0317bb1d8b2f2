//! Where, when and of what rows were measured.

use std::path::Path;
use std::process::Command;

use shared::time::Clock;

use crate::Outcome;

/// Options whose values are only good on one machine.
const PLACES: [&str; 2] = ["--out", "--folder"];

/// Name and value of each fact; `folder` holds the data.
pub(crate) fn facts(folder: &Path) -> Outcome<Vec<(&'static str, String)>> {
    let (cpu, memory) =
        (std::fs::read_to_string("/proc/cpuinfo")?, std::fs::read_to_string("/proc/meminfo")?);
    let after = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map(|rest| rest.trim_start_matches([':', ' ', '\t']).to_owned())
            .unwrap_or_default()
    };
    let kib: u32 = after(&memory, "MemTotal").trim_end_matches(" kB").parse()?;
    let file_system = output("df", &["--output=fstype", &folder.to_string_lossy()]);
    let profile = if cfg!(debug_assertions) { "dev, unoptimized" } else { "release" };
    Ok(vec![
        ("processors", format!("{} x {}", std::thread::available_parallelism()?, after(&cpu, "model name"))),
        ("memory", format!("{:.1} GiB", f64::from(kib) / f64::from(1 << 20))),
        ("kernel", std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned()),
        ("file system of the data", file_system.lines().last().unwrap_or_default().to_owned()),
        ("profile", profile.to_owned()),
    ])
}

/// When, of what and by which command something was measured that has just ended.
pub(crate) fn measured() -> String {
    let now = Clock::system().now().format("%Y-%m-%d %H:%M UTC");
    format!("Measured {now} of commit {} by `{}`.", commit(), command())
}

/// The command of this run, as it would be typed again elsewhere.
fn command() -> String {
    let mut command = "cargo bench -p tests".to_owned();
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let mut is_first = true;
    while let Some(arg) = args.next() {
        let name = arg.split('=').next().unwrap_or_default();
        if PLACES.contains(&name) {
            // Its value is the next argument, unless it is in this one.
            let _value = (name == arg).then(|| args.next());
            continue;
        }
        command += if is_first { " -- " } else { " " };
        command += &arg;
        is_first = false;
    }
    command
}

fn commit() -> String {
    let changed = !output("git", &["status", "--porcelain", "--untracked-files=no"]).is_empty();
    let commit = output("git", &["rev-parse", "--short=12", "HEAD"]);
    if changed { format!("{commit}, with changes") } else { commit }
}

/// What a program prints; nothing where it does not run.
fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
