//! Starts that cannot work: exit code 2, and one sentence each that says what to do.

use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use crate::observed::Observed;
use crate::process::{self, Folder, is_root, said};

const LIMIT: Duration = Duration::from_mins(1);

#[test]
fn port_that_is_taken_is_named_with_the_option_that_chooses_another() {
    let folder = Folder::new("port");
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .expect("a port")
        .local_addr()
        .expect("an address");
    let taken = TcpListener::bind(taken).expect("it is free again");
    let address = taken.local_addr().expect("an address").to_string();
    for (option, other) in
        [("--session-listen", "--release-listen"), ("--release-listen", "--session-listen")]
    {
        let output = up(&folder, |up| up.args([option, &address, other, "127.0.0.1:0"]));
        let sentence = refusal(&output);
        assert!(sentence.contains(&address) && sentence.contains(option), "{sentence}");
    }
    assert!(!folder.path.join("postgres").exists(), "a start that cannot work leaves a cluster behind");
}

#[test]
fn service_that_finds_its_port_taken_says_so() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let folder = Folder::new("serve");
    let init = process::run(process::tandem().args(["init", "--folder"]).arg(&folder.path), LIMIT);
    assert!(init.status.success(), "{}", said(&init));
    let mut serve = process::tandem();
    serve
        .args(["serve", "release", "--listen", &address])
        .env("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none")
        .env("TANDEM_ISSUERS", folder.path.join("issuers.json"))
        .env("TANDEM_KEYRING", folder.path.join("keyring.json"));
    let sentence = refusal(&process::run(&mut serve, LIMIT));
    assert!(sentence.contains(&address) && sentence.contains("--listen"), "{sentence}");
}

#[test]
fn second_up_in_a_folder_is_refused_while_the_first_runs() {
    let stack = Observed::stack();
    let before = stack.running();
    for options in [&[][..], &["--fresh"]] {
        let sentence = refusal(&process::run(stack.up_command().args(options), LIMIT));
        let folder = stack.folder.path.to_string_lossy();
        assert!(sentence.contains(&*folder) && sentence.contains("--data-dir"), "{sentence}");
    }
    assert_eq!(stack.running(), before, "the first one was disturbed");
}

#[test]
fn folder_that_cannot_be_written_is_named_with_the_option_that_chooses_another() {
    let folder = Folder::new("closed");
    let closed = folder.path.join("closed");
    fs::create_dir(&closed).expect("a folder");
    fs::set_permissions(&closed, Permissions::from_mode(0o555)).expect("its mode is ours to change");
    let Some(mut up) = as_ordinary_user(&folder) else { return };
    up.arg("up").arg("--data-dir").arg(closed.join("stack"));
    up.args(["--session-listen", "127.0.0.1:0", "--release-listen", "127.0.0.1:0"]);
    let sentence = refusal(&process::run(&mut up, LIMIT));
    assert!(sentence.contains("closed") && sentence.contains("--data-dir"), "{sentence}");
}

#[test]
fn every_bad_variable_is_reported_at_once() {
    let folder = Folder::new("variables");
    let bad = [
        ("TANDEM_DATABASE_CONNECTIONS", "1"),
        ("TANDEM_IN_FLIGHT_MAX", "many"),
        ("TANDEM_DRAIN_SECONDS", "-1"),
        ("TANDEM_LOG_FORMAT", "xml"),
        ("TANDEM_LOG", "info,=,nonsense=nonsense"),
    ];
    // `up` tells the last lines that a service wrote, not as many as these.
    let more = [("TANDEM_CALLER_RATE", "0"), ("TANDEM_STREAMS_MAX", "0"), ("TANDEM_TLS_CERT", "half.pem")];
    for service in ["session", "release"] {
        let mut serve = process::tandem();
        serve
            .args(["serve", service])
            .envs(bad)
            .envs(more)
            .env("TANDEM_LISTEN", "nowhere")
            .env("TANDEM_KEYRING_JSON", "{}");
        let output = process::run(&mut serve, LIMIT);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        let expected = bad.into_iter().chain(more).map(|(name, _)| name);
        let expected =
            expected.chain(["TANDEM_LISTEN", "TANDEM_KEYRING_JSON", "TANDEM_ISSUERS", "DATABASE_URL"]);
        assert_named_once(&said(&output), expected);
    }
    let output = up(&folder, |up| up.envs(bad));
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert_named_once(&said(&output), bad.map(|(name, _)| name).into_iter());
}

#[test]
fn postgresql_that_is_too_old_is_named_with_what_is_needed() {
    let folder = Folder::new("old");
    let programs = folder.path.join("programs");
    fs::create_dir(&programs).expect("a folder");
    for name in ["postgres", "initdb"] {
        let script = format!("#!/bin/sh\necho '{name} (PostgreSQL) 14.9'\n");
        fs::write(programs.join(name), script).expect("a script");
    }
    for path in [programs.clone(), programs.join("postgres"), programs.join("initdb")] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).expect("its mode is ours to change");
    }
    let sentence = refusal(&up(&folder, |up| up.env("TANDEM_PG_BIN", &programs)));
    for part in ["14.9", "15 or newer", "TANDEM_PG_BIN"] {
        assert!(sentence.contains(part), "{part} in {sentence}");
    }
}

#[test]
fn fresh_refuses_to_delete_from_a_database_of_the_users() {
    let folder = Folder::new("own");
    let url = "postgres://nobody@127.0.0.1:1/none";
    let sentence = refusal(&up(&folder, |up| up.arg("--fresh").env("DATABASE_URL", url)));
    assert!(sentence.contains("--fresh") && sentence.contains("DATABASE_URL"), "{sentence}");
}

/// Runs `up`, which ends by itself, in a folder of its own, on ports that the system chooses.
fn up(folder: &Folder, with: impl FnOnce(&mut Command) -> &mut Command) -> Output {
    let mut command = process::tandem();
    command.arg("up").arg("--data-dir").arg(folder.path.join("stack"));
    if with(&mut command).get_args().all(|argument| argument != "--session-listen") {
        command.args(["--session-listen", "127.0.0.1:0", "--release-listen", "127.0.0.1:0"]);
    }
    process::run(&mut command, LIMIT)
}

/// The one sentence of a start that exits with 2; what it was about to do may stand before it.
fn refusal(output: &Output) -> String {
    let said = said(output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    let told: Vec<_> = said.lines().filter(|line| !line.ends_with("...")).collect();
    assert_eq!(told.len(), 1, "not one sentence:\n{said}");
    told[0].to_owned()
}

fn assert_named_once<'a>(text: &str, names: impl Iterator<Item = &'a str>) {
    for name in names {
        let lines = text.lines().filter(|line| line.starts_with(&format!("{name}:"))).count();
        assert_eq!(lines, 1, "{name} in\n{text}");
    }
}

/// The command as somebody whom modes of files stop.
fn as_ordinary_user(folder: &Folder) -> Option<Command> {
    if !is_root() {
        return Some(process::tandem());
    }
    let setpriv = Path::new("/usr/bin/setpriv");
    if !setpriv.exists() {
        process::say(
            "SKIPPED, NOT CHECKED: root writes everywhere, and there is no setpriv to be somebody else",
        );
        return None;
    }
    // The build's own folder may be closed to others.
    let copy: PathBuf = folder.path.join("tandem");
    fs::copy(env!("CARGO_BIN_EXE_tandem"), &copy).expect("the command can be copied");
    fs::set_permissions(&copy, Permissions::from_mode(0o755)).expect("its mode is ours to change");
    let mut command = Command::new(setpriv);
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(copy);
    command.env_remove("DATABASE_URL");
    Some(command)
}
