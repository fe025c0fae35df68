//! What one uploader can make clients and the index bear.

use serde_json::{Value, json};

use crate::common::Site;

/// Products that share an image get each other's aliases, and clients take quadratic time over them.
#[test]
fn merged_aliases_have_an_end() {
    let site = Site::new();
    for product in 0..5 {
        let directory = format!("images/a/{product}/amd64/default");
        site.image(&format!("{directory}/20240101"), "the same");
        let aliases: Vec<String> = (0..100).map(|alias| format!("{product}-{alias}")).collect();
        let said = json!({ "aliases": aliases }).to_string();
        site.version(&directory).write("metadata.json", said.as_bytes());
    }
    let live = site.open();
    let images = live.wait("one product with all it can take", |images| {
        let problems = images.problems();
        problems.iter().filter(|problem| problem.contains("too many aliases")).count() == 3
    });
    let products = images.products();
    let aliases = |product: &Value| product["aliases"].as_str().unwrap().split(',').count();
    assert_eq!(products.values().map(aliases).collect::<Vec<_>>(), [256]);
}
