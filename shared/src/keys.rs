//! The key ring as it is now: its file is looked at every second, and what it has become is used from then on. So a new
//! key reaches every replica long before it makes anything. A file that cannot be used changes nothing.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use tokio_util::sync::CancellationToken;

use crate::keyring::{KeyRing, KeyRingError};
use crate::secret::Secret;

const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Why a ring's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file.
    #[error("cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// Its content.
    #[error(transparent)]
    Ring(#[from] KeyRingError),
}

/// The ring in use.
#[derive(Debug)]
pub struct Keys {
    ring: ArcSwap<KeyRing>,
    file: Option<Source>,
}

#[derive(Debug)]
struct Source {
    path: PathBuf,
    seen: Mutex<Option<Stamp>>,
}

/// What tells one state of a file from another; the time is that of the last change to content, owner or mode, which
/// nobody can set back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        let changed = (meta.ctime(), meta.ctime_nsec());
        Some(Self { device: meta.dev(), inode: meta.ino(), len: meta.len(), changed })
    }
}

impl Keys {
    /// A ring that stays as it is.
    pub fn fixed(ring: KeyRing) -> Self {
        Self { ring: ArcSwap::from_pointee(ring), file: None }
    }

    /// The ring of a file, which [`Keys::follow`] keeps up with.
    pub fn open(path: &Path) -> Result<Self, KeysError> {
        // The stamp comes first: a change in between is seen by the next look.
        let seen = Mutex::new(Stamp::of(path));
        let ring = ArcSwap::from_pointee(read(path)?);
        Ok(Self { ring, file: Some(Source { path: path.to_owned(), seen }) })
    }

    /// The ring at this moment. Cheap; not to be held across an await.
    pub fn load(&self) -> Guard<Arc<KeyRing>> {
        self.ring.load()
    }

    /// Looks at the file until told to stop.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        while self.file.is_some() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
            let keys = Arc::clone(&self);
            // Files block. A panic in there was reported when it happened, and the known ring goes on.
            let _ = tokio::task::spawn_blocking(move || keys.refresh()).await;
        }
    }

    /// Takes in what the file has become, if it changed since the last look.
    pub fn refresh(&self) {
        let Some(Source { path, seen }) = &self.file else { return };
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = Stamp::of(path);
        if stamp == *seen {
            return;
        }
        *seen = stamp;
        let read = read(path).and_then(|ring| {
            if ring.knows_the_same_people(&self.load()) { Ok(ring) } else { Err(KeyRingError::Fixed.into()) }
        });
        match read {
            Ok(ring) => {
                self.ring.store(Arc::new(ring));
                tracing::info!(path = %path.display(), "key ring changed");
            }
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "key ring unusable; the known keys go on working");
            }
        }
    }
}

fn read(path: &Path) -> Result<KeyRing, KeysError> {
    let json = Secret::new(std::fs::read_to_string(path)?);
    Ok(KeyRing::parse(json.expose())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyring::Purpose;
    use crate::secret::Entropy;
    use crate::time::at;

    #[test]
    fn a_changed_file_is_taken_in_and_an_unusable_one_is_not() {
        let path = std::env::temp_dir().join(format!("tandem-keys-follow-{}.json", std::process::id()));
        let entropy = Entropy::seeded(7);
        let write = |text: &str| {
            // As editors and secret mounts do: a new file in the old one's place.
            let new = path.with_extension("new");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(&new, &path).unwrap();
        };
        let mut ring = KeyRing::generate(&entropy);
        write(&ring.to_json().unwrap());
        let keys = Keys::open(&path).unwrap();
        let made_by = |keys: &Keys| keys.load().current(Purpose::Token, at(0)).unwrap();
        let next = ring.rotate(Purpose::Token, at(0), &entropy).unwrap();
        let rotated = ring.to_json().unwrap();
        assert_ne!(made_by(&keys), next);
        write(&rotated);
        keys.refresh();
        assert_eq!(made_by(&keys), next);
        for bad in ["", "{\"keys\":[]}", &KeyRing::generate(&entropy).to_json().unwrap()] {
            write(bad);
            keys.refresh();
            assert_eq!(made_by(&keys), next, "{bad}");
        }
        std::fs::remove_file(&path).unwrap();
        keys.refresh();
        assert_eq!(made_by(&keys), next);
        let last = ring.rotate(Purpose::Token, at(0), &entropy).unwrap();
        write(&ring.to_json().unwrap());
        keys.refresh();
        assert_eq!(made_by(&keys), last);
        std::fs::remove_file(&path).unwrap();
    }
}
