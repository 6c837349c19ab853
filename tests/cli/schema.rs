//! The committed JSON Schema is up to date, and every plugin is in it.

use super::{cni_all, ok, plugins};

#[test]
fn the_committed_schema_is_what_is_generated() {
    let committed = include_str!("../../packaging/schema/cni.schema.json");
    assert!(
        committed == ok(cni_all(&["generate", "schema"])),
        "out of date; run: cargo run -- generate schema >packaging/schema/cni.schema.json"
    );
    let schema: serde_json::Value = serde_json::from_str(committed).unwrap();
    for plugin in plugins() {
        assert_eq!(schema["$defs"][&plugin]["properties"]["type"]["const"], *plugin);
    }
}
