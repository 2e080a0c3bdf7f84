//! Which users can change a directory: its owner, and all users that may write to it.

use std::{fs, io};

use nix::{
    sys::stat::FileStat,
    unistd::{Gid, Group, Uid, User, getegid, geteuid, getgroups},
};

use super::refusal;

const STICKY: u32 = 0o1000;

/// The users whose directories we trust.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trusted {
    own: u32,
    /// The owner of `/`. In a user namespace root may not be mapped, and looks like `nobody`. The
    /// owner of `/` can change everything anyway.
    system: u32,
}

impl Trusted {
    pub(super) fn new(root: &FileStat) -> Self {
        Self {
            own: geteuid().as_raw(),
            system: root.st_uid,
        }
    }

    /// Checks a directory on the path, found in `parent`. With `strict`, it is also refused if
    /// other users may add and remove entries in it. The sticky bit makes it acceptable.
    pub(super) fn directory(
        self,
        found: &FileStat,
        parent: Option<&FileStat>,
        strict: bool,
    ) -> io::Result<()> {
        let (owner, mode) = (found.st_uid, found.st_mode);
        let is_known = if parent.is_some_and(|parent| self.others_write(parent)) {
            // Unmapped users of our user namespace look like that owner, too.
            self.is_ours_or_roots(owner)
        } else {
            self.is_ours_or_roots(owner) || owner == self.system
        };
        let own = user(self.own);
        if strict && !is_known {
            return Err(refusal(format!(
                "it belongs to {} with mode {:04o}, and every directory on the path must belong to \
                 {own} or to root",
                user(owner),
                mode & 0o7777,
            )));
        }
        if strict && mode & STICKY == 0 && self.others_write(found) {
            let how = if owner == self.own {
                "make it safe with `chmod go-w`".to_owned()
            } else {
                format!("use a directory that only {own} can write to")
            };
            return Err(refusal(format!(
                "other users can replace its entries (owner {}, group {}, mode {:04o}, no sticky \
                 bit); {how}",
                user(owner),
                found.st_gid,
                mode & 0o7777,
            )));
        }
        Ok(())
    }

    /// Whether an entry (a link, a file) in `parent` can be trusted, because no other user can have
    /// made it.
    pub(super) fn entry(self, found: &FileStat, parent: &FileStat) -> io::Result<()> {
        if !self.others_write(parent) || self.is_ours_or_roots(found.st_uid) {
            return Ok(());
        }
        Err(refusal(format!(
            "it belongs to {}, in a directory that other users can write to; it is not used",
            user(found.st_uid)
        )))
    }

    /// Refuses a file with a second name if another user may have made the hard link.
    pub(super) fn names(self, found: &FileStat, parent: &FileStat) -> io::Result<()> {
        if found.st_nlink > 1 && self.others_write(parent) {
            return Err(refusal("the file has a second name (a hard link)"));
        }
        Ok(())
    }

    const fn is_ours_or_roots(self, owner: u32) -> bool {
        owner == self.own || owner == 0
    }

    /// Whether users other than its owner may add entries to it.
    fn others_write(self, directory: &FileStat) -> bool {
        let mode = directory.st_mode;
        mode & 0o002 != 0 || (mode & 0o020 != 0 && !self.is_private_group(directory.st_gid))
    }

    /// Whether only root and we are in this group. Such a group is the private group that many
    /// systems give to each user (together with a umask of 002), root's group (which OpenShift's
    /// users have), or a group without members. We must be in a group that has no entry in group(5)
    /// (`fsGroup` of Kubernetes).
    fn is_private_group(self, gid: u32) -> bool {
        if gid == 0 {
            return true;
        }
        let known = |name: &String| {
            let user = User::from_name(name).ok().flatten();
            user.is_some_and(|user| self.is_ours_or_roots(user.uid.as_raw()))
        };
        let primary = self.is_not_others_primary(gid);
        match Group::from_gid(Gid::from_raw(gid)) {
            Ok(Some(group)) => primary && group.mem.iter().all(known),
            Ok(None) => {
                let own = getgroups().unwrap_or_default();
                primary && (getegid().as_raw() == gid || own.contains(&Gid::from_raw(gid)))
            }
            Err(_) => false,
        }
    }

    /// Whether no other user has it as their primary group (passwd(5)).
    fn is_not_others_primary(self, gid: u32) -> bool {
        let Ok(users) = fs::read_to_string("/etc/passwd") else {
            return true;
        };
        users.lines().all(|line| {
            let mut fields = line.split(':').skip(2);
            let number = |field: Option<&str>| field.and_then(|text| text.parse::<u32>().ok());
            let (uid, first) = (number(fields.next()), number(fields.next()));
            first != Some(gid) || uid.is_some_and(|uid| self.is_ours_or_roots(uid))
        })
    }
}

/// A user for messages: the name, if there is one, and the number.
pub(super) fn user(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => format!("{} (uid {uid})", user.name),
        Ok(None) | Err(_) => format!("uid {uid}"),
    }
}
