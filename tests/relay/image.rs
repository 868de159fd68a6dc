//! The image is built from what the Dockerfile copies, and from nothing else.

use std::path::Path;
use std::process::Command;

/// Sources and target of each `COPY` before the first `RUN`.
fn copies(dockerfile: &str) -> Vec<(Vec<&str>, &str)> {
    let build = dockerfile.lines().take_while(|line| !line.starts_with("RUN"));
    let words =
        build.filter_map(|line| line.strip_prefix("COPY ")).map(|line| line.split_whitespace().collect());
    words.map(|mut words: Vec<&str>| words.pop().map(|target| (words, target)).unwrap()).collect()
}

#[test]
fn what_the_image_is_built_from_is_a_whole_workspace() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let context = tempfile::tempdir().unwrap();
    let dockerfile = std::fs::read_to_string(root.join("Dockerfile")).unwrap();
    let copies = copies(&dockerfile);
    assert!(
        copies.iter().any(|(sources, _)| sources.contains(&".cargo/config.toml")),
        "the allocator's settings"
    );
    for (sources, target) in copies {
        // A directory is named with a slash; else it is what the copy is called.
        let made = if target.ends_with('/') { Path::new(target) } else { Path::new("") };
        std::fs::create_dir_all(context.path().join(made)).unwrap();
        let target = context.path().join(target);
        for source in sources {
            let copied = Command::new("cp").arg("-R").arg(root.join(source)).arg(&target).status().unwrap();
            assert!(copied.success(), "{source}");
        }
    }
    // What cargo asks of a workspace before it builds any part of it.
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--no-deps", "--format-version", "1"])
        .current_dir(context.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
