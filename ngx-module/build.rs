//! Compiles the part that is in C, against the headers that nginx-sys was built with, and sets the
//! linker's options.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/shim.c");

    // nginx unmaps modules when it leaves, after the last of our code has been called. Threads'
    // last instructions, destructors of thread-local values and the like may still be under way.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");

    let include = env::var_os("DEP_NGINX_INCLUDE")
        .expect("nginx-sys says where nginx's headers are; set NGINX_SOURCE_DIR, NGINX_BUILD_DIR");
    let mut shim = cc::Build::new();
    shim.file("src/shim.c")
        .includes(env::split_paths(&include))
        .warnings(true)
        .extra_warnings(true);
    // nginx's own build leaves this warning out too.
    shim.flag("-Wno-unused-parameter").flag("-Werror");
    // The definitions of nginx's build. nginx-sys 0.5.0 gives them under a wrong name.
    let flags = env::var("DEP_NGINX_CFLAGS").ok().or_else(|| {
        let metadata = env::var("DEP_NGINX_METADATA").ok()?;
        metadata.strip_prefix("cflags=").map(str::to_owned)
    });
    for flag in flags.unwrap_or_default().split_whitespace() {
        shim.flag(flag);
    }
    shim.compile("ngx_http_simplestreams_shim");

    // Of the feature `mimalloc`.
    if let Some(include) = env::var_os("DEP_MIMALLOC_INCLUDE_DIR") {
        println!("cargo::rerun-if-changed=src/allocator.c");
        let mut allocator = cc::Build::new();
        allocator.file("src/allocator.c").include(include).warnings(true).flag("-Werror");
        allocator.compile("ngx_http_simplestreams_allocator");
    }
}
