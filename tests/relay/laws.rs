//! The table of laws in docs/ARCHITECTURE.md names tests. A test that is renamed or goes must not leave its
//! law without one.

use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn the_tests_that_hold_the_laws_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/ARCHITECTURE.md")).unwrap();
    let (_, laws) = page.split_once("## The laws, and what holds them").unwrap();
    let (laws, _) = laws.split_once("\n## ").unwrap();
    let rows = laws.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| law"));
    let mut named = 0;
    for row in rows {
        let tests = row.rsplit('|').nth(1).unwrap();
        let names: Vec<&str> =
            tests.split('`').skip(1).step_by(2).filter(|name| !name.contains(' ')).collect();
        assert!(!names.is_empty(), "a law without a test: {row}");
        for name in names {
            assert!(exists(&root.join("tests/relay"), name), "{name} is no test, and the law says so: {row}");
            named += 1;
        }
    }
    assert!(named > 20, "{named} names: is the table still where it was?");
}

/// Whether a path of modules leads to a test, or to modules with tests.
fn exists(folder: &Path, name: &str) -> bool {
    let (module, rest) = name.split_once("::").map_or((name, None), |(module, rest)| (module, Some(rest)));
    let files: [PathBuf; 2] = [folder.join(format!("{module}.rs")), folder.join(module).join("mod.rs")];
    let Some(text) = files.iter().find_map(|file| fs::read_to_string(file).ok()) else { return false };
    match rest {
        None => true,
        Some(rest) if !rest.contains("::") && text.contains(&format!("fn {rest}()")) => true,
        Some(rest) => exists(&folder.join(module), rest),
    }
}
