//! Nothing is generated yet; the file is where version, man page and completions will come from.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
