//! Command lines to try next. They work as they are when pasted into bash or zsh: `tandem` is named as it was started,
//! the folder and the caller are repeated where they are not the defaults.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use shared::pb::release::{ApprovalPolicy, Release};

use crate::client::reachable;
use crate::stack::Stack;
use crate::token::Identity;

/// Writes command lines for one stack and one caller.
pub(crate) struct Shell {
    tandem: String,
    /// ` --data-dir FOLDER`, or nothing.
    folder: String,
    identity: Identity,
}

impl Shell {
    /// For this stack and caller.
    pub(crate) fn new(stack: &Stack, identity: &Identity) -> Self {
        let folder = stack
            .name()
            .map(|folder| format!(" --data-dir {}", quote(&folder.to_string_lossy())));
        Self { tandem: quote(&program()), folder: folder.unwrap_or_default(), identity: identity.clone() }
    }

    /// `tandem` with these arguments.
    pub(crate) fn tandem(&self, arguments: &str) -> String {
        self.plain(arguments) + &caller(&self.identity)
    }

    /// The same for a command that calls in names of its own.
    fn plain(&self, arguments: &str) -> String {
        let Self { tandem, folder, .. } = self;
        format!("{tandem} {arguments}{folder}")
    }

    /// A call of a method of the service at `address`.
    pub(crate) fn call(&self, address: SocketAddr, method: &str, json: &str) -> String {
        call(&self.tandem("token"), address, method, &quote(json))
    }

    /// A vote of somebody else, who stands for a group where it takes one.
    pub(crate) fn approve(&self, release: &Release, sub: &str, group: Option<&str>) -> String {
        let Release { component, version, .. } = release;
        let groups = group.map(str::to_owned).into_iter().collect();
        let voter = Identity { sub: sub.to_owned(), groups, tenant: self.identity.tenant.clone() };
        self.plain(&format!("approve release {} {}", quote(component), quote(version))) + &caller(&voter)
    }

    /// A policy like this one, but with a quorum of one.
    pub(crate) fn ask_for_approval(&self, address: SocketAddr, policy: &ApprovalPolicy) -> String {
        let name = &policy.approval_policy;
        let profile = policy.profile().as_str_name();
        let json =
            format!(r#"{{"approvalPolicy":{{"approvalPolicy":"{name}","profile":"{profile}","quorum":1}}}}"#);
        self.call(address, "tandem.release.v1.CatalogService/UpdateApprovalPolicy", &json)
    }

    /// What to try on a stack that has just come up.
    pub(crate) fn first_steps(&self, session: SocketAddr) -> String {
        let service = "tandem.session.v1.SessionService";
        let create = self.call(session, &format!("{service}/CreateSession"), r#"{"touchpoint":"web"}"#);
        let validate = call(
            &self.tandem("token"),
            session,
            &format!("{service}/ValidateSession"),
            r#""{\"touchpoint\":\"web\",\"sessionToken\":\"$SESSION\"}""#,
        );
        // Sentences stand apart: zsh takes no comments where it is typed into.
        format!(
            "A session of touchpoint `web`, and which release its visit is pinned to:\n\n  \
             SESSION=$({create} | tee -a /dev/stderr | grep -o 'tds_[A-Za-z0-9_-]*')\n  \
             {validate}\n\n\
             A new release for every tenth visit, with a guard, and back by hand:\n\n  \
             {}\n  \
             {}\n\n\
             A minute of a real shop: on a new release checkouts fail until it goes back by itself; or real releases are \
             rolled out meanwhile:\n\n  \
             {}\n  \
             {}",
            self.tandem("ship storefront 1.1 --canary 10% --guard checkout"),
            self.tandem("rollout back storefront --reason 'a look around'"),
            self.plain("replay --quick --break-canary"),
            self.plain("replay --quick"),
        )
    }
}

/// Options that name the caller, where it is not the default one.
fn caller(Identity { sub, tenant, groups }: &Identity) -> String {
    let differing = [("--sub", sub.as_str(), "dev"), ("--tenant", tenant.as_str(), "shop")].into_iter();
    let flags = differing
        .filter(|(_, value, default)| value != default)
        .map(|(flag, value, _)| (flag, value));
    let flags = flags.chain(groups.iter().map(|group| ("--group", group.as_str())));
    flags.flat_map(|(flag, value)| [format!(" {flag} "), quote(value)]).collect()
}

fn call(token: &str, address: SocketAddr, method: &str, json: &str) -> String {
    let address = reachable(address);
    format!(r#"grpcurl -plaintext -H "authorization: Bearer $({token})" -d {json} {address} {method}"#)
}

/// This program, from where the user is if that is shorter.
fn program() -> String {
    let Ok(program) = std::env::current_exe() else { return "tandem".to_owned() };
    let here = std::env::current_dir().ok();
    let below = here.and_then(|here| program.strip_prefix(here).map(Path::to_owned).ok());
    let short = below.map(|path| match path.parent() {
        // The shell looks a bare name up on PATH.
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from(".").join(path),
        _ => path,
    });
    short.unwrap_or(program).to_string_lossy().into_owned()
}

/// One word for a POSIX shell.
fn quote(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_would_look_into_them() {
        for (text, quoted) in [("a/b.c-d", "a/b.c-d"), ("a b", "'a b'"), ("it's", r"'it'\''s'"), ("", "''")] {
            assert_eq!(quote(text), quoted);
        }
        assert_eq!(quote("$(reboot)"), "'$(reboot)'");
    }

    #[test]
    fn callers_and_folders_are_repeated_where_they_are_not_the_defaults() {
        let identity =
            Identity { sub: "ann".to_owned(), tenant: "shop".to_owned(), groups: vec!["web".to_owned()] };
        let shell = Shell { tandem: "t".to_owned(), folder: " --data-dir /x".to_owned(), identity };
        assert_eq!(
            shell.tandem("rollout show cart"),
            "t rollout show cart --data-dir /x --sub ann --group web"
        );
        assert_eq!(
            shell.call("0.0.0.0:7".parse().unwrap(), "a.B/C", "{}"),
            r#"grpcurl -plaintext -H "authorization: Bearer $(t token --data-dir /x --sub ann --group web)" -d '{}' 127.0.0.1:7 a.B/C"#
        );
    }
}
