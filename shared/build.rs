//! Protos to Rust: messages and services, the descriptors for reflection, the scope of every method, and a `Debug` that
//! keeps still for every message with a `debug_redact` field.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost_reflect::{DescriptorPool, MessageDescriptor};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[expect(clippy::disallowed_methods, reason = "what cargo tells a build script is in its environment")]
fn main() -> Result<()> {
    let root = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let mut files = Vec::new();
    collect(&root.join("tandem"), &mut files)?;
    files.sort();
    let mut compiler = protox::Compiler::new([&root])?;
    compiler.include_imports(true).open_files(&files)?;
    let descriptors = compiler.encode_file_descriptor_set();
    let pool = DescriptorPool::decode(descriptors.as_slice())?;

    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), &descriptors)?;
    fs::write(out.join("methods.rs"), methods(&pool)?)?;
    let mut prost = tonic_prost_build::Config::new();
    // Equal messages are equal bytes, which repetitions of a request are known by.
    prost.btree_map(["."]);
    let redacted: Vec<_> = pool.all_messages().filter(is_redacted).collect();
    let oneofs = redacted
        .iter()
        .flat_map(MessageDescriptor::oneofs)
        .map(|oneof| oneof.full_name().to_owned());
    let silent = redacted.iter().map(|message| message.full_name().to_owned()).chain(oneofs);
    prost.skip_debug(silent.map(|name| format!(".{name}")));
    fs::write(out.join("redacted.rs"), redacted_debug(&redacted))?;
    prost.include_file("packages.rs");
    let fds = protox::Compiler::new([&root])?
        .include_imports(true)
        .open_files(&files)?
        .file_descriptor_set();
    tonic_prost_build::configure().compile_fds_with_config(fds, prost)?;
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|ext| ext == "proto") {
            files.push(path);
        }
    }
    Ok(())
}

/// `(path, scope)` of every method of ours; `None` where the proto does not say, for the server to refuse. And the paths of
/// those that answer with a stream.
fn methods(pool: &DescriptorPool) -> Result<String> {
    let auth = pool
        .get_extension_by_name("tandem.common.v1.auth")
        .ok_or("no method option `auth`")?;
    let mut rust = String::from("pub static METHODS: &[(&str, Option<&str>)] = &[\n");
    for method in pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
        let options = method.options();
        let scope = options.has_extension(&auth).then(|| options.get_extension(&auth));
        let scope = scope.as_ref().and_then(|auth| auth.as_message()?.get_field_by_name("scope"));
        let scope = scope
            .as_ref()
            .and_then(|scope| scope.as_str())
            .filter(|scope| !scope.is_empty());
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        writeln!(rust, "    ({path:?}, {scope:?}),")?;
    }
    rust.push_str("];\n");
    let streams = pool.services().flat_map(|service| service.methods().collect::<Vec<_>>());
    let streams = streams.filter(prost_reflect::MethodDescriptor::is_server_streaming);
    let paths: Vec<_> = streams
        .map(|method| format!("/{}/{}", method.parent_service().full_name(), method.name()))
        .collect();
    writeln!(rust, "pub static STREAMS: &[&str] = &{paths:?};")?;
    Ok(rust)
}

fn is_redacted(message: &MessageDescriptor) -> bool {
    message.fields().any(|field| {
        let options = field.options();
        options
            .get_field_by_name("debug_redact")
            .and_then(|value| value.as_bool())
            .unwrap_or(false)
    })
}

fn redacted_debug(messages: &[MessageDescriptor]) -> String {
    let mut rust = String::new();
    for message in messages {
        let module = message.package_name().replace('.', "::");
        let mut types = vec![message.name().to_owned()];
        for oneof in message.oneofs() {
            types.push(format!("{}::{}", snake(message.name()), pascal(oneof.name())));
        }
        for name in types {
            let _ = writeln!(
                rust,
                "impl std::fmt::Debug for {module}::{name} {{\n    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> \
                 std::fmt::Result {{\n        f.write_str(\"{name} {{ .. }}\")\n    }}\n}}",
            );
        }
    }
    rust
}

fn snake(name: &str) -> String {
    let mut out = String::new();
    for (i, c) in name.char_indices() {
        if c.is_ascii_uppercase() && i > 0 {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

fn pascal(name: &str) -> String {
    let mut out = String::new();
    for word in name.split('_') {
        let mut chars = word.chars();
        out.extend(chars.next().map(|c| c.to_ascii_uppercase()));
        out.push_str(chars.as_str());
    }
    out
}
