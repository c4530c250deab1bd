"""Boots a Debian root with systemd, installs the agent in it, and sees it go on through a kill and a reboot.

    make test-boot                     Debian 12
    systemd/test-boot --suite trixie   Debian 13

Needs root, debootstrap and systemd-container, and the network the first time only: the bare root and the wheels are
kept under build/boot. Everything runs in a container of its own (processes, network, files); what happens in it is
inside.py beside this file. Only Debian's Python is needed, no virtual environment.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
BUILD = PROJECT / "build" / "boot"
PACKAGES = "systemd,systemd-sysv,udev,dbus,python3,python3-venv,mosquitto"
PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
EXTRAS = "[bidding]"
NEWEST_GLIBC = {"bookworm": 36, "trixie": 41}
REBOOT = 133
"""systemd-nspawn's exit code under --keep-unit where the container asks to be started again."""
TOOLS = {"debootstrap": "debootstrap", "systemd-nspawn": "systemd-container", "apt-get": "apt", "tar": "tar"}


def main() -> int:
    """Prepare, boot, report."""
    parser = argparse.ArgumentParser(
        prog="systemd/test-boot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=sorted(PYTHONS), default="bookworm", help="Debian release (default: 12)")
    parser.add_argument("--timeout", type=float, default=420, help="seconds that the container may take")
    parser.add_argument("--keep", action="store_true", help="leave the root under build/boot for a look")
    arguments = parser.parse_args()
    missing = sorted(package for tool, package in TOOLS.items() if not shutil.which(tool))
    if missing:
        parser.error(f"apt-get install {' '.join(missing)}")
    if os.geteuid():
        parser.error("must be run as root")
    BUILD.mkdir(parents=True, exist_ok=True)
    archive = bare_root(arguments.suite)
    wheels = wheelhouse(arguments.suite)
    root, shared = unpack(archive, wheels, arguments.suite)
    try:
        seconds = boot(root, shared, arguments.timeout)
        return report(shared, seconds)
    finally:
        if not arguments.keep:
            shutil.rmtree(root, ignore_errors=True)


def say(text: str) -> None:
    """Progress, for people."""
    sys.stderr.write(f"test-boot: {text}\n")


def out(text: str) -> None:
    """The result."""
    sys.stdout.write(f"{text}\n")


def mirror(suite: str) -> str:
    """The archive that this machine's apt takes Debian from.

    Raises:
        SystemExit: apt names none.
    """
    form = "$(CREATED_BY) $(COMPONENT) $(RELEASE) $(REPO_URI)"
    listed = subprocess.run(["apt-get", "indextargets", "--format", form], check=True, capture_output=True, text=True)
    found = {}
    for line in listed.stdout.splitlines():
        kind, component, release, uri = line.split(maxsplit=3)
        if (kind, component) == ("Packages", "main"):
            found[release] = uri
    # A release's own archive holds the other releases too; its security and updates archives do not.
    for release in (suite, *sorted(name for name in found if name.isalpha())):
        if release in found:
            return found[release]
    raise SystemExit("test-boot: apt on this machine knows no Debian archive to take a root from")


def bare_root(suite: str) -> Path:
    """An archive of a bare root with the packages that the test needs; made once."""
    key = sha256(f"{suite} {PACKAGES}".encode()).hexdigest()[:8]
    archive = BUILD / f"{suite}-{key}.tar"
    if archive.exists():
        return archive
    say(f"making a bare {suite} root (once; a minute or two)")
    scratch = BUILD / f"{archive.stem}.scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    proxy = subprocess.run(
        ["apt-config", "shell", "http_proxy", "Acquire::http::Proxy"], check=True, capture_output=True, text=True
    )
    settings = dict(pair.split("=", 1) for pair in shlex.split(proxy.stdout) if "=" in pair)
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, str(scratch), mirror(suite)]
    log = BUILD / f"{archive.stem}.log"
    with log.open("wb") as file:
        made = subprocess.run(command, env=os.environ | settings, stdout=file, stderr=subprocess.STDOUT, check=False)
    if made.returncode:
        raise SystemExit(f"test-boot: debootstrap failed, see {log}")
    for cached in (scratch / "var/cache/apt/archives").glob("*.deb"):
        cached.unlink()
    subprocess.run(["tar", "-C", scratch, "--numeric-owner", "-cf", f"{archive}.part", "."], check=True)
    Path(f"{archive}.part").replace(archive)
    shutil.rmtree(scratch)
    return archive


def wheelhouse(suite: str) -> Path:
    """A folder with our wheel, fresh, and those of its dependencies for the root's Python, fetched once."""
    pip = builder()
    folder = BUILD / f"wheels-{suite}"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("energybid_edge-*.whl"):
        old.unlink()
    say("building our wheel")
    subprocess.run([pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, PROJECT], check=True)
    (ours,) = folder.glob("energybid_edge-*.whl")
    wanted = sha256((PROJECT / "pyproject.toml").read_bytes() + EXTRAS.encode()).hexdigest()
    mark = folder / ".complete"
    if not mark.exists() or mark.read_text() != wanted:
        say("fetching the wheels that it needs")
        machine = platform.machine()
        tags = [f"manylinux_2_{minor}_{machine}" for minor in range(NEWEST_GLIBC[suite], 4, -1)]
        tags += [f"manylinux2014_{machine}", f"linux_{machine}"]
        options = [word for tag in tags for word in ("--platform", tag)]
        command = [pip, "download", "--quiet", "--only-binary=:all:", "--python-version", PYTHONS[suite]]
        subprocess.run([*command, *options, "--dest", folder, "--find-links", folder, f"{ours}{EXTRAS}"], check=True)
        mark.write_text(wanted)
    return folder


def builder() -> Path:
    """pip, of a virtual environment of this test's own."""
    pip = BUILD / "venv" / "bin" / "pip"
    if not pip.exists():
        subprocess.run([sys.executable, "-m", "venv", BUILD / "venv"], check=True)
    return pip


def unpack(archive: Path, wheels: Path, suite: str) -> tuple[Path, Path]:
    """A fresh root, and the folder it shares with us: (root, shared)."""
    root, shared = BUILD / f"root-{suite}", BUILD / f"shared-{suite}"
    for folder in (root, shared):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o755)
    subprocess.run(["tar", "-C", root, "--numeric-owner", "-xpf", archive], check=True)
    shutil.copytree(PROJECT / "systemd", shared / "systemd")
    shutil.copytree(HERE, shared / "boot", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(wheels, shared / "wheels", ignore=shutil.ignore_patterns(".complete"))
    say("installing into the image")
    install = [shared / "systemd/install", "--root", root, "--wheelhouse", shared / "wheels", "--bidding"]
    subprocess.run(install, check=True, stdout=sys.stderr)
    if list((root / "etc/energybid/keys").iterdir()):
        raise SystemExit("test-boot: FAILED: the image holds a key; all cards written from it would sign with it")
    system = root / "etc/systemd/system"
    shutil.copy(HERE / "boot-test.service", system)
    (system / "multi-user.target.wants").mkdir(exist_ok=True)
    (system / "multi-user.target.wants/boot-test.service").symlink_to("../boot-test.service")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    # Journals that outlive the reboot.
    (root / "var/log/journal").mkdir(exist_ok=True)
    return root, shared


@contextmanager
def own_cgroup() -> Iterator[list[str]]:
    """Where the container's cgroups go: words to put before its command; what is left over is removed."""
    if Path("/run/systemd/system").is_dir():
        yield ["systemd-run", "--quiet", "--scope", "--property=Delegate=yes", "--"]
        return
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    tops = [Path(m[1]) for m in mounts if m[2] == "cgroup2" or (m[2] == "cgroup" and "name=systemd" in m[3])]
    groups = [top / f"energybid-boot-{os.getpid()}" for top in tops]
    for group in groups:
        group.mkdir()
    enter = "; ".join(f"echo $$ > {group}/cgroup.procs" for group in groups)
    try:
        yield ["/bin/sh", "-c", f'{enter}; exec "$@"', "sh"]
    finally:
        for group in groups:
            for folder, _, _ in os.walk(group, topdown=False):
                Path(folder).rmdir()


def boot(root: Path, shared: Path, timeout_s: float) -> float:
    """Run the container until it powers itself off, reboots in between included. Returns the seconds it took."""
    begun = time.monotonic()
    code = REBOOT
    with (shared / "console.log").open("wb") as console:
        while code == REBOOT:
            say(f"booting {root.name}")
            code = container(root, shared, console, timeout_s - (time.monotonic() - begun))
    return time.monotonic() - begun


def container(root: Path, shared: Path, console: IO[bytes], timeout_s: float) -> int:
    """One boot; returns nspawn's exit code."""
    command = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--private-network"]
    # DeviceAllow= and IPAddressDeny= are BPF programs, which systemd in the container must be allowed to load.
    command += ["--system-call-filter=bpf", "--capability=CAP_BPF,CAP_PERFMON,CAP_SYS_RESOURCE"]
    command += [f"--bind={shared}:/srv/shared", f"--directory={root}"]
    # Where /run is not a file system of its own, nspawn would not clean up below it: give it one, of its own too.
    wrapped = ["unshare", "--mount", "/bin/sh", "-c", 'mount -t tmpfs tmpfs /run && exec "$@"', "sh", *command]
    # The unified hierarchy whatever the host has: only there are DeviceAllow= and IPAddressDeny= carried out.
    environment = os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
    with own_cgroup() as enter:
        process = subprocess.Popen(
            [*enter, *wrapped], env=environment, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
        )
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            say("not done in time: stopping the container")
            process.terminate()
            return process.wait(60)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def report(shared: Path, seconds: float) -> int:
    """Print what the container wrote; exit code."""
    written = shared / "report.json"
    facts = json.loads(written.read_text()) if written.exists() else {}
    for check in facts.get("checks", []):
        out(f"  {check['seconds']:6.1f} s  {check['name']}: {check['result']}")
    if facts.get("passed"):
        out(f"test-boot: passed, {len(facts['checks'])} checks, {seconds:.0f} s, exposure {facts['exposure']}")
        return 0
    out(f"test-boot: FAILED: {facts.get('failure', 'the container did not report')}")
    out(f"logs: {shared}/console.log, journal.log")
    return 1


if __name__ == "__main__":
    sys.exit(main())
