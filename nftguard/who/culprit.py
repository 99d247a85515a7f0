"""Who is behind an attempt, as far as that is known, and how it is said. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from nftguard.names import shown


@dataclass(frozen=True, slots=True)
class Culprit:
    """Everything that is known of who made an attempt; empty, or None, is what is not known.

    All of it is fit to be shown (`names.clean`). `source` and `interface` are those of what this host did not send.
    """

    uid: int | None = None
    user: str = ""
    cgroup: str = ""  # the path below the root of the control groups
    unit: str = ""
    user_unit: str = ""  # by that user's own word
    session: str = ""
    container: str = ""
    program: str = ""  # only where it is sure
    pid: int | None = None
    exe: str = ""
    cmdline: str = ""
    parent: str = ""
    candidates: tuple[str, ...] = ()  # processes that it may have been, as `curl[812]`, where the program is not sure
    known_by: str = ""
    """How the place was found: "kernel" (noted with the packet), "socket" (by its addresses), "address" (a guess)."""
    source: str = ""
    interface: str = ""

    @property
    def place(self) -> str:
        """The container, session or unit; empty where none is known."""
        if self.container or self.session:
            return self.container or f"session {self.session}"
        if self.user_unit:
            return f"{shown(self.user_unit)} of {shown(self.unit)}"
        return shown(self.unit) if self.unit else ""

    @property
    def owner(self) -> str:
        """The user, by name where there is one."""
        if self.uid is None:
            return ""
        return f"user {shown(self.user)}" if self.user else f"uid {self.uid}"

    @property
    def home(self) -> tuple[object, ...]:
        """Where he is at home: what all his attempts share, whatever the program and the login session."""
        if self.source:
            return (self.source, self.interface)
        return (self.uid, self.container) if self.session else (self.uid, self.container, self.user_unit, self.unit)

    @property
    def crowd(self) -> tuple[object, ...]:
        """Who shares a quota with him: names of units, and addresses, can be made up without end, but not these."""
        return ("interface", self.interface) if self.source else ("uid", self.uid)

    def of_the_crowd(self) -> Culprit:
        """Give one who stands for all of them."""
        if self.source:
            return Culprit(source="others", interface=self.interface)
        return Culprit(uid=self.uid, user=self.user)

    @property
    def key(self) -> tuple[object, ...]:
        """What attempts that are summed up together share."""
        return (*self.home, self.container, self.session, self.program)

    def __str__(self) -> str:
        """Say it in a few words: `ss-server (shadowsocks.service, uid 998)`."""
        if self.source:
            about = [part for part in (self.container, self.interface and f"on {shown(self.interface)}") if part]
            return f"{self.source} ({', '.join(about)})" if about else self.source
        about = [part for part in (self.place, self.owner) if part]
        if self.program:
            return f"{shown(self.program)} ({', '.join(about)})" if about else shown(self.program)
        if len(about) == 2:
            return f"{about[0]} ({about[1]})"
        return f"{about[0]} (unit not known)" if about and not self.place else about[0] if about else "nobody known"

    def lasting(self) -> dict[str, object]:
        """Give what holds for all attempts of the same `key`; None and empty ones are left out when it is written."""
        return {
            "uid": self.uid,
            "user": self.user,
            "unit": self.unit,
            "user_unit": self.user_unit,
            "session": self.session,
            "container": self.container,
            "program": self.program,
            "source": self.source,
            "interface": self.interface,
        }

    def passing(self) -> dict[str, object]:
        """Give what holds for one attempt alone."""
        return {
            "cgroup": self.cgroup,
            "pid": self.pid,
            "exe": self.exe,
            "cmdline": self.cmdline,
            "parent": self.parent,
            "candidates": " ".join(map(shown, self.candidates)),
            "known_by": self.known_by,
        }
