"""Every example in the README runs, and every generated list is current."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+) (test|file=\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path):
    return [(kind, what, text) for kind, what, text in BLOCK.findall(path.read_text())]


def test_the_readme_runs_as_it_stands(tmp_path):
    """In one shell, in order, in an empty folder, with mosquitto on the README's own port."""
    script = ["set -e"]
    for _, what, text in blocks(ROOT / "README.md"):
        if what == "test":
            script.append(text)
        else:
            (tmp_path / what.removeprefix("file=")).write_text(text)
    environment = dict(os.environ, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin")
    shell = subprocess.Popen(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = shell.communicate(timeout=120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
    assert shell.returncode == 0, out + err
    assert "main" in out
    assert "heatpump" in out
    assert out.count("verified") >= 3
    assert "NOT VERIFIED" not in out
    assert "1-0:" in out, "the export shows values"
    assert re.search(r"log\s+\d+ entries, \d+ committed, [1-9]\d* acknowledged", out)


@pytest.mark.parametrize(
    ("module", "document"),
    [
        ("energybid.agent.reference", "docs/configuration.md"),
        ("energybid.drivers.supported", "SUPPORTED.md"),
        ("energybid.sync.topics", "docs/topics.md"),
    ],
)
def test_generated_lists_are_current(module, document):
    made = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True, check=True).stdout
    assert (ROOT / document).read_text() == made, f"python -m {module} > {document}"


def test_links_between_documents_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.relative_to(ROOT)} names {target}"


def test_the_namespace_has_no_init_file():
    assert not list(ROOT.glob("*/energybid/__init__.py")), "PEP 420: it would hide the other components"


def test_the_wheel_holds_every_component_and_nothing_else(tmp_path):
    import zipfile

    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"energybid"}
    parts = {name.split("/")[1] for name in names if name.startswith("energybid/")}
    assert parts >= {"core", "agent", "drivers", "sync", "headend", "simulator", "firmware_bridge"}
    assert "energybid/drivers/profiles/eastron-sdm630.toml" in names
    assert "energybid/__init__.py" not in names


def test_the_project_names_no_machine():
    """No path or host of anybody's workplace."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    pattern = re.compile(rb"(^|[^A-Za-z])/(work|root|home/\w+)/", re.MULTILINE)
    for name in filter(None, listed.split(b"\0")):
        path = ROOT / name.decode()
        if path.is_file() and path != Path(__file__):
            assert not pattern.search(path.read_bytes()), name
