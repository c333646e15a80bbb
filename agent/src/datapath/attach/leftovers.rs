//! What earlier agents left, and removing everything.

use std::{
    cell::LazyCell,
    fs::{self, File},
    io,
    path::Path,
};

use super::tc::{pinned_link, remove_filter};
use crate::{
    datapath::{error::DatapathError, layouts::LINKS, maps, queue},
    workload::netns::{self, NetNs},
};

/// An attachment that an earlier agent left and nobody wants any more.
pub(super) fn remove(directory: &Path, name: &str, namespaces: &LazyCell<Vec<NetNs>>) {
    let path = directory.join(name);
    let filter = |side: &str, index: &str, way: &str| {
        if let Some(interface) = index.parse().ok().and_then(interface_name) {
            remove_filter(&interface, &format!("weir_{side}_{way}"));
        }
    };
    let in_namespace = |cookie: &str, work: &(dyn Fn() + Sync)| {
        // It went with its namespace, or the namespace is found.
        let is_its = |netns: &&NetNs| cookie.parse() == Ok(netns.cookie());
        if let Some(netns) = namespaces.iter().find(is_its) {
            let _ = netns.run(work);
        }
    };
    let in_pod = |side: &str, index: &str, cookie: &str, way: &str| {
        in_namespace(cookie, &|| filter(side, index, way));
    };
    let words: Vec<&str> = name.split('-').collect();
    let queue = |index: &str| index.parse().into_iter().for_each(queue::remove);
    match words[..] {
        ["host" | "own", index, _, "bytes"] => queue(index),
        ["pod", index, cookie, _, "bytes"] => in_namespace(cookie, &|| queue(index)),
        _ => {}
    }
    match words[..] {
        // Its pin is all that holds a link.
        _ if pinned_link(&path).is_ok() => {}
        ["host", index, way] => filter("host", index, way),
        ["own", index, way] => filter("own", index, way),
        ["host" | "own", index, way, "bytes"] => filter("bytes", index, way),
        ["pod", index, cookie, way] => in_pod("own", index, cookie, way),
        ["pod", index, cookie, way, "bytes"] => in_pod("bytes", index, cookie, way),
        _ => {}
    }
    let _ = fs::remove_file(path);
}

fn interface_name(index: u32) -> Option<String> {
    nix::net::if_::if_indextoname(index).ok()?.into_string().ok()
}

/// Removes everything below a pin root, and says what.
pub(in crate::datapath) fn uninstall(
    root: &Path,
    lock: impl Fn(&Path) -> Result<File, DatapathError>,
) -> Result<Vec<String>, DatapathError> {
    let mut removed = Vec::new();
    let Ok(layouts) = fs::read_dir(root) else { return Ok(removed) };
    let namespaces: LazyCell<Vec<NetNs>> = LazyCell::new(netns::all);
    for layout in layouts.flatten() {
        let directory = layout.path();
        let _lock = lock(&directory)?;
        let links = directory.join(LINKS);
        for entry in fs::read_dir(&links).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            remove(&links, &name, &namespaces);
            removed.push(format!("attachment {name}"));
        }
        removed.extend(maps::unpin(&directory));
        for path in [&links, &directory] {
            match fs::remove_dir(path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(DatapathError::Pin { path: path.clone(), source });
                }
                _ => {}
            }
        }
    }
    if fs::remove_dir(root).is_ok() {
        removed.push(format!("directory {}", root.display()));
    }
    Ok(removed)
}
