//! Linker options, and which of nginx's optional parts are compiled in.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");

    // nginx unmaps modules when it leaves, after the last of our code has been called. Threads'
    // last instructions, destructors of thread-local values and the like may still be under way.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");

    let known = std::env::var("DEP_NGINX_FEATURES_CHECK").unwrap_or_default();
    println!("cargo::rustc-check-cfg=cfg(ngx_feature, values({known}))");
    for feature in std::env::var("DEP_NGINX_FEATURES").unwrap_or_default().split(',') {
        println!("cargo::rustc-cfg=ngx_feature=\"{feature}\"");
    }
}
