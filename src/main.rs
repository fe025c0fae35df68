//! `lxd-image-server`: the command around the `simplestreams` core.

fn main() {
    println!("lxd-image-server {}", env!("CARGO_PKG_VERSION"));
}
