//! Messages as they stand on the wire, in `tests/fixtures/messages`; the JavaScript client's tests read
//! the same files. `UPDATE_GOLDEN=1 cargo test` writes them anew.

use std::path::Path;

/// Fails unless a frame is byte for byte what the file holds.
pub(crate) fn check(name: &str, frame: &[u8]) {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/messages").join(format!("{name}.json"));
    let frame = String::from_utf8(frame.to_vec()).expect("frames are UTF-8");
    let _: serde_json::Value = serde_json::from_str(&frame).expect("frames are JSON");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, format!("{frame}\n")).expect("the fixtures can be written");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(frame, golden.trim_end(), "{}", path.display());
}
