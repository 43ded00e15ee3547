//! Finds the browser that the tests of the dashboard drive, and what drives it, or installs it.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use crate::{Failure, apt_get, can_install, run, version_of, workspace_root};

/// The environment variable that names another browser. See the acceptance tests.
pub(crate) const VARIABLE: &str = "LASTBEAT_TEST_CHROMIUM";
/// Where distributions put it.
const PLACES: [&str; 3] = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
/// What drives it, and what looks for barriers in a page.
const PACKAGES: [(&str, &str); 2] = [("playwright-core", "1.65.1"), ("axe-core", "4.14.1")];

/// Finds or installs all of it, and says so.
pub(crate) fn setup() -> Result<(), Failure> {
    if found().is_none() {
        if !can_install() {
            let message = format!(
                "no Chromium was found ({VARIABLE} can name one), and to install it here would take apt-get, and root or sudo"
            );
            return Err(Failure { message, code: 1 });
        }
        eprintln!("xtask: Chromium was not found: installing it with apt-get");
        apt_get(&["update", "--quiet"])?;
        apt_get(&["install", "--yes", "--quiet", "--no-install-recommends", "chromium"])?;
    }
    let Some(chromium) = found() else {
        return Err(Failure { message: format!("Chromium is in none of {}", PLACES.join(", ")), code: 1 });
    };
    eprintln!("xtask: found {}, which the tests of the dashboard drive", version_of(&chromium));
    let folder = folder();
    let is_there = |(name, version): &(&str, &str)| {
        let manifest = folder.join("node_modules").join(name).join("package.json");
        std::fs::read_to_string(manifest).is_ok_and(|text| text.contains(&format!("\"version\": \"{version}\"")))
    };
    let packages = PACKAGES.map(|(name, version)| format!("{name}@{version}"));
    if !PACKAGES.iter().all(is_there) {
        eprintln!("xtask: {} not found: installing from npm into target/browser", packages.join(", "));
        let mut install = Command::new("npm");
        install.args(["install", "--silent", "--no-save", "--no-audit", "--no-fund", "--prefix"]).arg(&folder);
        run("npm", install.args(&packages))?;
    }
    eprintln!("xtask: found {} in target/browser", packages.join(", "));
    Ok(())
}

/// Takes pictures of every page, in light, in dark and as wide as a phone; `extra` names the folder for them.
pub(crate) fn screenshots(extra: &[String]) -> Result<(), Failure> {
    setup()?;
    run("build", &mut crate::cargo(&["build", "--package", "lastbeat-cli"]))?;
    let root = workspace_root();
    let out = extra.first().map_or_else(|| root.join("target/screenshots"), PathBuf::from);
    let mut node = Command::new("node");
    node.arg(root.join("tests/browser/screenshots.mjs"))
        .arg(folder())
        .arg(root.join("target/debug/lastbeat"))
        .arg(&out);
    if let Some(chromium) = found() {
        node.env(VARIABLE, chromium);
    }
    run("screenshots", &mut node)?;
    eprintln!("xtask: the pictures are in {}", out.display());
    Ok(())
}

/// The command that opens the overview of the server at `{}` in the browser, and tells when it was painted.
pub(crate) fn paint() -> Vec<std::ffi::OsString> {
    let script = workspace_root().join("tests/browser/paint.mjs");
    vec!["node".into(), script.into(), folder().into(), "{}".into(), "overview".into()]
}

fn folder() -> PathBuf {
    workspace_root().join("target/browser")
}

/// The browser that is there.
pub(crate) fn found() -> Option<String> {
    let named = env::var(VARIABLE).ok().filter(|named| !named.is_empty());
    named.or_else(|| PLACES.iter().find(|place| std::path::Path::new(place).exists()).map(|place| (*place).to_owned()))
}
