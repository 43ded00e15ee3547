//! A copy of the store as it is at one instant, made while others write.

use std::fs::File;
use std::path::Path;

use sqlx::{ConnectOptions, Connection};

use super::open;
use crate::error::StoreError;

/// Copies the database at `path` into the new file `target`: whole and on the disk, or not at all.
pub(super) async fn backup(path: &Path, target: &Path) -> Result<(), StoreError> {
    let exists = |path: &Path| StoreError::Exists { path: path.display().to_string() };
    if target.try_exists().unwrap_or(true) {
        return Err(exists(target));
    }
    let mut name = target.as_os_str().to_owned();
    name.push(".part");
    let part = Path::new(&name);
    // One that was interrupted may have left its part. Made here, so that it is said what is wrong with the place.
    File::create(part).map_err(StoreError::Output)?;
    let result = copy(path, part).await;
    let result = result.and_then(|()| {
        // A link is refused where the name is taken by now; a rename would replace what is there.
        std::fs::hard_link(part, target).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => exists(target),
            _ => StoreError::Output(error),
        })?;
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(StoreError::Output)
    });
    let _ = std::fs::remove_file(part);
    result
}

async fn copy(path: &Path, part: &Path) -> Result<(), StoreError> {
    let text = part.to_str().ok_or_else(|| {
        StoreError::Output(std::io::Error::new(std::io::ErrorKind::InvalidInput, "the file's name is not UTF-8"))
    })?;
    let mut connection = open::options(path, false).connect().await?;
    let copied = sqlx::query("VACUUM INTO ?").bind(text).execute(&mut connection).await;
    connection.close().await?;
    copied?;
    File::open(part).and_then(|file| file.sync_all()).map_err(StoreError::Output)
}
