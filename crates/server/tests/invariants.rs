//! What the server must not do, looked for in its source.

use std::path::Path;

/// Words by which code would compare a time with a window, or judge by itself.
const BANNED: [&str; 9] = [
    "heartbeat_window",
    "coarse_ttl",
    "claim_window",
    "start_window",
    "max_runtime",
    "stall_window",
    ".charged",
    "judge(",
    "Judged::new",
];

/// The dashboard shows windows and charges, in words, forms and pictures. It must not judge.
#[test]
fn nothing_in_the_dashboard_judges() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/dashboard");
    let mut looked_at = 0;
    for entry in std::fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(!text.contains("judge(") && !text.contains("Judged::new"), "{}", path.display());
            looked_at += 1;
        }
    }
    assert!(looked_at > 15);
}

#[test]
fn nothing_in_the_server_compares_a_time_with_a_window() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut looked_at = 0;
    for entry in std::fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            let found = BANNED.iter().find(|word| line.contains(**word));
            assert!(found.is_none(), "{}: {line}", path.display());
        }
        looked_at += 1;
    }
    assert!(looked_at > 20);
}
